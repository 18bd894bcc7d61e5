"""Counts of the steps of one execution by how they ended."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tachograph.events import StepStatus
from tachograph.folding import RowCount


class StepCounts:
    """Counts of ended steps, and their running time. Safe to use from any thread."""

    __slots__ = ("__weakref__", "completed", "failed", "lock", "open_steps", "rows", "skipped", "steps", "work_ns")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        # What closes a step that is still open when its execution ends, by its span id; called with that moment.
        self.open_steps: dict[str, Callable[[int], None]] = {}
        self.rows = RowCount()
        self.steps = self.completed = self.failed = self.skipped = self.work_ns = 0

    def add(self, status: StepStatus, work_ns: int = 0) -> None:
        """Count an ended step. ``work_ns`` is zero for a step inside a step, whose time the outer one counts."""
        with self.lock:
            self.steps += 1
            self.completed += status is StepStatus.COMPLETED
            self.failed += status in (StepStatus.FAILED, StepStatus.TIMEOUT)
            self.skipped += status is StepStatus.SKIPPED
            self.work_ns += work_ns
