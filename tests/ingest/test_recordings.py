"""What real engines sent becomes what happened, in whatever order and pieces it arrives, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.ingest.hurried_intake import WAYS, Hurried
from tests.ingest.intake import Intake, counts_of, intakes
from tests.ingest.proven import ASIDE, NAMES, NOT_YET, TOLERANCE, TOLERANCES
from tests.ingest.recorded import DELIVERIES, in_order, in_pieces, recorded_spans
from tests.ingest.truth import differences, read_truth


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[Callable[[], Hurried]]:
    """Makes intakes with a database of their own."""
    with intakes(Hurried, tmp_path, empty_database) as make:
        yield make


def problems_of(name: str, intake: Intake, *, tolerance: float | None = None) -> list[str]:
    tolerance = TOLERANCES.get(name, TOLERANCE) if tolerance is None else tolerance
    timelines = intake.timelines()
    problems = differences(read_truth(name), timelines, tolerance_seconds=tolerance, aside=ASIDE.get(name, ()))
    counted, due = intake.counted(), counts_of(timelines)
    problems += [f"metrics: {key} is {counted[key]} instead of {due[key]}" for key in counted.keys() | due.keys()
                 if counted[key] != due[key]]  # fmt: skip
    if wrong := intake.rows_to_correct():
        problems.append(f"{wrong} rollup rows are not what their executions add up to")
    return problems


@pytest.mark.parametrize(
    "deliveries",
    [(DELIVERIES[0], DELIVERIES[-1]), pytest.param(DELIVERIES[1:-1], marks=pytest.mark.slow)],
    ids=["two orders", "further orders"],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_recording_becomes_what_happened(
    name: str, deliveries: Sequence[tuple[str, int]], intake: Callable[[], Hurried]
) -> None:
    spans = recorded_spans(name)
    assert len(spans) == read_truth(name)["spans"]
    problems: dict[str, str] = {}
    for order, size in deliveries:
        service = intake()
        pieces = list(in_pieces(in_order(spans, order), size))
        if order == "reversed":
            # Stored first.
            WAYS[NAMES.index(name) % len(WAYS)](service, pieces)
        else:
            for piece in pieces:
                assert service.take(piece) == len(piece)
        service.settle()
        for problem in problems_of(name, service):
            problems.setdefault(problem, f"{order}, {size or 'all'} to a request")
        service.close()
    report = "\n".join(f"{problem} ({where})" for problem, where in problems.items())
    if name in NOT_YET:
        assert problems, "it comes out right now: remove it from NOT_YET"
        pytest.xfail(report)
    assert not problems, report


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_of_a_recording_changes_nothing(name: str, intake: Callable[[], Hurried]) -> None:
    service, spans = intake(), recorded_spans(name)
    service.take(spans)
    service.settle()
    timelines, counted, events = lasting(service), service.counted(), list(service.events)
    for size in (0, 3):
        for piece in in_pieces(in_order(spans, "reversed"), size):
            assert service.take(piece) == 0
        service.settle()
    assert (lasting(service), service.counted(), service.events) == (timelines, counted, events)


def test_the_queue_of_a_further_try_is_no_backoff(intake: Callable[[], Hurried]) -> None:
    service = intake()
    service.take(recorded_spans("airflow3_nightly"))
    service.settle()
    (timeline,) = service.timelines()
    (flaky,) = [step for step in timeline["step_timeline"] if step["step_name"] == "flaky"]
    # The spans: the first try ended at 49.081, the second one was queued at 52.051 and began at 52.816.
    second = flaky["attempts"][1]
    assert (second["backoff_seconds"], second["queue_seconds"]) == (
        pytest.approx(2.97, abs=0.01),
        pytest.approx(0.765, abs=0.01),
    )
    assert flaky["wait"]["backoff"] == pytest.approx(2.97, abs=0.01)


def lasting(service: Intake) -> list[dict[str, Any]]:
    """The timelines, without what changes with the time of day while an execution is open."""
    timelines = service.timelines()
    for timeline in timelines:
        if timeline["completed_at"] is None:
            for field in ("elapsed_seconds", "last_seen_at", "unaccounted_seconds", "parallelism", "critical_path"):
                del timeline[field]
            del timeline["critical_path_seconds"], timeline["work_seconds"]
            for entry in timeline["step_timeline"]:
                del entry["elapsed_seconds"]
    return timelines
