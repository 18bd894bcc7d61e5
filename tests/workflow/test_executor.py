"""Given a definition, when it runs, then these events."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    SkipReason,
    StepFinished,
    StepLogged,
    StepReady,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.workflow import (
    Backoff,
    DoNotRetry,
    ExecutionResult,
    Executor,
    ExecutorClosed,
    HandlerRegistry,
    InvalidInputs,
    InvalidWorkflow,
    Step,
    StepContext,
    TriggerRule,
    Workflow,
    WorkflowBuilder,
    registry,
)

NO_WAIT = Backoff(initial_seconds=0, jitter=0)


@pytest.fixture
def work() -> HandlerRegistry:
    return registry.copy()


class Run:
    """A finished run: its result and its events."""

    def __init__(self, result: ExecutionResult, events: Sequence[Event]) -> None:
        self.result = result
        self.events = events

    @property
    def status(self) -> ExecutionStatus:
        return self.result.status

    @property
    def steps(self) -> dict[str, str]:
        return {name: str(status) for name, status in self.result.steps.items()}

    def of(self, kind: type[Any], step: str | None = None) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind) and (step is None or e.step.name == step)]

    @property
    def skipped(self) -> dict[str, str]:
        return {event.step.name: str(event.reason) for event in self.of(StepSkipped)}


async def run(
    flow: WorkflowBuilder | Workflow, handlers: HandlerRegistry, inputs: dict[str, Any] | None = None, **options: Any
) -> Run:
    events: list[Event] = []
    executor = Executor(events.append, handlers=handlers, **options)
    definition = flow.build() if isinstance(flow, WorkflowBuilder) else flow
    result = await executor.run(definition, inputs)
    check_invariants(result, events)
    return Run(result, events)


async def begun(events: Sequence[Event]) -> None:
    """Wait until a step runs."""
    async with asyncio.timeout(60):
        while not any(isinstance(event, StepStarted) for event in events):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def gate(work: HandlerRegistry) -> asyncio.Event:
    """Registers a handler, ``gate``, that waits for what this returns."""
    release = asyncio.Event()

    @work.register("gate")
    async def wait(context: StepContext) -> None:
        await release.wait()

    return release


def check_invariants(result: ExecutionResult, events: Sequence[Event]) -> None:
    """What holds for every run: one end per step, times in order, parts that add up to the whole."""
    ended = Counter(e.step.name for e in events if isinstance(e, StepFinished | StepSkipped))
    assert ended == Counter(result.steps.keys())
    assert isinstance(events[0], ExecutionStarted | ExecutionQueued)
    finished = events[-1]
    assert isinstance(finished, ExecutionFinished)
    assert [type(e) for e in events].count(ExecutionFinished) == 1
    assert finished.status == result.status
    assert finished.step_count == len(result.steps)
    started = Counter(e.step.name for e in events if isinstance(e, StepStarted))
    for event in events:
        if isinstance(event, StepFinished):
            parts = event.dependency_ns + event.queue_ns + event.backoff_ns + event.run_ns
            assert parts == event.time_ns - result.started_ns
            assert started[event.step.name] == event.attempt
            assert result.started_ns <= event.started_ns <= event.attempt_started_ns <= event.time_ns
            assert event.time_ns <= finished.time_ns


async def test_steps_run_in_the_order_of_their_dependencies(work: HandlerRegistry) -> None:
    flow = WorkflowBuilder("w").step("c", after=["a", "b"]).step("b", after="a").step("a")
    outcome = await run(flow, work)
    assert [e.step.name for e in outcome.of(StepStarted)] == ["a", "b", "c"]
    assert outcome.status == "completed"
    assert [part.step for part in outcome.of(ExecutionFinished)[0].critical_path] == ["a", "b", "c"]


async def test_a_step_starts_when_its_own_dependencies_allow_not_when_a_level_is_done(work: HandlerRegistry) -> None:
    seen: list[str] = []
    release = asyncio.Event()

    @work.register("block")
    async def block(context: StepContext) -> None:
        await release.wait()

    @work.register("note")
    async def note(context: StepContext) -> None:
        seen.append(context.step.name)
        if context.step.name == "b2":
            release.set()

    flow = (
        WorkflowBuilder("w").step("a1", handler="block").step("b1", handler="note")
        .step("a2", after="a1", handler="note").step("b2", after="b1", handler="note")
    )  # fmt: skip
    await run(flow, work)
    assert seen == ["b1", "b2", "a2"]


async def test_outputs_reach_later_steps_and_conditions(work: HandlerRegistry) -> None:
    @work.register("count")
    def count(context: StepContext) -> dict[str, int]:
        return {"rows": 3}

    @work.register("double")
    async def double(context: StepContext) -> int:
        assert "never" not in context.outputs
        return 2 * int(context.outputs["count"]["rows"])

    flow = (
        WorkflowBuilder("w").step("count", handler="count")
        .step("double", after="count", handler="double", when="steps.count.output.rows > 2")
        .step("never", after="count", when="steps.count.output.rows > 3")
    )  # fmt: skip
    outcome = await run(flow, work)
    assert outcome.result.outputs["double"] == 6
    assert outcome.skipped == {"never": "condition"}
    assert outcome.status == "completed"


async def test_branches_join_as_in_airflow(work: HandlerRegistry) -> None:
    flow = (
        WorkflowBuilder("w").variable("mode", default_value="x").step("evaluate")
        .step("x", after="evaluate", when="mode == 'x'").step("y", after="evaluate", when="mode == 'y'")
        .step("join", after=["x", "y"], trigger_rule="none_failed_min_one_success")
        .step("strict", after=["x", "y"]).step("beyond", after="strict")
    )  # fmt: skip
    outcome = await run(flow, work)
    assert outcome.skipped == {"y": "condition", "strict": "upstream_skipped", "beyond": "upstream_skipped"}
    assert outcome.steps["join"] == "completed"
    assert outcome.status == "completed"


async def test_a_failed_step_fails_the_run_but_not_what_does_not_depend_on_it(work: HandlerRegistry) -> None:
    flow = (
        WorkflowBuilder("w").step("bad", handler="fail", config={"message": "no luck"}).step("after", after="bad")
        .step("beside").step("cleanup", after="after", trigger_rule="all_done")
    )  # fmt: skip
    outcome = await run(flow, work)
    assert outcome.status == "failed"
    assert outcome.steps == {"bad": "failed", "after": "skipped", "beside": "completed", "cleanup": "completed"}
    assert outcome.result.failure is not None
    assert outcome.result.failure.message == 'step "bad": no luck'
    assert outcome.result.failure.type.endswith("StepFailed")


async def test_retries_wait_with_backoff_and_are_told_apart(work: HandlerRegistry) -> None:
    backoff = Backoff(initial_seconds=0.02, factor=2, jitter=0)
    flow = WorkflowBuilder("w").step("flaky", handler="fail", config={"times": 2}, max_retries=3, retry_backoff=backoff)
    outcome = await run(flow, work)
    first, second = outcome.of(StepRetrying)
    assert [first.delay_ns, second.delay_ns] == [20_000_000, 40_000_000]
    (end,) = outcome.of(StepFinished)
    assert (end.status, end.attempt) == ("completed", 3)
    assert end.backoff_ns >= 60_000_000
    assert [e.attempt for e in outcome.of(StepStarted)] == [1, 2, 3]
    assert sum(e.backoff_ns for e in outcome.of(StepStarted)) == end.backoff_ns


async def test_the_workflows_retries_are_the_steps_default_and_some_failures_are_final(work: HandlerRegistry) -> None:
    @work.register("final")
    async def final(context: StepContext) -> None:
        raise DoNotRetry("no use")

    flow = (
        WorkflowBuilder("w", max_retries=2).step("a", handler="fail", retry_backoff=NO_WAIT)
        .step("b", handler="fail", max_retries=0).step("c", handler="final")
    )  # fmt: skip
    outcome = await run(flow, work)
    assert {e.step.name: e.attempt for e in outcome.of(StepFinished)} == {"a": 3, "b": 1, "c": 1}


def test_jitter_stays_within_its_part_of_the_interval() -> None:
    backoff = Backoff(initial_seconds=1, factor=2, max_seconds=5, jitter=0.5)
    assert backoff.delay_seconds(1, 0.0) == 1.0
    assert backoff.delay_seconds(1, 1.0) == 0.5
    assert backoff.delay_seconds(3, 0.0) == 4.0
    assert backoff.delay_seconds(9, 0.0) == 5.0
    assert backoff.delay_seconds(100_000, 0.0) == 5.0


async def test_a_fallback_stands_in_and_those_after_it_do_not_notice(work: HandlerRegistry) -> None:
    @work.register("two")
    async def two(context: StepContext) -> int:
        return 2

    flow = (
        WorkflowBuilder("w").step("main", handler="fail", fallback_step="spare").step("spare", handler="two")
        .step("after", after="main", handler="sleep", config={"seconds": "${steps.main.output}"}, timeout_seconds=0.01)
        .step("fine", handler="two", fallback_step="unused").step("unused")
    )  # fmt: skip
    outcome = await run(flow, work)
    assert outcome.steps["main"] == "failed"
    assert outcome.steps["spare"] == "completed"
    assert outcome.steps["after"] == "timeout"
    assert outcome.skipped == {"unused": "fallback_not_needed"}


async def test_a_run_rescued_by_a_fallback_completes_and_one_whose_fallback_fails_does_not(
    work: HandlerRegistry,
) -> None:
    def flow(spare: str) -> WorkflowBuilder:
        builder = WorkflowBuilder("w").step("main", handler="fail", fallback_step="spare").step("spare", handler=spare)
        return builder.step("after", after="main")

    assert (await run(flow("noop"), work)).status == "completed"
    failed = await run(flow("fail"), work)
    assert failed.status == "failed"
    assert failed.skipped == {"after": "upstream_failed"}


async def test_a_timeout_stops_async_work_and_is_honest_about_threads(work: HandlerRegistry) -> None:
    stopped = threading.Event()
    cancelled: list[bool] = []

    @work.register("polite")
    def polite(context: StepContext) -> None:
        while not context.is_stopping:
            time.sleep(0.005)
        stopped.set()

    @work.register("waits")
    async def waits(context: StepContext) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    flow = (
        WorkflowBuilder("w").step("thread", handler="polite", timeout_seconds=0.5)
        .step("task", handler="waits", timeout_seconds=0.5)
    )  # fmt: skip
    outcome = await run(flow, work)
    assert outcome.steps == {"thread": "timeout", "task": "timeout"}
    assert cancelled == [True]
    assert stopped.wait(60)
    assert "cannot be stopped" in outcome.of(StepLogged, "thread")[0].message
    assert not outcome.of(StepLogged, "task")


async def test_the_runs_own_timeout_cancels_what_runs_and_skips_the_rest(work: HandlerRegistry) -> None:
    flow = (
        WorkflowBuilder("w", timeout_seconds=0.5).step("long", handler="sleep", config={"seconds": 30})
        .step("retry", handler="fail", max_retries=5, retry_backoff=Backoff(initial_seconds=30, jitter=0))
        .step("never", after="long")
    )  # fmt: skip
    outcome = await run(flow, work)
    assert outcome.status == "timeout"
    assert outcome.steps == {"long": "cancelled", "retry": "cancelled", "never": "skipped"}
    assert outcome.skipped == {"never": "execution_timeout"}
    assert outcome.of(StepFinished, "retry")[0].between_attempts


async def test_a_cancelled_caller_cancels_the_run_and_it_is_recorded(work: HandlerRegistry) -> None:
    events: list[Event] = []
    executor = Executor(events.append, handlers=work)
    flow = WorkflowBuilder("w").step("long", handler="sleep", config={"seconds": 30}).step("next", after="long").build()
    task = asyncio.create_task(executor.run(flow))
    await begun(events)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(events[-1], ExecutionFinished)
    assert events[-1].status == "cancelled"
    assert executor.open_executions == 0


async def test_a_handler_that_swallows_its_cancellation_is_not_lost(work: HandlerRegistry) -> None:
    @work.register("stubborn")
    async def stubborn(context: StepContext) -> int:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return 5

    outcome = await run(WorkflowBuilder("w", timeout_seconds=0.5).step("a", handler="stubborn"), work)
    assert outcome.status == "timeout"
    assert outcome.steps == {"a": "completed"}


async def test_no_more_steps_run_at_once_than_allowed(work: HandlerRegistry) -> None:
    running = max_running = 0

    @work.register("count")
    async def count(context: StepContext) -> None:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        await asyncio.sleep(0.002)
        running -= 1

    flow = WorkflowBuilder("w", config={"max_concurrency": 3})
    for i in range(20):
        flow.step(f"s{i}", handler="count")
    outcome = await run(flow, work)
    assert max_running == 3
    assert any(e.queue_ns > 1_000_000 for e in outcome.of(StepFinished))
    max_running = 0
    await run(WorkflowBuilder("w").step("a", handler="count").step("b", handler="count"), work, max_concurrency=1)
    assert max_running == 1


async def test_backing_off_gives_its_slot_to_others(work: HandlerRegistry) -> None:
    slow = Backoff(initial_seconds=0.2, jitter=0)
    flow = (
        WorkflowBuilder("w", config={"max_concurrency": 1})
        .step("flaky", handler="fail", config={"times": 1}, max_retries=1, retry_backoff=slow).step("other")
    )  # fmt: skip
    outcome = await run(flow, work)
    assert outcome.of(StepFinished, "other")[0].time_ns < outcome.of(StepFinished, "flaky")[0].attempt_started_ns


async def test_inputs_are_checked_before_anything_is_recorded(work: HandlerRegistry) -> None:
    events: list[Event] = []
    executor = Executor(events.append, handlers=work)
    flow = (
        WorkflowBuilder("w").variable("day", is_required=True).variable("n", "int").variable("flag", "bool").step("a")
    ).build()
    with pytest.raises(InvalidInputs) as refused:
        await executor.run(flow, {"n": "3", "flag": 1, "dya": "x"})
    assert {(f.code, f.at) for f in refused.value.faults} == {
        ("missing_variable", "input_variables.day"),
        ("wrong_type", "input_variables.n"),
        ("wrong_type", "input_variables.flag"),
        ("unknown_variable", "input_variables.dya"),
    }
    with pytest.raises(InvalidWorkflow):
        await executor.run(Workflow(name="w", steps=(Step(name="a", config={"handler": "nope"}),)))
    assert events == []


async def test_a_listener_that_raises_costs_the_run_nothing(work: HandlerRegistry) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("listener")

    result = await Executor(broken, handlers=work).run(WorkflowBuilder("w").step("a").step("b", after="a").build())
    assert result.status == "completed"


async def test_submitted_runs_wait_for_room_and_can_be_cancelled_while_they_wait(work: HandlerRegistry) -> None:
    events: list[Event] = []
    release = gate(work)
    executor = Executor(events.append, handlers=work, max_executions=1)
    slow = WorkflowBuilder("slow").step("a", handler="gate").build()
    _, first = executor.submit(slow)
    second_ref, second = executor.submit(slow)
    third_ref, third = executor.submit(slow)
    await begun(events)
    assert executor.cancel(third_ref.execution_id)
    assert (await third).status == "cancelled"
    assert not first.done()
    release.set()
    assert (await second).status == (await first).status == "completed"
    started = [e.execution.execution_id for e in events if isinstance(e, ExecutionStarted)]
    assert started[-1] == second_ref.execution_id
    assert not executor.cancel("nobody")


@pytest.mark.parametrize("is_started_first", [True, False])
@pytest.mark.parametrize("max_executions", [None, 1])
async def test_an_accepted_run_that_is_cancelled_at_its_start_begins_no_step(
    work: HandlerRegistry, is_started_first: bool, max_executions: int | None
) -> None:
    begun: list[str] = []

    @work.register("begin")
    def begin(context: StepContext) -> None:
        begun.append(context.step.name)

    events: list[Event] = []
    executor = Executor(events.append, handlers=work, max_executions=max_executions)
    flow = WorkflowBuilder("two").step("a", handler="begin").step("b", handler="begin", after=["a"]).build()
    accepted = executor.accept(flow)
    executor.emit(accepted.queued)
    if is_started_first:
        task = accepted.start()
    assert executor.cancel(accepted.queued.execution.execution_id, "nobody waits for it")
    if not is_started_first:
        task = accepted.start()
    result = await task
    assert result.status == "cancelled"
    assert begun == []
    assert not [event for event in events if isinstance(event, StepReady | StepStarted)]
    check_invariants(result, events)


async def test_draining_lets_running_steps_finish_and_starts_no_others(work: HandlerRegistry) -> None:
    events: list[Event] = []
    release = gate(work)
    executor = Executor(events.append, handlers=work)
    flow = WorkflowBuilder("w").step("a", handler="gate").step("b", after="a").build()
    _, task = executor.submit(flow)
    await begun(events)
    draining = asyncio.create_task(executor.drain(60))
    await asyncio.sleep(0.02)
    release.set()
    await draining
    result = await task
    assert result.status == "cancelled"
    assert {name: str(status) for name, status in result.steps.items()} == {"a": "completed", "b": "skipped"}
    with pytest.raises(ExecutorClosed):
        executor.submit(flow)


async def test_draining_cancels_what_outlives_the_grace_period(work: HandlerRegistry) -> None:
    events: list[Event] = []
    executor = Executor(events.append, handlers=work)
    _, task = executor.submit(WorkflowBuilder("w").step("a", handler="sleep", config={"seconds": 300}).build())
    await begun(events)
    await executor.drain(0.05)
    result = await task
    assert result.failure is not None
    assert "0.05 s" in result.failure.message


@pytest.mark.parametrize("shape", ["chain", "fan", "wide"])
async def test_ten_thousand_steps_in_one_run(work: HandlerRegistry, shape: str) -> None:
    count = 10_000

    def before(i: int) -> tuple[str, ...]:
        if shape == "chain":
            return (f"s{i - 1}",) if i else ()
        if shape == "fan":
            return ("s0",) if 0 < i < count - 1 else tuple(f"s{j}" for j in range(count - 1)) if i else ()
        return ()

    steps = tuple(Step(name=f"s{i}", depends_on_steps=before(i)) for i in range(count))
    outcome = await run(Workflow(name="big", steps=steps), work, max_concurrency=None)
    assert outcome.status == "completed"
    assert len(outcome.of(StepReady)) == count


async def test_a_chain_of_ten_thousand_skipped_steps_does_not_overflow(work: HandlerRegistry) -> None:
    steps = [Step(name="s0", config={"handler": "fail"})]
    steps += [Step(name=f"s{i}", depends_on_steps=(f"s{i - 1}",)) for i in range(1, 10_000)]
    outcome = await run(Workflow(name="big", steps=tuple(steps)), work)
    assert Counter(outcome.steps.values()) == {"skipped": 9_999, "failed": 1}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_workflow_ends_with_every_step_settled(data: st.DataObject, work: HandlerRegistry) -> None:
    """Random graphs with failures, retries, conditions, rules, fallbacks and a random limit keep the invariants."""
    count = data.draw(st.integers(1, 9))
    steps: list[Step] = []
    for i in range(count):
        before = tuple(
            data.draw(st.lists(st.sampled_from([s.name for s in steps]), unique=True, max_size=3)) if i else ()
        )
        rules = ["all_success", "all_done", "none_failed"] + (
            ["one_success", "none_failed_min_one_success"] if before else []
        )
        steps.append(
            Step(
                name=f"s{i}",
                depends_on_steps=before,
                trigger_rule=TriggerRule(data.draw(st.sampled_from(rules))),
                condition_expression=data.draw(st.sampled_from([None, None, "true", "false", "1 / 0 == 1"])),
                max_retries=data.draw(st.integers(0, 2)),
                retry_backoff=NO_WAIT,
                config=data.draw(
                    st.sampled_from(
                        [{}, {"handler": "fail"}, {"handler": "fail", "times": 1}, {"handler": "sleep", "seconds": 0}]
                    )
                ),
            )
        )
    flow = Workflow(name="random", steps=tuple(steps))
    outcome = await run(flow, work, max_concurrency=data.draw(st.sampled_from([None, 1, 2])))
    assert set(outcome.steps.values()) <= {"completed", "failed", "skipped"}
    assert outcome.status == ("failed" if "failed" in outcome.steps.values() else "completed")
    assert all(isinstance(SkipReason(reason), SkipReason) for reason in outcome.skipped.values())
    assert all(StepStatus(status).is_terminal for status in outcome.steps.values())
