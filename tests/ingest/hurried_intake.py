"""An intake that stores spans first, and assembles their executions later; and ways in which that goes on.

See `tests.ingest.intake`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.ingest.intake import WORKSPACE, Intake

from tachograph_exporter.ingest import span_store
from tachograph_exporter.ingest.spans import SpanRecord

Pieces = Sequence[Sequence[SpanRecord]]


class Hurried(Intake):
    """Stores spans first, and assembles their executions when it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.waiting: dict[str, span_store.Kept] = {}
        """What waits, by trace, as it was stored last."""

    is_patient = False
    """Whether it assembles everything at once after all."""

    def hurry(self, spans: Sequence[SpanRecord]) -> int:
        """Store spans only."""
        if self.is_patient:
            return self.take(spans)
        taken = self.store.commit(
            lambda c: (r := self.store.take(c, self.workspace_id, WORKSPACE, spans, is_hurried=True), r.events)
        )
        assert not taken.events
        self.waiting |= taken.deferred
        return taken.stored

    def assemble_waiting(self) -> None:
        """Assemble what waits."""
        kept, self.waiting = self.waiting, {}
        self.store.commit(
            lambda c: (None, self.store.assemble_deferred(c, self.workspace_id, WORKSPACE, kept.keys(), kept))
        )


def at_once(service: Hurried, pieces: Pieces) -> None:
    """All of them are stored, then assembled."""
    for piece in pieces:
        service.hurry(piece)
    service.assemble_waiting()
    service.assemble_waiting()


def now_and_then(service: Hurried, pieces: Pieces) -> None:
    """Some are stored only; some of these are assembled, others meet spans that are not deferred."""
    for number, piece in enumerate(pieces):
        (service.take if number % 4 == 3 else service.hurry)(piece)
        if number % 3 == 1:
            service.assemble_waiting()


def without_end(service: Hurried, pieces: Pieces) -> None:
    """The process is killed again and again before it assembles anything."""
    for number, piece in enumerate(pieces):
        service.hurry(piece)
        if number % 5 == 4:
            service.settle()


WAYS: Final = (at_once, now_and_then, without_end)
