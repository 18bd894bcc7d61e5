"""What engines sent by OpenLineage becomes what happened, in whatever order and pieces it arrives, once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.ingest.intake import counts_of, intakes
from tests.ingest.lineage_intake import ORDERS, PIECES, LineageIntake, in_order, in_pieces, recorded_events
from tests.ingest.truth import RECORDINGS, differences, read_truth

NAMES: Final = sorted(path.stem for path in RECORDINGS.glob("openlineage_*.jsonl"))
TOLERANCE: Final = 0.001
"""Seconds that times may be apart: they are those of the events."""
TOLERANCES: Final = {"openlineage_dbt_logs": 0.2}
"""Where they may be further apart: dbt's log tells of a node a little later than its results do."""
LONG: Final = 50
"""Events of a recording that is sent in larger pieces, so that the tests stay cheap."""


MakeIntake = Callable[[], LineageIntake]


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[MakeIntake]:
    """Makes intakes with a database of their own."""
    with intakes(LineageIntake, tmp_path, empty_database) as make:
        yield make


def problems_of(name: str, service: LineageIntake) -> list[str]:
    timelines = service.timelines()
    problems = differences(read_truth(name), timelines, tolerance_seconds=TOLERANCES.get(name, TOLERANCE))
    counted, due = service.counted(), counts_of(timelines)
    problems += [f"metrics: {key} is {counted[key]} instead of {due[key]}" for key in counted.keys() | due.keys()
                 if counted[key] != due[key]]  # fmt: skip
    if wrong := service.rows_to_correct():
        problems.append(f"{wrong} rollup rows are not what their executions add up to")
    return problems


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_becomes_what_happened(name: str, intake: MakeIntake) -> None:
    events = recorded_events(name)
    problems: dict[str, str] = {}
    pieces = (1, 0) if len(events) <= LONG else (11,)
    for order, size in itertools.product(ORDERS, pieces):
        service = intake()
        for piece in in_pieces(in_order(events, order), size):
            # Stored first, and assembled once, in one of the orders.
            assert service.take_events(piece, is_hurried=order == "reversed") == len(piece)
        service.settle()
        for problem in problems_of(name, service):
            problems.setdefault(problem, f"{order}, {size or 'all'} to a request")
        service.close()
    assert not problems, "\n".join(f"{problem} ({where})" for problem, where in problems.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_of_a_recording_changes_nothing(name: str, intake: MakeIntake) -> None:
    service, events = intake(), recorded_events(name)
    service.take_events(events)
    service.settle()
    timelines, counted, published = service.timelines(), service.counted(), list(service.events)
    for size in PIECES:
        for piece in in_pieces(in_order(events, "reversed"), size):
            assert service.take_events(piece) == 0
        service.settle()
    assert (service.timelines(), service.counted(), service.events) == (timelines, counted, published)
