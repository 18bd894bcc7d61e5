"""``/metrics`` of a service shows the database: every process's runs, across restarts, by one service of all."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.api.test_otlp import sent, span
from tests.conftest import Api, make_execution, make_step, running
from tests.e2e import preloaded
from tests.e2e.conftest import environment
from tests.metrics.test_exposition import messages
from tests.store.test_recovery import dead_identity
from tests.store.test_series import everything
from tests.test_four_views import samples

from tachograph.clock import NS
from tachograph.events import ExecutionFinished, ExecutionStarted, ExecutionStatus, StepCost, StepMeasured, StepStarted
from tachograph.metrics.negotiation import Format
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import scrape
from tachograph_exporter.config import Config
from tachograph_exporter.metrics import workflow_metrics
from tachograph_exporter.metrics.births import Births
from tachograph_exporter.store import archiving, lease
from tachograph_exporter.store.database import Database

PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}
DURATION = "workflow_execution_duration_seconds_count"

SCRIPT = """
import sys, tachograph
tachograph.configure(database=sys.argv[1])

@tachograph.step
def load():
    if "fail" in sys.argv:
        raise ValueError("no")

@tachograph.workflow(name="nightly")
def nightly():
    load()

try:
    nightly()
except ValueError:
    pass
"""


async def script(url: str, *arguments: str) -> None:
    """A process that lives only as long as its run."""
    process = preloaded.start([url, *arguments], environment(), Path(os.devnull), program=SCRIPT)
    assert await asyncio.to_thread(process.wait, 60) == 0


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async with running(Config(database=any_database_url, grace_seconds=0.1), handlers) as api:
        yield api


async def scraped(api: Api, **headers: str) -> dict[Any, float]:
    return samples(await api.get("/metrics", headers=headers))


def value(metrics: dict[Any, float], name: str, **labels: str) -> float | None:
    return metrics.get((name, frozenset({"workspace": "default", **labels}.items())))


async def test_runs_of_a_process_that_lives_two_seconds_are_shown_each_series_at_zero_first(
    api: Api, any_database_url: str
) -> None:
    await script(any_database_url)
    first = await scraped(api)
    shown = {name for name, _ in first if name.startswith("workflow_")}
    assert {DURATION, "workflow_step_duration_seconds_count", "workflow_step_attempts_total"} <= shown
    counted = {key: v for key, v in first.items() if key[0].startswith("workflow_") and key[0].endswith(COUNTED)}
    assert set(counted.values()) == {0}
    # What may happen has a series, too.
    assert value(first, DURATION, workflow="nightly", status="failed") == 0
    assert value(first, "workflow_step_attempts_total", workflow="nightly", step="load", outcome="failed") == 0
    # A gauge says what is, at once.
    assert (await api.get("/api/workflows/nightly/metrics"))["total_executions"] == 1
    success = value(first, "workflow_execution_last_success_timestamp_seconds", workflow="nightly")
    assert success == pytest.approx(time.time(), abs=60)
    second = await scraped(api)
    assert value(second, DURATION, workflow="nightly", status="completed") == 1
    assert value(second, "workflow_executions_started_total", workflow="nightly") == 1
    # What was foreseen needs no zero any more.
    await script(any_database_url, "fail")
    third = await scraped(api)
    assert value(third, DURATION, workflow="nightly", status="failed") == 1
    last_failure = "workflow_execution_last_failure_timestamp_seconds"
    assert value(second, last_failure, workflow="nightly") is None
    assert value(third, last_failure, workflow="nightly") == pytest.approx(time.time(), abs=60)
    assert value(third, "workflow_step_attempts_total", workflow="nightly", step="load", outcome="failed") == 1
    # And created says since when they count.
    created = value(third, "workflow_executions_started_created", workflow="nightly")
    assert created is not None
    assert success is not None
    assert created <= success + 1


COUNTED = ("_total", "_count", "_sum", "_bucket")


async def test_a_restart_a_rebuild_and_the_archive_change_no_byte(
    any_database_url: str, handlers: HandlerRegistry, tmp_path: Any
) -> None:
    config = Config(database=any_database_url, grace_seconds=0.1)

    async def body(api: Api, form: Format) -> list[bytes]:
        async with api.session.get(f"{api.address}/metrics", headers={"Accept": form.value}) as response:
            text = await response.read()
        if form is Format.PROTOBUF:
            return [message for message in messages(text) if message[2:11] == b"workflow_"]
        return [line for line in text.splitlines() if line.startswith(b"workflow_")]

    async def bodies(api: Api) -> dict[Format, list[bytes]]:
        return {form: await body(api, form) for form in Format}

    async def settled(api: Api, before: dict[Format, list[bytes]]) -> bool:
        """A busy service may show for a while what it showed last."""
        for _ in range(600):
            if await bodies(api) == before:
                return True
            await asyncio.sleep(0.1)
        return False

    async def shows(api: Api, count: int, **labels: str) -> bool:
        for _ in range(600):
            if value(await scraped(api), DURATION, **labels) == count:
                return True
            await asyncio.sleep(0.1)
        return False

    async with running(config, handlers) as api:
        await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "a"}, {"name": "b"}]})
        for _ in range(3):
            await api.run("w")
        await script(any_database_url, "fail")
        assert await shows(api, 3, workflow="w", status="completed")
        assert await shows(api, 1, workflow="nightly", status="failed")
        # What is expected is looked at every few seconds.
        await asyncio.to_thread(api.service.watch.look)
        await bodies(api)
        before = await bodies(api)
        assert await settled(api, before)
        assert min(map(len, before.values())) > 1
    async with running(config, handlers) as api:
        assert await settled(api, before)
    database = Database(any_database_url)
    from tachograph_exporter.store.rollups import rebuild
    from tachograph_exporter.store.series.recount import recount_one

    for key in database.look(rebuild.workflows_with_executions):
        assert database.run(lambda c, key=key: recount_one(c, key)) == 0  # type: ignore[misc]
    if not any_database_url.startswith("postgres"):
        pytest.importorskip("pyarrow")
        archiving.archive(database, time.time_ns() + 2 * 86_400 * 10**9, tmp_path / "archive")
    database.close()
    async with running(config, handlers) as api:
        assert await settled(api, before)
        await api.run("w")
        metrics = await scraped(api)
        assert value(metrics, DURATION, workflow="w", status="completed") == 4


async def test_what_ended_while_no_service_ran_is_in_the_first_scrape(
    any_database_url: str, handlers: HandlerRegistry
) -> None:
    config = Config(database=any_database_url, grace_seconds=0.1)
    await script(any_database_url)
    async with running(config, handlers) as api:
        await api.metrics()
    await script(any_database_url)
    await script(any_database_url, "fail")
    async with running(config, handlers) as api:
        first = await scraped(api)
        assert value(first, DURATION, workflow="nightly", status="completed") == 2
        assert value(first, DURATION, workflow="nightly", status="failed") == 1


async def test_gauges_are_those_of_every_process_and_gone_when_a_run_is_given_up(api: Api) -> None:
    sweep = api.sweep_by_hand()
    now = time.time_ns()
    run = make_execution("etl")
    api.service.writer.apply([
        ExecutionStarted(execution=run, time_ns=now, step_count=2, process=dead_identity()),
        StepStarted(step=make_step(run, "a"), time_ns=now),
        StepStarted(step=make_step(run, "b"), time_ns=now),
    ])  # fmt: skip
    await scraped(api)
    metrics = await scraped(api)
    assert value(metrics, "workflow_executions_running", workflow="etl") == 1
    assert value(metrics, "workflow_steps_running", workflow="etl") == 2
    oldest = "workflow_execution_oldest_running_start_timestamp_seconds"
    assert value(metrics, oldest, workflow="etl") == now / NS
    assert value(metrics, "workflow_executions_started_total", workflow="etl") == 1
    assert await sweep() == 1
    metrics = await scraped(api)
    assert value(metrics, "workflow_executions_running", workflow="etl") == 0
    assert value(metrics, "workflow_steps_running", workflow="etl") == 0
    assert value(metrics, oldest, workflow="etl") is None
    assert value(metrics, "workflow_executions_started_total", workflow="etl") == 1
    # It was not lost: it ends. Nothing that was shown is taken back.
    lost = value(await scraped(api), DURATION, workflow="etl", status="lost")
    assert lost == 1
    end = ExecutionFinished(
        execution=run, time_ns=now + 9, status=ExecutionStatus.COMPLETED, started_ns=now, step_count=2
    )
    api.service.writer.apply([end])
    metrics = await scraped(api)
    assert value(metrics, DURATION, workflow="etl", status="lost") == 1
    assert value(metrics, DURATION, workflow="etl", status="completed") == 1
    assert value(metrics, "workflow_executions_started_total", workflow="etl") == 1


async def test_of_two_services_one_shows_them_and_the_other_takes_over(
    any_database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy the machine is, nobody is silent for long before this says so.
    now = 0.0
    monkeypatch.setattr(lease, "clock", lambda: now)
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 6.0)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 2.0)
    monkeypatch.setattr(workflow_metrics, "BEAT_SECONDS", 0.1)
    config = Config(database=any_database_url, grace_seconds=0.1)

    def shows(metrics: dict[Any, float]) -> bool:
        has_series = any(name == DURATION for name, _ in metrics)
        assert has_series == bool(metrics["tachograph_workflow_metrics_shown", frozenset()])
        return has_series

    async def until_shown(api: Api) -> None:
        nonlocal now
        for _ in range(600):
            if shows(await scraped(api)):
                return
            now += 0.5
            await asyncio.sleep(0.1)
        raise AssertionError("nobody took over")

    async with running(config, handlers) as b:
        async with running(config, handlers) as a:
            await a.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
            await a.run("w")
            await b.run("w")
            await b.metrics()
            assert (shows(await scraped(b)), shows(await scraped(a))) == (True, False)
            assert value(await scraped(b), DURATION, workflow="w", status="completed") == 2
            # The one that shows them falls silent, without a word.
            monkeypatch.setattr(b.service.workflow_metrics, "_beat", lambda: asyncio.sleep(0))
            await until_shown(a)
            assert not shows(await scraped(b))
            first = await scraped(a)
            assert value(first, DURATION, workflow="w", status="completed") == 2
            await b.run("w")
            assert value(await scraped(a), DURATION, workflow="w", status="completed") == 3
            monkeypatch.undo()
        # It stopped: it gave the lease up.
        await b.service.workflow_metrics._beat()
        assert shows(await scraped(b))
        assert value(await scraped(b), DURATION, workflow="w", status="completed") == 3


async def test_every_prometheus_sees_a_new_series_at_zero(
    api: Api, any_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = {**PROMETHEUS, "User-Agent": "one"}, {**PROMETHEUS, "User-Agent": "two"}
    await scraped(api, **first)
    await scraped(api, **second)
    await script(any_database_url)

    async def completed(headers: dict[str, str]) -> float | None:
        return value(await scraped(api, **headers), DURATION, workflow="nightly", status="completed")

    # Somebody who looks by hand, or often, makes nobody miss the zero.
    assert [await completed({}) for _ in range(2)] == [0, 0]
    assert [await completed(first) for _ in range(3)] == [0, 0, 0]
    assert await completed(second) == 0
    assert [await completed(second), await completed(first), await completed({})] == [1, 1, 1]
    # One that has gone is not waited for.
    monkeypatch.setattr(api.service.workflow_metrics.births, "clock", lambda: time.monotonic() + 60)
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
    await api.run("w")
    later = [value(await scraped(api, **first), DURATION, workflow="w", status="completed") for _ in range(2)]
    assert later == [0, 1]


async def test_after_a_restart_every_prometheus_still_sees_a_new_series_at_zero(
    any_database_url: str, handlers: HandlerRegistry
) -> None:
    first, second = {**PROMETHEUS, "User-Agent": "one"}, {**PROMETHEUS, "User-Agent": "two"}
    config = Config(database=any_database_url, grace_seconds=0.1)
    # Both scrape every 15 s, however busy the machine is.
    now = time.monotonic()
    async with running(config, handlers) as api:
        api.service.workflow_metrics.births.clock = lambda: now
        for _ in range(2):
            now += 15
            await scraped(api, **first)
            await scraped(api, **second)
        await api.service.workflow_metrics._beat()
    # A workflow is new while no service runs.
    await script(any_database_url)
    async with running(config, handlers) as api:
        now = time.monotonic()
        api.service.workflow_metrics.births.clock = lambda: now

        async def completed(headers: dict[str, str]) -> float | None:
            return value(await scraped(api, **headers), DURATION, workflow="nightly", status="completed")

        assert [await completed(first) for _ in range(3)] == [0, 0, 0]
        assert await completed(second) == 0
        assert [await completed(second), await completed(first)] == [1, 1]


async def test_after_a_start_the_other_prometheus_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    births = Births[str]()
    births.add("series")

    def scrape(name: str) -> bool:
        is_born = bool(births.born())
        births.scraped(births.scraping(), name)
        return is_born

    assert not scrape("first")
    now = 115.0
    assert not scrape("first")
    # It came later than the second scrape of the first one, because the service was not up when it tried.
    now = 117.0
    assert not scrape("second")
    now = 130.0
    assert scrape("first")


async def test_an_expired_series_comes_back_with_its_old_value_first(
    database_url: str, handlers: HandlerRegistry
) -> None:
    config = Config(database=database_url, grace_seconds=0.1, series_limit=4, series_expire_seconds=0.5)
    names = ("a", "b", "c", "d", "e", "f")
    others = ("workflow_executions_started_total", frozenset({"workspace": "other", "workflow": "other"}.items()))
    async with running(config, handlers) as api:
        for name in names:
            await api.call("POST", "/api/workflows", {"name": name, "steps": [{"name": "s"}]})
            await api.run(name)

        async def counts() -> tuple[float | None, float | None, float | None]:
            metrics = await scraped(api)
            completed = value(metrics, DURATION, workflow="a", status="completed")
            return completed, value(metrics, others[0], workflow="a"), metrics.get(others)

        await counts()
        assert await counts() == (1, 1, 2)
        # What many share goes on, while the series of a workflow that does not run are gone.
        for number in range(3, 100):
            await api.run("f")
            seen = await counts()
            assert seen[2] == number
            if seen[:2] == (None, None):
                break
            await asyncio.sleep(0.1)
        assert seen[:2] == (None, None)
        # However busy the machine is, nothing else goes before the end.
        api.service.workflow_metrics._series.expire_seconds = 600.0
        await api.run("a")
        assert (await counts())[:2] == (1, 1)
        assert (await counts())[:2] == (2, 2)


async def test_spans_that_come_child_after_grandchild_are_counted_as_what_they_are(api: Api) -> None:
    root, child, grandchild = span("nightly", 1, 0, 0, 9), span("extract", 2, 1, 0, 4), span("select", 3, 2, 1, 3)
    for one in (grandchild, root, child):
        await sent(api, one)
        metrics = samples(await api.metrics())
        assert value(metrics, "workflow_step_attempts_total", workflow="nightly", step="select",
                     outcome="completed") is None  # fmt: skip
    assert value(metrics, "workflow_step_attempts_total", workflow="nightly", step="extract", outcome="completed") == 1
    assert value(metrics, DURATION, workflow="nightly", status="completed") == 1
    (item,) = (await api.get("/api/workflows/executions"))["items"]
    reconciliation = await api.get(f"/api/workflows/executions/{item['execution_id']}/reconcile")
    assert reconciliation["differences"] == []
    assert reconciliation["views"]["metrics"] == reconciliation["views"]["timeline"] == 1


async def test_an_orphan_counts_once_its_trace_is_quiet(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from tachograph_exporter.ingest import trace_executions

    monkeypatch.setattr(trace_executions, "QUIET_SECONDS", 0.3)
    await sent(api, span("nightly", 1, 0, 0, 9), span("orphan", 3, 2, 1, 3))
    assert value(samples(await api.metrics()), DURATION, workflow="nightly", status="completed") in (None, 0)
    (item,) = (await api.get("/api/workflows/executions"))["items"]
    assert item["status"] == "completed"
    for _ in range(600):
        if value(samples(await api.metrics()), DURATION, workflow="nightly", status="completed"):
            break
        await asyncio.sleep(0.1)
    reconciliation = await api.get(f"/api/workflows/executions/{item['execution_id']}/reconcile")
    assert reconciliation["differences"] == []
    assert reconciliation["views"]["metrics"] == reconciliation["views"]["timeline"]


async def test_a_deleted_workflow_leaves_and_one_of_its_name_begins_at_zero(api: Api) -> None:
    async def registered() -> str:
        _, body = await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
        return str(body["id"])

    identifier = await registered()
    await api.run("w")
    await api.metrics()
    assert value(await scraped(api), DURATION, workflow="w", status="completed") == 1
    assert (await api.call("DELETE", f"/api/workflows/{identifier}"))[0] in (200, 204)
    assert not [name for name, labels in await scraped(api) if ("workflow", "w") in labels]
    await registered()
    assert value(await scraped(api), DURATION, workflow="w", status="completed") == 0
    await api.run("w")
    await api.metrics()
    assert value(await scraped(api), DURATION, workflow="w", status="completed") == 1


async def test_a_service_that_cannot_tell_that_another_took_over_shows_nothing(
    any_database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(lease, "clock", lambda: now)
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 6.0)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 2.0)
    monkeypatch.setattr(workflow_metrics, "BEAT_SECONDS", 0.1)
    config = Config(database=any_database_url, grace_seconds=0.1)
    shown = ("tachograph_workflow_metrics_shown", frozenset[Any]())
    away = threading.Event()

    async with running(config, handlers) as a, running(config, handlers) as b:
        await a.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
        await a.run("w")
        await scraped(a)
        assert value(await scraped(a), DURATION, workflow="w", status="completed") == 1
        # The connections of the one that shows them hang.
        monkeypatch.setattr(scrape, "WAIT_SECONDS", 0.1)
        monkeypatch.setattr(scrape, "BEHIND_SECONDS", 0.1)
        look, run = a.service.database.look, a.service.database.run

        def hung(work: Any) -> Any:
            away.wait(120)
            return look(work)

        async def hung_write(work: Any, lane: Any) -> Any:
            await asyncio.to_thread(away.wait, 120)
            return run(work)

        monkeypatch.setattr(a.service.database, "look", hung)
        monkeypatch.setattr(a.service.database, "write", hung_write)
        # A short silence hides nothing.
        now += 1
        assert value(await scraped(a), DURATION, workflow="w", status="completed") == 1
        try:
            for _ in range(600):
                of_a, of_b = await asyncio.gather(scraped(a), scraped(b))
                assert of_a[shown] + of_b[shown] <= 1
                if of_b[shown]:
                    break
                now += 0.5
                await asyncio.sleep(0.1)
            assert of_b[shown]
            await b.run("w")
            assert value(await scraped(b), DURATION, workflow="w", status="completed") == 2
        finally:
            away.set()
        monkeypatch.setattr(a.service.database, "look", look)
        assert (await scraped(a))[shown] == 0


async def test_without_the_database_the_last_values_are_shown_and_then_none(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
    await api.run("w")
    await api.metrics()

    def away(_work: Any) -> Any:
        raise OSError("away")

    monkeypatch.setattr(api.service.database, "look", away)
    assert value(await scraped(api), DURATION, workflow="w", status="completed") == 1
    monkeypatch.setattr(workflow_metrics, "BLIND_SECONDS", 0.0)
    metrics = await scraped(api)
    assert value(metrics, DURATION, workflow="w", status="completed") is None
    assert metrics["tachograph_workflow_metrics_shown", frozenset()] == 0
    monkeypatch.undo()
    assert value(await scraped(api), DURATION, workflow="w", status="completed") == 1


STARTED = "workflow_executions_started_total"


async def test_a_restart_while_a_trace_may_still_grow_lets_no_counter_fall(
    any_database_url: str, handlers: HandlerRegistry
) -> None:
    config = Config(database=any_database_url, grace_seconds=0.1)
    async with running(config, handlers) as api:
        for trace in (1, 2, 3):
            await sent(api, span("nightly", 1, 0, 0, 9, trace=trace), span("load", 2, 1, 0, 9, trace=trace))
        await scraped(api)
        assert value(await scraped(api), STARTED, workflow="nightly") == 3
        # It runs, then it has ended, but for a span whose parent is missing.
        await sent(api, span("nightly", 1, 0, 0, None, trace=4))
        assert value(await scraped(api), STARTED, workflow="nightly") == 4
        await sent(api, span("nightly", 1, 0, 0, 9, trace=4), span("orphan", 3, 2, 1, 3, trace=4))
        before = await scraped(api)
        assert value(before, DURATION, workflow="nightly", status="completed") == 3
        assert value(before, STARTED, workflow="nightly") == 4
        (item, *_) = (await api.get("/api/workflows/executions"))["items"]
        reconciliation = await api.get(f"/api/workflows/executions/{item['execution_id']}/reconcile")
        assert reconciliation["differences"] == []
    async with running(config, handlers) as api:
        assert value(await scraped(api), STARTED, workflow="nightly") == 4


async def test_a_label_with_any_characters_stops_no_other_series(
    any_database_url: str, handlers: HandlerRegistry
) -> None:
    config = Config(database=any_database_url, grace_seconds=0.1, measures=("rows",))
    events = everything("etl", time.time_ns())
    step = events[1].step  # type: ignore[union-attr]
    events[4:6] = [
        StepMeasured(step=step, time_ns=time.time_ns(), sequence=1, name="rows", value=7.5, unit="a\x1fb\x1f"),
        StepCost(step=step, time_ns=time.time_ns(), sequence=2, usd=0.25, tokens_in=10, model='\x1f"m\n\x1f'),
    ]
    for _ in range(2):
        async with running(config, handlers) as api:
            if events:
                api.service.writer.apply(events)
                events = []
            await scraped(api)
            metrics = await scraped(api)
            assert value(metrics, "workflow_step_attempts_total", workflow="etl", step="b", outcome="failed") == 1
            assert sum(v for (name, _), v in metrics.items() if name == "workflow_step_cost_usd_total") == 0.25
            assert sum(v for (name, _), v in metrics.items() if name == "workflow_step_measure_count") == 1
            (item,) = (await api.get("/api/workflows/executions"))["items"]
            reconciliation = await api.get(f"/api/workflows/executions/{item['execution_id']}/reconcile")
            assert [d for d in reconciliation["differences"] if d["field"].startswith("workflow_")] == []


async def test_beyond_the_limit_other_is_what_all_the_others_are_together(
    database_url: str, handlers: HandlerRegistry
) -> None:
    config = Config(database=database_url, grace_seconds=0.1, series_limit=2)
    names = ("a", "b", "c", "d")
    oldest, success = (
        "workflow_execution_oldest_running_start_timestamp_seconds",
        "workflow_execution_last_success_timestamp_seconds",
    )

    def of_others(metrics: dict[Any, float], name: str) -> float | None:
        return metrics.get((name, frozenset({"workspace": "other", "workflow": "other"}.items())))

    async with running(config, handlers) as api:
        ids = {}
        for name in names:
            _, body = await api.call("POST", "/api/workflows", {"name": name, "steps": [{"name": "s"}]})
            ids[name] = body["id"]
            await api.run(name)
        now = time.time_ns()
        runs = [make_execution(name) for name in ("a", "b", "c", "d", "d")]
        starts = [
            ExecutionStarted(execution=run, time_ns=now - (10 - i) * 10**9, step_count=0) for i, run in enumerate(runs)
        ]
        api.service.writer.apply(starts)
        await scraped(api)
        metrics = await scraped(api)
        assert of_others(metrics, STARTED) == 5
        assert of_others(metrics, "workflow_executions_running") == 3
        assert of_others(metrics, oldest) == pytest.approx((now - 8 * 10**9) / 1e9, abs=0.01)
        assert of_others(metrics, success) == pytest.approx(time.time(), abs=60)
        ends = [
            ExecutionFinished(
                execution=run, time_ns=now + 9, status=ExecutionStatus.COMPLETED, started_ns=now, step_count=0
            )
            for run in runs
        ]
        api.service.writer.apply(ends)
        metrics = await scraped(api)
        assert of_others(metrics, STARTED) == 5
        assert of_others(metrics, "workflow_executions_running") == 0
        assert of_others(metrics, oldest) is None
        (item, *_) = (await api.get("/api/workflows/c/executions"))["items"]
        reconciliation = await api.get(f"/api/workflows/executions/{item['execution_id']}/reconcile")
        assert reconciliation["differences"] == []
    # After a restart it is the same, and it stays when a workflow that is part of it is deleted and comes back.
    async with running(config, handlers) as api:
        assert of_others(await scraped(api), STARTED) == 5
        for name in ("c", "d"):
            await api.call("DELETE", f"/api/workflows/{ids[name]}")
            assert of_others(await scraped(api), STARTED) == 5
            await api.call("POST", "/api/workflows", {"name": name, "steps": [{"name": "s"}]})
            assert of_others(await scraped(api), STARTED) == 5
        await api.run("d")
        await scraped(api)
        assert of_others(await scraped(api), STARTED) == 6


async def test_a_scrape_waits_less_when_the_one_before_it_waited_in_vain(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    answers = iter([False, False, True, True])

    def refresh(seconds: float) -> bool:
        waits.append(seconds)
        return next(answers)

    monkeypatch.setattr(scrape, "WAIT_SECONDS", 60.0)
    monkeypatch.setattr(scrape, "BEHIND_SECONDS", 30.0)
    monkeypatch.setattr(api.service.workflow_metrics, "refresh", refresh)
    for _ in range(4):
        await api.get("/metrics")
    first, second, third, fourth = waits
    assert max(second, third) <= scrape.BEHIND_SECONDS < first <= scrape.WAIT_SECONDS
    assert fourth > scrape.BEHIND_SECONDS


async def test_a_service_that_nobody_scrapes_still_compares_its_series(api: Api) -> None:
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
    execution_id = await api.run("w")
    api.service.workflow_metrics._contact -= 1e9
    assert not api.service.workflow_metrics.are_shown
    answer = await api.get(f"/api/workflows/executions/{execution_id}/reconcile")
    assert "another service" not in repr(answer)
    assert api.service.workflow_metrics.are_shown
