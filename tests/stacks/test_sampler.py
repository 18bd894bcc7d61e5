"""Sampling: it begins when asked, costs little, is bounded, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tachograph
from tachograph.events import Event, StepFinished, StepStacks
from tachograph.folded_stacks import MAX_STACKS, StacksKind, StackWish
from tachograph.stacks import sampler as sampling
from tachograph.stacks.profile import Profile
from tachograph.stacks.sampler import sampler
from tachograph.stacks.taking import running_reporters
from tachograph.stacks.wishes import fulfil, long_attempts


@pytest.fixture
def events() -> Iterator[list[Event]]:
    recorder = tachograph.configure(database="", url="", registry=None, spans=False)
    events: list[Event] = []
    recorder.add("probe", events.append)
    yield events
    recorder.close()


def ask_to_sample() -> None:
    for reporter in running_reporters():
        fulfil([StackWish(reporter.step.execution.execution_id, step_ids=(reporter.step.step_id,))])


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == sampling.thread_name]


def profiles(events: list[Event]) -> list[StepStacks]:
    tachograph.get_recorder().flush()
    return [event for event in events if isinstance(event, StepStacks) and event.kind is StacksKind.PROFILE]


def test_a_step_is_sampled_from_the_request_to_its_end(
    events: list[Event], wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    @tachograph.step
    def slow() -> None:
        assert not threads()
        ask_to_sample()
        ask_to_sample()
        assert len(threads()) == 1
        (reporter,) = running_reporters()
        while reporter.profile._samples < 5:  # type: ignore[union-attr]
            time.sleep(0.01)

    @tachograph.step
    def quick() -> None:
        assert running_reporters()[0].profile is None

    @tachograph.workflow
    def nightly() -> None:
        slow()
        quick()

    nightly()
    # On a busy machine it takes so long that what is known is recorded before the end, too.
    *_, profile = profiles(events)
    assert profile.step.name == "slow"
    assert profile.samples >= 5
    assert sum(stack.count for stack in profile.stacks) >= 5
    assert "slow" in profile.stacks[0].stack
    # It is recorded before the step ends, so that whoever hears of the end has it.
    kinds = [(type(event), event.step.name) for event in events if isinstance(event, StepStacks | StepFinished)]
    assert kinds[-3:] == [(StepStacks, "slow"), (StepFinished, "slow"), (StepFinished, "quick")]
    wait_until(lambda: not threads() and not sampler.is_active)


def test_what_was_sampled_is_recorded_while_the_step_runs_and_each_attempt_by_itself(
    events: list[Event], wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tachograph.stacks.profile.FIRST_EMIT_SECONDS", 0.01)
    attempts: list[int] = []

    @tachograph.step(max_retries=1)
    def flaky() -> None:
        ask_to_sample()
        (reporter,) = running_reporters()
        attempts.append(reporter.attempts.attempt)
        if len(attempts) == 1:
            wait_until(lambda: bool(profiles(events)))
            raise ValueError
        wait_until(lambda: reporter.profile._samples > 0)  # type: ignore[union-attr]

    flaky()
    assert attempts == [1, 2]
    recorded = profiles(events)
    assert [event.attempt for event in recorded].count(2) >= 1
    assert [event.attempt for event in recorded].count(1) >= 2
    times = [event.time_ns for event in recorded]
    assert times == sorted(times)


def test_a_profile_is_bounded_and_says_what_is_left_out(events: list[Event]) -> None:
    with tachograph.step("many"):
        (reporter,) = running_reporters()
        profile = Profile(reporter)
        for i in range(MAX_STACKS + 50):
            profile.add([f"f{i} (a.py:1)"], 2)
        profile.add(["x" * 300_000], 3)
        profile.end()
        profile.end()
        profile.add(["late"], 1)
    (event,) = profiles(events)
    assert len(event.stacks) == MAX_STACKS
    assert event.dropped == 50 * 2 + 3
    assert event.samples == MAX_STACKS + 51


def test_heartbeats_name_attempts_that_take_long_and_are_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    tachograph.configure(database="", url="", registry=None, spans=False)
    monkeypatch.setattr("tachograph.stacks.wishes.LONG_NS", 1)
    with tachograph.workflow("w") as scope, tachograph.step("long"):
        assert scope.execution is not None
        execution_id = scope.execution.execution_id
        (attempt,) = long_attempts(execution_id)
        assert attempt.name == "long"
        assert attempt.running_ns > 0
        assert long_attempts("another") == ()
        ask_to_sample()
        assert long_attempts(execution_id) == ()
    assert long_attempts(execution_id) == ()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_samples_nothing_of_its_parent(events: list[Event], wait_until: Callable[..., None]) -> None:
    with tachograph.step("parent"):
        ask_to_sample()
        (reporter,) = running_reporters()
        wait_until(lambda: reporter.profile._samples > 0)  # type: ignore[union-attr]
        pid = os.fork()
        if pid == 0:
            is_right = not running_reporters() and not sampler.is_active and not threads()
            os._exit(0 if is_right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert {event.step.name for event in profiles(events)} == {"parent"}


def test_many_threads_make_sampling_rarer_not_dearer(events: list[Event], wait_until: Callable[..., None]) -> None:
    release = threading.Event()
    helpers = [threading.Thread(target=release.wait, args=(60,)) for _ in range(200)]
    with tachograph.step("crowd"):
        for helper in helpers:
            helper.start()
        ask_to_sample()
        (reporter,) = running_reporters()
        wait_until(lambda: reporter.profile._samples > 3)  # type: ignore[union-attr]
        release.set()
    for helper in helpers:
        helper.join()
    *_, profile = profiles(events)
    # A count stands for an interval, however rarely was looked.
    assert sum(stack.count for stack in profile.stacks) >= profile.samples


def test_an_error_while_sampling_never_reaches_the_step(
    events: list[Event], wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no stacks today")

    monkeypatch.setattr(sampling, "take", broken)
    with tachograph.step("unharmed"):
        ask_to_sample()
        wait_until(lambda: "no stacks today" in caplog.text)
    assert [event.status for event in events if isinstance(event, StepFinished)] in ([], ["completed"])
    wait_until(lambda: not threads())
