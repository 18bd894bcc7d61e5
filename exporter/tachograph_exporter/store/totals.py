"""Totals over executions and their steps: counts, sums, extremes and the histogram of durations.

`Totals` are exact and independent of order: sums are integers (nanoseconds, billionths of a US dollar, tokens), a
measure's sum is an exact binary fraction, and a histogram's buckets depend only on its values. So a rollup row that
grew step by step equals, to the byte, one rebuilt from the executions.

`WorkflowTotals` are the totals of one workflow over one period: its executions by status, its steps by name and status,
and what its steps measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tachograph.clock import NS
from tachograph.events import Folded, FoldedRuns
from tachograph.exact_sum import ExactSum, billionths
from tachograph.histogram import ExponentialHistogram
from tachograph.resources import Resources, UseTotals, decoded, total_of
from tachograph_exporter.store.plain_steps import PlainSteps

NANO: Final = 1_000_000_000
_MAX_INTEGER: Final = (1 << 64) - 1
_SUMS: Final = 14
"""How many integers a stored row of totals begins with."""


class Totals:
    """Totals over executions, or over one step's runs. Times and durations are nanoseconds.

    ``last_ns`` is when the newest of them ended. ``run_ns`` is time spent working, the three before it time spent
    waiting, ``unaccounted_ns`` time before a step that nothing accounts for, ``scheduled_ns`` time before a step that
    was asked for a later time, ``critical_ns`` time on the critical path.
    ``durations`` is the histogram of durations, in seconds.
    """

    __slots__ = (
        "backoff_ns", "cost_nano_usd", "critical_ns", "dependency_ns", "durations", "last_ns", "max_ns", "min_ns",
        "queue_ns", "retries", "run_ns", "scheduled_ns", "sum_ns", "tokens_in", "tokens_out", "unaccounted_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        # Sum and extremes are integers beside the histogram's floats: stored rows must not depend on rounding.
        self.sum_ns = self.min_ns = self.max_ns = self.last_ns = self.retries = 0
        self.dependency_ns = self.queue_ns = self.backoff_ns = self.run_ns = self.critical_ns = 0
        self.unaccounted_ns = self.scheduled_ns = 0
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

    def observe_all(self, durations_ns: Sequence[int], durations: ExponentialHistogram, last_ns: int) -> None:
        """Count many: their durations, none of them negative, also as a histogram, and when the last of them ended."""
        low = min(durations_ns)
        if low < self.min_ns or not self.durations.count:
            self.min_ns = low
        self.max_ns = max(self.max_ns, max(durations_ns))
        self.last_ns = max(self.last_ns, last_ns)
        self.sum_ns += sum(durations_ns)
        self.durations.merge(durations)

    @classmethod
    def of_folded(cls, runs: FoldedRuns) -> Totals:
        """The totals of folded steps."""
        totals, durations = cls(), ExponentialHistogram(schema=runs.schema)
        durations.count, durations.sum = runs.count, runs.sum_ns / NS
        durations.min, durations.max = runs.min_ns / NS, runs.max_ns / NS
        durations.zero_count, durations.positive = runs.zero_count, dict(runs.buckets)
        totals.durations = durations
        totals.sum_ns, totals.min_ns, totals.max_ns = runs.sum_ns, runs.min_ns, runs.max_ns
        totals.last_ns, totals.retries, totals.run_ns = runs.last_ns, runs.retries, runs.run_ns
        totals.dependency_ns, totals.unaccounted_ns = runs.dependency_ns, runs.unaccounted_ns
        totals.scheduled_ns, totals.queue_ns, totals.backoff_ns = runs.scheduled_ns, runs.queue_ns, runs.backoff_ns
        totals.cost_nano_usd, totals.tokens_in, totals.tokens_out = runs.cost_nano_usd, runs.tokens_in, runs.tokens_out
        return totals

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
        self.unaccounted_ns += other.unaccounted_ns
        self.scheduled_ns += other.scheduled_ns
        self.critical_ns += other.critical_ns
        self.cost_nano_usd += other.cost_nano_usd
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out

    def histogram(self) -> ExponentialHistogram:
        """The histogram of durations, in seconds."""
        return self.durations

    def to_row(self) -> tuple[Any, ...]:
        """The stored form. Buckets are sorted, so that equal totals are equal bytes.

        Rows of versions that did not know ``unaccounted_ns`` or ``scheduled_ns`` lack them, and so do rows in which
        they are zero.
        """
        durations = self.durations
        row: tuple[Any, ...] = (
            durations.count, self.sum_ns, self.min_ns, self.max_ns, self.last_ns, self.retries,
            self.dependency_ns, self.queue_ns, self.backoff_ns, self.run_ns, self.critical_ns,
            self.cost_nano_usd, self.tokens_in, self.tokens_out,
            durations.schema, durations.zero_count, dict(sorted(durations.positive.items())),
        )  # fmt: skip
        if self.scheduled_ns:
            row = (*row, self.unaccounted_ns, self.scheduled_ns)
        elif self.unaccounted_ns:
            row = (*row, self.unaccounted_ns)
        if max(*row[:_SUMS], self.unaccounted_ns, self.scheduled_ns) > _MAX_INTEGER:
            # A msgpack integer has 64 bits; a sum has as many as it needs. All of such a row's integers are text.
            return tuple([f"{value:x}" if isinstance(value, int) else value for value in row])
        return row

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Totals:
        """The totals that `to_row` gave."""
        if type(row[0]) is str:
            row = [int(value, 16) if isinstance(value, str) else value for value in row]
        totals, durations = cls.__new__(cls), ExponentialHistogram()
        (
            count, sum_ns, min_ns, max_ns, totals.last_ns, totals.retries,
            totals.dependency_ns, totals.queue_ns, totals.backoff_ns, totals.run_ns, totals.critical_ns,
            totals.cost_nano_usd, totals.tokens_in, totals.tokens_out,
            durations.schema, durations.zero_count, durations.positive, *later,
        ) = row  # fmt: skip
        totals.unaccounted_ns, totals.scheduled_ns = (*later, 0, 0)[:2]
        if count:
            durations.count, durations.sum = count, sum_ns / NS
            durations.min, durations.max = min_ns / NS, max_ns / NS
        totals.sum_ns, totals.min_ns, totals.max_ns, totals.durations = sum_ns, min_ns, max_ns, durations
        return totals


class Measure(msgspec.Struct, array_like=True, gc=False):
    """Totals over the values that steps reported under one name. ``total`` is their exact sum, see `ExactSum`."""

    count: int = 0
    total: str = "0p0"
    min: float = 0.0
    max: float = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.add(Measure(1, ExactSum.of(value).text, value, value))

    def add(self, other: Measure) -> None:
        """Add another measure's values to this one's."""
        if not other.count:
            return
        self.min = min(self.min, other.min) if self.count else other.min
        self.max = max(self.max, other.max) if self.count else other.max
        self.count += other.count
        self.total = (ExactSum.parse(self.total) + ExactSum.parse(other.total)).text

    @property
    def sum(self) -> float:
        """The sum, rounded once to the nearest float."""
        return ExactSum.parse(self.total).value


class StepTotals(msgspec.Struct, array_like=True, gc=False):
    """One step's totals: its runs by status, its measures by name and unit, joined by `MEASURE_SEPARATOR`, and what its
    runs used of the machine, by status.
    """

    by_status: dict[str, Totals] = {}
    measures: dict[str, Measure] = {}
    uses: dict[str, UseTotals] = {}

    def add(self, other: StepTotals) -> None:
        """Add another step's totals to these."""
        for status, totals in other.by_status.items():
            _of_status(self.by_status, status).add(totals)
        for key, measure in other.measures.items():
            mine = self.measures.get(key)
            if mine is None:
                mine = self.measures[key] = Measure()
            mine.add(measure)
        for status, use in other.uses.items():
            self.use(status).add(use)

    def use(self, status: str) -> UseTotals:
        """What runs with this status used, to add to."""
        use = self.uses.get(status)
        if use is None:
            use = self.uses[status] = UseTotals()
        return use


MEASURE_SEPARATOR: Final = "\x1f"


decode_folded: Final = msgspec.json.Decoder(Folded).decode


def _from_row(_kind: type, row: Any) -> Totals:
    return Totals.from_row(row)


_encode: Final = msgspec.msgpack.Encoder(enc_hook=Totals.to_row).encode
_decode_executions: Final = msgspec.msgpack.Decoder(dict[str, Totals], dec_hook=_from_row).decode
_decode_steps: Final = msgspec.msgpack.Decoder(dict[str, StepTotals], dec_hook=_from_row).decode
_decode_lazily: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_step: Final = msgspec.msgpack.Decoder(StepTotals, dec_hook=_from_row).decode


class CountedExecution(NamedTuple):
    """The fields of an execution that are counted."""

    status: str
    started_ns: int
    finished_ns: int
    queue_ns: int
    work_ns: int
    critical_ns: int


class CountedStep(NamedTuple):
    """The fields of an ended step that are counted; ``folded``: a `Folded` as JSON, if repetitions share the row.

    ``resources``: what its last attempt used, as JSON; ``earlier``: the same of those before it.
    """

    name: str
    status: str
    started_ns: int | None
    finished_ns: int
    attempt: int
    dependency_ns: int | None
    queue_ns: int | None
    backoff_ns: int | None
    run_ns: int | None
    unaccounted_ns: int | None
    scheduled_ns: int | None
    folded: str | None
    resources: str | None = None
    earlier: tuple[str, ...] = ()


def use_of(resources: str | None, earlier: Sequence[str]) -> Resources | None:
    """What all attempts of a step used, from what is stored of them."""
    if not earlier:
        return decoded(resources)
    return total_of([use for text in (*earlier, resources) if (use := decoded(text)) is not None])


class CountedReport(NamedTuple):
    """The fields of a report that are counted, with the status of its step and of its execution."""

    step: str
    step_status: str
    status: str
    kind: str
    name: str
    unit: str
    value: float
    tokens_in: int
    tokens_out: int


def critical_ns_of(
    started_ns: int, finished_ns: int, queue_ns: int | None, backoff_ns: int | None, run_ns: int | None
) -> int:
    """The time that a step on the critical path counts there."""
    # A step's own times may lie outside its run's; its parts do not.
    length = finished_ns - started_ns
    return length if run_ns is None else min(length, run_ns + (queue_ns or 0) + (backoff_ns or 0))


class WorkflowTotals:
    """One workflow's totals: executions by status, steps by name."""

    packed: Mapping[str, msgspec.Raw] = {}
    """Further steps, encoded; see `PackedTotals`."""

    __slots__ = ("executions", "steps")

    def __init__(self, executions: dict[str, Totals] | None = None, steps: dict[str, StepTotals] | None = None) -> None:
        self.executions: dict[str, Totals] = executions if executions is not None else {}
        self.steps: dict[str, StepTotals] = steps if steps is not None else {}

    def add_execution(self, execution: CountedExecution) -> None:
        """Count an ended execution."""
        totals = _of_status(self.executions, execution.status)
        totals.observe(execution.finished_ns - execution.started_ns, execution.finished_ns)
        totals.queue_ns += execution.queue_ns
        totals.run_ns += execution.work_ns
        totals.critical_ns += execution.critical_ns

    def add_step(self, step: CountedStep | tuple[Any, ...], on_critical_path: bool, execution_status: str) -> None:
        """Count a step of an ended execution. A skipped step has a duration of zero."""
        (
            name, status, started, finished, attempt, dependency, queue, backoff, run, unaccounted, scheduled, folded,
            resources, earlier,
        ) = step  # fmt: skip
        if folded is not None:
            self._add_folded(name, decode_folded(folded), on_critical_path, execution_status)
            return
        step_totals = self.steps.get(name)
        if step_totals is None:
            step_totals = self.steps[name] = StepTotals()
        totals = step_totals.by_status.get(status)
        if totals is None:
            totals = step_totals.by_status[status] = Totals()
        if started is not None:
            totals.observe(finished - started, finished)
            if on_critical_path:
                totals.critical_ns += critical_ns_of(started, finished, queue, backoff, run)
            totals.dependency_ns += dependency or 0
            totals.queue_ns += queue or 0
            totals.backoff_ns += backoff or 0
            totals.run_ns += run or 0
            totals.unaccounted_ns += unaccounted or 0
            totals.scheduled_ns += scheduled or 0
            if (resources is not None or earlier) and (use := use_of(resources, earlier)) is not None:
                step_totals.use(status).observe(use, run or 0)
        else:
            totals.observe(0, finished)
        if attempt > 1:
            totals.retries += attempt - 1
            _of_status(self.executions, execution_status).retries += attempt - 1

    def add_plain_steps(self, steps: PlainSteps) -> None:
        """Count many steps of ended executions, as `add_step` would one by one."""
        of_step = self.steps.get(steps.name)
        if of_step is None:
            of_step = self.steps[steps.name] = StepTotals()
        totals = _of_status(of_step.by_status, steps.status)
        totals.observe_all(steps.durations_ns, steps.durations.native, max(steps.finished_ns))
        totals.critical_ns += steps.critical_ns
        totals.dependency_ns += sum(steps.dependency_ns)
        totals.queue_ns += sum(steps.queue_ns)
        totals.backoff_ns += steps.backoff_ns
        totals.run_ns += steps.run_ns
        totals.unaccounted_ns += sum(steps.unaccounted_ns)
        totals.scheduled_ns += sum(steps.scheduled_ns)
        if steps.uses:
            use = of_step.use(steps.status)
            for resources, run_ns in steps.uses:
                use.observe(resources, run_ns)

    def _add_folded(self, name: str, folded: Folded, on_critical_path: bool, execution_status: str) -> None:
        step = self.steps.setdefault(name, StepTotals())
        of_execution = _of_status(self.executions, execution_status)
        for status, runs in folded.by_status.items():
            totals = Totals.of_folded(runs)
            _of_status(step.by_status, status).add(totals)
            if runs.use is not None:
                step.use(status).add(runs.use)
            of_execution.retries += totals.retries
            of_execution.cost_nano_usd += totals.cost_nano_usd
            of_execution.tokens_in += totals.tokens_in
            of_execution.tokens_out += totals.tokens_out
        if on_critical_path and folded.by_status:
            # Whose time it was within that in which one of them ran is not kept: it counts where most of it was.
            longest = max(folded.by_status, key=lambda status: (folded.by_status[status].run_ns, status))
            step.by_status[longest].critical_ns += folded.busy_ns
        for measure in folded.measures:
            added = Measure(measure.count, measure.total, measure.min, measure.max)
            step.measures.setdefault(f"{measure.name}{MEASURE_SEPARATOR}{measure.unit}", Measure()).add(added)

    def add_report(self, report: CountedReport) -> None:
        """Count a measure or cost that a step reported."""
        step = self.steps.get(report.step)
        if step is None:
            step = self.steps[report.step] = StepTotals()
        if report.kind == "measure":
            key = f"{report.name}{MEASURE_SEPARATOR}{report.unit}"
            measure = step.measures.get(key)
            if measure is None:
                measure = step.measures[key] = Measure()
            measure.observe(report.value)
        elif report.kind == "cost":
            for totals in (
                _of_status(step.by_status, report.step_status), _of_status(self.executions, report.status)
            ):  # fmt: skip
                totals.cost_nano_usd += billionths(report.value)
                totals.tokens_in += report.tokens_in
                totals.tokens_out += report.tokens_out

    def add(self, other: WorkflowTotals) -> None:
        """Add other totals to these."""
        for status, totals in other.executions.items():
            _of_status(self.executions, status).add(totals)
        for name, step in other.steps.items():
            mine = self.steps.get(name)
            if mine is None:
                mine = self.steps[name] = StepTotals()
            mine.add(step)

    def encode(self) -> tuple[bytes, bytes]:
        """(executions, steps) as stored: msgpack with sorted keys, so equal totals are equal bytes."""
        encoded = {name: msgspec.Raw(_encode_step(step)) for name, step in self.steps.items()}
        _add_packed(encoded, self.packed)
        return _encode_executions(self.executions), _encode(dict(sorted(encoded.items())))

    @classmethod
    def decode(cls, executions: bytes, steps: bytes | None) -> WorkflowTotals:
        """The totals that `encode` gave; without ``steps``, only the executions."""
        return cls(_decode_executions(executions), _decode_steps(steps) if steps is not None else {})

    def add_to_encoded(self, executions: bytes, steps: bytes) -> tuple[bytes, bytes]:
        """Encoded totals with these added. Only the steps counted here are decoded and encoded again."""
        by_status = _decode_executions(executions)
        for status, totals in self.executions.items():
            _of_status(by_status, status).add(totals)
        encoded_steps = _decode_lazily(steps)
        for name, step in self.steps.items():
            encoded_steps[name] = _with_step(encoded_steps.get(name), step)
        _add_packed(encoded_steps, self.packed)
        return _encode_executions(by_status), _encode(dict(sorted(encoded_steps.items())))


class PackedTotals(WorkflowTotals):
    """Totals to be encoded and for nothing else: those of many steps need little memory, once they are packed."""

    MAX_UNPACKED: Final = 1_000

    __slots__ = ("packed",)

    def __init__(self) -> None:
        super().__init__()
        self.packed: dict[str, msgspec.Raw] = {}

    def pack(self) -> None:
        """Encode the steps' totals, if they are many."""
        if len(self.steps) > self.MAX_UNPACKED:
            for name, step in self.steps.items():
                self.packed[name] = _with_step(self.packed.get(name), step)
            self.steps.clear()


def _with_step(encoded: msgspec.Raw | None, step: StepTotals) -> msgspec.Raw:
    """Encoded totals of a step with others added."""
    if encoded is not None:
        totals = _decode_step(encoded)
        totals.add(step)
        step = totals
    return msgspec.Raw(_encode_step(step))


def _add_packed(encoded: dict[str, msgspec.Raw], packed: Mapping[str, msgspec.Raw]) -> None:
    for name, step in packed.items():
        encoded[name] = _with_step(encoded[name], _decode_step(step)) if name in encoded else step


def _encode_executions(by_status: dict[str, Totals]) -> bytes:
    return _encode(dict(sorted(by_status.items())))


def _encode_step(step: StepTotals) -> bytes:
    parts = [dict(sorted(step.by_status.items())), dict(sorted(step.measures.items()))]
    if step.uses:
        # Rows of versions that did not know it lack it, and so do those of steps that nothing measured.
        parts.append(dict(sorted(step.uses.items())))
    return _encode(parts)


def _of_status(by_status: dict[str, Totals], status: str) -> Totals:
    totals = by_status.get(status)
    if totals is None:
        totals = by_status[status] = Totals()
    return totals


def combined(parts: Iterable[Totals]) -> Totals:
    """The sum of totals."""
    total = Totals()
    for part in parts:
        total.add(part)
    return total
