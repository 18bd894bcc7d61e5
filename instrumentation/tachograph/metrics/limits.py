"""Limits on the number of series, shared by the families of one registry."""

from __future__ import annotations

import threading
from typing import Final

FAMILY_LIMIT: Final = 10_000
"""Label sets of one metric."""
TOTAL_LIMIT: Final = 100_000
"""Label sets of all metrics together."""


class SeriesLimits:
    """How many label sets there may be, and how many there are. Safe from any thread."""

    def __init__(self, family_limit: int = FAMILY_LIMIT, total_limit: int = TOTAL_LIMIT) -> None:
        self.family_limit = family_limit
        self.total_limit = total_limit
        self._label_sets = 0
        self._lock = threading.Lock()

    @property
    def label_sets(self) -> int:
        """How many label sets there are."""
        return self._label_sets

    def take(self) -> bool:
        """Count one more label set; False when there is no room for it."""
        with self._lock:
            if self._label_sets >= self.total_limit:
                return False
            self._label_sets += 1
            return True

    def give_back(self) -> None:
        """Count one label set less."""
        with self._lock:
            self._label_sets -= 1
