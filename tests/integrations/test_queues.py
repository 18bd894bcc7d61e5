"""The parts of the integrations of queues that need no worker process; `tests/e2e/test_engines.py` has real ones."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import StubBackend
from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job, JobStatus, Retry
from rq.registry import ScheduledJobRegistry
from taskiq import InMemoryBroker, SimpleRetryMiddleware
from tests.engines import processes

import tachograph
from tachograph.clock import NS
from tachograph.events import Event, ExecutionQueued, StepFinished, StepReady, StepRetrying, StepSkipped, StepStarted
from tachograph.integrations import dramatiq as dramatiq_integration
from tachograph.integrations import places, sending
from tachograph.integrations import rq as rq_integration
from tachograph.integrations import taskiq as taskiq_integration
from tachograph.integrations.places import HEADER, place_of
from tachograph.report.safely import moment_ns

STEPS = (StepReady, StepStarted, StepRetrying, StepFinished, StepSkipped)


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """What is recorded, in order."""
    events: list[Any] = []

    def note(event: Event) -> None:
        if isinstance(event, (*STEPS, ExecutionQueued)):
            events.append(event)

    recorder = tachograph.get_recorder()
    recorder.add("noted", note)
    yield events
    recorder.remove("noted")


def told(events: list[Any]) -> list[tuple[str, str]]:
    """What happened to which step, without what only says that it waits."""
    assert tachograph.get_recorder().flush(60)
    kinds = [event for event in events if isinstance(event, STEPS) and not isinstance(event, StepReady)]
    return [
        (
            event.step.name,
            event.status if isinstance(event, StepFinished) else type(event).__name__.removeprefix("Step"),
        )
        for event in kinds
    ]


def runs_of(events: list[Any]) -> set[tuple[str, str]]:
    return {(event.execution.workflow, event.execution.execution_id) for event in events}


class TestRQ:
    @pytest.fixture
    def queue(self, tmp_path: Path) -> Iterator[Queue]:
        if shutil.which("redis-server") is None:
            pytest.skip("needs redis-server (apt-get install redis-server)")
        with processes.redis(tmp_path) as address, Redis.from_url(address) as connection:
            rq_integration.instrument()
            yield Queue(connection=connection)
            rq_integration.uninstrument()

    def test_jobs_of_a_worker_that_does_not_fork(
        self, queue: Queue, events: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with rq_integration.together("nightly"):
            first = queue.enqueue("operator.add", 1, 2, meta={"mine": 1})
            failing = queue.enqueue("operator.truediv", 1, 0, depends_on=first, retry=Retry(max=1))
            after = queue.enqueue("operator.add", 1, 2, depends_on=failing.id)
            queue.enqueue("operator.add", 1, 2, depends_on=after)
        by_hand = Job.create("operator.mul", (2, 2), connection=queue.connection, meta={HEADER: "no place"})
        queue.enqueue_job(by_hand)
        worker = SimpleWorker([queue], connection=queue.connection)
        worker.work(burst=True)
        assert told(events) == [
            ("operator.add", "Started"), ("operator.add", "completed"),
            ("operator.mul", "Started"), ("operator.mul", "completed"),
            ("operator.truediv", "Started"), ("operator.truediv", "Retrying"),
            ("operator.truediv", "Started"), ("operator.truediv", "failed"),
            ("operator.add", "Skipped"), ("operator.add", "Skipped"),
        ]  # fmt: skip
        assert {workflow for workflow, _ in runs_of(events)} == {"nightly", "operator.mul"}
        assert len(runs_of(events)) == 2
        ends = [event for event in events if isinstance(event, StepFinished)]
        assert [(end.output, end.attempt) for end in ends] == [("3", 1), ("4", 1), (None, 2)]
        assert (ends[-1].failure and ends[-1].failure.type) == "ZeroDivisionError"
        first = Job.fetch(first.id, connection=queue.connection)
        assert first.meta["mine"] == 1
        # Times are RQ's own.
        assert first.started_at is not None
        assert first.ended_at is not None
        assert [ends[0].attempt_started_ns, ends[0].time_ns] == [
            moment_ns(first.started_at, 0), moment_ns(first.ended_at, 0)
        ]  # fmt: skip
        # Broken on purpose: RQ goes on, and the log says so.
        monkeypatch.setattr(places, "run", None)
        job = queue.enqueue("operator.add", 3, 4)
        worker.work(burst=True)
        assert job.return_value() == 7
        assert any("not reported" in record.message for record in caplog.records)

    def test_a_job_for_a_later_time_is_due_when_rq_says(self, queue: Queue, events: list[Any]) -> None:
        job = queue.enqueue_in(timedelta(minutes=5), "operator.add", 1, 2)
        assert tachograph.get_recorder().flush(60)
        (ready,) = [event for event in events if isinstance(event, StepReady)]
        registry: Any = ScheduledJobRegistry
        due = registry(queue=queue).get_scheduled_time(job)
        assert ready.time_ns == moment_ns(due, 0)
        assert ready.asked_ns is not None
        assert 0 <= moment_ns(due, 0) + NS - (ready.asked_ns + 300 * NS) <= 60 * NS
        place = place_of(job.meta[HEADER])
        assert place is not None
        assert place.waits == {"queued_at": place.asked, "due": due.timestamp()}

    def test_uninstrumented_nothing_is_left(self, queue: Queue, events: list[Any]) -> None:
        classes = [Queue, Job, *SimpleWorker.__mro__[:-1], rq_integration.Worker]
        names = {name for owner in classes for name, value in vars(owner).items() if hasattr(value, "__wrapped__")}
        assert {"create_job", "cancel", "perform_job", "execute_job"} <= names
        rq_integration.instrument()
        rq_integration.uninstrument()
        wrapped = [
            value for owner in classes for value in vars(owner).values()
            if getattr(value, "__code__", None) and value.__code__.co_filename.endswith("overriding.py")
        ]  # fmt: skip
        assert wrapped == []
        job = queue.enqueue("operator.add", 1, 2)
        assert job.get_status() == JobStatus.QUEUED
        assert HEADER not in job.meta
        assert told(events) == []


class TestDramatiq:
    @pytest.fixture
    def broker(self) -> Iterator[StubBroker]:
        broker = StubBroker()
        dramatiq_integration.instrument(broker)
        yield broker
        broker.close()

    def run(self, broker: StubBroker) -> None:
        worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
        worker.start()
        try:
            broker.join("default", fail_fast=False, timeout=60_000)
            worker.join()
        finally:
            worker.stop(timeout=60_000)

    def test_messages_of_actors(
        self, broker: StubBroker, events: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        tries: list[int] = []

        def flaky_actor(number: int) -> int:
            tries.append(number)
            if len(tries) == 1:
                raise ConnectionError("token=hunter2")
            return number

        def broken_actor(_: int) -> None:
            raise ValueError("no item")

        actor: Any = dramatiq.actor
        flaky = actor(flaky_actor, actor_name="flaky", broker=broker, max_retries=1, min_backoff=1, max_backoff=1)
        broken = actor(broken_actor, actor_name="broken", broker=broker, max_retries=0)

        messages = [flaky.message(1), broken.message(), flaky.message()]
        pipeline: Any = dramatiq.pipeline
        pipeline(messages, broker=broker).run()
        self.run(broker)
        pipeline(messages, broker=broker).run()  # The same messages again: another run.
        assert HEADER not in messages[1].options
        self.run(broker)
        assert told(events) == [
            ("flaky", "Started"), ("flaky", "Retrying"), ("flaky", "Started"), ("flaky", "completed"),
            ("broken", "Started"), ("broken", "failed"),
            ("flaky", "Started"), ("flaky", "completed"), ("broken", "Started"), ("broken", "failed"),
        ]  # fmt: skip
        assert "hunter2" not in repr(events)
        planned = [event.step for event in events if isinstance(event, StepReady) and event.is_planned]
        assert [(step.name, len(step.depends_on)) for step in planned] == [("broken", 1), ("flaky", 1)] * 2
        assert len(runs_of(events)) == 2
        monkeypatch.setattr(places, "run", None)
        flaky.send(7)
        self.run(broker)
        assert tries[-1] == 7
        assert any("not reported" in record.message for record in caplog.records)

    def test_a_group_of_pipelines_is_one_run(self, broker: StubBroker, events: list[Any]) -> None:
        make: Any = StubBackend
        broker.add_middleware(GroupCallbacks(make()))
        decorate: Any = dramatiq.actor
        group: Any = dramatiq.group
        fetch, store, total = (decorate(lambda *_: None, actor_name=name, broker=broker) for name in "fst")
        pipelines = [dramatiq.pipeline([fetch.message(), store.message()], broker=broker) for _ in range(3)]
        together = group(pipelines, broker=broker)
        together.add_completion_callback(total.message())
        together.run()
        self.run(broker)
        told(events)
        assert {workflow for workflow, _ in runs_of(events)} == {"f"}
        assert len(runs_of(events)) == 1
        ended = sorted((each.step.name, each.step.map_index or "") for each in events if isinstance(each, StepFinished))
        assert ended == [*[("f", str(i)) for i in range(3)], *[("s", str(i)) for i in range(3)], ("t", "")]

    def test_uninstrumented_nothing_is_left(self, broker: StubBroker, events: list[Any]) -> None:
        dramatiq_integration.instrument(broker)
        assert len(dramatiq_integration._ours(broker)) == 1
        dramatiq_integration.uninstrument(broker)
        assert [type(each).__module__ for each in broker.middleware if "tachograph" in type(each).__module__] == []
        actor = dramatiq.actor(broker=broker, actor_name="quiet")(print)
        assert HEADER not in actor.send().options
        assert told(events) == []


def test_places_of_what_is_sent(events: list[Any]) -> None:
    here, elsewhere = sending.Sending("test"), sending.Sending("test")
    due = 1_800_000_000.0
    group = [here.place("work", f"m{i}", due=due, group="g") for i in range(3)]
    assert [(place.key, place.number, place.workflow) for place in group] == [
        ("work", 0, "work"), ("work", 1, "work"), ("work", 2, "work"),
    ]  # fmt: skip
    after = here.place("merge", "m4", due=None, after=group)
    assert (after.run_id, after.key) == ("g", "merge")
    # Another process does not know how many there were of a name: the message's id tells them apart.
    others = [elsewhere.place("merge", f"{i}-id", due=due, after=group) for i in range(2)]
    assert {place.key for place in others} == {"merge#0-id", "merge#1-id"}
    with sending.together("nightly", run_id="2027-01-15"):
        keys = [here.place(name, "-", due=due).key for name in ("extract", "work", "work")]
        assert keys == ["extract", "work", "work#2"]
        assert here.place("work", "-", due=due, group="g").key == "work#3"
    alone = here.place("work", "m9", due=due)
    assert (alone.workflow, alone.run_id, alone.key) == ("work", "m9", "work")
    assert alone.again().run_id == "m9+1"
    assert alone.again().again().run_id == "m9+2"
    told(events)
    assert len(runs_of(events)) == 3
    for text in (None, 1, "", "{}", json.dumps([1] * 10), json.dumps([*"wr", "", "k", "", "n", None, 0, "e", 0])):
        assert place_of(text) is None
    assert place_of(places.header_of(group[1])) == group[1]


def test_what_is_asked_for_a_later_time_is_scheduled_until_then(events: list[Any]) -> None:
    here, now = sending.Sending("test"), time.time()
    with sending.together("nightly"):
        soon, later = here.place("soon", "m1", due=now), here.place("later", "m2", due=now + 5)
    there = place_of(places.header_of(later))
    assert there == later
    soon.step.started(attempt=1, at=now, **soon.waits)
    there.step.started(attempt=1, at=now + 7, **there.waits)
    told(events)
    waits = {event.step.name: event for event in events if isinstance(event, StepStarted)}
    asked_ns, due_ns = moment_ns(later.asked, 0), moment_ns(now + 5, 0)
    assert (waits["later"].scheduled_ns, waits["soon"].scheduled_ns) == (due_ns - asked_ns, 0)
    assert waits["later"].unaccounted_ns == asked_ns - moment_ns(now, 0)
    assert waits["later"].queue_ns == moment_ns(now + 7, 0) - due_ns
    ready = {event.step.name: (event.time_ns, event.asked_ns) for event in events if isinstance(event, StepReady)}
    assert ready["later"] == (due_ns, asked_ns)
    assert ready["soon"][1] is None
    # Its next attempt, and messages of earlier versions.
    assert there.again().waits == {"queued_at": None}
    assert place_of(json.dumps([*later][:-1])) == later._replace(asked=0.0)
    assert json.loads(places.header_of(soon)) == [*soon][:-1]
    assert place_of(json.dumps([*later[:-1], "now"])) is None


async def test_tasks_of_taskiq(
    events: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
    tries: list[int] = []

    async def flaky(number: int) -> int:
        tries.append(number)
        if len(tries) == 1:
            raise ConnectionError("token=hunter2")
        await (await tasks["order"].kiq(number)).wait_result(timeout=60)
        return number

    async def order(number: int) -> None:
        raise ValueError("no item")

    async def slow() -> None:
        await asyncio.sleep(60)

    tasks: dict[str, Any] = {
        "flaky": broker.register_task(flaky, "flaky", retry_on_error=True),
        "order": broker.register_task(order, "order"),
        "slow": broker.register_task(slow, "slow", timeout=0.01),
    }
    taskiq_integration.instrument(broker)
    taskiq_integration.instrument(broker)
    await broker.startup()
    try:
        with taskiq_integration.together("nightly"):
            await (await tasks["flaky"].kiq(7)).wait_result(timeout=60)
            await (await tasks["slow"].kiq()).wait_result(timeout=60)
        assert told(events) == [
            ("flaky", "Started"), ("flaky", "Retrying"), ("flaky", "Started"), ("order", "Started"),
            ("order", "failed"), ("flaky", "completed"), ("slow", "Started"), ("slow", "timeout"),
        ]  # fmt: skip
        assert {workflow for workflow, _ in runs_of(events)} == {"nightly"}
        assert len(runs_of(events)) == 1
        assert "hunter2" not in repr(events)
        assert all(HEADER not in task.labels for task in tasks.values())
        monkeypatch.setattr(places, "run", None)
        result = await (await tasks["flaky"].kiq(8)).wait_result(timeout=60)
        assert result.return_value == 8
        assert any("not reported" in record.message for record in caplog.records)
        monkeypatch.undo()
        taskiq_integration.uninstrument(broker)
        assert [each for each in broker.middlewares if hasattr(each, "reports")] == []
        before = len(told(events))
        await (await tasks["flaky"].kiq(9)).wait_result(timeout=60)
        assert len(told(events)) == before
    finally:
        await broker.shutdown()
