"""How the steps of one execution ended, added up."""

from __future__ import annotations

import threading

from tachograph.events import StepStatus


class StepCounts:
    """How the steps of one execution ended, added up. Safe to use from any thread."""

    __slots__ = ("completed", "failed", "lock", "skipped", "steps", "work_ns")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.steps = self.completed = self.failed = self.skipped = self.work_ns = 0

    def add(self, status: StepStatus, work_ns: int = 0) -> None:
        """Count a step that ended; ``work_ns`` only where no step around it counts the same time."""
        with self.lock:
            self.steps += 1
            self.completed += status is StepStatus.COMPLETED
            self.failed += status in (StepStatus.FAILED, StepStatus.TIMEOUT)
            self.skipped += status is StepStatus.SKIPPED
            self.work_ns += work_ns
