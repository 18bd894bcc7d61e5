"""Sampling attempts that take unusually long, in one thread that exists only meanwhile."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Final

from tachograph import counters
from tachograph.folded_stacks import INTERVAL_NS
from tachograph.quiet_log import QuietLog
from tachograph.running_attempts import running
from tachograph.stacks import native
from tachograph.stacks.frames import FrameTexts
from tachograph.stacks.profile import Profile
from tachograph.stacks.taking import take
from tachograph.workflow.reporter import Reporter

quiet = QuietLog(logging.getLogger(__name__))

BUDGET: Final = 1 / 200
"""The share of a core that sampling may take; it samples more rarely where a sample costs more."""
MAX_PERIOD_SECONDS: Final = 5.0
MAX_SAMPLED: Final = 50
"""Attempts that are sampled at the same time; others must wait until one ends."""
_PERIOD_SECONDS: Final = INTERVAL_NS / 1e9
_SMOOTHING: Final = 0.2
thread_name: Final = "tachograph-stacks"


class Sampler:
    """Samples attempts from `arm` until they end. Safe to use from any thread."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._profiles: list[Profile] = []
        self._thread: threading.Thread | None = None

    def arm(self, reporter: Reporter) -> bool:
        """Sample an attempt until it ends. False: it is sampled already, or too many are."""
        with self._lock:
            if reporter.profile is not None or id(reporter) not in running or len(self._profiles) >= MAX_SAMPLED:
                return False
            profile = Profile(reporter)
            if self._thread is None:
                thread = threading.Thread(target=self._sample, name=thread_name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False  # No thread can be started now; it is asked for again.
                self._thread = thread
            self._profiles.append(profile)
            reporter.profile = profile
            return True

    @property
    def is_active(self) -> bool:
        """Whether anything is sampled: only then there is a thread."""
        return self._thread is not None

    def _current(self) -> list[Profile]:
        """The attempts that still run; of others, what was sampled is recorded. None left: the thread ends."""
        with self._lock:
            ended = [p for p in self._profiles if not _is_running(p)]
            self._profiles = [p for p in self._profiles if p not in ended]
            profiles = list(self._profiles)
            if not profiles:
                self._thread = None
        for profile in ended:
            if profile.reporter.profile is profile:
                profile.reporter.profile = None
            profile.end()
        return profiles

    def _sample(self) -> None:
        texts = FrameTexts()
        cost = 0.0
        last = time.monotonic()
        while True:
            time.sleep(min(max(_PERIOD_SECONDS, cost / BUDGET), MAX_PERIOD_SECONDS))
            began = time.thread_time()
            try:
                if not (profiles := self._current()):
                    native.forget()
                    return
                now = time.monotonic()
                # A sample stands for the time since the last one, also where another thread held the interpreter.
                weight = max(1, round((now - last) / _PERIOD_SECONDS))
                last = now
                stacks = take([p.reporter for p in profiles], texts)
                for profile in profiles:
                    profile.add(stacks[profile.reporter], weight)
                    profile.emit_if_due()
                del stacks
                counters.note_own_thread()
            except Exception as error:
                # Sampling never ends a program's work, and goes on: the next moment may be another one.
                quiet.exception(type(error), "a sample could not be taken")
            used = time.thread_time() - began
            cost = used if cost == 0.0 else cost + _SMOOTHING * (used - cost)

    def after_fork(self) -> None:
        """In a forked child: what the parent samples is not here."""
        for profile in self._profiles:
            profile.abandon()
        self._reset()


def _is_running(profile: Profile) -> bool:
    reporter = profile.reporter
    return not profile.is_ended and reporter.is_open and reporter.attempts.attempt == profile.attempt


sampler: Final = Sampler()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=sampler.after_fork)
