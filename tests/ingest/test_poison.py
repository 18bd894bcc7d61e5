"""What cannot be stored costs nothing else: it is refused or set aside with its reason, and can be tried again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update
from tests.api.test_otlp import send
from tests.command import tachograph
from tests.conftest import ROOT, Api, make_execution, make_run, serve
from tests.ingest.intake import Intake
from tests.ingest.recorded import spans_of
from tests.store.test_rollups import differing

from tachograph.clock import MAX_NS, NS
from tachograph.events import ExecutionFinished, ExecutionStatus, StepCost
from tachograph.recording.listener_queue import ListenerQueue
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest import reassembly
from tachograph_exporter.ingest.assembly import executions as assembly
from tachograph_exporter.store import refused
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import traces
from tachograph_exporter.store.totals import CountedExecution, WorkflowTotals
from tachograph_exporter.store.writer import StoreWriter

pytestmark = pytest.mark.every_database

YEAR = 365 * 86_400


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


def document(*spans: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]})


def json_span(number: int, start_ns: int, end_ns: int, name: str = "job", parent: int = 0) -> dict[str, Any]:
    """Each in a trace of its own, unless it has a parent."""
    trace = parent or number
    more = {"parentSpanId": f"{parent:016x}"} if parent else {}
    return {
        "traceId": f"{trace:032x}", "spanId": f"{number:016x}", "name": name, **more,
        "startTimeUnixNano": str(start_ns), "endTimeUnixNano": str(end_ns),
    }  # fmt: skip


async def post(api: Api, *spans: dict[str, Any]) -> tuple[int, str]:
    """(rejected spans, why) of a request that must be answered with 200."""
    status, body = await send(api, document(*spans), "application/json")
    assert status == 200, body
    partial = msgspec.json.decode(body).get("partialSuccess", {})
    return int(partial.get("rejectedSpans", 0)), partial.get("errorMessage", "")


NEVER_SET: dict[str, tuple[int | None, int | None, str]] = {
    "from 1970": (1, None, "before the year 2000"),
    "1970": (86_400, 90_000, "before the year 2000"),
    "to 9999": (None, 253_402_300_799, "no valid start or end"),
    "9999": (253_402_300_798, 253_402_300_799, "no valid start or end"),
    "2255": (9_000_000_000, 9_000_000_001, "more than a day from now"),
    "long": (-3 * YEAR, None, "longer than a year"),
}


async def test_a_clock_that_was_never_set_costs_its_own_spans_only(api: Api) -> None:
    for case, (name, (start_s, end_s, says)) in enumerate(NEVER_SET.items()):
        now = time.time_ns()
        start = now if start_s is None else (start_s * NS if start_s > 0 else now + start_s * NS)
        end = now + NS if end_s is None else end_s * NS
        first = 1 + 1_000 * case
        rejected, why = await post(api, json_span(first, start, end, name), json_span(first + 1, now, now + NS, name))
        assert (rejected, says in why) == (1, True), (name, why)
        assert (await api.get(f"/api/workflows/{name}/executions"))["total"] == 1
        # The workflow stays usable, however often that happens.
        for number in range(first + 2, first + 12):
            await post(api, json_span(number, start, end, name), json_span(100 + number, now, now + NS, name))
        assert (await api.get(f"/api/workflows/{name}/metrics"))["total_executions"] == 11
    assert differing(api.service.database) == 0


async def test_sums_beyond_64_bits_are_exact(api: Api) -> None:
    now = time.time_ns()
    almost_a_year = 365 * 86_400 * NS
    for trace in range(1, 4):
        spans = [json_span(trace, now - almost_a_year, now)]
        spans += [json_span(1000 * trace + i, now - almost_a_year, now, f"part {i}", trace) for i in range(400)]
        assert await post(api, *spans) == (0, "")
    summary = await api.get("/api/workflows/job/metrics")
    assert summary["total_executions"] == 3
    assert differing(api.service.database) == 0
    assert (await api.call("GET", "/metrics"))[0] == 200


def test_totals_survive_encoding_at_any_size() -> None:
    whole = WorkflowTotals()
    for _ in range(20):
        whole.add_execution(CountedExecution("completed", 0, MAX_NS, MAX_NS, MAX_NS, MAX_NS))
        whole.add_step(
            ("a", "completed", 0, MAX_NS, 2, 0, 0, 0, MAX_NS, MAX_NS, MAX_NS, None, None, ()), True, "completed"
        )
    encoded = whole.encode()
    decoded = WorkflowTotals.decode(*encoded)
    assert decoded.executions["completed"].sum_ns == 20 * MAX_NS
    assert decoded.steps["a"].by_status["completed"].unaccounted_ns == 20 * MAX_NS
    assert decoded.encode() == encoded
    # Growing step by step gives the same bytes.
    one = WorkflowTotals()
    one.add_execution(CountedExecution("completed", 0, MAX_NS, MAX_NS, MAX_NS, MAX_NS))
    one.add_step(("a", "completed", 0, MAX_NS, 2, 0, 0, 0, MAX_NS, MAX_NS, MAX_NS, None, None, ()), True, "completed")
    grown = one.encode()
    for _ in range(19):
        grown = one.add_to_encoded(*grown)
    assert grown == encoded


def test_a_run_whose_cost_is_beyond_every_sum_is_recorded(any_database_url: str) -> None:
    database = Database(any_database_url)
    run = make_run(make_execution())
    step = run[1].step  # type: ignore[union-attr]
    costs = [StepCost(step=step, time_ns=2, sequence=i, attempt=1, usd=1e308, tokens_in=MAX_NS) for i in range(3)]
    StoreWriter(database).apply([*run[:2], *costs, *run[2:]])
    assert differing(database) == 0
    database.close()


async def test_a_trace_that_cannot_be_assembled_is_set_aside_and_the_others_are_stored(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assemble = assembly.assemble

    def failing(workspace: str, spans: Any, *arguments: Any, **options: Any) -> Any:
        if any(record.name == "poison" for record in spans):
            raise KeyError("poison")
        return assemble(workspace, spans, *arguments, **options)

    from tachograph_exporter.ingest import trace_executions

    now = time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(trace_executions, "assemble", failing)
        spans = [json_span(n, now, now + NS, "poison" if n == 5 else "job") for n in range(1, 11)]
        rejected, why = await post(api, *spans)
        assert (rejected, "set aside" in why) == (1, True)
    assert (await api.get("/api/workflows/executions"))["total"] == 9
    database = api.service.database
    (record,) = await database.read(refused.listed)
    assert (record.kind, record.subject, record.tries) == ("trace", f"{5:032x}", 1)
    assert "KeyError" in record.reason
    text = (await api.call("GET", "/metrics"))[1]
    assert 'tachograph_records_refused_total{kind="trace"} 1' in text
    ready = await api.get("/-/ready")
    assert ready["status"] == "ready"
    assert any("tachograph refused" in warning for warning in ready["warnings"])
    # What has been mended since can be stored.
    listed, shown, retried = (command(database, *words) for words in (["list"], ["show", record.id], ["retry"]))
    assert record.subject in listed.stdout
    assert "poison" in shown.stdout
    assert retried.returncode == 0, retried.stdout + retried.stderr
    assert (await api.get("/api/workflows/executions"))["total"] == 10
    assert await database.read(refused.listed) == []
    assert differing(database) == 0


async def test_a_trace_that_cannot_be_assembled_again_stops_no_other(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from tachograph_exporter.ingest import trace_executions

    # Traces without their root are assembled once more later.
    now = time.time_ns()
    orphans = [json_span(n, now, now + NS, "poison" if n == 1 else "job", parent=1000 + n) for n in range(1, 6)]
    await post(api, *orphans)
    database = api.service.database
    due = select(traces.c.trace_id).where(traces.c.due_ns.is_not(None))
    assert len(await database.read(lambda c: c.execute(due).all())) == 5
    await database.write(lambda c: c.execute(traces.update().values(due_ns=1, changed_ns=1)))
    assemble = assembly.assemble

    def failing(workspace: str, spans: Any, *arguments: Any, **options: Any) -> Any:
        if any(record.name == "poison" for record in spans):
            raise KeyError("poison")
        return assemble(workspace, spans, *arguments, **options)

    monkeypatch.setattr(trace_executions, "assemble", failing)
    while await api.service.upkeep.reassemble_due_traces():
        pass
    assert await database.read(lambda c: c.execute(due).all()) == []
    assert [record.kind for record in await database.read(refused.listed)] == ["trace"]


def command(database: Database, *words: Any) -> subprocess.CompletedProcess[str]:
    url = database.url.set(drivername=database.url.get_backend_name()).render_as_string(hide_password=False)
    return tachograph(ROOT, "refused", *words, "--database", url)


def test_an_event_that_no_database_takes_is_set_aside_and_costs_no_other(any_database_url: str) -> None:
    database = Database(any_database_url)
    counted: list[str] = []
    queue = ListenerQueue("store", StoreWriter(database, refused=counted.append))
    bad = make_execution("bad")
    runs = [make_run(make_execution()) for _ in range(20)]
    events = [event for run in runs for event in run]
    end = ExecutionFinished(
        execution=bad, time_ns=10**21, status=ExecutionStatus.COMPLETED, started_ns=10**21, step_count=0
    )
    events.insert(41, end)
    for event in events:
        queue.put(event)
    assert not queue.flush(60)
    assert queue.dropped == {"error": 1}
    assert counted == ["event"]
    assert differing(database) == 0
    (record,) = database.look(refused.listed)
    assert (record.kind, record.subject) == ("event", bad.execution_id)
    assert refused.decode_event(record.payload) == end
    again = command(database, "retry")
    assert again.returncode == 1
    assert "refused again" in again.stdout
    assert database.look(refused.listed)[0].tries == 2
    assert command(database, "delete", record.id, "--yes").returncode == 0
    assert database.look(refused.count) == 0
    queue.close(5)
    database.close()


def test_how_many_records_are_kept_is_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "MAX_RECORDS", 3)
    database = Database(database_url)
    error = ValueError("no \0 and no \ud800")
    kept = [database.run(lambda c: refused.add(c, "event", "default", "x", error, b"{}")) for _ in range(5)]
    assert kept == [True, True, True, False, False]
    assert database.look(refused.count) == 3
    database.close()


@pytest.mark.parametrize("has_become_due", [False, True])
def test_a_trace_that_becomes_due_while_its_assembly_fails_is_assembled_again(
    any_database_url: str, monkeypatch: pytest.MonkeyPatch, has_become_due: bool
) -> None:
    intake = Intake(any_database_url)
    intake.take(spans_of(document(json_span(1, NS * 1_700_000_000, NS * 1_700_000_001))))
    database = intake.database
    database.run(lambda c: c.execute(update(traces).values(due_ns=1)))
    (due,) = database.run(reassembly.claim_due)

    def fail(*_: object) -> None:
        if has_become_due:
            database.run(lambda c: c.execute(update(traces).values(due_ns=2)))
        raise ZeroDivisionError

    monkeypatch.setattr(reassembly, "_reassemble", fail)
    reassembly.reassemble(intake.store, due)
    due_ns = database.look(lambda c: c.execute(select(traces.c.due_ns)).scalar_one())
    assert due_ns == (2 if has_become_due else None)
    intake.close()
