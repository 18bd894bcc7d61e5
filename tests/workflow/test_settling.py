"""Every execution ends, and its numbers are right, whoever stops it and whatever breaks."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tachograph.events import (
    Event,
    ExecutionFinished,
    StepFinished,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.metrics.listener import MetricsListener
from tachograph.workflow import (
    Backoff,
    Executor,
    HandlerRegistry,
    InvalidWorkflow,
    StepContext,
    WorkflowBuilder,
    registry,
    validate,
)
from tachograph.workflow.reporter import Reporter, current_reporter
from tachograph.workflow.runner import LocalRunner

LONG = Backoff(initial_seconds=30, jitter=0)
AT_ONCE = Backoff(initial_seconds=0, jitter=0)


@pytest.fixture
def work() -> HandlerRegistry:
    return registry.copy()


class Watched:
    """Events and metrics of an executor."""

    def __init__(self, *, then: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self.registry = CollectorRegistry()
        self.metrics = MetricsListener(self.registry)
        self._then = then

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.metrics(event)
        self._then(event)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"workspace": "default", "workflow": "w", **labels})

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def ends(self) -> list[str]:
        return [str(event.status) for event in self.of(ExecutionFinished)]

    def check(self) -> None:
        """Nothing runs any more, and attempts are counted as often as they started."""
        assert self.sample("workflow_steps_running") == 0
        assert self.sample("workflow_executions_running") == 0
        started = len(self.of(StepStarted))
        outcomes = ("completed", "failed", "cancelled", "timeout")
        steps = {event.step.name for event in self.of(StepStarted)}
        counted = [
            self.sample("workflow_step_attempts_total", step=step, outcome=outcome) or 0
            for step in steps
            for outcome in outcomes
        ]
        assert sum(counted) == started
        for event in self.of(StepFinished):
            assert event.run_ns <= event.duration_ns
            parts = event.dependency_ns + event.queue_ns + event.backoff_ns + event.run_ns
            assert parts == event.time_ns - self.of(ExecutionFinished)[0].started_ns


async def reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for are events of the code under test
            await asyncio.sleep(0.001)


async def stop_by_cancel(executor: Executor, task: asyncio.Task[Any], execution_id: str) -> None:
    assert executor.cancel(execution_id)
    await task


async def stop_by_task(executor: Executor, task: asyncio.Task[Any], execution_id: str) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def stop_by_drain(executor: Executor, task: asyncio.Task[Any], execution_id: str) -> None:
    await executor.drain(0.01)
    await task


@pytest.mark.parametrize("stop", [stop_by_cancel, stop_by_task, stop_by_drain])
async def test_a_step_stopped_while_it_backs_off_is_counted_once(work: HandlerRegistry, stop: Any) -> None:
    seen = Watched()
    executor = Executor(seen, handlers=work)
    ref, task = executor.submit(
        WorkflowBuilder("w").step("a", handler="fail", max_retries=3, retry_backoff=LONG).build()
    )
    await reached(lambda: bool(seen.of(StepRetrying)))
    await stop(executor, task, ref.execution_id)
    assert seen.ends == ["cancelled"]
    (end,) = seen.of(StepFinished)
    assert end.between_attempts
    seen.check()


@pytest.mark.parametrize("stop", [stop_by_cancel, stop_by_task, stop_by_drain])
async def test_a_step_stopped_while_it_queues_for_a_retry_is_counted_once(work: HandlerRegistry, stop: Any) -> None:
    entered = asyncio.Event()

    @work.register("hold")
    async def hold(context: StepContext) -> None:
        entered.set()
        await asyncio.sleep(60)

    seen = Watched()
    executor = Executor(seen, handlers=work, max_concurrency=1)
    flow = (
        WorkflowBuilder("w").step("a", handler="fail", max_retries=3, retry_backoff=AT_ONCE).step("b", handler="hold")
    ).build()
    ref, task = executor.submit(flow)
    await entered.wait()
    await asyncio.sleep(0)
    await reached(lambda: bool(seen.of(StepRetrying)))
    for _ in range(5):  # The backoff of no time passes, and "a" queues behind "b".
        await asyncio.sleep(0.001)
    await stop(executor, task, ref.execution_id)
    ends = {event.step.name: event for event in seen.of(StepFinished)}
    assert ends["a"].between_attempts
    assert ends["a"].queue_ns > 0
    assert (str(ends["a"].status), str(ends["b"].status)) == ("cancelled", "cancelled")
    seen.check()


async def test_a_run_that_times_out_while_a_step_backs_off_is_counted_right(work: HandlerRegistry) -> None:
    seen = Watched()
    flow = WorkflowBuilder("w", timeout_seconds=0.05).step("a", handler="fail", max_retries=3, retry_backoff=LONG)
    result = await Executor(seen, handlers=work).run(flow.step("b", after="a").build())
    assert str(result.status) == "timeout"
    assert [str(event.reason) for event in seen.of(StepSkipped)] == ["execution_timeout"]
    seen.check()


@pytest.mark.parametrize("turns", range(6))
async def test_the_task_of_submit_may_be_cancelled_at_any_moment(work: HandlerRegistry, turns: int) -> None:
    """Also before it ran for the first time: then nothing of it but the cancellation ever runs."""
    seen = Watched()
    executor = Executor(seen, handlers=work, max_executions=1)
    long = WorkflowBuilder("w").step("a", handler="sleep", config={"seconds": 60}).step("b", after="a").build()
    _, task = executor.submit(long)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert seen.ends == ["cancelled"]
    assert len(seen.of(StepFinished)) + len(seen.of(StepSkipped)) == 2
    assert executor.open_executions == 0
    assert not seen.sample("workflow_steps_running")
    async with asyncio.timeout(60):
        _, after = executor.submit(WorkflowBuilder("w").step("a").build())
        assert str((await after).status) == "completed"


async def test_a_caller_cancelled_twice_still_leaves_an_end_behind(work: HandlerRegistry) -> None:
    entered = asyncio.Event()
    cancelled: list[int] = []

    @work.register("stubborn")
    async def stubborn(context: StepContext) -> None:
        for number in range(2):
            entered.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(number)
        raise asyncio.CancelledError

    seen = Watched()
    executor = Executor(seen, handlers=work)
    task = asyncio.create_task(executor.run(WorkflowBuilder("w").step("a", handler="stubborn").build()))
    await entered.wait()
    for count in (1, 2):
        task.cancel()
        await reached(lambda count=count: len(cancelled) == count)  # type: ignore[misc]
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen.ends == ["cancelled"]
    assert executor.open_executions == 0
    seen.check()


def test_an_interrupt_in_a_handler_stops_the_program_and_is_recorded() -> None:
    handlers = registry.copy()

    @handlers.register("interrupt")
    async def interrupt(context: StepContext) -> None:
        raise KeyboardInterrupt

    @handlers.register("interrupt in a thread")
    def interrupt_in_thread(context: StepContext) -> None:
        raise KeyboardInterrupt

    for name in ("interrupt", "interrupt in a thread"):
        seen = Watched()
        flow = (
            WorkflowBuilder("w").step("beside", handler="sleep", config={"seconds": 60})
            .step("a", handler=name, max_retries=3).step("b", after="a")
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(Executor(seen, handlers=handlers).run(flow.build()))
        ends = {event.step.name: str(event.status) for event in seen.of(StepFinished)}
        assert ends == {"a": "cancelled", "beside": "cancelled"}
        assert seen.ends == ["cancelled"]
        seen.check()


def test_a_program_that_ends_while_a_run_is_open_cancels_it() -> None:
    """`asyncio.run` cancels every task there is, those of the steps included."""
    seen = Watched()

    async def main() -> None:
        executor = Executor(seen, handlers=registry.copy())
        flow = WorkflowBuilder("w").step("a", handler="sleep", config={"seconds": 60}, max_retries=5)
        executor.submit(flow.step("b", after="a").build())
        await reached(lambda: bool(seen.of(StepStarted)))

    asyncio.run(main())
    assert [str(event.status) for event in seen.of(StepFinished)] == ["cancelled"]
    assert seen.ends == ["cancelled"]
    seen.check()


class Unwilling:
    """An output whose truth, text and items cannot be had."""

    def __bool__(self) -> bool:
        raise RuntimeError("the truth of this is ambiguous")

    def __str__(self) -> str:
        raise GeneratorExit

    def __getitem__(self, key: str) -> Any:
        raise LookupError


@pytest.mark.parametrize(
    "after", [{"when": "${steps.a.output}"}, {"when": "!${steps.a.output}"}, {"when": "steps.a.output == 1"},
              {"config": {"text": "it is ${steps.a.output}"}}, {"config": {"part": "${steps.a.output.x}"}}]
)  # fmt: skip
async def test_an_output_that_cannot_be_read_fails_the_step_that_reads_it(
    work: HandlerRegistry, after: dict[str, Any]
) -> None:
    @work.register("give")
    async def give(context: StepContext) -> Any:
        return Unwilling()

    @work.register("take")
    async def take(context: StepContext) -> Any:
        return None

    flow = WorkflowBuilder("w").step("a", handler="give").step("b", after="a", handler="take", **after)
    seen = Watched()
    async with asyncio.timeout(60):
        result = await Executor(seen, handlers=work).run(flow.step("c", after="b").build())
    assert {name: str(status) for name, status in result.steps.items()} == {
        "a": "completed", "b": "failed", "c": "skipped"
    }  # fmt: skip
    seen.check()


@pytest.mark.parametrize("error", [RuntimeError("x"), SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
async def test_a_listener_may_raise_anything(work: HandlerRegistry, error: BaseException) -> None:
    def broken(event: Event) -> None:
        raise error

    seen = Watched(then=broken)
    flow = WorkflowBuilder("w").step("a", handler="fail", max_retries=1, retry_backoff=AT_ONCE).step("b", after="a")
    async with asyncio.timeout(60):
        result = await Executor(seen, handlers=work).run(flow.build())
    assert str(result.status) == "failed"
    seen.check()


async def test_an_interrupt_in_a_listener_is_let_through_once_the_event_is_booked(work: HandlerRegistry) -> None:
    interrupts: list[BaseException] = []

    def interrupted(event: Event) -> None:
        if isinstance(event, StepFinished):
            raise KeyboardInterrupt

    loop = asyncio.get_running_loop()
    plain_call_soon = loop.call_soon

    def call_soon(callback: Any, *args: Any, **options: Any) -> Any:
        if args and isinstance(args[0], KeyboardInterrupt):
            interrupts.append(args[0])
            return None
        return plain_call_soon(callback, *args, **options)

    loop.call_soon = call_soon  # type: ignore[assignment]
    try:
        seen = Watched(then=interrupted)
        await Executor(seen, handlers=work).run(WorkflowBuilder("w").step("a").build())
    finally:
        del loop.call_soon
    assert len(interrupts) == 1
    seen.check()


async def test_what_nobody_foresaw_fails_the_step_and_the_run_ends(work: HandlerRegistry) -> None:
    def no_number() -> float:
        raise RuntimeError("no number")

    seen = Watched()
    flow = WorkflowBuilder("w").step("a", handler="fail", max_retries=3).step("b").step("c", after="a")
    async with asyncio.timeout(60):
        result = await Executor(seen, handlers=work, random01=no_number).run(flow.build())
    assert {name: str(status) for name, status in result.steps.items()} == {
        "a": "failed", "b": "completed", "c": "skipped"
    }  # fmt: skip
    assert result.failure is not None
    assert "no number" in result.failure.message


class Lying(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


@pytest.mark.parametrize("in_thread", [False, True])
async def test_an_exception_that_hides_its_class_settles_its_step(work: HandlerRegistry, in_thread: bool) -> None:
    async def bad(context: StepContext) -> None:
        raise Lying("x")

    def bad_in_thread(context: StepContext) -> None:
        raise Lying("x")

    work.register("bad")(bad_in_thread if in_thread else bad)
    seen = Watched()
    flow = WorkflowBuilder("w").step("a", handler="bad", max_retries=1, retry_backoff=AT_ONCE).build()
    async with asyncio.timeout(60):
        assert str((await Executor(seen, handlers=work).run(flow)).status) == "failed"
    assert len(seen.of(StepStarted)) == 2
    seen.check()


class Called:
    async def __call__(self, context: StepContext) -> str:
        return "async"


async def plain(context: StepContext) -> str:
    await asyncio.sleep(0)
    return "async"


@functools.wraps(plain)
def passing_on(context: StepContext) -> Any:
    return plain(context)


@functools.wraps(plain)
def running(context: StepContext) -> str:
    return asyncio.run(plain(context))


@pytest.mark.parametrize(
    "handler", [Called(), plain, passing_on, running, functools.partial(plain), lambda context: plain(context)]
)
async def test_every_kind_of_async_handler_is_awaited(work: HandlerRegistry, handler: Any) -> None:
    work.register("h")(handler)
    result = await Executor(Watched(), handlers=work).run(WorkflowBuilder("w").step("a", handler="h").build())
    assert result.outputs == {"a": "async"}


async def test_a_fallback_of_a_fallback_rescues_the_run(work: HandlerRegistry) -> None:
    @work.register("three")
    async def three(context: StepContext) -> int:
        return 3

    seen = Watched()
    flow = (
        WorkflowBuilder("w").step("main", handler="fail", fallback_step="spare")
        .step("spare", handler="fail", fallback_step="last").step("last", handler="three", after="main")
        .step("after", after="main", when="steps.main.output == 3 && steps.last.output == 3")
        .step("after spare", after="spare")
    ).build()  # fmt: skip
    assert not validate(flow, work).errors
    async with asyncio.timeout(60):
        result = await Executor(seen, handlers=work).run(flow)
    assert {name: str(status) for name, status in result.steps.items()} == {
        "main": "failed", "spare": "failed", "last": "completed", "after": "completed", "after spare": "completed"
    }  # fmt: skip
    assert str(result.status) == "completed"
    order = [event.step.name for event in seen.of(StepStarted)]
    assert order.index("last") < order.index("after")
    seen.check()


@pytest.mark.parametrize(("spare", "last", "status"), [
    ("fail", "fail", "failed"), ("noop", "noop", "completed"), ("fail", "noop", "completed"),
])  # fmt: skip
async def test_a_run_is_rescued_by_whichever_fallback_completes(
    work: HandlerRegistry, spare: str, last: str, status: str
) -> None:
    flow = (
        WorkflowBuilder("w").step("main", handler="fail", fallback_step="spare")
        .step("spare", handler=spare, fallback_step="last").step("last", handler=last).step("after", after="main")
    ).build()  # fmt: skip
    async with asyncio.timeout(60):
        result = await Executor(Watched(), handlers=work).run(flow)
    assert str(result.status) == status
    assert str(result.steps["after"]) == ("completed" if status == "completed" else "skipped")


def test_a_fallbacks_fallback_cannot_wait_for_what_waits_for_the_first() -> None:
    flow = (
        WorkflowBuilder("w").step("main", handler="fail", fallback_step="spare")
        .step("spare", handler="fail", fallback_step="last").step("after", after="main").step("last", after="after")
    )  # fmt: skip
    with pytest.raises(InvalidWorkflow, match="wait for each other"):
        flow.build()


async def test_a_reporter_is_open_until_its_step_ends(work: HandlerRegistry) -> None:
    reporters: list[Reporter] = []
    open_meanwhile: list[bool] = []

    @work.register("twice")
    async def twice(context: StepContext) -> None:
        reporter = current_reporter.get()
        assert reporter is not None
        reporters.append(reporter)
        if context.attempt == 1:
            asyncio.get_running_loop().call_later(0.005, lambda: open_meanwhile.append(reporter.is_open))
            raise ValueError("again")

    flow = WorkflowBuilder("w").step(
        "a", handler="twice", max_retries=1, retry_backoff=Backoff(initial_seconds=0.05, jitter=0)
    )
    await Executor(Watched(), handlers=work).run(flow.build())
    assert open_meanwhile == [True]
    assert reporters[0] is reporters[1]
    assert not reporters[0].is_open


async def test_a_context_that_outlives_its_step_knows_that_it_ended(work: HandlerRegistry) -> None:
    kept: list[contextvars.Context] = []

    @work.register("keep")
    def keep(context: StepContext) -> None:
        kept.append(contextvars.copy_context())

    await Executor(Watched(), handlers=work).run(WorkflowBuilder("w").step("a", handler="keep").build())
    reporter = kept[0].run(current_reporter.get)
    assert reporter is not None
    assert not reporter.is_open


async def test_what_is_open_when_the_run_ends_is_closed_with_it(work: HandlerRegistry) -> None:
    closed: list[tuple[str, int]] = []

    @work.register("leaves")
    async def leaves(context: StepContext) -> None:
        reporter = current_reporter.get()
        assert reporter is not None
        counts = reporter.counts

        def close(name: str, now_ns: int) -> None:
            closed.append((name, now_ns))
            counts.add(StepStatus.LOST)
            if name == "inner":
                raise RuntimeError("closing failed")

        for name in ("outer", "inner", "ended"):
            counts.open_steps[name] = functools.partial(close, name)
        counts.open_steps.pop("ended")

    seen = Watched()
    await Executor(seen, handlers=work).run(WorkflowBuilder("w").step("a", handler="leaves").build())
    (end,) = seen.of(ExecutionFinished)
    assert closed == [("inner", end.time_ns), ("outer", end.time_ns)]
    assert end.step_count == 3


async def test_no_thread_no_work(work: HandlerRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's limit of threads is reached: the step fails, and its handler does not run later by surprise."""
    ran: list[str] = []

    @work.register("sync")
    def sync(context: StepContext) -> None:
        ran.append(context.step.name)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = Executor(Watched(), handlers=work, runner=LocalRunner())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        refused = await executor.run(WorkflowBuilder("w").step("refused", handler="sync").build())
    assert str(refused.status) == "failed"
    assert str((await executor.run(WorkflowBuilder("w").step("b", handler="sync").build())).status) == "completed"
    assert ran == ["b"]


def test_a_forked_child_has_threads_of_its_own(wait_until: Callable[[Callable[[], bool]], None]) -> None:
    handlers = registry.copy()

    @handlers.register("sync")
    def sync(context: StepContext) -> int:
        return os.getpid()

    runner = LocalRunner()
    executor = Executor(lambda event: None, handlers=handlers, runner=runner)
    flow = WorkflowBuilder("w").step("a", handler="sync", timeout_seconds=5).build()
    assert str(asyncio.run(executor.run(flow)).status) == "completed"
    # A thread that waits for work: the child inherits the count of them, but not the thread.
    wait_until(lambda: runner._threads._idle == 1)
    child = os.fork()
    if child == 0:
        try:
            result = asyncio.run(executor.run(flow))
            os._exit(0 if result.outputs == {"a": os.getpid()} else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def test_names_of_the_executor_are_clean_in_every_event(work: HandlerRegistry) -> None:
    names = {"workflow": "w\udce8\0", "step": "s\udce8", "long": "x" * 999}

    @work.register("report")
    async def report(context: StepContext) -> None:
        context.measure(names["step"], 1, "\udce8" * 99)
        context.cost(1, model=names["long"])
        context.log(names["step"])
        raise type("E" + "x" * 999, (Exception,), {})(names["step"])

    events: list[Any] = []
    flow = WorkflowBuilder(names["workflow"], version=names["long"])
    flow.step(names["step"], handler="report").step(names["long"] + "a", handler="report").step(names["long"] + "b")
    result = await Executor(events.append, handlers=work).run(flow.build(), workspace=names["step"])
    assert set(result.steps) == {names["step"], names["long"] + "a", names["long"] + "b"}
    steps = {event.step.step_id: event.step.name for event in events if hasattr(event, "step")}
    assert len(steps) == len(set(steps.values())) == 3
    for text in texts(events):
        text.encode()
        assert "\0" not in text
    short = [e.execution.version for e in events] + list(steps.values())
    short += [e.name for e in events if type(e).__name__ == "StepMeasured"]
    short += [e.model for e in events if type(e).__name__ == "StepCost"]
    short += [part.step for part in events[-1].critical_path]
    short += [e.failure.type for e in events if getattr(e, "failure", None) is not None]
    assert max(map(len, short)) <= 200
    assert max(len(e.unit) for e in events if type(e).__name__ == "StepMeasured") <= 50


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)
    elif hasattr(value, "__struct_fields__"):
        for name in value.__struct_fields__:
            yield from texts(getattr(value, name))
