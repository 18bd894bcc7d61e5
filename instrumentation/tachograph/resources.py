"""What attempts used of the machine: processor time, memory, storage; of one, and added up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import msgspec

_NS: Final = 1_000_000_000
_MAX_SECONDS: Final = 1e9
_MAX_COUNT: Final = 1 << 60
_MAX_SUM: Final = (1 << 63) - 1
_Number = TypeVar("_Number", int, float)


class Resources(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What an attempt used of the machine, with all the processes that it started and waited for. None: not known.

    Attributes:
        cpu_seconds: user and system time. With ``is_shared`` that of the attempt's own thread alone, and of what it
            waited for as far as that can be told apart.
        peak_memory_bytes: the largest resident set of any one of its processes. Where a step shares a process with
            what ran before it, this is exact if the process never was as large before; otherwise the larger of the
            sizes before and after, which the true peak is not below.
        read_bytes, written_bytes: of storage, not of the page cache.
        thread_cpu_seconds: the part of ``cpu_seconds`` that the attempt's own thread used.
        memory_growth_bytes: by how much the resident set of its process is larger after it than before; may be
            negative.
        gc_seconds, gc_full_seconds, gc_count: pauses of its process by Python's garbage collector while it ran; full
            ones are those of the oldest generation.
        voluntary_switches, involuntary_switches: how often it gave up a processor to wait for something, and how often
            another thread took it away.
        is_shared: the process did other recorded work at the same time. Memory and garbage collection are then those
            of the whole process, so nothing of them belongs into a sum.
    """

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    thread_cpu_seconds: float | None = None
    memory_growth_bytes: int | None = None
    gc_seconds: float | None = None
    gc_full_seconds: float | None = None
    gc_count: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    is_shared: bool = False


class UseTotals(msgspec.Struct, array_like=True, gc=False):
    """Totals over what runs of a step used. Times are nanoseconds.

    Sums stop at 2^63 - 1, so their order does not matter. Of a run that shared its process with others only what is its
    own counts: its thread's processor time and its own input and output, not memory and garbage collection.

    Attributes:
        cpu_count: runs whose processor time is known, in all ``cpu_ns``, at most ``cpu_max_ns``.
        run_ns: running time of those runs: what ``cpu_ns`` compares with.
        memory_count: runs whose peak of memory is known; ``memory_sum`` and ``memory_max`` are bytes.
        read_bytes, written_bytes: from and to storage.
        gc_ns: pauses by Python's garbage collector.
    """

    cpu_count: int = 0
    cpu_ns: int = 0
    cpu_max_ns: int = 0
    run_ns: int = 0
    memory_count: int = 0
    memory_sum: int = 0
    memory_max: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    gc_ns: int = 0

    def observe(self, use: Resources, run_ns: int) -> None:
        """Count one run, with its running time."""
        if use.cpu_seconds is not None:
            cpu_ns = cpu_ns_of(use.cpu_seconds)
            self.cpu_count += 1
            self.cpu_ns = min(self.cpu_ns + cpu_ns, _MAX_SUM)
            self.cpu_max_ns = max(self.cpu_max_ns, cpu_ns)
            self.run_ns = min(self.run_ns + max(0, run_ns), _MAX_SUM)
        if use.peak_memory_bytes is not None and not use.is_shared:
            self.memory_count += 1
            self.memory_sum = min(self.memory_sum + use.peak_memory_bytes, _MAX_SUM)
            self.memory_max = max(self.memory_max, use.peak_memory_bytes)
        if use.read_bytes:
            self.read_bytes = min(self.read_bytes + use.read_bytes, _MAX_SUM)
        if use.written_bytes:
            self.written_bytes = min(self.written_bytes + use.written_bytes, _MAX_SUM)
        if use.gc_seconds and not use.is_shared:
            self.gc_ns = min(self.gc_ns + cpu_ns_of(use.gc_seconds), _MAX_SUM)

    def add(self, other: UseTotals) -> None:
        """Add other totals to these."""
        self.cpu_count += other.cpu_count
        self.cpu_ns = min(self.cpu_ns + other.cpu_ns, _MAX_SUM)
        self.cpu_max_ns = max(self.cpu_max_ns, other.cpu_max_ns)
        self.run_ns = min(self.run_ns + other.run_ns, _MAX_SUM)
        self.memory_count += other.memory_count
        self.memory_sum = min(self.memory_sum + other.memory_sum, _MAX_SUM)
        self.memory_max = max(self.memory_max, other.memory_max)
        self.read_bytes = min(self.read_bytes + other.read_bytes, _MAX_SUM)
        self.written_bytes = min(self.written_bytes + other.written_bytes, _MAX_SUM)
        self.gc_ns = min(self.gc_ns + other.gc_ns, _MAX_SUM)

    def copy(self) -> UseTotals:
        """An independent copy."""
        copy = UseTotals()
        copy.add(self)
        return copy


def cpu_ns_of(seconds: float) -> int:
    """Processor time in whole nanoseconds."""
    return round(seconds * _NS)


def cleaned(use: Resources) -> Resources:
    """What somebody else says that an attempt used, without values that cannot be."""
    values = {}
    for name in use.__struct_fields__:
        value = getattr(use, name)
        if value is None or name == "is_shared":
            continue
        low = -_MAX_COUNT if name == "memory_growth_bytes" else 0
        high = _MAX_SECONDS if isinstance(value, float) else _MAX_COUNT
        if math.isfinite(value) and low <= value <= high:
            values[name] = value
    return Resources(**values, is_shared=use.is_shared)


_decode: Final = msgspec.json.Decoder(Resources).decode


def decoded(stored: str | None) -> Resources | None:
    """What an attempt used, from its row; None: that is not known, or cannot be read."""
    if stored is None:
        return None
    try:
        return cleaned(_decode(stored))
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError):
        return None


def total_of(uses: Sequence[Resources]) -> Resources | None:
    """What several attempts of a step used, one after the other: sums, and the highest peak."""
    if len(uses) < 2:
        return uses[0] if uses else None
    return Resources(
        _total(use.cpu_seconds for use in uses),
        max((use.peak_memory_bytes for use in uses if use.peak_memory_bytes is not None), default=None),
        _total(use.read_bytes for use in uses),
        _total(use.written_bytes for use in uses),
        _total(use.thread_cpu_seconds for use in uses),
        _total(use.memory_growth_bytes for use in uses),
        _total(use.gc_seconds for use in uses),
        _total(use.gc_full_seconds for use in uses),
        _total(use.gc_count for use in uses),
        _total(use.voluntary_switches for use in uses),
        _total(use.involuntary_switches for use in uses),
        any(use.is_shared for use in uses),
    )


def _total(values: Iterable[_Number | None]) -> _Number | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None
