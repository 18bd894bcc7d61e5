"""The program's own state: a step belongs to the run that submitted it, whatever made its thread, and nothing leaks."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import multiprocessing.pool
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import tachograph
from tachograph.events import Event, ExecutionFinished, ExecutionStarted, StepFinished, StepStarted


class Recording:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.recorder = tachograph.configure(database="", registry=self.registry, spans=True)
        self._events: list[Event] = []
        self.recorder.add("test", self._events.append)

    @property
    def events(self) -> list[Event]:
        assert self.recorder.flush(60)
        return self._events

    def steps(self) -> dict[str, list[str]]:
        """Names of the steps of each workflow."""
        steps: dict[str, list[str]] = {}
        for event in self.events:
            if isinstance(event, ExecutionStarted):
                steps.setdefault(event.execution.workflow, [])
            elif isinstance(event, StepFinished):
                steps[event.execution.workflow].append(event.step.name)
        return steps

    def finished(self, name: str) -> list[StepFinished]:
        return [event for event in self.events if isinstance(event, StepFinished) and event.step.name == name]

    def running(self) -> list[float]:
        return [
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name in ("workflow_steps_running", "workflow_executions_running")
        ]


@pytest.fixture
def recording() -> Iterator[Recording]:
    recording = Recording()
    yield recording
    recording.recorder.close()


@tachograph.step
def work(_n: int = 0) -> None:
    pass


POOLS: dict[str, Callable[[], Any]] = {
    "multiprocessing": lambda: multiprocessing.pool.ThreadPool(1),
    "concurrent.futures": lambda: ThreadPoolExecutor(1),
}


@pytest.mark.parametrize("kind", POOLS)
def test_a_pool_made_inside_one_run_serves_the_run_that_submits(kind: str, recording: Recording) -> None:
    def submit(pool: Any) -> None:
        if kind == "multiprocessing":
            pool.map(work, [1])
            list(pool.imap(work, [1]))
            pool.apply(work)
            list(pool.imap_unordered(work, [1, 2], chunksize=2))
        else:
            list(pool.map(work, [1, 2, 3, 4]))
            pool.submit(work).result()

    with tachograph.workflow("first"):
        pool = POOLS[kind]()
        submit(pool)
    with tachograph.workflow("second"):
        submit(pool)
    outside = pool.apply_async(work) if kind == "multiprocessing" else pool.submit(work)
    outside.get() if kind == "multiprocessing" else outside.result()
    if kind == "multiprocessing":
        pool.terminate()
        pool.join()
    else:
        pool.shutdown()
    assert recording.steps() == {"first": ["work"] * 5, "second": ["work"] * 5, "work": ["work"]}
    first_trace = next(e for e in recording.events if e.execution.workflow == "first").execution.trace_id
    own = next(e for e in recording.events if e.execution.workflow == "work").execution
    assert own.trace_id != first_trace


def test_two_runs_at_once_share_a_pool_without_mixing(recording: Recording) -> None:
    pool = ThreadPoolExecutor(4)

    @tachograph.step
    def part(name: str) -> None:
        with tachograph.step(f"inner of {name}"):
            pass

    def run(name: str) -> None:
        with tachograph.workflow(name):
            list(pool.map(part, [name] * 20))

    threads = [threading.Thread(target=run, args=(f"run {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.shutdown()
    for event in recording.events:
        if isinstance(event, StepFinished) and event.step.name.startswith("inner"):
            assert event.step.name == f"inner of {event.execution.workflow}"
    assert {name: len(steps) for name, steps in recording.steps().items()} == {f"run {i}": 40 for i in range(4)}


def test_a_consumer_thread_started_inside_a_run_does_not_stick_to_it(recording: Recording) -> None:
    jobs: queue.Queue[int | None] = queue.Queue()

    def consume() -> None:
        while jobs.get() is not None:
            work()
            jobs.task_done()

    with tachograph.workflow("first"):
        consumer = threading.Thread(target=consume)
        consumer.start()
        jobs.put(1)
        jobs.join()
    for _ in range(2):
        with tachograph.workflow("second"):
            jobs.put(1)
            jobs.join()
    jobs.put(None)
    consumer.join()
    # Nothing says who put the work: it is of no run that has ended, and of none that it does not know.
    assert recording.steps() == {"first": ["work"], "second": [], "work": ["work", "work"]}


def test_a_block_used_twice_is_two_steps(recording: Recording) -> None:
    block = tachograph.step("block")
    flow = tachograph.workflow("flow")
    for _ in range(2):
        with flow:
            with block as step:
                step.measure("rows", 1)
            with block:
                block.measure("rows", 2)
                with block:
                    pass
    finished = recording.finished("block")
    assert [event.attempt for event in finished] == [1] * 6
    assert len({event.step.step_id for event in finished}) == 3
    assert len({event.execution.execution_id for event in finished}) == 2
    assert sum(event.step.parent_step_id is not None for event in finished) == 2


async def test_a_block_is_entered_by_two_tasks_at_once(recording: Recording) -> None:
    block = tachograph.step("block")
    both = asyncio.Barrier(2)

    async def enter(seconds: float) -> None:
        async with block:
            await both.wait()
            await asyncio.sleep(seconds)

    async with tachograph.workflow("flow"), asyncio.TaskGroup() as group:
        group.create_task(enter(0.05))
        group.create_task(enter(0.0))
    durations = sorted(event.duration_ns for event in recording.finished("block"))
    assert durations[0] < 40_000_000 <= durations[1]


async def test_an_async_generator_closed_in_another_task_leaves_no_traceback(
    recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    @tachograph.step
    async def numbers() -> AsyncIterator[int]:
        with tachograph.step("inner"):
            yield 1
            yield 2

    async def begin() -> AsyncIterator[int]:
        generator = numbers()
        assert await anext(generator) == 1
        return generator

    with caplog.at_level(logging.WARNING), tachograph.workflow("flow"):
        generator = await asyncio.create_task(begin())
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
        abandoned = await asyncio.create_task(begin())
        del abandoned
        gc.collect()
        while len(recording.finished("numbers")) < 2:  # noqa: ASYNC110 - the loop closes it when it comes to it
            await asyncio.sleep(0)
        with tachograph.step("after"):
            pass
    assert caplog.text == ""
    assert [str(event.status) for event in recording.finished("numbers")] == ["cancelled", "cancelled"]
    (after,) = recording.finished("after")
    assert after.step.parent_step_id is None


def test_a_block_in_a_generator_that_is_closed_elsewhere(
    recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    def numbers() -> Iterator[int]:
        with tachograph.step("block"):
            yield 1

    generator = numbers()
    with caplog.at_level(logging.WARNING):
        with tachograph.workflow("flow"):
            next(generator)
        worker = threading.Thread(target=generator.close)  # type: ignore[attr-defined]
        worker.start()
        worker.join()
    assert caplog.text == ""
    assert [str(event.status) for event in recording.finished("block")] == ["lost"]


def test_decorators_keep_what_they_decorate(recording: Recording) -> None:
    class Thing:
        factor = 3

        @tachograph.step
        @staticmethod
        def static(x: int) -> int:
            return x

        @tachograph.step
        @classmethod
        def of_class(cls, x: int) -> int:
            return cls.factor * x

        @functools.cached_property
        def lazy(self) -> int:
            return tachograph.step(lambda: 7)()

    class Other(Thing):
        factor = 5

    assert (Thing.static(1), Thing().static(2), Other.of_class(2), Thing().of_class(2), Thing().lazy) == (
        1,
        2,
        10,
        6,
        7,
    )

    class Adder:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, x: int) -> int:
            self.calls += 1
            return x + self.calls

    adder = Adder()
    add = tachograph.step(adder)
    assert (add(1), add(1), adder.calls) == (2, 3, 2)
    power = tachograph.step(functools.partial(pow, 2))
    assert power(5) == 32
    assert tachograph.step(len)([1, 2]) == 2
    names = [event.step.name for event in recording.events if isinstance(event, StepFinished)]
    assert names == ["static", "static", "of_class", "of_class", "<lambda>", "Adder", "Adder", "pow", "len"]


def test_a_generator_passes_values_exceptions_and_its_result_through(recording: Recording) -> None:
    @tachograph.step
    def talk() -> Any:
        heard = []
        try:
            heard.append((yield "first"))
            heard.append((yield "second"))
        except KeyError:
            heard.append("key error")
        return heard

    def outer() -> Any:
        result = yield from talk()
        return result

    generator = outer()
    assert next(generator) == "first"
    assert generator.send("hello") == "second"
    with pytest.raises(StopIteration) as stop:
        generator.throw(KeyError("x"))
    assert stop.value.value == ["hello", "key error"]
    assert [str(event.status) for event in recording.finished("talk")] == ["completed"]


def test_a_workflow_inside_another_is_a_step_of_it(recording: Recording) -> None:
    import time

    @tachograph.workflow
    def child(fails: bool) -> int:
        with tachograph.step("inner"):
            time.sleep(0.01)
        if fails:
            raise ValueError("child failed")
        return 5

    @tachograph.workflow
    def parent() -> int:
        with tachograph.step("before"):
            pass
        result = child(False)
        with pytest.raises(ValueError, match="child failed"):
            child(True)
        with tachograph.step("around"):
            child(False)
        return result

    assert parent() == 5
    assert recording.steps() == {
        "parent": ["before", "child", "child", "child", "around"], "child": ["inner"] * 3,
    }  # fmt: skip
    steps = recording.finished("child")
    assert [str(event.status) for event in steps] == ["completed", "failed", "completed"]
    assert {event.step.step_type for event in steps} == {"workflow"}
    ends = {e.execution.execution_id: e for e in recording.events if isinstance(e, ExecutionFinished)}
    for event in steps:
        run = ends[event.step.child_execution_id or ""]
        assert run.execution.parent_execution_id == event.execution.execution_id
        assert run.execution.parent_step_id == event.step.step_id
        assert run.execution.trace_id == event.execution.trace_id
        assert run.execution.parent_span_id == event.step.span_id
        assert event.started_ns <= run.started_ns <= run.time_ns <= event.time_ns
    whole = next(e for e in ends.values() if e.execution.workflow == "parent")
    assert [part.step for part in whole.critical_path] == ["before", "child", "child", "around"]
    assert steps[2].step.parent_step_id == recording.finished("around")[0].step.step_id


def test_a_step_that_outlives_its_run_is_lost_with_it(recording: Recording) -> None:
    release, begun = threading.Event(), threading.Barrier(2)

    @tachograph.step
    def endless() -> None:
        with tachograph.step("inside"):
            begun.wait(60)
            release.wait(60)
        tachograph.log("too late")
        with tachograph.step("after the end"):
            pass

    with tachograph.workflow("flow"):
        worker = threading.Thread(target=endless, daemon=True)
        worker.start()
        begun.wait(60)
    release.set()
    worker.join()
    ends = [event for event in recording.events if isinstance(event, StepFinished | ExecutionFinished)]
    said = [(getattr(event, "step", None) and event.step.name, str(event.status)) for event in ends]  # type: ignore[union-attr]
    assert said[:3] == [("endless", "lost"), ("inside", "lost"), (None, "completed")] or said[:3] == [
        ("inside", "lost"), ("endless", "lost"), (None, "completed"),
    ]  # fmt: skip
    run = next(event for event in ends if isinstance(event, ExecutionFinished))
    assert run.step_count == 2
    assert run.completed_step_count == 0
    assert all(value == 0 for value in recording.running())
    starts = [event for event in recording.events if isinstance(event, StepStarted)]
    assert len(starts) == len([event for event in ends if isinstance(event, StepFinished)])


async def test_a_background_task_that_outlives_its_run(recording: Recording) -> None:
    release = asyncio.Event()

    @tachograph.step
    async def background() -> None:
        await release.wait()

    async with tachograph.workflow("flow"):
        task = asyncio.create_task(background())
        await asyncio.sleep(0.01)
    release.set()
    await task
    assert [str(event.status) for event in recording.finished("background")] == ["lost"]
    assert all(value == 0 for value in recording.running())


async def test_a_step_cancelled_while_backing_off(recording: Recording) -> None:
    from tachograph.workflow.definition import Backoff

    @tachograph.step(max_retries=3, backoff=Backoff(initial_seconds=30, jitter=0))
    async def flaky() -> None:
        raise ValueError("no")

    async with tachograph.workflow("flow"):
        task = asyncio.create_task(flaky())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (step,) = recording.finished("flaky")
    assert (str(step.status), step.attempt, step.between_attempts) == ("cancelled", 1, True)
    assert step.run_ns < step.duration_ns
    assert all(value == 0 for value in recording.running())
    attempts = {
        sample.labels["outcome"]: sample.value
        for family in recording.registry.collect()
        for sample in family.samples
        if sample.name == "workflow_step_attempts_total" and sample.value
    }
    assert attempts == {"failed": 1}
