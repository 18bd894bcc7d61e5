"""What a step uses of the machine, measured in its own process while it runs.

What a tiny step may cost pays for no measuring: one of less than `SHORT_NS` says nothing. Of one that runs for less
than `LONG_NS` only the processor time of its thread is measured, and pauses by the garbage collector. The others have
the rest too, as differences of the kernel's own `counters` between their start and their end.

A step of which nothing will be said need not be measured either: see `unmeasured`. And where the steps of a name have
been brief, the next one starts from older counters; if it is long after all, and they are too old for that, it says
what a brief one says.

Counters of a process say nothing of one of two steps that run in it at the same time. So a meter finds out whether it
was *alone*: whether no other meter ran at any moment of its own, but for those of the steps around it and inside it.
"""

from __future__ import annotations

import itertools
import os
import time
from contextvars import ContextVar
from typing import Any, Final

import msgspec

from tachograph import counters, step_kinds
from tachograph.counters import Sample, Thread
from tachograph.resources import Resources
from tachograph.step_kinds import Kind

SHORT_NS: Final = 100_000
"""From this running time on (nanoseconds), processor time is measured."""
LONG_NS: Final = 20_000_000
"""From this running time on (nanoseconds), everything is measured."""
MAX_DOUBT: Final = 20
"""One part in so many of its time is what a step may have wrong whose counters are those of a moment before it."""
_FRESH_NS: Final = 2_000_000
"""How old the counters may be that a step starts from, all but processor time and its children's."""
_BRIEF_FRESH_NS: Final = LONG_NS
"""The same if it is taken for brief."""
_CLOCK_FRESH_NS: Final = counters.CLOCK_FRESH_NS
_NS: Final = 1_000_000_000

_now_ns: Final = time.perf_counter_ns
_thread_time_ns: Final = counters.thread_time_ns
_getrusage: Final = counters.getrusage
_used: Final = Resources

_active: set[Meter] = set()
_ticks = itertools.count()
"""Counts starts and ends of meters: if it moved on by more than what ran inside, something else ran too."""
_epoch = 0
"""Grows in a forked child, where the meters of its parent mean nothing."""
left_ns = 0
"""When the last meter stopped."""
around: ContextVar[Meter | None] = ContextVar("tachograph_meter", default=None)
"""That of the task of an engine that the calling code is part of: what starts inside it is not beside it."""
is_enabled = True
"""Whether steps that start now are measured; see `set_enabled`."""


def service_starts() -> None:
    """A service starts in this process, which works for others besides its steps from now on: what it uses is no step's
    alone.
    """
    counters.services += 1


def service_ends() -> None:
    """A service has ended; see `service_starts`."""
    counters.services -= 1


class Meter(msgspec.Struct, eq=False, gc=False):
    """Measures one attempt, from `start` to `stop`. A struct, because a step is measured often."""

    _outer: Meter | None
    _is_on_loop: bool
    _is_dispatched: bool
    _thread: Thread
    _collected: tuple[int, int, int]
    _began_ns: int
    _sample: Sample
    _children: Any
    _kind: Kind | None
    _tick: int = 0
    _thread_ns: int = 0
    _inner: int = 0
    _cpu_ns: int | None = 0
    _is_alone: bool = True
    _is_in_pieces: bool = False
    _given: Resources | None = None
    _epoch: int = 0

    def _look_around(self) -> None:
        """Is it alone? Only those around it may run; and they learn of this one."""
        depth = 1
        outer = self._outer
        while outer is not None:
            if outer in _active:
                depth += 1
                outer._inner += 1
            outer = outer._outer
        if len(_active) > depth:
            self._is_alone = False

    def _leave(self) -> None:
        _active.discard(self)
        tick = next(_ticks)
        if tick - self._tick - 1 != self._inner:
            self._is_alone = False
        outer = self._outer
        while outer is not None:
            outer._inner += 1
            outer = outer._outer

    def give(self, resources: Resources) -> None:
        """Tell what the attempt used, known better than by measuring: of a command that did all of its work."""
        self._given = resources

    def pause(self) -> None:
        """The attempt's code pauses, and other code runs on its thread."""
        thread_ns = _thread_time_ns()
        if self in _active:
            self._add(thread_ns)
            self._leave()
            self._is_in_pieces = True
            self._epoch = _epoch

    def resume(self, *, is_on_loop: bool) -> None:
        """The attempt's code goes on, perhaps in another thread."""
        if self._epoch != _epoch or not self._is_in_pieces:
            return
        self._is_on_loop = self._is_on_loop or is_on_loop
        thread = counters.local.thread
        if thread is None:
            thread = counters.local.thread = Thread()
        self._thread = thread
        self._inner = 0
        _active.add(self)
        self._tick = next(_ticks)
        self._look_around()
        self._thread_ns = _thread_time_ns()

    def _add(self, thread_ns: int) -> None:
        """Add the thread's time since it was last read; it is not known in another thread."""
        used = thread_ns - self._thread_ns
        if (
            not counters.HAS_THREAD_TIME
            or self._cpu_ns is None
            or used < -_CLOCK_FRESH_NS
            or counters.local.thread is not self._thread
        ):
            self._cpu_ns = None
        else:
            self._cpu_ns += max(0, used)

    def stop(self, _step_began_ns: int = 0, _step_ended_ns: int = 0) -> Resources | None:
        """What the attempt used; None: nothing is known, or it was stopped before."""
        global left_ns
        now = _now_ns()
        is_short = now - self._began_ns < SHORT_NS and not self._is_in_pieces
        thread_ns = 0 if is_short else _thread_time_ns()
        if self in _active:
            if self._outer is None:
                # As `_leave`, without a call.
                _active.discard(self)
                if next(_ticks) - self._tick - 1 != self._inner:
                    self._is_alone = False
            else:
                self._leave()
            if is_short:
                if self._kind is not None:
                    step_kinds.note_tiny(self._kind)
                return self._given
            left_ns = now
            if (kind := self._kind) is not None:
                if kind in step_kinds.scores:
                    step_kinds.note_other(kind, worked_long=thread_ns - self._thread_ns >= LONG_NS)
                step_kinds.note_length(kind, is_long=now - self._began_ns >= LONG_NS)
            used, cpu_ns = thread_ns - self._thread_ns, self._cpu_ns
            thread = self._thread
            if (
                used < -_CLOCK_FRESH_NS
                or cpu_ns is None
                or counters.local.thread is not thread
                or not counters.HAS_THREAD_TIME
            ):
                cpu_ns = None
            else:
                cpu_ns += max(0, used)
                thread.read_ns, thread.thread_ns = now, thread_ns
        elif self._is_in_pieces and self._epoch == _epoch:
            cpu_ns = self._cpu_ns
        else:
            return None
        if self._given is not None:
            return self._given
        is_shared = not self._is_alone or counters.services > 0 or not (self._thread.is_main or self._is_dispatched)
        if is_shared and self._is_on_loop:
            cpu_ns = None  # It cannot be told from that of other tasks.
        took_ns = now - self._began_ns
        if took_ns < LONG_NS or self._is_in_pieces or not counters.HAS_USAGE or self._is_doubtful(took_ns):
            cpu = cpu_ns / _NS if cpu_ns is not None else None
            if self._collected is not counters.collected:
                return _used(cpu, None, None, None, None, None, *self._pauses(), None, None, is_shared)
            if is_shared:
                return _used(cpu, is_shared=True) if cpu is not None else None
            return _used(cpu)
        return self._all(now, cpu_ns, is_shared=is_shared)

    def _is_doubtful(self, took_ns: int) -> bool:
        """Whether its counters are so old that they may have something wrong that matters: see `_BRIEF_FRESH_NS`."""
        age_ns = self._began_ns - self._sample.time_ns
        if age_ns <= _FRESH_NS:
            return False
        if age_ns * MAX_DOUBT > took_ns:
            return True
        # A child counts as a whole when it ends, and one may have ended between the two.
        children = self._sample.children
        return children is None or (children is self._children and _getrusage(counters.CHILDREN) != children)

    def _pauses(self) -> tuple[float, float, int]:
        """(seconds, seconds of full collections, number) of the pauses since the start."""
        (count, all_ns, full_ns), (count_then, all_then, full_then) = counters.collected, self._collected
        return (all_ns - all_then) / _NS, (full_ns - full_then) / _NS, count - count_then

    def _all(self, now: int, cpu_ns: int | None, *, is_shared: bool) -> Resources:
        is_same_thread = counters.local.thread is self._thread
        before, after = self._sample, counters.take(self._thread if is_same_thread else Thread(), now, reads_size=True)
        children_then, children = self._children, after.children
        thread_then: Any = None
        thread: Any = None
        if is_same_thread:
            thread_then, thread = before.thread, after.thread
        total_ns, io_then, io = cpu_ns, thread_then, thread
        if not is_shared:
            # Before its start, since the sample was taken, only its own thread worked; and records were delivered.
            since_sample_ns = self._thread_ns - counters.cpu_ns(before.thread) if before.thread is not None else 0
            total_ns = counters.cpu_ns(after.process) - counters.cpu_ns(before.process)
            total_ns -= max(0, since_sample_ns) + max(0, after.own[0] - before.own[0])
            total_ns = max(total_ns, cpu_ns or 0, 0)
            io_then, io = before.process, after.process
        elif self._is_on_loop:
            io_then = io = thread_then = thread = None
        read, written = counters.blocks_between(io_then, io)
        if not is_shared and read is not None and written is not None:
            read = max(0, read - max(0, after.own[1] - before.own[1]) * counters.BLOCK)
            written = max(0, written - max(0, after.own[2] - before.own[2]) * counters.BLOCK)
        if self._is_alone:
            if total_ns is not None:
                total_ns += max(0, counters.cpu_ns(children) - counters.cpu_ns(children_then))
            if read is not None and written is not None:
                more_read, more_written = counters.blocks_between(children_then, children)
                read, written = read + (more_read or 0), written + (more_written or 0)
        has_thread = thread is not None and thread_then is not None
        paused, fully_paused, count = self._pauses()
        return Resources(
            total_ns / _NS if total_ns is not None else None,
            self._peak(before, after, children),
            read,
            written,
            cpu_ns / _NS if cpu_ns is not None and not self._is_on_loop else None,
            after.rss - before.rss if after.rss is not None and before.rss is not None else None,
            paused,
            fully_paused,
            count,
            thread.ru_nvcsw - thread_then.ru_nvcsw if has_thread else None,
            thread.ru_nivcsw - thread_then.ru_nivcsw if has_thread else None,
            is_shared,
        )

    def _peak(self, before: Sample, after: Sample, children: Any) -> int | None:
        """See `Resources.peak_memory_bytes`."""
        sizes = [size for size in (before.rss, after.rss) if size is not None]
        if after.process.ru_maxrss > before.process.ru_maxrss:
            sizes.append(after.process.ru_maxrss * counters.PEAK_UNIT)
        # A child begins as large as its parent ever was: no more than that says nothing of what it ran.
        if self._is_alone and children.ru_maxrss > max(self._children.ru_maxrss, after.process.ru_maxrss):
            sizes.append(children.ru_maxrss * counters.PEAK_UNIT)
        return max(sizes, default=None)


def run_beside(outer: Meter | None) -> bool:
    """Whether others are measured than those around a step that is not; they learn of it."""
    if not _active:
        return False
    beside = set(_active)
    while outer is not None:
        beside.discard(outer)
        outer = outer._outer
    for meter in beside:
        meter._is_alone = False
    return bool(beside)


def _start(
    outer: Meter | None = None, is_on_loop: bool = False, is_dispatched: bool = False, kind: Kind | None = None
) -> Meter | None:
    now, thread = _now_ns(), counters.local.thread
    if thread is None:
        thread = counters.local.thread = Thread()
    sample = thread.sample
    if sample is None or (
        now - sample[0] > _FRESH_NS
        and (now - sample[0] > _BRIEF_FRESH_NS or step_kinds.brief.get(kind, 0) < step_kinds.TAKEN_FOR_BRIEF)  # type: ignore[arg-type]
    ):
        sample = counters.take(thread, now)
    children = _getrusage(counters.CHILDREN) if counters.has_children else sample[4]
    meter = Meter(
        outer,
        is_on_loop or counters.is_cooperative,
        is_dispatched,
        thread,
        counters.collected,
        now,
        sample,
        children,
        kind,
    )
    _active.add(meter)
    meter._tick = next(_ticks)
    if outer is not None or len(_active) > 1:
        meter._look_around()
    # Its own clock is the dearest of all. Between two tiny steps the thread has worked; if not, it is off by so little.
    since_ns = now - thread.read_ns
    if 0 <= since_ns < _CLOCK_FRESH_NS:
        meter._thread_ns = thread.thread_ns + since_ns
    else:
        thread.read_ns = now
        thread.thread_ns = meter._thread_ns = _thread_time_ns()
    return meter


def _do_not_start(
    outer: Meter | None = None, is_on_loop: bool = False, is_dispatched: bool = False, kind: Kind | None = None
) -> Meter | None:
    return None


start = _start
"""A `Meter` that measures from now on; None if measuring is turned off.

Args:
    outer: that of the step around it, if it runs in this process.
    is_on_loop: other tasks of an event loop may run on its thread while it waits.
    is_dispatched: its thread works for it alone, though it is not the main one.
    kind: of its step, if others of the same kind may be taken for tiny.
"""


def set_enabled(value: bool) -> None:
    """Whether steps that start from now on are measured (default: they are)."""
    global is_enabled, start
    is_enabled = value
    start = _start if value else _do_not_start


def prepare() -> None:
    """Make ready to measure, once in a process: a forked child begins with what its parent has made ready."""
    counters.install()


def _after_fork() -> None:
    global _active, _epoch
    _epoch += 1
    _active = set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
