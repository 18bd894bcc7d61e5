"""Who owns an execution that an engine's hooks report: nobody in particular, so a lease says when it is lost.

Several processes report the same execution, and the one that began it may end long before it. So its ``process`` names
no process, and cannot be mistaken for one: ``report/ENGINE/LEASE`` or ``report/ENGINE/LEASE+QUEUE``, in seconds.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_PATTERN: Final = re.compile(r"report/([^/]*)/(\d{1,9})(?:\+(\d{1,9}))?", re.ASCII)
_NO_NAME: Final = re.compile(r"[^0-9A-Za-z_.-]", re.ASCII)
MAX_SECONDS: Final = 366 * 86_400


class ReportedProcess(NamedTuple):
    """How the end of a reported execution shows.

    Attributes:
        engine: the name of the engine, or "".
        lease_seconds: how long it may be silent before it is lost.
        queue_seconds: given for an engine whose work waits in a queue that no process watches. While nothing runs and
            something waits, the execution may be silent for so long; and it ends when all its steps have ended, since
            no process knows that nothing else will come.
    """

    engine: str
    lease_seconds: int
    queue_seconds: int | None = None

    @classmethod
    def parse(cls, process: str) -> ReportedProcess | None:
        """Read what `str` writes; None for the name of any other process."""
        match = _PATTERN.fullmatch(process)
        if match is None:
            return None
        return cls(match[1], int(match[2]), int(match[3]) if match[3] else None)

    def __str__(self) -> str:
        engine = _NO_NAME.sub("_", self.engine)[:50]
        queue = "" if self.queue_seconds is None else f"+{min(self.queue_seconds, MAX_SECONDS)}"
        return f"report/{engine}/{min(self.lease_seconds, MAX_SECONDS)}{queue}"
