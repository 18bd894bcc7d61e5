"""How long traces are left alone after they were assembled."""

from __future__ import annotations

import threading
import time
from typing import Final

from tachograph.clock import NS

TIMES: Final = 4
"""A trace rests so many times as long as its assembly took."""
MAX_SECONDS: Final = 60.0
"""A trace rests at most this long."""
_MAX_TRACES: Final = 1_000


def rest_ns(took_seconds: float) -> int:
    """How long a trace rests whose assembly took so long."""
    return round(min(MAX_SECONDS, TIMES * took_seconds) * NS)


class Rests:
    """Until when traces rest, so that assembling them is a small part of the time, however long it takes.

    While a trace is assembled nothing else can be stored. One that grows in pieces would else be assembled after every
    piece: the next piece waits for that, and the piece after it for the next assembly.
    """

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def note(self, workspace_id: str, trace_id: str, took_seconds: float) -> None:
        """A trace was assembled, and it took that long."""
        now = time.time_ns()
        with self._lock:
            if len(self._until) >= _MAX_TRACES:
                self._until = {key: until for key, until in self._until.items() if until > now}
            if len(self._until) < _MAX_TRACES:
                self._until[workspace_id, trace_id] = now + rest_ns(took_seconds)

    def until_ns(self, workspace_id: str, trace_id: str) -> int:
        """Until when a trace rests; 0 or a time of the past if it does not."""
        return self._until.get((workspace_id, trace_id), 0)
