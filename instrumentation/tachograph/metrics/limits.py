"""Limits on the number of series, shared by the families of one registry."""

from __future__ import annotations

import threading
from typing import Final

FAMILY_LIMIT: Final = 10_000
"""Most label sets of one metric."""
TOTAL_LIMIT: Final = 100_000
"""Most label sets of all metrics together."""


class SeriesLimits:
    """Counts label sets against the limits. Thread-safe."""

    def __init__(self, family_limit: int = FAMILY_LIMIT, total_limit: int = TOTAL_LIMIT) -> None:
        self.family_limit = family_limit
        self.total_limit = total_limit
        self._label_sets = 0
        self._lock = threading.Lock()

    @property
    def label_sets(self) -> int:
        """The current number of label sets."""
        return self._label_sets

    def take(self) -> bool:
        """Count a new label set. Returns False if the total limit is reached."""
        with self._lock:
            if self._label_sets >= self.total_limit:
                return False
            self._label_sets += 1
            return True

    def release(self) -> None:
        """Stop counting a removed label set."""
        with self._lock:
            self._label_sets -= 1
