"""Samples of one attempt, folded and bounded, and how they are recorded."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from tachograph.events import StepStacks
from tachograph.folded_stacks import INTERVAL_NS, MAX_BYTES, MAX_STACKS, OUTER, FoldedStack, StacksKind
from tachograph.identity import StepRef
from tachograph.quiet_log import QuietLog
from tachograph.workflow.reporter import Reporter

quiet = QuietLog(logging.getLogger(__name__))

FIRST_EMIT_SECONDS: Final = 2.0
"""How long after sampling began what is known is recorded: a process that is killed then leaves that."""
MAX_EMIT_SECONDS: Final = 60.0


def step_of(reporter: Reporter) -> StepRef:
    """The step whose row has the attempt; repetitions that share a row have their stacks there."""
    step = reporter.step
    return step if step.folded_as is None else replace(step, name=step.folded_as, folded_as=None)


class Profile:
    """Counts the stacks of an attempt. Safe to use from any thread."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.attempt = reporter.attempts.attempt
        self._started_ns = reporter.clock()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._size = self._samples = self._dropped = self._cut = 0
        self._emit_seconds = FIRST_EMIT_SECONDS
        self._emit_at = self._started_ns + round(FIRST_EMIT_SECONDS * 1e9)
        self.is_ended = False

    def add(self, stacks: Iterable[str], weight: int) -> None:
        """Count what was seen in one sample; ``weight``: how many intervals it stands for."""
        with self._lock:
            if self.is_ended:
                return
            self._samples += 1
            for stack in stacks:
                if stack not in self._counts:
                    if len(self._counts) >= MAX_STACKS or self._size + len(stack) > MAX_BYTES:
                        self._dropped += weight
                        continue
                    self._size += len(stack)
                self._counts[stack] = self._counts.get(stack, 0) + weight
                self._cut += OUTER in stack

    def emit_if_due(self) -> None:
        """Record what is known so far, now and then."""
        now = self.reporter.clock()
        if now < self._emit_at:
            return
        self._emit_seconds = min(self._emit_seconds * 2, MAX_EMIT_SECONDS)
        self._emit_at = now + round(self._emit_seconds * 1e9)
        with self._lock:
            if not self.is_ended:
                self._emit()

    def end(self) -> None:
        """The attempt has ended: record what was sampled of it."""
        with self._lock:
            if not self.is_ended:
                self.is_ended = True
                self._emit()

    def abandon(self) -> None:
        """In a forked child: the attempt is the parent's."""
        self._lock = threading.Lock()
        self.is_ended = True

    def _emit(self) -> None:
        if not self._counts or self._process != os.getpid():
            return
        counts = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        try:
            self.reporter.emit(
                StepStacks(
                    step=step_of(self.reporter),
                    time_ns=self.reporter.clock(),
                    attempt=self.attempt,
                    kind=StacksKind.PROFILE,
                    started_ns=self._started_ns,
                    stacks=tuple(FoldedStack(stack, count) for stack, count in counts),
                    samples=self._samples,
                    interval_ns=INTERVAL_NS,
                    dropped=self._dropped,
                    cut=self._cut,
                )
            )
        except Exception:
            quiet.exception("emit", "stacks of a step could not be recorded")
