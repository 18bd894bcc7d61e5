"""Ids and clocks."""

from __future__ import annotations

import time
import uuid

import msgspec
import pytest

from tachograph.clock import AnchoredClock
from tachograph.events import ExecutionStatus, StepFinished, StepStatus
from tachograph.identity import new_id, new_span_id, new_trace_id, step_id, traceparent, workflow_id, workspace_id
from tests.conftest import make_execution, make_step


def test_ids_are_ordered_by_time_and_valid() -> None:
    ids = [new_id(now * 1_000_000) for now in range(1_000, 1_050)]
    assert ids == sorted(ids)
    assert {uuid.UUID(execution_id).version for execution_id in ids} == {7}
    assert uuid.UUID(ids[0]).variant == uuid.RFC_4122
    assert uuid.UUID(ids[0]).int >> 80 == 1_000


def test_trace_and_span_ids_are_hex_of_the_right_length() -> None:
    assert len(new_trace_id()) == 32
    assert len(new_span_id()) == 16
    int(new_trace_id() + new_span_id(), 16)
    assert traceparent("a" * 32, "b" * 16) == f"00-{'a' * 32}-{'b' * 16}-01"


def test_names_have_the_same_id_in_every_process_and_different_names_different_ones() -> None:
    # A literal, as a change would orphan every row recorded before it.
    assert workspace_id("default") == "484220a0-14b2-5a10-89f6-40d6142b9adb"
    ids = {workflow_id("a", "w"), workflow_id("b", "w"), workflow_id("a", "v")}
    assert len(ids) == 3
    assert len({step_id(next(iter(ids)), "s", n) for n in range(3)}) == 3


def test_a_clock_runs_evenly_when_the_system_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = AnchoredClock()
    before = clock()
    assert abs(before - time.time_ns()) < 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert 0 <= clock() - before < 10_000_000_000


def test_terminal_statuses_are_final() -> None:
    assert {s for s in StepStatus if not s.is_terminal} == {"pending", "running", "retrying"}
    assert {s for s in ExecutionStatus if not s.is_terminal} == {"pending", "running"}


def test_events_are_immutable_and_read_back_from_json() -> None:
    step = make_step(make_execution(), "a")
    event = StepFinished(
        step=step, time_ns=9, status=StepStatus.COMPLETED, attempt=1, started_ns=2, attempt_started_ns=2
    )
    assert msgspec.json.decode(msgspec.json.encode(event), type=StepFinished) == event
    assert event.duration_ns == 7
    with pytest.raises(AttributeError):
        event.time_ns = 5  # type: ignore[misc]
