"""An intake of OpenLineage events without a service around it; see `tests.ingest.intake`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

from tests.ingest.intake import WORKSPACE, Intake
from tests.ingest.truth import RECORDINGS

from tachograph_exporter.ingest.lineage.events import ENDS, read_event
from tachograph_exporter.ingest.lineage.lineage_store import Arrived
from tachograph_exporter.store.lineage import unread

ORDERS: Final = ("as arrived", "reversed", "shuffled", "ends first")
PIECES: Final = (0, 1, 5)
"""Events to a request; 0: all of them."""


def recorded_events(name: str) -> list[Arrived]:
    """The events of a recording, in order of arrival."""
    return [arrived(line) for line in (RECORDINGS / f"{name}.jsonl").read_bytes().splitlines()]


def arrived(line: bytes) -> Arrived:
    event = read_event(line)
    assert event is not None
    return Arrived(event, line)


def in_order(events: Sequence[Arrived], order: str) -> list[Arrived]:
    """The events in one of `ORDERS`."""
    if order == "reversed":
        return list(reversed(events))
    if order == "shuffled":
        shuffled = list(events)
        random.Random(20).shuffle(shuffled)
        return shuffled
    if order == "ends first":
        return sorted(events, key=lambda item: item.event.kind not in ENDS)
    return list(events)


def in_pieces(events: Sequence[Arrived], size: int) -> Iterator[Sequence[Arrived]]:
    """The events, ``size`` to a request (0: all in one)."""
    size = size or max(1, len(events))
    for i in range(0, len(events), size):
        yield events[i : i + size]


class LineageIntake(Intake):
    """Takes OpenLineage events, and spans, into a database."""

    def take_events(self, events: Sequence[Arrived], *, is_hurried: bool = False) -> int:
        """Store the events of one request; returns how many of them were new."""
        lineage = self.store.lineage
        taken = self.store.commit(
            lambda c: (
                (result := lineage.take(c, self.workspace_id, WORKSPACE, events, is_hurried=is_hurried)),
                result.events,
            )
        )
        assert not taken.refused
        return taken.stored

    def refresh(self, trace_id: str) -> None:
        """Bring a trace up to date with events whose assembly was deferred."""
        lineage = self.store.lineage
        self.store.commit(lambda c: (None, lineage.refresh(c, self.workspace_id, WORKSPACE, [trace_id])))

    def settle(self) -> None:
        """Let so much time pass without an event that every execution is assembled for the last time."""
        for trace in self.database.look(unread):
            self.refresh(trace.trace_id)
        super().settle()
