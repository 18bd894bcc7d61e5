"""A run of which several traces tell is one execution, whichever of them arrives first, and in whatever pieces."""

from __future__ import annotations

import shutil
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sqlalchemy import select
from tests.api.test_otlp import T0, S, export, sent
from tests.conftest import Api, running, serve
from tests.ingest.intake import Intake, counts_of, intakes
from tests.ingest.recorded import in_order, in_pieces, recorded_requests
from tests.ingest.test_open_spans import Clock, becomes, of_celery
from tests.ingest.test_recordings import lasting, problems_of
from tests.ingest.truth import read_truth
from tests.store.test_rollups import differing

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest import rests, span_rows, span_store, trace_groups
from tachograph_exporter.ingest.rule_file import read_rules
from tachograph_exporter.ingest.spans import SpanRecord, records
from tachograph_exporter.store.schema import traces
from tachograph_exporter.store.workspaces import add_workspace

NAMES: Final = (
    "celery_links_chain_with_retry", "celery_links_chord_in_span", "celery_live_chord_bare",
    "celery_live_groups_at_once", "dagster113_warehouse", "temporal_plugin_asked",
)  # fmt: skip


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[Callable[[], Intake]]:
    with intakes(Intake, tmp_path, empty_database) as make:
        yield make


def spans_of(messages: Sequence[Span]) -> list[SpanRecord]:
    stored = list(records(export(messages).resource_spans))
    assert not [span for span in stored if isinstance(span, str)]
    return [span for span in stored if isinstance(span, SpanRecord)]


def message(
    name: str,
    trace: int,
    number: int,
    start: float,
    end: float | None,
    *,
    parent: int = 0,
    linked: tuple[int, int] | None = None,
    of: dict[str, str | int],
) -> Span:
    span = Span(
        trace_id=trace.to_bytes(16), span_id=number.to_bytes(8), name=name, start_time_unix_nano=T0 + round(start * S)
    )
    if parent:
        span.parent_span_id = parent.to_bytes(8)
    if end is not None:
        span.end_time_unix_nano = T0 + round(end * S)
    if linked is not None:
        span.links.add(trace_id=linked[0].to_bytes(16), span_id=linked[1].to_bytes(8))
    for key, value in of.items():
        attribute = span.attributes.add(key=key)
        if isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.string_value = value
    return span


def task(number: int, *, last: bool = False, start: float | None = None) -> list[Span]:
    """A task of a chain as Celery's instrumentation tells of it with ``use_span_links``: trace ``number`` has its run,
    and the span that sent the next one. The first task is number 1; its sender is trace 100,000."""
    at = float(number) if start is None else start
    sender = (number - 1, 2) if number > 1 else (100_000, 2)
    run = message(
        f"run/t{number}", number, 1, at, at + 0.5, linked=sender,
        of={"celery.action": "run", "celery.state": "SUCCESS", "celery.task_name": f"t{number}",
            "messaging.message.id": f"m{number}"},
    )  # fmt: skip
    return [run] if last else [run, send(number + 1, number, at + 0.4, parent=1)]


def send(number: int, trace: int, at: float, *, parent: int = 0) -> Span:
    """What sent a task."""
    return message(
        f"apply_async/t{number}", trace, 2, at, at + 0.05, parent=parent,
        of={"celery.action": "apply_async", "celery.task_name": f"t{number}", "messaging.message.id": f"m{number}"},
    )  # fmt: skip


def chain(length: int) -> list[Span]:
    spans = [send(1, 100_000, 0.5)]
    for number in range(1, length + 1):
        spans += task(number, last=number == length)
    return spans


def dagster(run_id: str, step: str, trace: int, number: int, start: float) -> Span:
    return message(
        step, trace, number, start, start + 0.5,
        of={"dagster.run_id": run_id, "dagster.job_name": "warehouse", "dagster.step_key": step},
    )  # fmt: skip


def is_consistent(service: Intake) -> None:
    timelines = service.timelines()
    assert service.counted() == counts_of(timelines)
    assert service.rows_to_correct() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_becomes_one_execution_in_any_order_and_pieces(name: str, intake: Callable[[], Intake]) -> None:
    spans = [span for request in recorded_requests(name) for span in request]
    tolerance: float = read_truth(name)["tolerance_seconds"]
    # In the order of arrival, and from the end, test_raw_recordings.py delivers them.
    for order, size in (("by end", 3), ("shuffled", 1), ("ages apart", 1)):
        service = intake()
        for piece in in_pieces(in_order(spans, "reversed" if order == "ages apart" else order), size):
            assert service.take(piece) == len(piece)
            if order == "ages apart":
                # Each trace has been quiet, and counted for what it seemed to be, before the next one comes.
                service.settle()
        service.settle()
        assert problems_of(name, service, tolerance=tolerance) == [], order
        before = lasting(service), service.counted(), len(service.events)
        assert service.take(spans) == 0
        service.settle()
        assert (lasting(service), service.counted(), len(service.events)) == before, order
        service.close()


def test_what_was_an_execution_of_its_own_is_part_of_the_other_one(intake: Callable[[], Intake]) -> None:
    service = intake()
    first, second, third = chain(1)[:1], task(1), task(2, last=True)
    service.take(spans_of(third))
    service.settle()
    (alone,) = service.timelines()
    assert (alone["workflow_name"], alone["status"]) == ("t2", "completed")
    service.take(spans_of([*first, *second]))
    service.settle()
    (joined,) = service.timelines()
    assert (joined["workflow_name"], joined["status"]) == ("t1", "completed")
    assert [step["step_name"] for step in joined["step_timeline"]] == ["t1", "t2"]
    assert joined["execution_id"] != alone["execution_id"]
    is_consistent(service)


ACME = """
[[rule]]
engine = "acme"
role = "step"
has = ["acme.task"]
name = "acme.task"
workflow = "acme.flow"
run_id = "acme.run"
across_traces = true
"""


def test_a_rule_of_the_users_joins_traces_by_any_id_of_the_run(tmp_path: Path, empty_database: Path) -> None:
    (tmp_path / "rules.toml").write_text(ACME)
    rules = read_rules(tmp_path / "rules.toml")
    spans = spans_of([
        message(name, trace, trace, trace, trace + 0.5, of={"acme.task": name, "acme.flow": "etl", "acme.run": run})
        for name, trace, run in (("a", 1, 7), ("b", 2, 7), ("c", 3, 8), ("d", 4, 7))
    ])  # fmt: skip
    shown = []
    for order in ("as recorded", "reversed", "shuffled"):
        shutil.copy(empty_database, tmp_path / f"{order}.db")
        service = Intake(f"sqlite:///{tmp_path}/{order}.db", rules)
        for span in in_order(spans, order):
            service.take([span])
        service.settle()
        steps = {t["execution_id"]: [step["step_name"] for step in t["step_timeline"]] for t in service.timelines()}
        assert sorted(steps.values()) == [["a", "b", "d"], ["c"]]
        shown.append(steps)
        is_consistent(service)
        service.close()
    assert shown[0] == shown[1] == shown[2]


def test_a_service_that_starts_again_between_two_traces_joins_them(intake: Callable[[], Intake]) -> None:
    service = intake()
    url = service.database.url.render_as_string()
    spans = spans_of(chain(4))
    for span in spans[::-1]:
        service.take([span])
        service.close()
        service = Intake(url)
    service.settle()
    (timeline,) = service.timelines()
    assert timeline["completed_step_count"] == 4
    is_consistent(service)
    service.close()


def test_an_id_in_another_workspace_joins_nothing(intake: Callable[[], Intake]) -> None:
    service = intake()
    run_id = str(uuid.UUID(int=7))
    other_id = service.database.run(lambda c: add_workspace(c, "other", T0))

    def take_other(spans: list[SpanRecord]) -> None:
        service.store.commit(lambda c: (result := service.store.take(c, other_id, "other", spans), result.events))

    service.take(spans_of([dagster(run_id, "a", 1, 1, 0)]))
    take_other(spans_of([dagster(run_id, "b", 2, 2, 1), *chain(1)]))
    service.take(spans_of(task(2, last=True)))
    service.settle()
    (mine,) = [t for t in service.timelines_of(service.workspace_id) if t["workflow_name"] == "warehouse"]
    assert (mine["execution_id"], [step["step_name"] for step in mine["step_timeline"]]) == (run_id, ["a"])
    (other,) = [t for t in service.timelines_of(other_id) if t["workflow_name"] == "warehouse"]
    assert [step["step_name"] for step in other["step_timeline"]] == ["b"]
    names = Counter(timeline["workflow_name"] for timeline in service.timelines_of(other_id))
    assert names == {"warehouse": 1, "t1": 1}


@pytest.mark.parametrize("order", ["as recorded", "reversed", "shuffled"])
def test_an_endless_chain_is_executions_of_a_bounded_size(
    order: str, intake: Callable[[], Intake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_groups, "MAX_TRACES", 4)
    service = intake()
    for piece in in_pieces(in_order(spans_of(chain(17)), order), 2):
        service.take(piece)
    service.settle()
    timelines = service.timelines()
    steps = Counter(step["step_name"] for timeline in timelines for step in timeline["step_timeline"])
    # What sent a task at the end of a group has no run in it; the run begins the next one.
    assert set(steps) == {f"t{number}" for number in range(1, 18)}
    assert max(len(timeline["step_timeline"]) for timeline in timelines) <= 5
    assert len(timelines) >= 4
    is_consistent(service)


def test_traces_with_too_many_spans_together_are_each_by_itself(
    intake: Callable[[], Intake], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = intake()
    run_id = str(uuid.UUID(int=7))
    service.take(spans_of([dagster(run_id, f"a{n}", 1, n, n) for n in range(1, 5)]))
    service.take(spans_of([dagster(run_id, f"b{n}", 2, n, n) for n in range(11, 15)]))
    service.settle()
    assert [len(timeline["step_timeline"]) for timeline in service.timelines()] == [8]
    monkeypatch.setattr(span_store, "MAX_AT_ONCE", 4)
    monkeypatch.setattr(span_rows, "MAX_AT_ONCE", 4)
    monkeypatch.setattr(span_store, "MAX_TRACE_SPANS", 8)
    service.take(spans_of([dagster(run_id, "b15", 2, 15, 15)]))
    service.settle()
    assert sorted(len(timeline["step_timeline"]) for timeline in service.timelines()) == [4, 5]
    is_consistent(service)


@pytest.mark.parametrize("limit", ["spans", "traces"])
def test_a_long_run_of_several_traces_is_read_later_and_the_same(
    limit: str, intake: Callable[[], Intake], monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit == "spans":
        monkeypatch.setattr(span_store, "MAX_AT_ONCE", 6)
        monkeypatch.setattr(span_rows, "MAX_AT_ONCE", 6)
    else:
        monkeypatch.setattr(trace_groups, "MAX_TRACES_AT_ONCE", 3)
    service = intake()
    for span in in_order(spans_of(chain(8)), "shuffled"):
        service.take([span])
    service.settle()
    (timeline,) = service.timelines()
    assert (timeline["status"], timeline["completed_step_count"]) == ("completed", 8)
    is_consistent(service)


def test_spans_of_two_traces_may_have_the_same_ids(intake: Callable[[], Intake]) -> None:
    spans = spans_of(chain(5))
    assert len({span.span_id for span in spans}) == 2
    for order in ("reversed", "shuffled"):
        service = intake()
        for span in in_order(spans, order):
            service.take([span])
        service.settle()
        (timeline,) = service.timelines()
        by_id = {step["step_id"]: step["step_name"] for step in timeline["step_timeline"]}
        edges = {
            (by_id[other], step["step_name"]) for step in timeline["step_timeline"] for other in step["depends_on"]
        }
        assert edges == {(f"t{number}", f"t{number + 1}") for number in range(1, 5)}, order


def test_links_take_nothing_away_from_other_executions(intake: Callable[[], Intake]) -> None:
    """A client that links to traces of others adds at most steps of its own, and changes no execution's id."""
    service = intake()
    mine = [span for number in (1, 2) for span in task(number, last=number == 2)]
    others = [
        message("nightly", 500, 1, 0, 9, of={}), message("extract", 500, 2, 1, 2, parent=1, of={}),
        message("weekly", 501, 1, 0, 9, of={}), message("load", 501, 2, 3, 4, parent=1, of={}),
    ]  # fmt: skip
    service.take(spans_of([*others, send(1, 100_000, 0.5), *mine]))
    service.settle()
    before = {t["workflow_name"]: t for t in service.timelines()}
    assert before.keys() == {"nightly", "weekly", "t1"}
    hostile = [
        message(f"run/x{n}", 900, n, 20 + n, 21 + n, linked=place,
                of={"celery.action": "run", "celery.task_name": f"x{n}", "messaging.message.id": f"x{n}"})
        for n, place in enumerate([(500, 1), (500, 77), (501, 2), (100_000, 2), (1, 1), (900, 1), (12345, 1)], 1)
    ]  # fmt: skip
    # A span of an engine that knows its runs is no reason to doubt the other traces' spans.
    hostile.append(dagster(str(uuid.UUID(int=9)), "y", 900, 9, 40))
    service.take(spans_of(hostile))
    service.settle()
    after = {t["workflow_name"]: t for t in service.timelines() if t["workflow_name"] in before}
    for name, timeline in before.items():
        assert after[name]["execution_id"] == timeline["execution_id"]
        steps = {step["step_name"]: step["status"] for step in timeline["step_timeline"]}
        assert {step["step_name"]: step["status"] for step in after[name]["step_timeline"]}.items() >= steps.items()
    is_consistent(service)


def test_an_open_run_in_a_trace_of_its_own_is_a_step_that_runs(intake: Callable[[], Intake]) -> None:
    open_run = message("run/t1", 1, 1, 1, None, linked=(100_000, 2), of={})
    for first, second in (([send(1, 100_000, 0.5)], None), (None, [send(1, 100_000, 0.5)])):
        service = intake()
        for piece in (first, None, second):
            service.take(_of_celery(piece) if piece is not None else [_as_celery(open_run)])
        (timeline,) = service.timelines()
        assert (timeline["workflow_name"], timeline["status"]) == ("t1", "running")
        assert [(step["step_name"], step["status"]) for step in timeline["step_timeline"]] == [("t1", "running")]
        service.take(_of_celery(task(1, last=True)))
        service.settle()
        (timeline,) = service.timelines()
        assert timeline["status"] == "completed"
        is_consistent(service)


def _of_celery(messages: Sequence[Span]) -> list[SpanRecord]:
    request = export(messages)
    for group in request.resource_spans:
        group.scope_spans[0].scope.name = "opentelemetry.instrumentation.celery"
    return [span for span in records(request.resource_spans) if isinstance(span, SpanRecord)]


def _as_celery(message: Span) -> SpanRecord:
    (span,) = _of_celery([message])
    return span


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


def told_apart(message: Span) -> Span:
    """The span with an id of its own in all traces, and links and a parent that go with it."""

    def own(trace_id: bytes, span_id: bytes) -> bytes:
        return (int.from_bytes(trace_id) * 10 + int.from_bytes(span_id)).to_bytes(8)

    message.span_id = own(message.trace_id, message.span_id)
    if message.parent_span_id:
        message.parent_span_id = own(message.trace_id, message.parent_span_id)
    for link in message.links:
        link.span_id = own(link.trace_id, link.span_id)
    return message


async def test_every_view_agrees_on_a_run_of_several_traces(api: Api) -> None:
    pieces = [[told_apart(span) for span in piece] for piece in (task(2, last=True), task(1), [send(1, 100_000, 0.5)])]
    folded: list[str] = []
    for trace, number in ((1, 11), (2, 21)):
        await log(api, trace, number, f"in t{trace}")
    for piece in pieces:
        await sent(api, *piece)
        page = await api.get("/api/workflows/executions")
        folded += [item["execution_id"] for item in page["items"]]
    (item,) = page["items"]
    assert item["workflow_name"] == "t1"
    timeline: Any = await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline")
    places = [
        (step["step_name"], int(step["trace_id"], 16), int(step["span_id"], 16)) for step in timeline["step_timeline"]
    ]
    assert places == [("t1", 1, 11), ("t2", 2, 21)]
    assert int(timeline["trace_id"], 16) == 100_000
    report = await api.get(f"/api/workflows/executions/{item['execution_id']}/reconcile")
    assert report["differences"] == []
    lines = await logged(api, item["execution_id"])
    assert lines == [("t1", "in t1"), ("t2", "in t2")]
    gone = set(folded) - {item["execution_id"]}
    assert gone
    for execution_id in gone:
        status, _ = await api.call("GET", f"/api/workflows/executions/{execution_id}")
        assert status == 404


async def test_a_run_in_a_trace_of_its_own_is_lost_with_its_lease_and_ends_after_all(
    database_url: str, handlers: HandlerRegistry
) -> None:
    async with running(Config(database=database_url, grace_seconds=0.1), handlers) as api:
        clock = Clock(api.service)
        await of_celery(api, message("run/t1", 1, 1, 1, None, linked=(100_000, 2), of={}))
        await of_celery(api, send(1, 100_000, 0.5))
        await becomes(api, run="running", t1="running")
        assert await clock.pass_(40) == 1
        await becomes(api, run="lost", t1="lost")
        await of_celery(api, *task(1, last=True))
        await becomes(api, run="completed", t1="completed")
        assert differing(api.service.database) == 0


async def log(api: Api, trace: int, number: int, text: str) -> None:
    line = LogRecord(trace_id=trace.to_bytes(16), span_id=number.to_bytes(8), time_unix_nano=T0 + trace * S)
    line.body.string_value = text
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.append(line)
    headers = {"Content-Type": "application/x-protobuf"}
    status, _ = await api.call("POST", "/v1/logs", None, data=request.SerializeToString(), headers=headers)
    assert status == 200


async def logged(api: Api, execution_id: str) -> list[tuple[str, str]]:
    page = await api.get(f"/api/workflows/executions/{execution_id}/logs")
    return [(line["step_name"], line["message"]) for line in page["items"]]


def test_a_trace_whose_assembly_takes_long_rests_until_the_next_one(
    intake: Callable[[], Intake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans that arrive in pieces wait for each assembly: one after each piece would take all the time."""
    monkeypatch.setattr(span_store, "MAX_AT_ONCE", 4)
    monkeypatch.setattr(span_rows, "MAX_AT_ONCE", 4)
    service = intake()
    run_id = str(uuid.UUID(int=7))
    service.take(spans_of([dagster(run_id, f"a{n}", 1, n, n) for n in range(1, 7)]))
    with monkeypatch.context() as slow:
        slow.setattr(rests, "TIMES", 1e9)
        assert service.assemble() == 1
    now = time.time_ns()
    service.take(spans_of([dagster(run_id, "a7", 1, 7, 7)]))
    (due_ns,) = service.database.look(lambda c: c.execute(select(traces.c.due_ns)).scalars().all())
    assert due_ns is not None
    assert 30e9 < due_ns - now <= 60e9
    assert service.assemble() == 1
    assert [len(timeline["step_timeline"]) for timeline in service.timelines()] == [7]
    # An assembly that took no time makes it rest no longer.
    now = time.time_ns()
    service.take(spans_of([dagster(run_id, "a8", 1, 8, 8)]))
    (due_ns,) = service.database.look(lambda c: c.execute(select(traces.c.due_ns)).scalars().all())
    assert due_ns is not None
    assert due_ns - now < 30e9
