"""Given the moments of a step's attempts, the waits and running times in its events add up."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import make_execution, make_step

from tachograph.events import Event, Failure, StepFinished, StepReady, StepRetrying, StepStarted, StepStatus
from tachograph.workflow.attempts import StepAttempts, start_of

STEP = make_step(make_execution("w"), "a")
WHY = Failure("Error", "no luck")
ORIGIN = 1_000
GAP = st.integers(0, 50)


class Attempt(NamedTuple):
    """One attempt: how long it waits after the previous moment, queues (None: it needs no slot) and runs."""

    wait: int
    queue: int | None
    run: int


class Run(NamedTuple):
    """A step's life: its attempts, and how long it outlives the last one when it is stopped between two attempts."""

    attempts: list[Attempt]
    stopped_after: tuple[int, int | None] | None


RUNS = st.builds(
    Run,
    st.lists(st.builds(Attempt, GAP, st.none() | GAP, GAP), min_size=1, max_size=5),
    st.none() | st.tuples(GAP, st.none() | GAP),
)


def live(run: Run) -> list[Event]:
    """The events of a step that lives like ``run``."""
    account, now, events = StepAttempts(STEP, ORIGIN), ORIGIN, list[Event]()

    def wait(wait: int, queue: int | None) -> None:
        nonlocal now
        now += wait
        if queue is not None:
            if account.attempt:
                account.backed_off(now)
            else:
                events.append(account.ready(now))
            now += queue

    for i, attempt in enumerate(run.attempts):
        wait(attempt.wait, attempt.queue)
        events.append(account.started(now, f"inputs {i + 1}"))
        now += attempt.run
        if i + 1 < len(run.attempts) or run.stopped_after is not None:
            events.append(account.retrying(now, StepStatus.FAILED, 7, WHY))
    if run.stopped_after is not None:
        wait(*run.stopped_after)
    status = StepStatus.COMPLETED if run.stopped_after is None else StepStatus.CANCELLED
    finished = account.finished(now, status, None, "output")
    assert account.run_ns == finished.run_ns
    return [*events, finished]


@given(RUNS)
def test_waits_and_run_add_up_to_the_time_from_the_origin_to_the_end(run: Run) -> None:
    end = live(run)[-1]
    assert isinstance(end, StepFinished)
    assert end.dependency_ns + end.queue_ns + end.backoff_ns + end.run_ns == end.time_ns - ORIGIN
    assert end.dependency_ns == run.attempts[0].wait
    assert end.run_ns == sum(attempt.run for attempt in run.attempts)
    assert end.between_attempts is (run.stopped_after is not None)
    assert end.attempt == len(run.attempts)
    assert (end.inputs, end.output) == (f"inputs {len(run.attempts)}", "output")


@given(RUNS)
def test_the_waits_of_the_attempts_add_up_to_the_totals(run: Run) -> None:
    events = live(run)
    end = events[-1]
    assert isinstance(end, StepFinished)
    starts = [event for event in events if isinstance(event, StepStarted)]
    backoff, queue = run.stopped_after or (0, 0)
    assert [start.dependency_ns for start in starts] == [end.dependency_ns, *[0] * (len(starts) - 1)]
    assert sum(start.queue_ns for start in starts) + (queue or 0) == end.queue_ns
    assert sum(start.backoff_ns for start in starts) + backoff == end.backoff_ns
    assert (end.started_ns, end.attempt_started_ns) == (starts[0].time_ns, starts[-1].time_ns)
    for start, attempt in zip(starts, run.attempts, strict=True):
        assert start.queue_ns == (attempt.queue or 0)
        assert start.backoff_ns == (attempt.wait if start.attempt > 1 else 0)


@given(RUNS)
def test_the_end_of_an_attempt_implies_its_start(run: Run) -> None:
    events = live(run)
    starts = [event for event in events if isinstance(event, StepStarted)]
    ends = [event for event in events if isinstance(event, StepRetrying)]
    if run.stopped_after is None:
        ends.append(events[-1])  # type: ignore[arg-type]
    for start, end in zip(starts, ends, strict=True):
        implied = start_of(end)
        assert (implied.time_ns, implied.attempt) == (start.time_ns, start.attempt)
        assert (implied.dependency_ns, implied.queue_ns) == (start.dependency_ns, start.queue_ns)
        assert implied.backoff_ns == start.backoff_ns


def test_readiness_is_an_event_the_first_time_only() -> None:
    events = live(Run([Attempt(5, 2, 10), Attempt(3, 4, 10)], None))
    assert [event.time_ns for event in events if isinstance(event, StepReady)] == [1_005]
    assert [type(event) for event in events] == [StepReady, StepStarted, StepRetrying, StepStarted, StepFinished]


def test_a_moment_before_the_previous_one_counts_as_no_time() -> None:
    attempts = StepAttempts(STEP, ORIGIN)
    attempts.ready(990)
    assert attempts.started(980).queue_ns == 0
    attempts.retrying(970, StepStatus.FAILED, 0, WHY)
    end = attempts.finished(960, StepStatus.CANCELLED)
    assert (end.dependency_ns, end.queue_ns, end.backoff_ns, end.run_ns) == (0, 0, 0, 0)


@given(st.lists(st.tuples(GAP, st.none() | GAP), min_size=1, max_size=5), st.integers(0, 300))
def test_attempts_told_by_spans_add_up_though_they_overlap_or_never_end(
    spans: list[tuple[int, int | None]], length: int
) -> None:
    spans.sort(key=lambda span: span[0])
    first = ORIGIN + 20 + spans[0][0]
    attempts = StepAttempts(STEP, ORIGIN)
    attempts.ready(ORIGIN + 5)
    ended = 0
    for i, (gap, run) in enumerate(spans):
        started = ORIGIN + 20 + gap
        attempts.started(started)
        ended = started + (run or 0)
        if run is not None and i + 1 < len(spans):
            attempts.retrying(ended, StepStatus.FAILED, 0, WHY)
    end = attempts.finished(first + length, StepStatus.COMPLETED, attempt_ended_ns=ended)
    assert end.dependency_ns + end.queue_ns + end.backoff_ns + end.run_ns == end.time_ns - ORIGIN
    running = {moment for gap, run in spans for moment in range(gap, gap + (run or 0))}
    assert end.run_ns == min(length, len(running))
    assert end.backoff_ns >= 0
    assert not end.between_attempts


def test_an_attempt_may_have_the_number_its_engine_gave_it() -> None:
    attempts = StepAttempts(STEP, ORIGIN)
    start = attempts.started(1_010, attempt=3)
    end = attempts.finished(1_020, StepStatus.COMPLETED)
    assert (start.attempt, end.attempt) == (3, 3)
    assert (start.dependency_ns, end.dependency_ns) == (0, 10)


@pytest.mark.parametrize(("is_running", "run"), [(True, 40), (False, 0)])
def test_a_stored_attempt_is_taken_up_where_it_was_left(is_running: bool, run: int) -> None:
    attempts = StepAttempts.resumed(
        STEP,
        attempt=1,
        started_ns=1_010,
        attempt_started_ns=1_010,
        since_ns=1_010 if is_running else 1_050,
        is_running=is_running,
        dependency_ns=7,
        queue_ns=3,
        inputs="x",
    )
    end = attempts.finished(1_050, StepStatus.LOST, WHY)
    assert (end.dependency_ns, end.queue_ns, end.backoff_ns, end.run_ns) == (7, 3, 0, run)
    assert (end.attempt, end.started_ns, end.inputs) == (1, 1_010, "x")
    assert end.between_attempts is not is_running
