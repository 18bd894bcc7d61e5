"""Counts of the steps of one execution by how they ended."""

from __future__ import annotations

import threading

from tachograph.events import FAILED, StepStatus


class StepCounts:
    """Counts of ended steps, and their running time. Safe to use from any thread."""

    __slots__ = ("completed", "failed", "lock", "skipped", "steps", "work_ns")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.steps = self.completed = self.failed = self.skipped = self.work_ns = 0

    def add(self, status: StepStatus, work_ns: int = 0) -> None:
        """Count an ended step. ``work_ns`` is zero for a step inside a step, whose time the outer one counts."""
        with self.lock:
            self.steps += 1
            self.completed += status is StepStatus.COMPLETED
            self.failed += status in FAILED
            self.skipped += status is StepStatus.SKIPPED
            self.work_ns += work_ns
