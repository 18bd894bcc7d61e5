"""Traces whose spans are stored and whose executions do not have them yet.

When more spans arrive at once than one program sends, they are stored first and acknowledged, and their executions are
assembled right after: when nothing arrives for a moment, or when they have waited for `MAX_DELAY_SECONDS`. A client
that is alone finds its executions as soon as its request is answered. What a process could not assemble any more is due
in the database, so it is assembled by the next one, or by another service (see `reassembly`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tachograph.errors import StoreUnavailable
from tachograph.quiet_log import QuietLog
from tachograph_exporter.ingest.span_store import Kept, SpanStore
from tachograph_exporter.ingest.spans import SpanRecord

quiet = QuietLog(logging.getLogger(__name__))

MAX_AT_ONCE: Final = 1_000
"""When several requests in a transaction have more spans than this, their executions are assembled later."""
MAX_DELAY_SECONDS: Final = 10.0
"""How long executions may lack spans that were acknowledged, while more keep arriving that can be assembled in time."""
PAUSE_SECONDS: Final = 0.1
"""How long nothing has to arrive until deferred executions are assembled."""
CLOSE_SECONDS: Final = 2.0
"""How long a service that stops still assembles."""
MAX_SPANS: Final = 50_000
"""With more spans deferred, executions are assembled as fast as spans are stored."""
_CHUNK_SPANS: Final = 500
"""Spans that are assembled while nothing arrives, until the next look whether something has."""
_KEPT_BYTES: Final = 4 << 20
"""Bytes of encoded spans that are kept in memory, so that they need not be read again."""


class _Trace(NamedTuple):
    workspace_id: str
    workspace: str
    trace_id: str


class _Waiting(NamedTuple):
    """``since``: monotonic; ``spans``: how many; ``kept``: these, if they are in memory."""

    since: float
    spans: int
    kept: Kept | None


class DeferredTraces:
    """The traces that this process has to assemble. Used by one thread."""

    def __init__(self, store: SpanStore) -> None:
        self._store = store
        self._traces: dict[_Trace, _Waiting] = {}
        """The one that has waited longest comes first."""
        self._spans = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._traces)

    def add(self, workspace_id: str, workspace: str, trace_id: str, stored: Kept) -> None:
        """Remember to assemble a trace, of which these spans have been stored."""
        trace, spans = _Trace(workspace_id, workspace, trace_id), stored.spans
        known = self._traces.get(trace)
        self._spans += len(spans)
        if known is not None:
            # It has changed since: it is read again.
            self._forget(known)
            self._traces[trace] = _Waiting(known.since, known.spans + len(spans), None)
            return
        size = _size_of(spans)
        kept = stored if stored.at_ns and self._bytes + size <= _KEPT_BYTES else None
        self._bytes += size if kept is not None else 0
        self._traces[trace] = _Waiting(time.monotonic(), len(spans), kept)

    def _forget(self, waiting: _Waiting) -> None:
        if waiting.kept is not None:
            self._bytes -= _size_of(waiting.kept.spans)

    def catch_up(self, stored: int) -> None:
        """Assemble what has waited for too long, while further spans arrive, ``stored`` of them just now."""
        room = 2 * stored + _CHUNK_SPANS
        while self._traces and room > 0:
            oldest = next(iter(self._traces.values()))
            if self._spans <= MAX_SPANS and time.monotonic() - oldest.since < MAX_DELAY_SECONDS:
                break
            room -= self._assemble_some()

    def work(self) -> None:
        """Assemble some of them: nothing else arrives."""
        self._assemble_some()

    def finish(self) -> None:
        """Assemble what can be before the process ends; the rest is due in the database."""
        end = time.monotonic() + CLOSE_SECONDS
        while self._traces and time.monotonic() < end:
            self._assemble_some()

    def _assemble_some(self) -> int:
        """Assemble those that have waited longest, and forget them. Returns the number of their spans."""
        by_workspace: dict[tuple[str, str], dict[str, Kept | None]] = {}
        spans = 0
        while self._traces and spans < _CHUNK_SPANS:
            trace = next(iter(self._traces))
            waiting = self._traces.pop(trace)
            self._forget(waiting)
            spans += waiting.spans
            by_workspace.setdefault((trace.workspace_id, trace.workspace), {})[trace.trace_id] = waiting.kept
        self._spans -= spans
        for (workspace_id, workspace), own in by_workspace.items():
            kept = {trace_id: spans for trace_id, spans in own.items() if spans is not None}
            self._assemble(workspace_id, workspace, sorted(own), kept)
        return spans

    def _assemble(self, workspace_id: str, workspace: str, trace_ids: list[str], kept: Mapping[str, Kept]) -> None:
        """Assemble traces. One that cannot be costs no other; it is due in the database, and set aside there."""
        chosen = frozenset(trace_ids)
        try:
            self._store.commit(
                lambda c: (None, self._store.assemble_deferred(c, workspace_id, workspace, chosen, kept))
            )
        except StoreUnavailable as error:
            quiet.warning("unavailable", "executions could not be assembled, they are due later: %s", error)
        except Exception as error:
            if len(trace_ids) == 1:
                quiet.exception(("assemble", type(error)), "trace %s could not be assembled", trace_ids[0])
                return
            half = len(trace_ids) // 2
            self._assemble(workspace_id, workspace, trace_ids[:half], kept)
            self._assemble(workspace_id, workspace, trace_ids[half:], kept)


def _size_of(spans: Sequence[SpanRecord]) -> int:
    return sum([span.size for span in spans])
