"""Plain Python: decorators and blocks give the same events as the executor."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace
from prometheus_client import CollectorRegistry

import tachograph
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    StepFinished,
    StepMeasured,
    StepRetrying,
    WorkflowExpected,
)
from tachograph.expectation import Expectation, StepExpectation
from tachograph.recording import setup
from tachograph.workflow import Backoff, DoNotRetry, Executor, StepContext, WorkflowBuilder, registry


class Recorded:
    """The events that the process's recorder received."""

    def __init__(self, recorder: tachograph.Recorder) -> None:
        self.recorder = recorder
        self._events: list[Event] = []
        recorder.add("test", self._events.append)

    @property
    def events(self) -> list[Event]:
        assert self.recorder.flush(60)
        return self._events

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def steps(self) -> list[tuple[str, str]]:
        return [(event.step.name, str(event.status)) for event in self.of(StepFinished)]

    @property
    def end(self) -> ExecutionFinished:
        (finished,) = self.of(ExecutionFinished)
        assert isinstance(finished, ExecutionFinished)
        return finished


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.delenv("TACHOGRAPH_DATABASE_URL", raising=False)
    recorder = tachograph.configure(registry=CollectorRegistry(), workspace="team-a")
    yield Recorded(recorder)
    recorder.close(60)
    setup._recorder = None


def test_five_lines_are_enough(recorded: Recorded) -> None:
    @tachograph.step
    def load(path: str, password: str) -> int:
        return len(path)

    @tachograph.workflow
    def nightly() -> int:
        return load("abc", password="hunter2") + load("d", "x")

    assert nightly() == 4
    assert recorded.steps == [("load", "completed"), ("load", "completed")]
    first, second = recorded.of(StepFinished)
    assert first.inputs == '{"path":"abc","password":"[masked]"}'
    assert first.output == "3"
    assert first.step.step_id != second.step.step_id
    assert second.step.depends_on == (first.step.step_id,)
    end = recorded.end
    assert (end.execution.workflow, end.execution.workspace, end.status) == ("nightly", "team-a", "completed")
    assert (end.step_count, end.completed_step_count) == (2, 2)
    assert [part.step for part in end.critical_path] == ["load", "load"]
    assert nightly.__name__ == "nightly"


async def test_async_functions_side_by_side_are_a_fork_and_a_join(recorded: Recorded) -> None:
    @tachograph.step
    async def branch(n: int) -> int:
        await asyncio.sleep(0.01)
        return n

    @tachograph.step
    async def join() -> None: ...

    @tachograph.workflow(name="fan", version="3")
    async def flow() -> None:
        await asyncio.gather(branch(1), branch(2), branch(3))
        await join()

    await flow()
    ends = recorded.of(StepFinished)
    branches = {e.step.step_id for e in ends if e.step.name == "branch"}
    (last,) = [e for e in ends if e.step.name == "join"]
    assert set(last.step.depends_on) == branches
    assert all(e.step.depends_on == () for e in ends if e.step.name == "branch")
    assert recorded.end.execution.version == "3"


def test_what_is_raised_passes_through_and_is_recorded(recorded: Recorded) -> None:
    @tachograph.step
    def bad() -> None:
        raise KeyError("token=hunter2")

    @tachograph.workflow
    def flow() -> None:
        bad()

    with pytest.raises(KeyError):
        flow()
    assert recorded.steps == [("bad", "failed")]
    assert recorded.end.status == "failed"
    assert recorded.end.failure is not None
    assert recorded.end.failure.type == "KeyError"
    assert "hunter2" not in repr(recorded.events)


async def test_cancelled_work_is_cancelled_not_failed(recorded: Recorded) -> None:
    @tachograph.workflow
    async def flow() -> None:
        async with tachograph.step("wait"):
            await asyncio.sleep(30)

    task = asyncio.create_task(flow())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorded.steps == [("wait", "cancelled")]
    assert recorded.end.status == "cancelled"


def test_retries(recorded: Recorded) -> None:
    calls: list[int] = []
    quick = Backoff(initial_seconds=0.001)

    @tachograph.step(max_retries=3, backoff=quick)
    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("not yet")
        return "ok"

    @tachograph.step(max_retries=3, backoff=quick)
    def final() -> None:
        raise DoNotRetry("no use")

    with tachograph.workflow("w"):
        assert flaky() == "ok"
        with pytest.raises(DoNotRetry):
            final()
    assert len(recorded.of(StepRetrying)) == 2
    ends = {e.step.name: e for e in recorded.of(StepFinished)}
    assert ends["flaky"].attempt == 3
    assert ends["final"].attempt == 1
    for end in ends.values():
        whole = end.time_ns - recorded.of(ExecutionStarted)[0].time_ns
        assert end.dependency_ns + end.unaccounted_ns + end.queue_ns + end.backoff_ns + end.run_ns == whole


async def test_async_retries(recorded: Recorded) -> None:
    calls: list[int] = []

    @tachograph.step(max_retries=1, backoff=Backoff(initial_seconds=0.001))
    async def flaky() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("not yet")
        return 7

    assert await flaky() == 7
    assert recorded.of(StepFinished)[0].attempt == 2


async def test_a_step_cancelled_while_it_backs_off_ends_between_attempts(recorded: Recorded) -> None:
    @tachograph.step(max_retries=1, backoff=Backoff(initial_seconds=30, jitter=0))
    async def flaky() -> None:
        raise OSError("not yet")

    task = asyncio.create_task(flaky())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (end,) = recorded.of(StepFinished)
    (failed,) = recorded.of(StepRetrying)
    assert end.status == "cancelled"
    assert end.between_attempts
    assert end.run_ns == failed.time_ns - failed.started_ns
    whole = end.time_ns - recorded.of(ExecutionStarted)[0].time_ns
    assert end.dependency_ns + end.unaccounted_ns + end.queue_ns + end.backoff_ns + end.run_ns == whole


def test_blocks_report_and_nest(recorded: Recorded) -> None:
    with tachograph.workflow("w", inputs={"day": "mon"}) as run:
        assert run.execution is not None
        with tachograph.step("outer") as outer:
            outer.measure("rows", 5, "row")
            with tachograph.step("inner"):
                tachograph.measure("deep", 1)
                tachograph.cost(usd=0.1)
                tachograph.log("hello")
            with tachograph.step("inner"):
                pass
    inner, again, outer_end = recorded.of(StepFinished)
    assert inner.step.parent_step_id == outer_end.step.step_id
    assert inner.step.parent_span_id == outer_end.step.span_id
    assert inner.step.step_id != again.step.step_id
    assert outer_end.step.parent_span_id == recorded.end.execution.span_id
    assert [m.step.name for m in recorded.of(StepMeasured)] == ["outer", "inner"]
    assert recorded.end.step_count == 3
    assert recorded.end.work_ns == outer_end.run_ns
    assert recorded.end.inputs == '{"day":"mon"}'


def test_steps_in_threads_belong_to_the_workflow_that_started_them(recorded: Recorded) -> None:
    @tachograph.step
    def part(n: int) -> int:
        return n * n

    with tachograph.workflow("w"):
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(part, range(4))) == [0, 1, 4, 9]
        thread = threading.Thread(target=part, args=(9,))
        thread.start()
        thread.join()
    assert len(recorded.of(StepFinished)) == 5
    assert len({e.execution.execution_id for e in recorded.of(StepFinished)}) == 1
    assert recorded.end.step_count == 5


def test_steps_from_many_threads_at_once_are_all_told_apart(recorded: Recorded) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with tachograph.workflow("w"), tachograph.step("outer"), ThreadPoolExecutor(8) as pool:

            def many(_: int) -> None:
                for _ in range(50):
                    with tachograph.step("inner"):
                        pass

            list(pool.map(many, range(8)))
        with tachograph.workflow("v"), ThreadPoolExecutor(8) as pool:
            list(pool.map(many, range(8)))
    finally:
        sys.setswitchinterval(interval)
    ends = recorded.of(StepFinished)
    assert len({(e.execution.execution_id, e.step.step_id) for e in ends}) == len(ends) == 801


def test_a_step_on_its_own_is_an_execution_of_its_own(recorded: Recorded) -> None:
    @tachograph.step
    def alone() -> None: ...

    alone()
    assert recorded.end.execution.workflow == "alone"
    assert recorded.end.step_count == 1


async def test_a_step_inside_an_executors_handler_belongs_to_that_step(recorded: Recorded) -> None:
    work = registry.copy()

    @work.register("outer")
    def outer(context: StepContext) -> None:
        with tachograph.step("inner"):
            pass

    flow = WorkflowBuilder("w").step("a", handler="outer").build()
    result = await Executor(recorded.recorder, handlers=work).run(flow)
    inner, end = recorded.of(StepFinished)
    assert (inner.step.name, end.step.name) == ("inner", "a")
    assert inner.step.parent_step_id == end.step.step_id
    assert inner.execution.execution_id == result.execution.execution_id
    assert recorded.end.step_count == 2


def test_context_is_left_as_it_was_found(recorded: Recorded) -> None:
    before = trace.get_current_span()
    with tachograph.workflow("w"), tachograph.step("s"):
        assert trace.get_current_span().get_span_context().is_valid
    assert trace.get_current_span() is before


def test_a_parent_process_passes_its_trace_on(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    monkeypatch.setenv("TRACEPARENT", f"00-{trace_id}-{span_id}-01")
    with tachograph.workflow("w") as run:
        pass
    assert run.execution is not None
    assert (run.execution.trace_id, run.execution.parent_span_id) == (trace_id, span_id)


def test_a_generator_is_a_step_while_it_is_iterated(recorded: Recorded) -> None:
    @tachograph.step
    def numbers() -> Iterator[int]:
        with tachograph.step("inner"):
            pass
        yield 1
        yield 2

    with tachograph.workflow("flow"):
        for number in numbers():
            with tachograph.step(f"use {number}"):
                pass
    finished = {event.step.name: event.step for event in recorded.of(StepFinished)}
    # Between two items the caller is not inside the generator.
    assert finished["inner"].parent_step_id == finished["numbers"].step_id
    assert finished["use 1"].parent_step_id is finished["use 2"].parent_step_id is None


def test_capture_can_be_turned_off(recorded: Recorded) -> None:
    @tachograph.step(capture=False)
    def private(x: str) -> str:
        return x

    private("visible")
    assert "visible" not in repr(recorded.events)


def test_code_says_how_long_a_step_may_take(recorded: Recorded) -> None:
    @tachograph.step(deadline="10m")
    def load() -> None: ...

    @tachograph.workflow
    def nightly() -> None:
        for _ in range(3):
            load()
        with tachograph.step("inner"), tachograph.step("save", deadline=5):
            pass

    nightly()
    nightly()
    said = [(event.execution.workflow, event.source, event.expects) for event in recorded.of(WorkflowExpected)]
    each = [
        ("nightly", "code", Expectation(steps={"load": StepExpectation(deadline_seconds=600.0)})),
        ("nightly", "code", Expectation(steps={"save": StepExpectation(deadline_seconds=5.0)})),
    ]
    assert said == each * 2
    with pytest.raises(ValueError, match="deadline='soon'"):
        tachograph.step(deadline="soon")
