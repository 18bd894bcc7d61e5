"""What an overview makes of executions: causes, recovery, and what is longer than usual."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tachograph.clock import NS
from tachograph_exporter.store.totals import Totals, WorkflowTotals
from tachograph_exporter.views.overview import Usual, failure_groups, running_too_long

NOW = time.time_ns()


def run(workflow: str, minutes_ago: float, status: str = "failed", message: str | None = "x", **more: Any) -> Any:
    started = NOW - round(minutes_ago * 60) * NS
    is_open = status in ("running", "pending")
    fields = {
        "execution_id": f"{workflow} {minutes_ago}", "workflow_id": workflow, "workflow": workflow.upper(),
        "status": status, "created_ns": started, "started_ns": started, "error_type": "ValueError",
        "finished_ns": None if is_open else started + 30 * NS, "error_message": message,
    }  # fmt: skip
    return SimpleNamespace(**fields | more)


def usual(before: list[float], lately: list[float] = ()) -> Usual:  # type: ignore[assignment]
    sides = []
    for seconds in (before, lately):
        totals = WorkflowTotals()
        totals.executions["completed"] = completed = Totals()
        for value in seconds:
            completed.observe(round(value * NS), 1)
        sides.append(totals)
    return Usual(*sides)


@pytest.mark.parametrize(
    ("message", "other"),
    [
        ("row 17 of 300 is bad", "row 4 of 12 is bad"),
        ("no file '/data/2026-11-29.csv'", "no file '/data/2026-11-30.csv'"),
        ("job 01a2291d-7932-77ba-86dd-667c940b6d25 is gone", "job 01a2291d-7932-77ba-86dd-667c940b6fff is gone"),
        ("object 0x7f3a at deadbeef01", "object 0x11 at cafe0123beef"),
    ],
)
def test_messages_that_differ_in_numbers_and_ids_are_one_cause(message: str, other: str) -> None:
    failed = {"a": [run("a", 5, message=message), run("a", 6, message=other), run("a", 7, message="something else")]}
    assert [group.count for group in failure_groups(failed, failed, {}, NOW)] == [2, 1]


def test_executions_of_one_failure_group_are_one_cause_whatever_they_say() -> None:
    failed = {"a": [run("a", 5, message="x"), run("a", 6, message="y"), run("a", 7, message="y")]}
    group_ids = {"a 5": "g", "a 6": "g", "a 7": "h"}
    groups = failure_groups(failed, failed, {}, NOW, group_ids)
    assert [(group.failure_group, group.count, group.error_message) for group in groups] == [
        ("g", 2, "x"),
        ("h", 1, "y"),
    ]


def test_failures_are_grouped_by_cause_and_those_that_still_fail_come_first() -> None:
    failed = {
        "a": [run("a", 5, message="row 2 is bad"), run("a", 60, message="row 1 is bad")],
        "b": [run("b", 90, message="row 3 is bad"), run("b", 100, message="disk full")],
        "c": [run("c", 1, "timeout", None, error_type=None)],
    }
    newest = {
        "a": [run("a", 2, "running"), *failed["a"], run("a", 61, "completed")],
        "b": [run("b", 30, "cancelled"), run("b", 40, "completed"), run("b", 50, "completed"), *failed["b"]],
        "c": [run("c", 0.5, "completed"), *failed["c"]],
    }
    groups = failure_groups(failed, newest, {"a 5": "load"}, NOW)
    assert [(group.error_message, group.count, group.is_failing) for group in groups] == [
        ("row 2 is bad", 3, True),
        (None, 1, False),
        ("disk full", 1, False),
    ]
    bad_rows = groups[0].workflows
    assert [(item.workflow_name, item.state, item.count, item.step_name) for item in bad_rows] == [
        ("A", "failing", 2, "load"),
        ("B", "recovered", 1, None),
    ]
    running, recovered_by = bad_rows[0].running, bad_rows[1].recovered_by
    assert running is not None
    assert running.execution_id == "a 2"
    assert bad_rows[0].recovered_by is None
    # The first that completed since then.
    assert recovered_by is not None
    assert recovered_by.execution_id == "b 50"


def test_a_workflow_that_completed_and_failed_again_still_fails() -> None:
    failed = {"a": [run("a", 90, message="old")]}
    newest = {"a": [run("a", 3, message="new"), run("a", 30, "completed"), *failed["a"]]}
    assert failure_groups(failed, newest, {}, NOW)[0].workflows[0].state == "failing"


@pytest.mark.parametrize(
    ("before", "lately", "is_slower"),
    [
        ([10.0] * 30, [11.0] * 5, False),  # Not much longer.
        ([10.0] * 30, [31.0], True),
        ([10.0] * 30, [10.0] * 40 + [31.0] * 2, False),  # Some always are.
        ([10.0] * 30, [10.0] * 40 + [31.0] * 8, True),
        ([10.0, 10.0, 10.0], [90.0], False),  # Too few to know.
        ([10.0] * 5, [10.0] * 3 + [90.0], True),
        ([10.0] * 90 + [15.0] * 10, [15.0] * 12, True),  # For a while already.
        ([], [10.0] * 5 + [90.0], True),  # All of today.
        ([], [10.0, 40.0] * 6, False),
        ([10.0, 40.0] * 15, [42.0] * 3, False),  # Usually between the two.
    ],
)
def test_slower_than_usual(before: list[float], lately: list[float], is_slower: bool) -> None:
    assert usual(before, lately).is_slower() is is_slower


def test_an_open_run_is_too_long_once_it_exceeds_what_is_usual() -> None:
    known = {"a": usual([60.0] * 30), "new": usual([60.0] * 2)}
    rows = [run("a", 1.2, "running"), run("a", 5, "running"), run("new", 50, "running"), run("other", 50, "running")]
    (long,) = running_too_long([*rows, run("a", 50, "pending", started_ns=None)], known, NOW)
    assert (long.run.execution_id, long.workflow_name) == ("a 5", "A")
    assert long.ratio == pytest.approx(5, rel=0.05)
