"""Critical path, slack and inferred dependencies, on complete and on broken runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tachograph import inferred_dependencies
from tachograph.critical_path import critical_path, path_lengths, slack
from tachograph.inferred_dependencies import MAX_DEPENDENCIES, InferredDependencies


class Step(NamedTuple):
    step_id: str
    started_ns: int | None
    finished_ns: int | None
    depends_on: Sequence[str] = ()
    parent_step_id: str | None = None
    dependency_count: int = 0


def ids(steps: Sequence[Step], **options: int) -> list[str]:
    return [step.step_id for step in critical_path(steps, **options)]


def test_the_path_follows_the_dependency_that_finished_last() -> None:
    steps = [
        Step("load", 0, 10),
        Step("fast", 10, 12, ["load"]),
        Step("slow", 10, 50, ["load"]),
        Step("join", 50, 60, ["fast", "slow"]),
    ]
    assert ids(steps) == ["load", "slow", "join"]
    assert slack(steps) == {"load": 0, "slow": 0, "join": 0, "fast": 38}


def test_a_step_nobody_waits_for_has_slack_until_the_end_of_the_run() -> None:
    steps = [Step("a", 0, 100), Step("side", 0, 30)]
    assert slack(steps) == {"a": 0, "side": 70}
    assert slack(steps, end_ns=150) == {"a": 50, "side": 120}


def test_the_path_leads_through_a_skipped_step_to_what_it_waited_for() -> None:
    steps = [Step("a", 0, 10), Step("skipped", None, 10, ["a"]), Step("last", 10, 20, ["skipped"])]
    assert ids(steps) == ["a", "last"]
    assert slack(steps)["a"] == 0


def test_a_dependency_that_finished_after_the_start_did_not_hold_the_step_back() -> None:
    steps = [Step("first", 0, 10), Step("late", 0, 90), Step("any", 10, 100, ["first", "late"])]
    assert ids(steps) == ["first", "any"]


def test_a_step_that_began_before_all_it_waited_for_had_ended_follows_the_last_of_them() -> None:
    # Spans of two machines, a clock 3 ahead; a task's span that outlasts the start of its successor.
    steps = [Step("first", 0, 10), Step("early", 1, 20), Step("next", 18, 50, ["first", "early"])]
    assert ids(steps) == ["first", "next"]
    steps = [Step("first", 0, 20), Step("early", 1, 19), Step("next", 18, 50, ["first", "early"])]
    assert ids(steps) == ["first", "next"]
    assert path_lengths(critical_path(steps)) == [18, 32]
    assert slack(steps) == {"first": 0, "early": 1, "next": 0}
    assert ids([Step("a", 5, 20), Step("b", 5, 30, ["a"])]) == ["b"]


def test_in_a_run_that_goes_on_a_running_step_reaches_up_to_now() -> None:
    steps = [Step("a", 0, 10), Step("b", 10, None, ["a"]), Step("c", None, None, ["b"])]
    assert ids(steps) == ["a"]
    assert ids(steps, now_ns=30) == ["a", "b"]


def test_steps_inside_steps_are_the_outer_steps_time() -> None:
    assert ids([Step("outer", 0, 10), Step("inner", 2, 10, parent_step_id="outer")]) == ["outer"]


def test_nothing_ran_and_a_cycle_end_quietly() -> None:
    assert critical_path([]) == []
    assert slack([]) == {}
    assert ids([Step("a", 0, 10, ["b"]), Step("b", 0, 10, ["a"])]) == ["b"]


def test_the_path_does_not_depend_on_the_order_of_the_steps() -> None:
    steps = [Step("a", 0, 10), Step("b", 0, 10), Step("c", 10, 20, ["a", "b"]), Step("d", 10, 20, ["b", "a"])]
    assert ids(steps) == ids(steps[::-1]) == ["b", "d"]


@st.composite
def runs(draw: st.DrawFn) -> list[Step]:
    """Runs in which every step starts when all its dependencies have finished, or later."""
    steps: list[Step] = []
    for i in range(draw(st.integers(1, 12))):
        before = draw(st.lists(st.sampled_from(steps), unique_by=lambda s: s.step_id, max_size=4)) if steps else []
        start = max((s.finished_ns or 0 for s in before), default=0) + draw(st.sampled_from([0, 0, 3]))
        steps.append(Step(f"s{i}", start, start + draw(st.integers(0, 20)), [s.step_id for s in before]))
    return steps


@example([Step("a", 0, 0), Step("b", 0, 0, ["a"]), Step("c", 0, 0, ["b", "a"]), Step("d", 0, 1, ["c"])])
@given(runs())
def test_the_path_is_a_chain_of_dependencies_that_ends_last_and_has_no_slack(steps: list[Step]) -> None:
    path = critical_path(steps)
    end = max(step.finished_ns or 0 for step in steps)
    assert path[-1].finished_ns == end
    for earlier, later in pairwise(path):
        assert earlier.step_id in later.depends_on
        assert earlier.finished_ns == max(s.finished_ns or 0 for s in steps if s.step_id in later.depends_on)
    slacks = slack(steps)
    assert all(slacks[step.step_id] == 0 for step in path)


@given(runs())
def test_slack_never_reaches_beyond_the_end_nor_below_zero(steps: list[Step]) -> None:
    end = max(step.finished_ns or 0 for step in steps)
    for step in steps:
        assert 0 <= slack(steps)[step.step_id] <= end - (step.finished_ns or 0)


def test_calls_one_after_another_are_inferred_as_a_chain_and_side_by_side_as_a_fork_and_join() -> None:
    order = InferredDependencies()
    assert order.started("a", 0)[0] == ()
    order.finished("a", 1)
    assert order.started("b", 2)[0] == ("a",)
    assert order.started("c", 3)[0] == ("a",)
    order.finished("b", 4)
    order.finished("c", 5)
    assert set(order.started("d", 6)[0]) == {"b", "c"}
    order.finished("d", 7)
    assert order.started("e", 8)[0] == ("d",)


def inferred(intervals: Sequence[tuple[int, int]]) -> list[Step]:
    """Steps with dependencies as they are inferred while they run."""
    moments = sorted([(started, 1, i) for i, (started, _) in enumerate(intervals)]
                     + [(ended, 0, i) for i, (_, ended) in enumerate(intervals)])  # fmt: skip
    order, steps = InferredDependencies(), dict[int, Step]()
    for time_ns, is_start, i in moments:
        if is_start:
            depends_on, count = order.started(str(i), time_ns)
            steps[i] = Step(str(i), *intervals[i], depends_on, dependency_count=count)
        else:
            order.finished(str(i), time_ns)
    return list(steps.values())


def wave(count: int, at_ns: int, length_ns: int) -> list[tuple[int, int]]:
    return [(at_ns + i, at_ns + length_ns + i) for i in range(count)]


def test_after_a_barrier_those_that_ended_last_are_listed_and_all_are_counted() -> None:
    steps = inferred([*wave(1000, 0, 5_000), *wave(1000, 10_000, 5_000)])
    first, second = steps[:1000], steps[1000:]
    assert all(step.depends_on == () and step.dependency_count == 0 for step in first)
    last = tuple(str(i) for i in range(1000 - MAX_DEPENDENCIES, 1000))
    assert {(step.depends_on, step.dependency_count) for step in second} == {(last, 1000)}
    assert len({id(step.depends_on) for step in second}) == 1
    assert ids(steps) == ["999", "1999"]
    slacks = slack(steps)
    # The first of the wave ended 999 before the last one, and the end of the run hangs on the last.
    assert [slacks[str(i)] for i in (0, 500, 998, 999)] == [999, 499, 1, 0]


def test_a_few_dependencies_are_all_listed() -> None:
    steps = inferred([*wave(MAX_DEPENDENCIES, 0, 100), (200, 300)])
    assert len(steps[-1].depends_on) == MAX_DEPENDENCIES
    assert steps[-1].dependency_count == 0
    steps = inferred([*wave(MAX_DEPENDENCIES + 1, 0, 100), (200, 300), (400, 500)])
    assert [step.dependency_count for step in steps[-2:]] == [MAX_DEPENDENCIES + 1, 0]
    assert steps[-1].depends_on == (str(MAX_DEPENDENCIES + 1),)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_time_of_a_step_does_not_grow_with_its_wave(overlap: bool) -> None:
    def seconds(count: int) -> float:
        began = time.thread_time()
        for _ in range(4):
            inferred([*wave(count, 0, 10 * count), *wave(count, 5 * count if overlap else 20 * count, 10 * count)])
        return (time.thread_time() - began) / count

    assert min(seconds(8_000) for _ in range(3)) < 4 * min(seconds(500) for _ in range(3))


def test_ends_that_are_reported_late_are_put_in_order() -> None:
    order = InferredDependencies()
    for name in "abc":
        order.started(name, 0)
    for name, time_ns in (("a", 10), ("c", 30), ("b", 20)):
        order.finished(name, time_ns)
    assert order.started("d", 25)[0] == ("a", "b", "c")
    order.finished("d", 40)
    assert order.started("e", 50)[0] == ("c", "d")


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=25))
def test_what_is_left_out_changes_no_slack_and_no_path(rows: list[tuple[int, int]]) -> None:
    intervals = [(100 * started + i, 100 * (started + length) + i) for i, (started, length) in enumerate(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inferred_dependencies, "MAX_DEPENDENCIES", sys.maxsize)
        whole = inferred(intervals)
        patch.setattr(inferred_dependencies, "MAX_DEPENDENCIES", 2)
        cut = inferred(intervals)
    assert ids(cut) == ids(whole)
    assert slack(cut) == slack(whole)
    counts = {step.step_id: len(step.depends_on) for step in whole}
    assert all((step.dependency_count or len(step.depends_on)) == counts[step.step_id] for step in cut)
