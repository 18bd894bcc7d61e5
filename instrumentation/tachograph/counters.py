"""The counters of this process and its threads that steps are measured by: reading them, as seldom as will do.

Processor time, storage and memory come from `getrusage`, the resident set from ``/proc``, pauses by the collector of
garbage from its callbacks. After a wait, when nothing of the kernel's is in the processor's caches, a reading takes ten
times as long as in a loop, and the resident set takes longest of all.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from tachograph.resources import Resources

try:
    import resource
except ImportError:  # Windows has no getrusage().
    resource = None  # type: ignore[assignment]

CLOCK_FRESH_NS: Final = 100_000
"""How old a thread's processor time may be that a step starts from; the thread is taken to have worked since."""
_SIZE_FRESH_NS: Final = 5_000_000
"""How old the resident set may be that a step starts from."""
_SIZE_SHARE: Final = 400
"""To read the resident set is dear, most of all on a busy machine: it may take one part in so many of the time."""
_SIZE_CPU_NS: Final = 500_000
"""Processor time of the process in which its resident set does not change by more than some megabytes."""
_SIZE_IDLE_CPU_NS: Final = 2_000_000
_SIZE_FAULTS: Final = 64
"""The same while the kernel gave it no more than so many pages: then it can only have become smaller."""
_SIZE_MAX_PAUSE_NS: Final = 50_000_000
_NS: Final = 1_000_000_000

_IS_LINUX: Final = sys.platform == "linux"
BLOCK: Final = 512
"""Bytes of a block in ``ru_inblock`` and ``ru_oublock`` on Linux; elsewhere they count operations."""
PEAK_UNIT: Final = 1 if sys.platform == "darwin" else 1024
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_STATM: Final = 7
"""Numbers in ``/proc/self/statm``."""
SELF: Final[int] = getattr(resource, "RUSAGE_SELF", 0)
CHILDREN: Final[int] = getattr(resource, "RUSAGE_CHILDREN", 0)
THREAD: Final[int | None] = getattr(resource, "RUSAGE_THREAD", None)


def _no_usage(_who: int) -> Any:
    return None


getrusage: Final[Callable[[int], Any]] = getattr(resource, "getrusage", _no_usage)
thread_time_ns: Final[Callable[[], int]] = getattr(time, "thread_time_ns", None) or (lambda: 0)
HAS_USAGE: Final = hasattr(resource, "getrusage")
HAS_THREAD_TIME: Final = hasattr(time, "thread_time_ns")
_get_ident: Final = threading.get_ident
_now_ns: Final = time.perf_counter_ns


class Sample(NamedTuple):
    """The counters of a process and of one of its threads at some moment. ``rss`` is in bytes, None: not known."""

    time_ns: int
    own: tuple[int, int, int]
    process: Any
    thread: Any
    children: Any
    rss: int | None


class Thread:
    """A thread, and the last sample taken in it. Unlike its number, which the next thread may get, it is its own.

    ``thread_ns`` is its processor time at ``read_ns``, and ``collected`` the collections of garbage until then, where
    tiny steps have read it; ``sampled_ns`` is its processor time when they last took a sample.
    """

    __slots__ = ("collected", "is_main", "read_ns", "sample", "sampled_ns", "thread_ns")

    def __init__(self) -> None:
        self.is_main = _get_ident() == _main_ident
        self.sample: Sample | None = None
        self.collected: tuple[int, int, int] | None = None
        self.read_ns = -CLOCK_FRESH_NS
        self.thread_ns = self.sampled_ns = 0


class _Local(threading.local):
    thread: Thread | None = None


class _Size(NamedTuple):
    """The resident set, when it was read, when it may be read again, and what the process had used by then: processor
    time, and pages that the kernel gave it.
    """

    rss: int | None
    read_ns: int
    next_ns: int
    cpu_ns: int
    faults: int


local = _Local()
_NO_SIZE: Final = _Size(None, -_SIZE_FRESH_NS, 0, 0, 0)
_size = _NO_SIZE
_statm: int | None = None
"""The descriptor that the resident set is read from."""
_main_ident = threading.main_thread().ident
_own: dict[int, tuple[int, int, int]] = {}
"""Of threads that deliver records: processor time in nanoseconds, and blocks read and written."""
collected: tuple[int, int, int] = (0, 0, 0)
"""Collections of garbage, nanoseconds they took, and nanoseconds of full ones."""
_collecting_since = 0
is_installed = False
is_cooperative = False
"""Whether greenlets share threads: then one step may run on the thread of another, as on an event loop."""
has_children = False
"""Whether a child of this process has ended. Until then, nothing need be read of them at the start of each step."""
services = 0
"""How many services run in this process, which works for others besides its steps."""


def note_own_thread() -> None:
    """The calling thread delivers records: what it used so far is not the work of any step."""
    usage = getrusage(THREAD) if THREAD is not None else None
    blocks = (usage.ru_inblock, usage.ru_oublock) if usage is not None else (0, 0)
    _own[_get_ident()] = (thread_time_ns(), *blocks)


def take(of: Thread, now: int, *, reads_size: bool = False) -> Sample:
    """A new sample of the calling thread and its process. ``reads_size``: the resident set must not be an old one."""
    global _size, has_children
    if not is_installed:
        install()
    # The process first: that brings the kernel's account of the calling thread up to date, so that the thread's own
    # (which alone would be as old as the last tick of the scheduler) agrees with its clock.
    process = getrusage(SELF)
    thread = getrusage(THREAD) if THREAD is not None else None
    children = getrusage(CHILDREN)
    size = _size
    rss = size.rss
    has_changed = rss is None or process is None or _may_have_changed(size, process)
    if has_changed and (reads_size or (now >= size.next_ns and now - size.read_ns > _SIZE_FRESH_NS)):
        began_ns = _now_ns()
        rss = resident_bytes()
        pause_ns = min(_SIZE_SHARE * (_now_ns() - began_ns), _SIZE_MAX_PAUSE_NS)
        used, faults = (cpu_ns(process), process.ru_minflt + process.ru_majflt) if process is not None else (0, 0)
        _size = _Size(rss, now, now + pause_ns, used, faults)
    elif has_changed and now - size.read_ns > _SIZE_FRESH_NS:
        rss = None  # Too old to say anything.
    has_children = children is not None and children.ru_maxrss > 0
    sample = Sample(now, _own_use(), process, thread, children, rss)
    of.sample = sample
    return sample


def _may_have_changed(size: _Size, process: Any) -> bool:
    used = cpu_ns(process) - size.cpu_ns
    if used <= _SIZE_CPU_NS:
        return False
    return used > _SIZE_IDLE_CPU_NS or process.ru_minflt + process.ru_majflt - size.faults > _SIZE_FAULTS


def _own_use() -> tuple[int, int, int]:
    cpu_ns = read = written = 0
    for of_thread in list(_own.values()):
        cpu_ns, read, written = cpu_ns + of_thread[0], read + of_thread[1], written + of_thread[2]
    return cpu_ns, read, written


def resident_bytes() -> int | None:
    """The resident set of this process; None where the system does not say."""
    global _statm
    if not _IS_LINUX:
        return None
    # Kept open: opening takes longer than reading. If the program closed the descriptor, and has another file by its
    # number, that is read at its beginning, which moves nothing in it, and says no such seven numbers.
    for _ in range(2):
        with suppress(OSError, ValueError):
            if _statm is None:
                _statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
            numbers = os.pread(_statm, 128, 0).split()
            if len(numbers) == _STATM:
                return int(numbers[1]) * _PAGE
        _statm = None
    return None


def cpu_ns(usage: Any) -> int:
    """User and system time in nanoseconds."""
    return int((usage.ru_utime + usage.ru_stime) * _NS)


def blocks_between(before: Any, after: Any) -> tuple[int | None, int | None]:
    """Bytes (read, written) between two readings."""
    if before is None or after is None or not _IS_LINUX:
        return None, None
    return (after.ru_inblock - before.ru_inblock) * BLOCK, (after.ru_oublock - before.ru_oublock) * BLOCK


def largest_so_far() -> int:
    """The largest resident set that this process ever had, in the unit of `getrusage`."""
    return int(getrusage(SELF).ru_maxrss) if HAS_USAGE else 0


def usage_of(usage: Any, largest_of_parent: int) -> Resources:
    """What ``wait4`` says of a command, and of all the processes that it waited for.

    Until a child runs its command it is as large as its parent, and the kernel's account of its peak begins with that:
    a peak up to ``largest_of_parent`` (when it was started, see `largest_so_far`) says nothing of the command.
    """
    read, written = (usage.ru_inblock * BLOCK, usage.ru_oublock * BLOCK) if _IS_LINUX else (None, None)
    return Resources(
        round(usage.ru_utime + usage.ru_stime, 6),
        usage.ru_maxrss * PEAK_UNIT if usage.ru_maxrss > largest_of_parent else None,
        read,
        written,
        voluntary_switches=usage.ru_nvcsw,
        involuntary_switches=usage.ru_nivcsw,
    )


def _on_collection(phase: str, info: dict[str, int]) -> None:
    global collected, _collecting_since
    if phase == "start":
        _collecting_since = _now_ns()
    else:
        took = _now_ns() - _collecting_since
        count, all_ns, full_ns = collected
        collected = (count + 1, all_ns + took, full_ns + took if info["generation"] == 2 else full_ns)


def install() -> None:
    """Make ready to measure, once in a process: a forked child begins with what its parent has made ready."""
    global is_cooperative, is_installed, services
    if is_installed:
        return
    is_installed = True
    is_cooperative = threading.get_ident.__module__ != "_thread"  # Replaced by gevent or eventlet.
    if _is_subinterpreter():
        services += 1  # The other interpreters' meters are not seen here.
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
    global local, _main_ident, _size, _statm
    _own.clear()
    _size = _NO_SIZE
    if _statm is not None:
        # It is that of the parent; closed only if it is still what was opened.
        with suppress(OSError):
            if len(os.pread(_statm, 128, 0).split()) == _STATM:
                os.close(_statm)
        _statm = None
    _main_ident = _get_ident()
    local = _Local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
