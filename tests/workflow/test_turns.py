"""However many steps start, settle or are cancelled at once, the event loop has its turns in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tachograph.events import Event, ExecutionFinished, StepFinished, StepReady, StepSkipped, StepStarted
from tachograph.workflow import Executor, HandlerRegistry, Step, TriggerRule, Workflow, registry, turns
from tachograph.workflow import run as runs

END = (StepFinished, StepSkipped)


class Ticks:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._task = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    def stop(self) -> None:
        self._task.cancel()


@pytest.fixture
def work() -> HandlerRegistry:
    return registry.copy()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fits into a turn but a single step."""
    monkeypatch.setattr(turns, "MAX_SECONDS", 0.0)
    monkeypatch.setattr(turns, "MAX_STARTS", 1)
    monkeypatch.setattr(runs, "_FEW", 1)


async def test_a_turn_starts_a_hundred_steps_however_many_runs_there_are(work: HandlerRegistry) -> None:
    ticks, starts = Ticks(), Counter[int]()

    def listen(event: Event) -> None:
        if isinstance(event, StepStarted):
            starts[ticks.count] += 1

    executor = Executor(listen, handlers=work, max_concurrency=None)
    flow = Workflow(name="wide", steps=tuple(Step(name=f"s{i}") for i in range(200)))
    results = await asyncio.gather(*[executor.run(flow) for _ in range(20)])
    ticks.stop()
    assert {result.status for result in results} == {"completed"}
    assert sum(starts.values()) == 4_000
    # A turn begins with what was created in the one before, in front of the ticker or behind it.
    assert max(starts.values()) <= 2 * turns.MAX_STARTS


@pytest.mark.parametrize("kind", ["ready", "skipped", "cancelled"])
async def test_what_follows_from_a_step_is_done_in_slices(work: HandlerRegistry, kind: str, tiny: None) -> None:
    ticks, done = Ticks(), Counter[int]()

    def listen(event: Event) -> None:
        if isinstance(event, StepReady | StepSkipped):
            done[ticks.count] += 1

    executor = Executor(listen, handlers=work)
    configs: dict[str, dict[str, Any]] = {
        "ready": {},
        "skipped": {"handler": "fail"},
        "cancelled": {"handler": "sleep", "seconds": 60},
    }
    steps = [Step(name="first", config=configs[kind])]
    steps += [Step(name=f"s{i}", depends_on_steps=("first",)) for i in range(300)]
    ref, task = executor.submit(Workflow(name="fan", steps=tuple(steps)))
    if kind == "cancelled":
        while not done:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert executor.cancel(ref.execution_id)
    result = await task
    ticks.stop()
    assert len(result.steps) == 301
    assert sum(done.values()) >= 300
    assert max(done.values()) <= 4


@contextmanager
def patched(seconds: float, starts: int, few: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "MAX_SECONDS", seconds)
        patch.setattr(turns, "MAX_STARTS", starts)
        patch.setattr(runs, "_FEW", few)
        yield


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_slices_change_nothing_but_the_time(data: st.DataObject, work: HandlerRegistry) -> None:
    """A random graph settles as it does when everything fits into a turn; cancelled at any moment, it ends."""
    steps: list[Step] = []
    for i in range(data.draw(st.integers(1, 12))):
        names = [step.name for step in steps]
        before = tuple(data.draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else ())
        steps.append(
            Step(
                name=f"s{i}",
                depends_on_steps=before,
                trigger_rule=TriggerRule(data.draw(st.sampled_from(["all_success", "all_done", "none_failed"]))),
                condition_expression=data.draw(st.sampled_from([None, None, "true", "false"])),
                config={"handler": data.draw(st.sampled_from(["noop", "noop", "fail"]))},
            )
        )
    flow = Workflow(name="random", steps=tuple(steps))
    whole = await Executor(lambda event: None, handlers=work).run(flow)
    with patched(0.0, data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))):
        sliced = await Executor(lambda event: None, handlers=work).run(flow)
        assert (sliced.status, sliced.steps) == (whole.status, whole.steps)
        events: list[Event] = []
        executor = Executor(events.append, handlers=work)
        ref, task = executor.submit(flow)
        for _ in range(data.draw(st.integers(0, 30))):
            await asyncio.sleep(0)
        executor.cancel(ref.execution_id)
        result = await task
    assert Counter(event.step.name for event in events if isinstance(event, END)) == Counter(result.steps.keys())
    assert isinstance(events[-1], ExecutionFinished)


async def test_an_executor_goes_on_in_another_event_loop(work: HandlerRegistry, tiny: None) -> None:
    executor = Executor(lambda event: None, handlers=work)
    flow = Workflow(name="wide", steps=tuple(Step(name=f"s{i}") for i in range(50)))

    def in_its_own_loop(*, is_abandoned: bool) -> str:
        async def main() -> str:
            task = asyncio.ensure_future(executor.run(flow))
            if is_abandoned:
                await asyncio.sleep(0)
                return ""
            return str((await task).status)

        return asyncio.run(main())

    for is_abandoned in (True, False, True, False):
        status = await asyncio.to_thread(in_its_own_loop, is_abandoned=is_abandoned)
        assert is_abandoned or status == "completed"
