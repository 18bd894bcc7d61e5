"""What is kept of many executions when they are added up: counts, sums, extremes and the histogram of durations.

A `Tally` is exact and does not depend on the order things were added in: all sums are integers (nanoseconds, billionths
of a US dollar, tokens), a measure's sum is an exact binary fraction, and the histogram's buckets depend only on the
values in them. So a rollup made bit by bit and one made anew from the rows are equal to the byte.

A `Pack` is everything about one workflow in one stretch of time: its executions by status, its steps by name and
status, and what its steps measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from tachograph.events import NS
from tachograph.histogram import MAX_BUCKETS, MAX_SCHEMA, MIN_SCHEMA, ExponentialHistogram, bucket_index, join_buckets

NANO: Final = 1_000_000_000


class Tally(msgspec.Struct, array_like=True, gc=False):
    """Figures over executions, or over one step's runs. Durations and times are nanoseconds.

    ``last_ns`` is when the newest of them ended. ``run_ns`` is time spent working, the three before it time spent
    waiting, ``critical_ns`` time on the critical path. ``buckets`` (by index, see `tachograph.histogram`) and
    ``zero_count`` are the histogram of durations in seconds.
    """

    count: int = 0
    sum_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0
    last_ns: int = 0
    retries: int = 0
    dependency_ns: int = 0
    queue_ns: int = 0
    backoff_ns: int = 0
    run_ns: int = 0
    critical_ns: int = 0
    cost_nano_usd: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    schema: int = MAX_SCHEMA
    zero_count: int = 0
    buckets: dict[int, int] = {}

    def observe(self, duration_ns: int, ended_ns: int) -> None:
        """Count one that took so long and ended then. A negative duration (a clock set back) counts as zero."""
        if duration_ns < self.min_ns or not self.count:
            self.min_ns = duration_ns = max(duration_ns, 0)
        if duration_ns > self.max_ns:
            self.max_ns = duration_ns
        if ended_ns > self.last_ns:
            self.last_ns = ended_ns
        self.count += 1
        if duration_ns <= 0:
            self.zero_count += 1
            return
        self.sum_ns += duration_ns
        index = bucket_index(duration_ns / NS, self.schema)
        known = self.buckets.get(index)
        if known is not None:
            self.buckets[index] = known + 1
        else:
            self.buckets[index] = 1
            self._fit()

    def _fit(self) -> None:
        while len(self.buckets) > MAX_BUCKETS and self.schema > MIN_SCHEMA:
            self.buckets = join_buckets(self.buckets, 1)
            self.schema -= 1

    def add(self, other: Tally) -> None:
        """Add another tally's figures to this one's."""
        if other.count:
            self.min_ns = min(self.min_ns, other.min_ns) if self.count else other.min_ns
            self.max_ns = max(self.max_ns, other.max_ns)
            self.last_ns = max(self.last_ns, other.last_ns)
        self.count += other.count
        self.sum_ns += other.sum_ns
        self.retries += other.retries
        self.dependency_ns += other.dependency_ns
        self.queue_ns += other.queue_ns
        self.backoff_ns += other.backoff_ns
        self.run_ns += other.run_ns
        self.critical_ns += other.critical_ns
        self.cost_nano_usd += other.cost_nano_usd
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.zero_count += other.zero_count
        theirs: Mapping[int, int] = other.buckets
        if theirs:
            if other.schema < self.schema:
                self.buckets = join_buckets(self.buckets, self.schema - other.schema)
                self.schema = other.schema
            elif other.schema > self.schema:
                theirs = join_buckets(theirs, other.schema - self.schema)
            mine = self.buckets
            get = mine.get
            for index, count in theirs.items():
                mine[index] = get(index, 0) + count
            if len(mine) > MAX_BUCKETS:
                self._fit()

    def histogram(self) -> ExponentialHistogram:
        """The durations' histogram, in seconds."""
        made = ExponentialHistogram(schema=self.schema)
        made.count, made.sum, made.zero_count = self.count, self.sum_ns / NS, self.zero_count
        made.positive = self.buckets
        if self.count:
            made.min, made.max = self.min_ns / NS, self.max_ns / NS
        return made


class Measure(msgspec.Struct, array_like=True, gc=False):
    """Figures over the values that steps reported under one name. ``total`` is their exact sum, see `ExactSum`."""

    count: int = 0
    total: str = "0p0"
    min: float = 0.0
    max: float = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.add(Measure(1, ExactSum.of(value).text, value, value))

    def add(self, other: Measure) -> None:
        """Add another's figures to this one's."""
        if not other.count:
            return
        self.min = min(self.min, other.min) if self.count else other.min
        self.max = max(self.max, other.max) if self.count else other.max
        self.count += other.count
        self.total = (ExactSum.parse(self.total) + ExactSum.parse(other.total)).text

    @property
    def sum(self) -> float:
        """The sum, as the float next to it."""
        return ExactSum.parse(self.total).value


class ExactSum(NamedTuple):
    """``mantissa * 2**exponent`` with an odd mantissa; every float and every sum of floats is exactly one of these."""

    mantissa: int
    exponent: int

    @classmethod
    def of(cls, value: float) -> ExactSum:
        """A float. Raises `OverflowError` or `ValueError` for one that is not finite."""
        above, below = value.as_integer_ratio()
        return cls(above, 1 - below.bit_length())._normal()

    @classmethod
    def parse(cls, text: str) -> ExactSum:
        """What `text` made."""
        mantissa, _, exponent = text.partition("p")
        return cls(int(mantissa, 16), int(exponent))

    @property
    def text(self) -> str:
        """A short, unique form."""
        return f"{self.mantissa:x}p{self.exponent}"

    @property
    def value(self) -> float:
        """The nearest float; infinite beyond the largest."""
        try:
            if self.exponent >= 0:
                return float(self.mantissa << self.exponent)
            # A quotient of integers is rounded once, correctly.
            return self.mantissa / (1 << -self.exponent)
        except OverflowError:
            return float("inf") if self.mantissa > 0 else float("-inf")

    def __add__(self, other: ExactSum) -> ExactSum:  # type: ignore[override]
        exponent = min(self.exponent, other.exponent)
        mantissa = (self.mantissa << (self.exponent - exponent)) + (other.mantissa << (other.exponent - exponent))
        return ExactSum(mantissa, exponent)._normal()

    def _normal(self) -> ExactSum:
        if not self.mantissa:
            return ExactSum(0, 0)
        shift = (self.mantissa & -self.mantissa).bit_length() - 1
        return ExactSum(self.mantissa >> shift, self.exponent + shift)


class StepPack(msgspec.Struct, array_like=True, gc=False):
    """One step: its runs by status, and its measures by (name, unit) joined by a unit separator."""

    by_status: dict[str, Tally] = {}
    measures: dict[str, Measure] = {}

    def add(self, other: StepPack) -> None:
        """Add another's figures to this one's."""
        for status, tally in other.by_status.items():
            _tally(self.by_status, status).add(tally)
        for name, measure in other.measures.items():
            found = self.measures.get(name)
            if found is None:
                found = self.measures[name] = Measure()
            found.add(measure)


MEASURE_SEPARATOR: Final = "\x1f"

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_executions: Final = msgspec.msgpack.Decoder(dict[str, Tally]).decode
_decode_steps: Final = msgspec.msgpack.Decoder(dict[str, StepPack]).decode
_decode_lazily: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_step: Final = msgspec.msgpack.Decoder(StepPack).decode


class ExecutionItem(NamedTuple):
    """What of an execution is added up."""

    status: str
    started_ns: int
    finished_ns: int
    queue_ns: int
    work_ns: int
    critical_ns: int


class StepItem(NamedTuple):
    """What of a step that ended is added up."""

    name: str
    status: str
    started_ns: int | None
    finished_ns: int
    attempt: int
    dependency_ns: int | None
    queue_ns: int | None
    backoff_ns: int | None
    run_ns: int | None


class ReportItem(NamedTuple):
    """What of a report is added up; with the status of its step and its execution."""

    step: str
    step_status: str
    status: str
    kind: str
    name: str
    unit: str
    value: float
    tokens_in: int
    tokens_out: int


class Pack:
    """One workflow's figures: executions by status, steps by name."""

    __slots__ = ("executions", "steps")

    def __init__(self, executions: dict[str, Tally] | None = None, steps: dict[str, StepPack] | None = None) -> None:
        self.executions: dict[str, Tally] = executions if executions is not None else {}
        self.steps: dict[str, StepPack] = steps if steps is not None else {}

    def add_execution(self, item: ExecutionItem) -> None:
        """Add an execution that ended."""
        tally = _tally(self.executions, item.status)
        tally.observe(item.finished_ns - item.started_ns, item.finished_ns)
        tally.queue_ns += item.queue_ns
        tally.run_ns += item.work_ns
        tally.critical_ns += item.critical_ns

    def add_step(self, item: StepItem | tuple[Any, ...], on_path: bool, execution_status: str) -> None:
        """Add a step of an execution, on its critical path or not. A skipped step counts, without a duration."""
        name, status, started, finished, attempt, dependency, queue, backoff, run = item
        step = self.steps.get(name)
        if step is None:
            step = self.steps[name] = StepPack()
        tally = step.by_status.get(status)
        if tally is None:
            tally = step.by_status[status] = Tally()
        if started is not None:
            tally.observe(finished - started, finished)
            if on_path:
                tally.critical_ns += finished - started
            tally.dependency_ns += dependency or 0
            tally.queue_ns += queue or 0
            tally.backoff_ns += backoff or 0
            tally.run_ns += run or 0
        else:
            tally.observe(0, finished)
        if attempt > 1:
            tally.retries += attempt - 1
            _tally(self.executions, execution_status).retries += attempt - 1

    def add_report(self, item: ReportItem) -> None:
        """Add what a step reported."""
        step = self.steps.get(item.step)
        if step is None:
            step = self.steps[item.step] = StepPack()
        if item.kind == "measure":
            key = f"{item.name}{MEASURE_SEPARATOR}{item.unit}"
            measure = step.measures.get(key)
            if measure is None:
                measure = step.measures[key] = Measure()
            measure.observe(item.value)
        elif item.kind == "cost":
            for tally in (_tally(step.by_status, item.step_status), _tally(self.executions, item.status)):
                tally.cost_nano_usd += round(item.value * NANO)
                tally.tokens_in += item.tokens_in
                tally.tokens_out += item.tokens_out

    def add(self, other: Pack) -> None:
        """Add another pack's figures to this one's."""
        for status, tally in other.executions.items():
            _tally(self.executions, status).add(tally)
        for name, step in other.steps.items():
            found = self.steps.get(name)
            if found is None:
                found = self.steps[name] = StepPack()
            found.add(step)

    def encoded(self) -> tuple[bytes, bytes]:
        """(executions, steps) as stored: msgpack with sorted keys, so equal figures are equal bytes."""
        return _canonical(self.executions), _encode(
            {name: msgspec.Raw(_step(s)) for name, s in sorted(self.steps.items())}
        )

    @classmethod
    def decoded(cls, executions: bytes, steps: bytes | None) -> Pack:
        """What `encoded` made; without ``steps``, only the executions."""
        return cls(_decode_executions(executions), _decode_steps(steps) if steps is not None else {})

    def added_to(self, executions: bytes, steps: bytes) -> tuple[bytes, bytes]:
        """What is stored, with this pack added. Only the steps that are in this pack are decoded and encoded again."""
        known = _decode_executions(executions)
        for status, tally in self.executions.items():
            _tally(known, status).add(tally)
        raw = _decode_lazily(steps)
        for name, step in self.steps.items():
            stored = raw.get(name)
            if stored is None:
                raw[name] = msgspec.Raw(_step(step))
            else:
                found = _decode_step(stored)
                found.add(step)
                raw[name] = msgspec.Raw(_step(found))
        return _canonical(known), _encode(dict(sorted(raw.items())))


def _canonical(tallies: dict[str, Tally]) -> bytes:
    for tally in tallies.values():
        tally.buckets = dict(sorted(tally.buckets.items()))
    return _encode(dict(sorted(tallies.items())))


def _step(step: StepPack) -> bytes:
    for tally in step.by_status.values():
        tally.buckets = dict(sorted(tally.buckets.items()))
    return _encode(StepPack(dict(sorted(step.by_status.items())), dict(sorted(step.measures.items()))))


def _tally(known: dict[str, Tally], status: str) -> Tally:
    found = known.get(status)
    if found is None:
        found = known[status] = Tally()
    return found


def combined(tallies: Iterable[Tally]) -> Tally:
    """All of them added up."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total
