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

from tachograph.clock import NS
from tachograph.histogram import MAX_BUCKETS, MAX_SCHEMA, MIN_SCHEMA, ExponentialHistogram, bucket_index, join_buckets
from tachograph_exporter.store.exact_sum import ExactSum

NANO: Final = 1_000_000_000


class Totals(msgspec.Struct, array_like=True, gc=False):
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

    def add(self, other: Totals) -> None:
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


class StepTotals(msgspec.Struct, array_like=True, gc=False):
    """One step: its runs by status, and its measures by (name, unit) joined by a unit separator."""

    by_status: dict[str, Totals] = {}
    measures: dict[str, Measure] = {}

    def add(self, other: StepTotals) -> None:
        """Add another's figures to this one's."""
        for status, totals in other.by_status.items():
            _tally(self.by_status, status).add(totals)
        for name, measure in other.measures.items():
            found = self.measures.get(name)
            if found is None:
                found = self.measures[name] = Measure()
            found.add(measure)


MEASURE_SEPARATOR: Final = "\x1f"

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_executions: Final = msgspec.msgpack.Decoder(dict[str, Totals]).decode
_decode_steps: Final = msgspec.msgpack.Decoder(dict[str, StepTotals]).decode
_decode_lazily: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_step: Final = msgspec.msgpack.Decoder(StepTotals).decode


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


class WorkflowTotals:
    """One workflow's figures: executions by status, steps by name."""

    __slots__ = ("executions", "steps")

    def __init__(self, executions: dict[str, Totals] | None = None, steps: dict[str, StepTotals] | None = None) -> None:
        self.executions: dict[str, Totals] = executions if executions is not None else {}
        self.steps: dict[str, StepTotals] = steps if steps is not None else {}

    def add_execution(self, item: ExecutionItem) -> None:
        """Add an execution that ended."""
        totals = _tally(self.executions, item.status)
        totals.observe(item.finished_ns - item.started_ns, item.finished_ns)
        totals.queue_ns += item.queue_ns
        totals.run_ns += item.work_ns
        totals.critical_ns += item.critical_ns

    def add_step(self, item: StepItem | tuple[Any, ...], on_path: bool, execution_status: str) -> None:
        """Add a step of an execution, on its critical path or not. A skipped step counts, without a duration."""
        name, status, started, finished, attempt, dependency, queue, backoff, run = item
        step = self.steps.get(name)
        if step is None:
            step = self.steps[name] = StepTotals()
        totals = step.by_status.get(status)
        if totals is None:
            totals = step.by_status[status] = Totals()
        if started is not None:
            totals.observe(finished - started, finished)
            if on_path:
                totals.critical_ns += finished - started
            totals.dependency_ns += dependency or 0
            totals.queue_ns += queue or 0
            totals.backoff_ns += backoff or 0
            totals.run_ns += run or 0
        else:
            totals.observe(0, finished)
        if attempt > 1:
            totals.retries += attempt - 1
            _tally(self.executions, execution_status).retries += attempt - 1

    def add_report(self, item: ReportItem) -> None:
        """Add what a step reported."""
        step = self.steps.get(item.step)
        if step is None:
            step = self.steps[item.step] = StepTotals()
        if item.kind == "measure":
            key = f"{item.name}{MEASURE_SEPARATOR}{item.unit}"
            measure = step.measures.get(key)
            if measure is None:
                measure = step.measures[key] = Measure()
            measure.observe(item.value)
        elif item.kind == "cost":
            for totals in (_tally(step.by_status, item.step_status), _tally(self.executions, item.status)):
                totals.cost_nano_usd += round(item.value * NANO)
                totals.tokens_in += item.tokens_in
                totals.tokens_out += item.tokens_out

    def add(self, other: WorkflowTotals) -> None:
        """Add another pack's figures to this one's."""
        for status, totals in other.executions.items():
            _tally(self.executions, status).add(totals)
        for name, step in other.steps.items():
            found = self.steps.get(name)
            if found is None:
                found = self.steps[name] = StepTotals()
            found.add(step)

    def encoded(self) -> tuple[bytes, bytes]:
        """(executions, steps) as stored: msgpack with sorted keys, so equal figures are equal bytes."""
        return _canonical(self.executions), _encode(
            {name: msgspec.Raw(_step(s)) for name, s in sorted(self.steps.items())}
        )

    @classmethod
    def decoded(cls, executions: bytes, steps: bytes | None) -> WorkflowTotals:
        """What `encoded` made; without ``steps``, only the executions."""
        return cls(_decode_executions(executions), _decode_steps(steps) if steps is not None else {})

    def added_to(self, executions: bytes, steps: bytes) -> tuple[bytes, bytes]:
        """What is stored, with this pack added. Only the steps that are in this pack are decoded and encoded again."""
        known = _decode_executions(executions)
        for status, totals in self.executions.items():
            _tally(known, status).add(totals)
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


def _canonical(tallies: dict[str, Totals]) -> bytes:
    for totals in tallies.values():
        totals.buckets = dict(sorted(totals.buckets.items()))
    return _encode(dict(sorted(tallies.items())))


def _step(step: StepTotals) -> bytes:
    for totals in step.by_status.values():
        totals.buckets = dict(sorted(totals.buckets.items()))
    return _encode(StepTotals(dict(sorted(step.by_status.items())), dict(sorted(step.measures.items()))))


def _tally(known: dict[str, Totals], status: str) -> Totals:
    found = known.get(status)
    if found is None:
        found = known[status] = Totals()
    return found


def combined(tallies: Iterable[Totals]) -> Totals:
    """All of them added up."""
    total = Totals()
    for totals in tallies:
        total.add(totals)
    return total
