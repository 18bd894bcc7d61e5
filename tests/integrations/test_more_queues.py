"""Huey, procrastinate and Luigi in one process; `make engines` plays more, with real workers, and arq and Kedro too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import Api

from tachograph.integrations import huey as huey_integration
from tachograph.integrations import luigi as luigi_integration
from tachograph.integrations import luigi_builds, places
from tachograph.integrations import procrastinate as procrastinate_integration

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Shown = dict[str, dict[str, Any]]


async def shown(api: Api) -> Shown:
    """The timelines of all runs, by workflow."""
    await asyncio.to_thread(api.service.recorder.flush, 60)
    page = await api.get("/api/workflows/executions")
    ids = [item["execution_id"] for item in page["items"]]
    for execution_id in ids:
        await api.finished(execution_id)
    timelines = [await api.get(f"/api/workflows/executions/{execution_id}/timeline") for execution_id in ids]
    assert len({timeline["workflow_name"] for timeline in timelines}) == len(timelines)
    attempts = Counter(
        (timeline["workflow_name"], step["step_name"], attempt["status"])
        for timeline in timelines
        for step in timeline["step_timeline"]
        for attempt in step["attempts"]
    )
    assert attempts == counted(await api.metrics())
    return {timeline["workflow_name"]: timeline for timeline in timelines}


def counted(metrics: str) -> Counter[tuple[str, str, str]]:
    """The attempts of steps by workflow, step and outcome, as ``/metrics`` counts them."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "workflow_step_attempts_total" and sample.value:
                labels = sample.labels
                counts[labels["workflow"], labels["step"], labels["outcome"]] += int(sample.value)
    return counts


def steps_of(timeline: dict[str, Any]) -> set[tuple[str, int | str | None, str, int]]:
    return {
        (step["step_name"], step["step_index"], step["status"], len(step["attempts"]))
        for step in timeline["step_timeline"]
    }


def edges_of(timeline: dict[str, Any]) -> set[tuple[str, str]]:
    names = {step["step_id"]: step["step_name"] for step in timeline["step_timeline"]}
    return {(names[other], step["step_name"]) for step in timeline["step_timeline"] for other in step["depends_on"]}


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    names = ("huey", "luigi", "luigi-interface", "procrastinate")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


async def test_tasks_of_huey(
    api: Api, quiet_logs: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huey import CancelExecution, MemoryHuey, chord

    huey = MemoryHuey("shop")
    signals = {name: list(receivers) for name, receivers in huey._signal.receivers.items()}
    huey_integration.instrument(huey)
    huey_integration.instrument(huey)
    tries: list[int] = []
    dues: list[float] = []

    def extract(*_: Any) -> int:
        return 3

    def flaky(number: int) -> int:
        tries.append(number)
        if len(tries) == 1:
            raise ConnectionError("token=hunter2")
        return number

    def work(number: int) -> int:
        return number

    def merge(*numbers: Any) -> None:
        inner()

    def inner_task() -> None:
        raise ValueError("no item")

    def picky() -> None:
        raise CancelExecution(retry=False)

    def named(function: Callable[..., Any], **options: Any) -> Any:
        function.__module__ = "shop"
        return huey.task(**options)(function)

    first, second, mapped = named(extract), named(flaky, retries=2), named(work)
    last, inner, cancelling = named(merge), named(inner_task), named(picky)

    def drain() -> None:
        while (sent := huey.dequeue()) is not None:
            huey.execute(sent)

    def play() -> None:
        with huey_integration.together("nightly"):
            huey.enqueue(first.s().then(second))
            huey.enqueue(inner.s().then(mapped, 1))
        huey.enqueue(chord([mapped.s(number) for number in range(5)], last.s()))
        cancelling()
        revoked = first()
        revoked.revoke()
        drain()
        with huey_integration.together("later"):
            later = mapped.schedule((8,), delay=1)
            mapped(9)
        drain()
        dues.append(later.task.eta.replace(tzinfo=UTC).timestamp())
        while later.get(preserve=True) is None:
            for sent in huey.read_schedule():
                huey.enqueue(sent)
            drain()
            time.sleep(0.02)

    await asyncio.to_thread(play)
    timelines = await shown(api)
    assert "hunter2" not in str(timelines)
    begun = datetime.fromisoformat(timelines["later"]["started_at"]).timestamp()
    waits = {step["input_summary"]["args"][0]: step["wait"] for step in timelines["later"]["step_timeline"]}
    assert abs(waits[8]["scheduled"] - max(0.0, dues[0] - begun)) < 0.001
    assert (waits[8]["unaccounted"], waits[9]["scheduled"]) == (0.0, 0.0)
    assert {name: timeline["status"] for name, timeline in timelines.items()} == {
        "later": "completed", "nightly": "failed", "shop.work": "failed", "shop.picky": "cancelled",
        "shop.extract": "cancelled",
    }  # fmt: skip
    assert steps_of(timelines["nightly"]) == {
        ("shop.extract", None, "completed", 1), ("shop.flaky", None, "completed", 2),
        ("shop.inner_task", None, "failed", 1), ("shop.work", None, "skipped", 0),
    }  # fmt: skip
    assert edges_of(timelines["nightly"]) == {("shop.extract", "shop.flaky"), ("shop.inner_task", "shop.work")}
    assert steps_of(timelines["shop.work"]) == {
        *(("shop.work", number, "completed", 1) for number in range(5)),
        ("shop.merge", None, "completed", 1), ("shop.inner_task", None, "failed", 1),
    }  # fmt: skip
    assert edges_of(timelines["shop.work"]) == {("shop.work", "shop.merge")}
    # Of a task that has ended nothing stays in Huey's storage but its result.
    assert [key for key in huey.all_results() if "tachograph" in str(key)] == []
    # Broken on purpose: Huey goes on, and the log says so.
    monkeypatch.setattr(places, "run", None)
    sent = mapped(7)
    drain()
    assert sent.get() == 7
    assert any("not reported" in record.message for record in caplog.records)
    huey_integration.uninstrument(huey)
    assert {name: list(receivers) for name, receivers in huey._signal.receivers.items() if receivers} == {
        name: receivers for name, receivers in signals.items() if receivers
    }
    assert not huey._post_execute
    assert not huey._shutdown


async def test_jobs_of_procrastinate(
    api: Api, quiet_logs: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import procrastinate
    from procrastinate import manager, testing, worker

    originals = {owner: dict(vars(owner)) for owner in (manager.JobManager, worker.Worker)}
    procrastinate_integration.instrument()
    app = procrastinate.App(connector=testing.InMemoryConnector())
    tries: list[int] = []

    @app.task(name="flaky", retry=1)
    async def flaky() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("token=hunter2")
        await work.defer_async(number=7)

    @app.task(name="work")
    def work(number: int) -> int:
        return number

    @app.task(name="broken")
    async def broken() -> None:
        raise ValueError("no item")

    async def drain() -> None:
        await app.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False)

    try:
        async with app.open_async():
            with procrastinate_integration.together("nightly"):
                await flaky.defer_async()
                await broken.configure(lock="mine").defer_async()
            batch: list[Any] = [{"number": number} for number in range(5)]
            await work.batch_defer_async(*batch)
            await broken.configure(queueing_lock="mine").defer_async()
            taken_back = await flaky.configure(schedule_in={"seconds": 60}).defer_async()
            assert await app.job_manager.cancel_job_by_id_async(taken_back)
            await drain()
            timelines = await shown(api)
            # Broken on purpose: procrastinate goes on, and the log says so.
            monkeypatch.setattr(places, "run", None)
            job_id = await work.defer_async(number=1)
            await drain()
            assert (await app.job_manager.get_job_status_async(job_id)).value == "succeeded"
            assert any("not reported" in record.message for record in caplog.records)
            monkeypatch.undo()
    finally:
        procrastinate_integration.uninstrument()
    assert {owner: dict(vars(owner)) for owner in originals} == originals
    assert "hunter2" not in str(timelines)
    assert {name: timeline["status"] for name, timeline in timelines.items()} == {
        "nightly": "failed", "work": "completed", "broken": "failed", "flaky": "cancelled",
    }  # fmt: skip
    assert steps_of(timelines["nightly"]) == {
        ("flaky", None, "completed", 2), ("work", None, "completed", 1), ("broken", None, "failed", 1),
    }  # fmt: skip
    assert steps_of(timelines["work"]) == {("work", number, "completed", 1) for number in range(5)}
    assert steps_of(timelines["flaky"]) == {("flaky", None, "cancelled", 0)}


async def test_tasks_of_luigi(
    api: Api, quiet_logs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import luigi
    from luigi.scheduler import Scheduler
    from luigi.worker import TaskProcess, Worker

    # Signals are for the main thread.
    luigi.configuration.get_config().set("worker", "no_install_shutdown_handler", "true")
    classes = (Scheduler, TaskProcess, Worker)
    originals = {owner: dict(vars(owner)) for owner in classes}
    luigi_integration.instrument()
    luigi_integration.instrument()

    class Base(luigi.Task):
        password = luigi.Parameter(default="hunter2", visibility=luigi.parameter.ParameterVisibility.PRIVATE)

        def output(self) -> luigi.LocalTarget:
            return luigi.LocalTarget(str(tmp_path / self.task_id))

        def run(self) -> None:
            Path(self.output().path).touch()

    class Extract(Base):
        pass

    class Work(Base):
        number = luigi.IntParameter()

        def requires(self) -> luigi.Task:
            return Extract()

    class Merge(Base):
        def requires(self) -> list[luigi.Task]:
            return [Work(number=number) for number in range(5)]

    class Broken(Base):
        def requires(self) -> luigi.Task:
            return Merge()

        def run(self) -> None:
            raise ValueError("no item")

    class After(Base):
        def requires(self) -> luigi.Task:
            return Broken()

    def play(task: luigi.Task) -> bool:
        result = luigi.build([task], local_scheduler=True, no_lock=True, detailed_summary=True, log_level="CRITICAL")
        return result.status is luigi.LuigiStatusCode.SUCCESS

    try:
        assert play(Merge())
        assert not play(After())
        timelines = await shown(api)
        # Broken on purpose: Luigi goes on, and the log says so.
        monkeypatch.setattr(luigi_builds, "run", None)
        assert play(Work(number=9))
        assert any("not reported" in record.message for record in caplog.records)
    finally:
        luigi_integration.uninstrument()
    assert {owner: dict(vars(owner)) for owner in classes} == originals
    assert not any(callbacks for events in luigi.Task._event_callbacks.values() for callbacks in events.values())
    assert "hunter2" not in str(timelines)
    assert {name: timeline["status"] for name, timeline in timelines.items()} == {
        "Merge": "completed", "After": "failed",
    }  # fmt: skip
    assert steps_of(timelines["Merge"]) == {
        ("Extract", None, "completed", 1), ("Merge", None, "completed", 1),
        *(("Work", number, "completed", 1) for number in range(5)),
    }  # fmt: skip
    assert edges_of(timelines["Merge"]) == {("Extract", "Work"), ("Work", "Merge")}
    assert steps_of(timelines["After"]) == {
        ("Merge", None, "skipped", 0), ("Broken", None, "failed", 1), ("After", None, "skipped", 0),
    }  # fmt: skip
