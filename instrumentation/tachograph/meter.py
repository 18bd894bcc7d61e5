"""What a step uses of the machine, measured in its own process while it runs.

What a tiny step may cost pays for no measuring: one of less than `SHORT_NS` says nothing. Of one that runs for less
than `LONG_NS` only the processor time of its thread is measured, and pauses by the garbage collector. The others have
the rest too, as differences of the kernel's own counters between their start and their end.

A step of which nothing will be said need not be measured either. So it is remembered of which name in which workflow
most steps are tiny: what starts with that is taken for tiny, and only looked at when it ends (see `Unmeasured`).

Counters of a process say nothing of one of two steps that run in it at the same time. So a meter finds out whether it
was *alone*: whether no other meter ran at any moment of its own, but for those of the steps around it and inside it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

import msgspec

from tachograph.resources import Resources

try:
    import resource
except ImportError:  # Windows has no getrusage().
    resource = None  # type: ignore[assignment]

SHORT_NS: Final = 100_000
"""From this running time on (nanoseconds), processor time is measured."""
LONG_NS: Final = 20_000_000
"""From this running time on (nanoseconds), everything is measured."""
_CLOCK_FRESH_NS: Final = 100_000
"""How old a thread's processor time may be that a step starts from; the thread is taken to have worked since."""
_FRESH_NS: Final = 2_000_000
"""How old the counters may be that a step starts from, all but processor time and its children's."""
_TAKEN_FOR_TINY: Final = 16
"""The score of a kind from which on its steps are taken for tiny. Each tiny one that is measured counts 1."""
_MAX_SCORE: Final = 96
_NOT_TINY: Final = 32
_LONG: Final = 400
"""What a longer step takes from the score of its kind, which may have been held up; and one that worked `LONG_NS`."""
_MAX_KINDS: Final = 10_000
_TINY_CLOCK_FRESH_NS: Final = 1_000_000
_TINY_FRESH_NS: Final = 20_000_000
"""How old a thread's processor time, and its counters, become while there are tiny steps."""
_TINY_OLD_NS: Final = 500_000_000
"""How old the counters of a thread become that works little meanwhile."""
_MAX_DOUBT: Final = 20
"""One part in so many of its time is what a step may have wrong that was taken for tiny."""
_SIZE_FRESH_NS: Final = 5_000_000
"""How old the resident set may be that a step starts from."""
_SIZE_SHARE: Final = 400
"""To read the resident set is dear, most of all on a busy machine: it may take one part in so many of the time."""
_SIZE_CPU_NS: Final = 500_000
"""Processor time of the process in which its resident set does not change by more than some megabytes."""
_SIZE_MAX_PAUSE_NS: Final = 50_000_000
_NS: Final = 1_000_000_000

_IS_LINUX: Final = sys.platform == "linux"
_BLOCK: Final = 512
"""Bytes of a block in ``ru_inblock`` and ``ru_oublock`` on Linux; elsewhere they count operations."""
_PEAK_UNIT: Final = 1 if sys.platform == "darwin" else 1024
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_SELF: Final[int] = getattr(resource, "RUSAGE_SELF", 0)
_CHILDREN: Final[int] = getattr(resource, "RUSAGE_CHILDREN", 0)
_THREAD: Final[int | None] = getattr(resource, "RUSAGE_THREAD", None)


def _no_usage(_who: int) -> Any:
    return None


_getrusage: Final[Callable[[int], Any]] = getattr(resource, "getrusage", _no_usage)
_thread_time_ns: Final[Callable[[], int]] = getattr(time, "thread_time_ns", None) or (lambda: 0)
_HAS_USAGE: Final = hasattr(resource, "getrusage")
_HAS_THREAD_TIME: Final = hasattr(time, "thread_time_ns")
_get_ident: Final = threading.get_ident
_now_ns: Final = time.perf_counter_ns
_used: Final = Resources


class _Sample(NamedTuple):
    """The counters of a process and of one of its threads at some moment. ``rss`` is in bytes, None: not known."""

    time_ns: int
    own: tuple[int, int, int]
    process: Any
    thread: Any
    children: Any
    rss: int | None


class _Thread:
    """A thread, and the last sample taken in it. Unlike its number, which the next thread may get, it is its own.

    ``thread_ns`` is its processor time at ``read_ns``, and ``collected`` the collections of garbage until then, where
    tiny steps have read it; ``sampled_ns`` is its processor time when they last took a sample.
    """

    __slots__ = ("collected", "is_main", "read_ns", "sample", "sampled_ns", "thread_ns")

    def __init__(self) -> None:
        self.is_main = _get_ident() == _main_ident
        self.sample: _Sample | None = None
        self.collected: tuple[int, int, int] | None = None
        self.read_ns = -_CLOCK_FRESH_NS
        self.thread_ns = self.sampled_ns = 0


class _Local(threading.local):
    thread: _Thread | None = None


Kind = tuple[str, str]
"""What steps have in common that take about as long: the id of their workflow, and their name."""
_local = _Local()
_NO_SIZE: Final[tuple[int | None, int, int, int]] = (None, -_SIZE_FRESH_NS, 0, 0)
_size = _NO_SIZE
"""The resident set, when it was read, when it may be read again, and the processor time of the process then."""
_active: set[Meter] = set()
_ticks = itertools.count()
"""Counts starts and ends of meters: if it moved on by more than what ran inside, something else ran too."""
_epoch = 0
"""Grows in a forked child, where the meters of its parent mean nothing."""
_main_ident = threading.main_thread().ident
_own: dict[int, tuple[int, int, int]] = {}
"""Of threads that deliver records: processor time in nanoseconds, and blocks read and written."""
_collected: tuple[int, int, int] = (0, 0, 0)
"""Collections of garbage, nanoseconds they took, and nanoseconds of full ones."""
_collecting_since = 0
_scores: dict[Kind, int] = {}
"""How tiny the latest steps of a kind were."""
_tiny: dict[Kind, Unmeasured] = {}
"""Kinds of steps that are taken for tiny."""
_tiny_since_ns = _tiny_until_ns = 0
"""When, by the clock of its execution, a tiny step last read the clock of its thread, and until when that will do."""
_tiny_thread: _Thread | None = None
_tiny_elsewhere_ns = 0
"""The thread of the tiny step that did so, and when that was another one than the time before."""
_left_ns = 0
"""When the last meter stopped."""
around: ContextVar[Meter | None] = ContextVar("tachograph_meter", default=None)
"""That of the task of an engine that the calling code is part of: what starts inside it is not beside it."""
_is_installed = False
_is_cooperative = False
"""Whether greenlets share threads: then one step may run on the thread of another, as on an event loop."""
_has_children = False
"""Whether a child of this process has ended. Until then, nothing need be read of them at the start of each step."""
_services = 0
"""How many services run in this process."""


def service_starts() -> None:
    """A service starts in this process, which works for others besides its steps from now on: what it uses is no step's
    alone.
    """
    global _services
    _services += 1


def service_ends() -> None:
    """A service has ended; see `service_starts`."""
    global _services
    _services -= 1


def note_own_thread() -> None:
    """The calling thread delivers records: what it used so far is not the work of any step."""
    usage = _getrusage(_THREAD) if _THREAD is not None else None
    blocks = (usage.ru_inblock, usage.ru_oublock) if usage is not None else (0, 0)
    _own[_get_ident()] = (_thread_time_ns(), *blocks)


class Meter(msgspec.Struct, eq=False, gc=False):
    """Measures one attempt, from `start` to `stop`. A struct, because a step is measured often."""

    _outer: Meter | None
    _is_on_loop: bool
    _is_dispatched: bool
    _thread: _Thread
    _collected: tuple[int, int, int]
    _began_ns: int
    _sample: _Sample
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
        thread = _local.thread
        if thread is None:
            thread = _local.thread = _Thread()
        self._thread = thread
        self._inner = 0
        _active.add(self)
        self._tick = next(_ticks)
        self._look_around()
        self._thread_ns = _thread_time_ns()

    def _add(self, thread_ns: int) -> None:
        """Add the thread's time since it was last read; it is not known in another thread."""
        used = thread_ns - self._thread_ns
        if not _HAS_THREAD_TIME or self._cpu_ns is None or used < -_CLOCK_FRESH_NS or _local.thread is not self._thread:
            self._cpu_ns = None
        else:
            self._cpu_ns += max(0, used)

    def stop(self, _step_began_ns: int = 0, _step_ended_ns: int = 0) -> Resources | None:
        """What the attempt used; None: nothing is known, or it was stopped before."""
        global _left_ns
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
                    _note_tiny(self._kind)
                return self._given
            _left_ns = now
            if self._kind in _scores:
                _note_other(self._kind, thread_ns - self._thread_ns)
            used, cpu_ns = thread_ns - self._thread_ns, self._cpu_ns
            thread = self._thread
            if used < -_CLOCK_FRESH_NS or cpu_ns is None or _local.thread is not thread or not _HAS_THREAD_TIME:
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
        is_shared = not self._is_alone or _services > 0 or not (self._thread.is_main or self._is_dispatched)
        if is_shared and self._is_on_loop:
            cpu_ns = None  # It cannot be told from that of other tasks.
        if now - self._began_ns < LONG_NS or self._is_in_pieces or not _HAS_USAGE:
            cpu = cpu_ns / _NS if cpu_ns is not None else None
            if self._collected is not _collected:
                return _used(cpu, None, None, None, None, None, *self._pauses(), None, None, is_shared)
            if is_shared:
                return _used(cpu, is_shared=True) if cpu is not None else None
            return _used(cpu)
        return self._all(now, cpu_ns, is_shared=is_shared)

    def _pauses(self) -> tuple[float, float, int]:
        """(seconds, seconds of full collections, number) of the pauses since the start."""
        (count, all_ns, full_ns), (count_then, all_then, full_then) = _collected, self._collected
        return (all_ns - all_then) / _NS, (full_ns - full_then) / _NS, count - count_then

    def _all(self, now: int, cpu_ns: int | None, *, is_shared: bool) -> Resources:
        is_same_thread = _local.thread is self._thread
        before, after = self._sample, _take(self._thread if is_same_thread else _Thread(), now, reads_size=True)
        children_then, children = self._children, after.children
        thread_then: Any = None
        thread: Any = None
        if is_same_thread:
            thread_then, thread = before.thread, after.thread
        total_ns, io_then, io = cpu_ns, thread_then, thread
        if not is_shared:
            # Before its start, since the sample was taken, only its own thread worked; and records were delivered.
            since_sample_ns = self._thread_ns - _cpu_ns(before.thread) if before.thread is not None else 0
            total_ns = _cpu_ns(after.process) - _cpu_ns(before.process)
            total_ns -= max(0, since_sample_ns) + max(0, after.own[0] - before.own[0])
            total_ns = max(total_ns, cpu_ns or 0, 0)
            io_then, io = before.process, after.process
        elif self._is_on_loop:
            io_then = io = thread_then = thread = None
        read, written = _bytes(io_then, io)
        if not is_shared and read is not None and written is not None:
            read = max(0, read - max(0, after.own[1] - before.own[1]) * _BLOCK)
            written = max(0, written - max(0, after.own[2] - before.own[2]) * _BLOCK)
        if self._is_alone:
            if total_ns is not None:
                total_ns += max(0, _cpu_ns(children) - _cpu_ns(children_then))
            if read is not None and written is not None:
                more_read, more_written = _bytes(children_then, children)
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

    def _peak(self, before: _Sample, after: _Sample, children: Any) -> int | None:
        """See `Resources.peak_memory_bytes`."""
        sizes = [size for size in (before.rss, after.rss) if size is not None]
        if after.process.ru_maxrss > before.process.ru_maxrss:
            sizes.append(after.process.ru_maxrss * _PEAK_UNIT)
        # A child begins as large as its parent ever was: no more than that says nothing of what it ran.
        if self._is_alone and children.ru_maxrss > max(self._children.ru_maxrss, after.process.ru_maxrss):
            sizes.append(children.ru_maxrss * _PEAK_UNIT)
        return max(sizes, default=None)


class Unmeasured(msgspec.Struct, eq=False, gc=False):
    """In place of a `Meter`: of a step that is taken for tiny, because many of its kind were.

    It is not among the active ones, and no counter is read for it. If it takes longer after all, it says what follows
    from the counters that the tiny steps before it have read now and then, unless these are too old for that.
    """

    _kind: Kind
    _outer: Meter | Unmeasured | None

    def stop(self, began_ns: int, now_ns: int) -> Resources | None:
        """What the attempt used that started and ended then, by the clock of its execution; None: nothing is known."""
        if now_ns - began_ns < SHORT_NS:
            if not _tiny_since_ns <= now_ns < _tiny_until_ns:
                _look_at_thread(now_ns)
                _beside(_measured(self._outer))
                _scores[self._kind] = min(_scores.get(self._kind, 0) + _TAKEN_FOR_TINY, _MAX_SCORE)
            return None
        return self._stop_late(now_ns - began_ns)

    def _stop_late(self, took_ns: int) -> Resources | None:
        now, thread_ns, thread = _now_ns(), _thread_time_ns(), _local.thread
        _note_other(self._kind, thread_ns - thread.thread_ns if thread is not None else took_ns)
        began_ns = now - took_ns
        outer = _measured(self._outer)
        is_alone = not _beside(outer) and max(_tiny_elsewhere_ns, _left_ns) < began_ns
        if thread is None or not _HAS_THREAD_TIME:
            return None
        since_ns = began_ns - thread.read_ns
        used_ns = thread_ns - thread.thread_ns - since_ns
        thread.read_ns, thread.thread_ns = now, thread_ns
        if not 0 <= since_ns * _MAX_DOUBT <= took_ns or thread.collected is None:
            return None  # Its thread may have waited before, and is not known to have worked.
        cpu_ns, sample = max(0, used_ns), thread.sample
        is_shared = not is_alone or _services > 0 or not thread.is_main
        if took_ns < LONG_NS or sample is None or not _HAS_USAGE or _is_doubtful(sample, began_ns, took_ns):
            # What it started is not known, if it may have started something.
            return _used(cpu_ns / _NS, is_shared=is_shared or took_ns >= LONG_NS)
        meter = Meter(
            outer, False, False, thread, thread.collected, began_ns, sample, sample.children, self._kind,
            _thread_ns=thread_ns - cpu_ns, _is_alone=is_alone,
        )  # fmt: skip
        return meter._all(now, cpu_ns, is_shared=is_shared)


def _is_doubtful(sample: _Sample, began_ns: int, took_ns: int) -> bool:
    """Whether a step that began after the sample may have something wrong that matters."""
    if (began_ns - sample.time_ns) * _MAX_DOUBT > took_ns:
        return True
    # A child counts as a whole when it ends, and one may have ended between the two.
    return sample.children is None or sample.children.ru_maxrss > 0


def _look_at_thread(now_ns: int) -> None:
    """Read the clock of the calling thread, and its counters if they are old; see `Unmeasured`."""
    global _tiny_since_ns, _tiny_until_ns, _tiny_thread, _tiny_elsewhere_ns
    now, thread = _now_ns(), _local.thread
    if thread is None:
        thread = _local.thread = _Thread()
    if thread is not _tiny_thread:
        _tiny_thread, _tiny_elsewhere_ns = thread, now
    thread_ns = _thread_time_ns()
    age_ns = now - thread.sample[0] if thread.sample is not None else _TINY_OLD_NS
    # On a busy machine more time passes between two steps than a thread works.
    if age_ns >= _TINY_OLD_NS or (age_ns > _TINY_FRESH_NS and thread_ns - thread.sampled_ns > _TINY_FRESH_NS // 2):
        _take(thread, now)
        thread.sampled_ns = thread_ns
    _tiny_since_ns, _tiny_until_ns = now_ns, now_ns + _TINY_CLOCK_FRESH_NS
    thread.read_ns, thread.thread_ns, thread.collected = now, thread_ns, _collected


def _note_tiny(kind: Kind) -> None:
    """A step of this kind was measured and tiny."""
    score = _scores.get(kind, 0) + 1
    if len(_scores) >= _MAX_KINDS:
        _scores.clear()
        _tiny.clear()
    _scores[kind] = score
    if score >= _TAKEN_FOR_TINY:
        _tiny[kind] = Unmeasured(kind, None)


def _note_other(kind: Kind, cpu_ns: int) -> None:
    """A step took longer, of a kind of which others were tiny. ``cpu_ns``: what its thread worked, at most."""
    score = _scores[kind] = max(_scores.get(kind, 0) - (_NOT_TINY if cpu_ns < LONG_NS else _LONG), -_LONG)
    if score < _TAKEN_FOR_TINY:
        _tiny.pop(kind, None)


def _beside(outer: Meter | None) -> bool:
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


def _measured(outer: Meter | Unmeasured | None) -> Meter | None:
    """The innermost of those around a step that is measured."""
    while isinstance(outer, Unmeasured):
        outer = outer._outer
    return outer


def _take(of: _Thread, now: int, *, reads_size: bool = False) -> _Sample:
    """A new sample of the calling thread and its process."""
    global _size, _has_children
    if not _is_installed:
        _install()
    # The process first: that brings the kernel's account of the calling thread up to date, so that the thread's own
    # (which alone would be as old as the last tick of the scheduler) agrees with its clock.
    process = _getrusage(_SELF)
    thread = _getrusage(_THREAD) if _THREAD is not None else None
    children = _getrusage(_CHILDREN)
    rss, rss_ns, next_ns, cpu_ns = _size
    has_changed = rss is None or process is None or _cpu_ns(process) - cpu_ns > _SIZE_CPU_NS
    if has_changed and (reads_size or (now >= next_ns and now - rss_ns > _SIZE_FRESH_NS)):
        began_ns = _now_ns()
        rss = _resident_bytes()
        pause_ns = min(_SIZE_SHARE * (_now_ns() - began_ns), _SIZE_MAX_PAUSE_NS)
        _size = rss, now, now + pause_ns, _cpu_ns(process) if process is not None else 0
    elif has_changed and now - rss_ns > _SIZE_FRESH_NS:
        rss = None  # Too old to say anything.
    _has_children = children is not None and children.ru_maxrss > 0
    sample = _Sample(now, _own_use(), process, thread, children, rss)
    of.sample = sample
    return sample


def _own_use() -> tuple[int, int, int]:
    cpu_ns = read = written = 0
    for of_thread in list(_own.values()):
        cpu_ns, read, written = cpu_ns + of_thread[0], read + of_thread[1], written + of_thread[2]
    return cpu_ns, read, written


def _resident_bytes() -> int | None:
    """The resident set of this process; None where the system does not say."""
    if not _IS_LINUX:
        return None
    with suppress(OSError, ValueError, IndexError):
        # Opened each time: a program may close descriptors that it does not know, and reuse their numbers.
        descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(descriptor, 128).split()[1]) * _PAGE
        finally:
            os.close(descriptor)
    return None


def _cpu_ns(usage: Any) -> int:
    return int((usage.ru_utime + usage.ru_stime) * _NS)


def _bytes(before: Any, after: Any) -> tuple[int | None, int | None]:
    """(read, written) between two readings."""
    if before is None or after is None or not _IS_LINUX:
        return None, None
    return (after.ru_inblock - before.ru_inblock) * _BLOCK, (after.ru_oublock - before.ru_oublock) * _BLOCK


def largest_so_far() -> int:
    """The largest resident set that this process ever had, in the unit of `getrusage`."""
    return int(_getrusage(_SELF).ru_maxrss) if _HAS_USAGE else 0


def usage_of(usage: Any, largest_of_parent: int) -> Resources:
    """What ``wait4`` says of a command, and of all the processes that it waited for.

    Until a child runs its command it is as large as its parent, and the kernel's account of its peak begins with that:
    a peak up to ``largest_of_parent`` (when it was started, see `largest_so_far`) says nothing of the command.
    """
    read, written = (usage.ru_inblock * _BLOCK, usage.ru_oublock * _BLOCK) if _IS_LINUX else (None, None)
    return Resources(
        round(usage.ru_utime + usage.ru_stime, 6),
        usage.ru_maxrss * _PEAK_UNIT if usage.ru_maxrss > largest_of_parent else None,
        read,
        written,
        voluntary_switches=usage.ru_nvcsw,
        involuntary_switches=usage.ru_nivcsw,
    )


def _start_step(outer: Meter | Unmeasured | None, is_on_loop: bool, kind: Kind) -> Meter | Unmeasured | None:
    if (tiny := _tiny.get(kind)) is not None and not is_on_loop:
        return tiny if outer is None else Unmeasured(kind, outer)
    return _start(outer if outer is None else _measured(outer), is_on_loop, False, kind)


def _do_not_start_step(outer: Meter | Unmeasured | None, is_on_loop: bool, kind: Kind) -> Meter | Unmeasured | None:
    return None


start_step = _start_step
"""The same as `start` for a step of this kind, that is not dispatched; `Unmeasured` if it is taken for tiny."""


def _start(
    outer: Meter | None = None, is_on_loop: bool = False, is_dispatched: bool = False, kind: Kind | None = None
) -> Meter | None:
    now, thread = _now_ns(), _local.thread
    if thread is None:
        thread = _local.thread = _Thread()
    sample = thread.sample
    if sample is None or now - sample[0] > _FRESH_NS:
        sample = _take(thread, now)
    children = _getrusage(_CHILDREN) if _has_children else sample[4]
    meter = Meter(outer, is_on_loop or _is_cooperative, is_dispatched, thread, _collected, now, sample, children, kind)
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


def set_enabled(is_enabled: bool) -> None:
    """Whether steps that start from now on are measured (default: they are)."""
    global start, start_step
    start, start_step = (_start, _start_step) if is_enabled else (_do_not_start, _do_not_start_step)


def _on_collection(phase: str, info: dict[str, int]) -> None:
    global _collected, _collecting_since
    if phase == "start":
        _collecting_since = _now_ns()
    else:
        took = _now_ns() - _collecting_since
        count, all_ns, full_ns = _collected
        _collected = (count + 1, all_ns + took, full_ns + took if info["generation"] == 2 else full_ns)


def prepare() -> None:
    """Make ready to measure, once in a process: a forked child begins with what its parent has made ready."""
    if not _is_installed:
        _install()


def _install() -> None:
    global _is_cooperative, _is_installed, _services
    _is_installed = True
    _is_cooperative = threading.get_ident.__module__ != "_thread"  # Replaced by gevent or eventlet.
    if _is_subinterpreter():
        _services += 1  # The other interpreters' meters are not seen here.
    gc.callbacks.append(_on_collection)
    atexit.register(_uninstall)


def _is_subinterpreter() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):
        with suppress(ImportError, AttributeError):
            interpreters = importlib.import_module(name)
            return bool(interpreters.get_current() != interpreters.get_main())
    return False


def _uninstall() -> None:
    with suppress(ValueError):
        gc.callbacks.remove(_on_collection)


def _after_fork() -> None:
    global _active, _epoch, _local, _main_ident, _size
    _epoch += 1
    _active = set()
    _own.clear()
    _size = _NO_SIZE
    _main_ident = _get_ident()
    _local = _Local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
