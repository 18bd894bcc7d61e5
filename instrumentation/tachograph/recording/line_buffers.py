"""Lines of running steps on their way to the recorder: the last ones of each attempt, for a moment.

A line costs its step an append. A thread turns what has gathered into events every `FLUSH_SECONDS`, and so does the end
of an attempt. Of more than `MAX_LINES` within one such moment the oldest are dropped: their numbers are missing, so
every reader can count them. Secrets are masked here, before a line becomes an event.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from tachograph.events import Event, Failure, StepFinished, StepLine, StepLines, StepRetrying
from tachograph.identity import StepRef
from tachograph.names import encodable
from tachograph.quiet_log import QuietLog
from tachograph.recording import open_execution
from tachograph.redaction import LineMask
from tachograph.workflow.reporter import Reporter

quiet = QuietLog(logging.getLogger(__name__))

MAX_LINES: Final = 200
"""Lines of an attempt that wait for the next event, and that a store keeps."""
FLUSH_SECONDS: Final = 0.5
"""How long a line waits at most."""
MAX_BUFFERS: Final = 10_000
"""Attempts with lines in this process; of one that nobody ended, the oldest are forgotten."""
_EVENT_CHARACTERS: Final = 64 * 1024
"""Characters of the lines of one event, about: bodies of requests are bounded."""


class _Line(NamedTuple):
    number: int
    time_ns: int
    severity: int
    logger: str
    message: str
    failure: Failure | None


class _Buffer:
    """The lines of an attempt that are not events yet."""

    __slots__ = ("_last", "_lock", "_mask", "attempt", "emit", "lines", "numbers", "step")

    def __init__(self, step: StepRef, attempt: int, emit: Callable[[Event], None]) -> None:
        self.step, self.attempt, self.emit = step, attempt, emit
        # Appending to it is atomic, and drops the oldest line.
        self.lines: deque[_Line] = deque(maxlen=MAX_LINES)
        self.numbers = itertools.count(1)
        self._last = 0
        self._mask = LineMask()
        self._lock = threading.Lock()

    def flush(self) -> None:
        """Turn what has gathered into events. Returns once that is done, whoever does it."""
        with self._lock:
            lines: list[StepLine] = []
            size = 0
            # No more than there were: a thread that never stops writing must not keep the end of its step waiting.
            for _ in range(len(self.lines)):
                try:
                    line = self.lines.popleft()
                except IndexError:
                    break
                kept = _as_event(line, self._mask)
                lines.append(kept)
                size += len(kept.message) + (len(kept.failure.stack or "") if kept.failure is not None else 0)
                if size >= _EVENT_CHARACTERS:
                    self._tell(lines)
                    lines, size = [], 0
            self._tell(lines)

    def _tell(self, lines: list[StepLine]) -> None:
        global recorded, dropped
        if not lines:
            return
        newest = max(line.number for line in lines)
        if newest > self._last:
            dropped += max(0, newest - self._last - len(lines))
            self._last = newest
        recorded += len(lines)
        writer = open_execution.process_token()
        self.emit(
            StepLines(
                step=self.step, time_ns=lines[-1].time_ns, lines=tuple(lines), writer=writer, attempt=self.attempt
            )
        )


def _as_event(line: _Line, mask: LineMask) -> StepLine:
    return StepLine(
        number=line.number,
        time_ns=line.time_ns,
        severity=line.severity,
        message=mask(line.message),
        logger=encodable(line.logger),
        failure=line.failure,
    )


recorded = 0
"""Lines that became events in this process."""
dropped = 0
"""Lines that did not, because more came than are kept."""
_buffers: dict[tuple[str, str], dict[int, _Buffer]] = {}
_lock = threading.Lock()
_wake = threading.Event()
_is_asleep = True
_thread: threading.Thread | None = None
_start_at = 0.0


def add(reporter: Reporter, severity: int, logger: str, message: str, failure: Failure | None) -> None:
    """Note a line of the step's running attempt. The message is at most about twice as long as what is kept of it."""
    global _is_asleep
    attempt = reporter.attempts.attempt
    step = reporter.step
    attempts = _buffers.get((step.execution.execution_id, step.step_id))
    buffer = attempts.get(attempt) if attempts is not None else None
    if buffer is None:
        buffer = _open(reporter, attempt)
    buffer.lines.append(_Line(next(buffer.numbers), reporter.clock(), severity, logger, message, failure))
    if _is_asleep:
        _is_asleep = False
        _wake.set()
        if _thread is None or not _thread.is_alive():
            _start()


def _open(reporter: Reporter, attempt: int) -> _Buffer:
    step, surplus = reporter.step, list[_Buffer]()
    with _lock:
        # Repetitions that share an entry of the timeline share their lines.
        attempts = _buffers.setdefault((step.execution.execution_id, step.step_id), {})
        buffer = attempts.get(attempt)
        if buffer is None:
            buffer = attempts[attempt] = _Buffer(step, attempt, reporter.emit)
        if len(_buffers) > MAX_BUFFERS:
            surplus = list(_buffers.pop(next(iter(_buffers))).values())
    _flush(surplus)
    return buffer


def _flush(buffers: Iterable[_Buffer]) -> None:
    for buffer in buffers:
        try:
            buffer.flush()
        except Exception as error:
            quiet.exception(type(error), "lines of step %r were lost", buffer.step.name)


def flush_all() -> None:
    """Turn all that has gathered into events."""
    if _buffers:
        with _lock:
            buffers = [buffer for attempts in _buffers.values() for buffer in attempts.values()]
        _flush(buffer for buffer in buffers if buffer.lines)


def end_attempt(event: StepFinished | StepRetrying) -> None:
    """An attempt is about to end: its lines come first."""
    if _buffers:
        end_step(event.step, is_final=type(event) is StepFinished and event.step.folded_as is None)


def end_step(step: StepRef, *, is_final: bool = True) -> None:
    """What a step has written so far becomes events now. ``is_final``: it writes no more."""
    key = (step.execution.execution_id, step.step_id)
    attempts = _buffers.get(key)
    if attempts is None:
        return
    _flush(list(attempts.values()))
    if is_final:
        with _lock:
            _buffers.pop(key, None)


def end_execution(execution_id: str) -> None:
    """An execution has ended: its steps write no more lines."""
    if not _buffers:
        return
    with _lock:
        keys = [key for key in _buffers if key[0] == execution_id]
        gone = [buffer for key in keys for buffer in _buffers.pop(key).values()]
    _flush(gone)


def _start() -> None:
    global _thread, _start_at, _is_asleep
    with _lock:
        if (_thread is not None and _thread.is_alive()) or time.monotonic() < _start_at:
            return
        thread = threading.Thread(target=_run, name="tachograph-lines", daemon=True)
        _thread = thread
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        # No thread can be started now. The end of the attempt takes the lines along; a later line tries again.
        _start_at = time.monotonic() + FLUSH_SECONDS
        _thread, _is_asleep = None, True


def _run() -> None:
    global _is_asleep
    # It may have been started inside a step, whose context it got.
    open_execution.leave()
    while True:
        _wake.wait()
        _wake.clear()
        time.sleep(FLUSH_SECONDS)
        # From here on the next line wakes this thread again; those before it are flushed now.
        _is_asleep = True
        flush_all()


def _after_fork() -> None:
    """In a forked child: the lines are the parent's to tell of, and so is the thread."""
    global _lock, _wake, _thread, _is_asleep, _start_at, recorded, dropped
    _buffers.clear()
    _lock, _wake, _thread = threading.Lock(), threading.Event(), None
    _is_asleep, _start_at, recorded, dropped = True, 0.0, 0, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
