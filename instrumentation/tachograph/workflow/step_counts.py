"""The steps of one execution: how many ended how, and which are open."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tachograph.events import FAILED, StepStatus
from tachograph.folding import RowCount

log = logging.getLogger(__name__)


class StepCounts:
    """Counts of ended steps, and their running time. Safe to use from any thread.

    Attributes:
        open_steps: by span id, how to close a step that is still open when its execution ends (a thread that outlives
            it): called with that moment, it records the step as lost. Whoever takes the entry out ends the step.
    """

    __slots__ = ("__weakref__", "completed", "failed", "lock", "open_steps", "rows", "skipped", "steps", "work_ns")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open_steps: dict[str, Callable[[int], None]] = {}
        self.rows = RowCount()
        self.steps = self.completed = self.failed = self.skipped = self.work_ns = 0

    def add(self, status: StepStatus, work_ns: int = 0) -> None:
        """Count an ended step. ``work_ns`` is zero for a step inside a step, whose time the outer one counts."""
        with self.lock:
            self.steps += 1
            self.completed += status is StepStatus.COMPLETED
            self.failed += status in FAILED
            self.skipped += status is StepStatus.SKIPPED
            self.work_ns += work_ns

    def close_open_steps(self, now_ns: int) -> None:
        """Close what is still open: the last opened first, so that inner steps end before outer ones. Never raises."""
        while self.open_steps:
            try:
                _, close = self.open_steps.popitem()
            except KeyError:
                return  # The last one ended meanwhile, in its own thread.
            try:
                close(now_ns)
            except Exception:
                log.exception("a step that was open when its execution ended could not be closed")
