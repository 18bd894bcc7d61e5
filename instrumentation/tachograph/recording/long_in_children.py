"""Attempts that have been running for a while in child processes: a part of their parent's signs of life."""

from __future__ import annotations

import time
from typing import Final

from tachograph.events import Heartbeat
from tachograph.folded_stacks import LongAttempt

MAX_LONG: Final = 1_000
"""Attempts that are known at once."""


class LongInChildren:
    """What children said, until they should have said it again."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[str, str], tuple[float, LongAttempt]] = {}

    def note(self, beat: Heartbeat, seconds: float) -> None:
        """Take what a child's sign of life says; it counts for so long."""
        until = time.monotonic() + seconds
        for attempt in beat.long:
            key = (beat.execution.execution_id, attempt.step_id)
            if key in self._attempts or len(self._attempts) < MAX_LONG:
                self._attempts[key] = (until, attempt)

    def of(self, execution_id: str) -> list[LongAttempt]:
        """Those of an execution."""
        if not self._attempts:
            return []
        now = time.monotonic()
        for key, (until, _) in list(self._attempts.items()):
            if until < now:
                self._attempts.pop(key, None)
        return [attempt for (owner, _), (_, attempt) in list(self._attempts.items()) if owner == execution_id]
