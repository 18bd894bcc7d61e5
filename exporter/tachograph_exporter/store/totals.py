"""What is kept of many executions when they are added up: counts, sums, extremes and the histogram of durations.

A `Tally` is exact and does not depend on the order things were added in: all sums are integers (nanoseconds, billionths
of a US dollar, tokens), a measure's sum is an exact binary fraction, and the histogram's buckets depend only on the
values in them. So a rollup made bit by bit and one made anew from the rows are equal to the byte.

A `Pack` is everything about one workflow in one stretch of time: its executions by status, its steps by name and
status, and what its steps measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tachograph.clock import NS
from tachograph.histogram import ExponentialHistogram
from tachograph_exporter.store.exact_sum import ExactSum

NANO: Final = 1_000_000_000


class Totals:
    """Totals over executions, or over one step's runs. Times and durations are nanoseconds.

    ``last_ns`` is when the newest of them ended. ``run_ns`` is time spent working, the three before it time spent
    waiting, ``critical_ns`` time on the critical path. ``durations`` is the histogram of durations, in seconds.
    """

    __slots__ = (
        "backoff_ns", "cost_nano_usd", "critical_ns", "dependency_ns", "durations", "last_ns", "max_ns", "min_ns",
        "queue_ns", "retries", "run_ns", "sum_ns", "tokens_in", "tokens_out",
    )  # fmt: skip

    def __init__(self) -> None:
        # Sum and extremes are integers beside the histogram's floats: stored rows must not depend on rounding.
        self.sum_ns = self.min_ns = self.max_ns = self.last_ns = self.retries = 0
        self.dependency_ns = self.queue_ns = self.backoff_ns = self.run_ns = self.critical_ns = 0
        self.cost_nano_usd = self.tokens_in = self.tokens_out = 0
        self.durations = ExponentialHistogram()

    @property
    def count(self) -> int:
        """Number of executions, or of the step's runs."""
        return self.durations.count

    def observe(self, duration_ns: int, ended_ns: int) -> None:
        """Count one, by its duration and end. A negative duration (a clock set back) counts as zero."""
        durations = self.durations
        if duration_ns < self.min_ns or not durations.count:
            self.min_ns = duration_ns = max(duration_ns, 0)
        if duration_ns > self.max_ns:
            self.max_ns = duration_ns
        if ended_ns > self.last_ns:
            self.last_ns = ended_ns
        self.sum_ns += duration_ns
        durations.observe(duration_ns / NS)

    def add(self, other: Totals) -> None:
        """Add other totals to these."""
        if other.durations.count:
            if other.min_ns < self.min_ns or not self.durations.count:
                self.min_ns = other.min_ns
            if other.max_ns > self.max_ns:
                self.max_ns = other.max_ns
            if other.last_ns > self.last_ns:
                self.last_ns = other.last_ns
            self.durations.merge(other.durations)
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

    def histogram(self) -> ExponentialHistogram:
        """The histogram of durations, in seconds."""
        return self.durations

    def to_row(self) -> tuple[Any, ...]:
        """The stored form. Buckets are sorted, so that equal totals are equal bytes."""
        durations = self.durations
        return (
            durations.count, self.sum_ns, self.min_ns, self.max_ns, self.last_ns, self.retries,
            self.dependency_ns, self.queue_ns, self.backoff_ns, self.run_ns, self.critical_ns,
            self.cost_nano_usd, self.tokens_in, self.tokens_out,
            durations.schema, durations.zero_count, dict(sorted(durations.positive.items())),
        )  # fmt: skip

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Totals:
        """The totals that `to_row` gave."""
        totals, durations = cls.__new__(cls), ExponentialHistogram()
        (
            count, sum_ns, min_ns, max_ns, totals.last_ns, totals.retries,
            totals.dependency_ns, totals.queue_ns, totals.backoff_ns, totals.run_ns, totals.critical_ns,
            totals.cost_nano_usd, totals.tokens_in, totals.tokens_out,
            durations.schema, durations.zero_count, durations.positive,
        ) = row  # fmt: skip
        if count:
            durations.count, durations.sum = count, sum_ns / NS
            durations.min, durations.max = min_ns / NS, max_ns / NS
        totals.sum_ns, totals.min_ns, totals.max_ns, totals.durations = sum_ns, min_ns, max_ns, durations
        return totals


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


def _from_row(_kind: type, row: Any) -> Totals:
    return Totals.from_row(row)


_encode: Final = msgspec.msgpack.Encoder(enc_hook=Totals.to_row).encode
_decode_executions: Final = msgspec.msgpack.Decoder(dict[str, Totals], dec_hook=_from_row).decode
_decode_steps: Final = msgspec.msgpack.Decoder(dict[str, StepTotals], dec_hook=_from_row).decode
_decode_lazily: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_step: Final = msgspec.msgpack.Decoder(StepTotals, dec_hook=_from_row).decode


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


def _canonical(by_status: dict[str, Totals]) -> bytes:
    return _encode(dict(sorted(by_status.items())))


def _step(step: StepTotals) -> bytes:
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
