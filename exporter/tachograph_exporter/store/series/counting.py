"""What ended executions add to the series, from their rows."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, func, select

from tachograph.distribution import DURATION_BUCKETS, Distribution, DistributionRow, Sum
from tachograph.events import Folded, FoldedMeasure, FoldedRuns
from tachograph.exact_sum import ExactSum, billionths
from tachograph.histogram import upper_bound
from tachograph.resources import Resources, cpu_ns_of, decoded
from tachograph_exporter.store.failure_groups import occurrences
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.plain_steps import PlainSteps
from tachograph_exporter.store.rollups.counting import CHUNK, CountedStepRow, ExecutionRow, Key, counted_resources
from tachograph_exporter.store.schema import series_unsettled, workflow_executions, workflow_step_attempts
from tachograph_exporter.store.series.values import (
    ATTEMPTS,
    COST,
    CPU,
    CRITICAL,
    DURATION,
    ENDED_AS,
    EXECUTION,
    FAILURES,
    LATEST,
    MEASURE,
    MEMORY,
    RETRIES,
    SEPARATOR,
    SKIPPED,
    STARTED,
    TOKENS,
    WAIT,
    Amount,
    Code,
    Exemplar,
    Observed,
    Value,
    code_of,
    decode_amounts,
    empty,
    encode_amounts,
)
from tachograph_exporter.store.totals import CountedReport, critical_ns_of, decode_folded

_attempts = workflow_step_attempts.c
_ATTEMPTS_OF: Final = select(
    _attempts.execution_id, _attempts.step_id, _attempts.attempt, _attempts.status, _attempts.finished_ns,
    _attempts.queue_ns, _attempts.backoff_ns, counted_resources(_attempts),
).where(_attempts.execution_id.in_(bindparam("ids", expanding=True)))  # fmt: skip

_executions = workflow_executions.c
_MAX_LOOKED_THROUGH: Final = 10_000
"""Executions that a correction looks through: a commit must not wait for those of a year."""

_DEPENDENCY: Final = f"{WAIT}{SEPARATOR}dependency"
_QUEUE: Final = f"{WAIT}{SEPARATOR}queue"
_BACKOFF: Final = f"{WAIT}{SEPARATOR}backoff"
_UNACCOUNTED: Final = f"{WAIT}{SEPARATOR}unaccounted"
_SCHEDULED: Final = f"{WAIT}{SEPARATOR}scheduled"


@functools.cache
def _codes_of(status: str) -> tuple[Code, Code]:
    """The codes of the durations and of the attempts that ended so."""
    return f"{DURATION}{SEPARATOR}{status}", f"{ATTEMPTS}{SEPARATOR}{status}"


class _StepCounts:
    """What is added to the series of one step, or of a workflow's executions."""

    __slots__ = ("amounts", "exemplars", "zeros")

    def __init__(self) -> None:
        self.amounts: dict[Code, Value] = {}
        self.exemplars: dict[Code, dict[int, Exemplar]] = {}
        # Waits of no time: most are.
        self.zeros: dict[Code, int] = {}

    def wait(self, code: Code, wait_ns: int) -> None:
        if wait_ns > 0:
            self.of(code).observe_ns(wait_ns)
        else:
            self.zeros[code] = self.zeros.get(code, 0) + 1

    def wait_all(self, code: Code, waits_ns: Sequence[int]) -> None:
        waited = [wait for wait in waits_ns if wait > 0] if any(waits_ns) else []
        if waited:
            self.of(code).observe_all_ns(waited)
        if none := len(waits_ns) - len(waited):
            self.zeros[code] = self.zeros.get(code, 0) + none

    def settle(self) -> None:
        """Count the waits of no time, too."""
        for code, times in self.zeros.items():
            self.of(code).observe_zeros(times)
        self.zeros.clear()

    def count(self, code: Code, amount: int) -> None:
        self.amounts[code] = self.amounts.get(code, 0) + amount  # type: ignore[operator]

    def of(self, code: Code) -> Distribution:
        values = self.amounts.get(code)
        if values is None:
            values = self.amounts[code] = empty(code)
        return values  # type: ignore[return-value]

    def encoded(self) -> dict[Code, Amount]:
        # A run of very many steps waits for none of them: that takes no distribution.
        amounts: dict[Code, Amount] = {
            code: Observed(DistributionRow(count=times, zero_count=times, classic={0: times}))
            for code, times in self.zeros.items()
            if code not in self.amounts
        }
        for code in amounts:
            del self.zeros[code]
        self.settle()
        for code, value in self.amounts.items():
            if isinstance(value, Distribution):
                if not value.is_empty():
                    amounts[code] = Observed(value.to_row(), self.exemplars.get(code, {}))
            elif value:
                amounts[code] = value if -_LARGE < value < _LARGE else str(value)
        return amounts

    @classmethod
    def decode(cls, encoded: bytes) -> _StepCounts:
        """What was encoded of them."""
        counts = cls()
        for code, amount in decode_amounts(encoded).items():
            if isinstance(amount, Observed):
                counts.amounts[code] = Distribution.from_row(amount.values)
                counts.exemplars[code] = dict(amount.exemplars)
            elif amount is not None:
                counts.amounts[code] = int(amount)
        return counts


_LARGE: Final = 1 << 63
_NOTHING: Final = encode_amounts({})


class Counted:
    """What executions add to the series: by workflow, step and code."""

    MAX_UNPACKED: Final = 1_000

    def __init__(self) -> None:
        self.by_workflow: dict[Key, dict[str, _StepCounts]] = {}
        # Of workflows with very many steps, encoded: that takes a tenth of the memory.
        self._packed: dict[tuple[Key, str], bytes] = {}

    def step(self, key: Key, name: str) -> _StepCounts:
        steps = self.by_workflow.get(key)
        if steps is None:
            steps = self.by_workflow[key] = {}
        counts = steps.get(name)
        if counts is None:
            packed = self._packed.pop((key, name), None) if self._packed else None
            counts = steps[name] = _StepCounts() if packed is None else _StepCounts.decode(packed)
        return counts

    def pack(self) -> None:
        """Keep what is added to the steps of a workflow encoded, if they are many."""
        for key, steps in self.by_workflow.items():
            if len(steps) > self.MAX_UNPACKED:
                for name in [name for name in steps if name]:
                    self._packed[key, name] = encode_amounts(steps.pop(name).encoded())

    def _unpack(self) -> None:
        for key, name in list(self._packed):
            self.step(key, name)

    def values(self, key: Key) -> dict[str, dict[Code, Value]]:
        """What is added to the series of a workflow, by step and code."""
        self._unpack()
        for counts in self.by_workflow.get(key, {}).values():
            counts.settle()
        return {step: dict(counts.amounts) for step, counts in self.by_workflow.get(key, {}).items()}

    def take(self, key: Key) -> dict[str, msgspec.Raw]:
        """The amounts of a workflow's delta by step, encoded, without what came to nothing. It is forgotten here."""
        # One by one: of a run of very many steps both forms need not be there at once.
        taken, encoded = self.by_workflow.pop(key), dict[str, msgspec.Raw]()
        while taken:
            step, counts = taken.popitem()
            if amounts := counts.encoded():
                encoded[step] = msgspec.Raw(encode_amounts(amounts))
        for of_key, step in [place for place in self._packed if place[0] == key]:
            if (packed := self._packed.pop((of_key, step))) != _NOTHING:
                encoded[step] = msgspec.Raw(packed)
        return encoded

    def add(self, other: Counted, sign: int) -> None:
        """Add what others were counted as, or take it away."""
        other._unpack()
        for key, steps in other.by_workflow.items():
            for name, counts in steps.items():
                counts.settle()
                mine = self.step(key, name)
                for code, amount in counts.amounts.items():
                    if code in LATEST:
                        if sign > 0:
                            mine.amounts[code] = max(mine.amounts.get(code, 0), amount)  # type: ignore[type-var]
                    elif isinstance(amount, Distribution):
                        mine.of(code).add(amount, sign)
                        mine.exemplars.setdefault(code, {}).update(counts.exemplars.get(code, {}))
                    else:
                        mine.count(code, sign * amount)


def correct_latest(connection: Connection, counted: Counted, before: Counted) -> None:
    """Where the latest success or failure of a workflow was taken back, count the one before it.

    An execution given up as lost may have completed after all, and one that looked complete may have a span that
    failed. ``before``: what executions had been counted as, before ``counted``. Call it once their rows are written.
    """
    for key, steps in before.by_workflow.items():
        for code in LATEST & steps.get("", _StepCounts()).amounts.keys():
            amounts = counted.step(key, "").amounts
            if amounts.get(code, 0) < steps[""].amounts[code]:  # type: ignore[operator]
                amounts[code] = ~_latest(connection, key, ENDED_AS[code])


def _latest(connection: Connection, key: Key, statuses: Collection[str]) -> int:
    """When an execution last ended with one of these statuses, unix ns; 0: none of the newest did."""
    of_workflow = (_executions.workspace_id == key[0]) & (_executions.workflow_id == key[1])
    newest = (
        select(_executions.finished_ns, _executions.status)
        .where(of_workflow, _executions.finished_ns.is_not(None), _executions.rank >= FIRST_TERMINAL_RANK)
        .order_by(_executions.finished_ns.desc())
        .limit(_MAX_LOOKED_THROUGH)
        .subquery()
    )
    latest = select(func.max(newest.c.finished_ns)).where(newest.c.status.in_(sorted(statuses)))
    return max(0, connection.execute(latest).scalar() or 0)


class SeriesCounter:
    """Counts executions while their rows are read for the rollups (see `rollups.counting.Observer`).

    Args:
        database: to leave out executions that were not counted because they had not settled; see ``skipped``.
        skip: ids of further executions that are left out.
        failed: how many failures of which groups began in those that failed; None: it is read.
    """

    def __init__(
        self,
        database: Connection | None = None,
        *,
        skip: AbstractSet[str] = frozenset(),
        failed: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        self.counted = Counted()
        self.skipped: set[str] = set()
        self._skip = skip
        self._failed = failed
        self._database = database
        self._executions: dict[str, tuple[Key, ExecutionRow]] = {}
        self._attempts: Mapping[tuple[str, str], Sequence[Any]] = {}

    def executions(
        self, connection: Connection, rows: Mapping[str, ExecutionRow], *, has_attempts: bool = True
    ) -> None:
        """Count executions. Their steps and reports follow."""
        self._executions = {}
        if self._database is not None:
            self.skipped |= unsettled(self._database, rows)
        for execution_id, row in rows.items():
            if execution_id in self._skip or execution_id in self.skipped:
                continue
            self._executions[execution_id] = (row.key, row)
            execution, counts = row.execution, self.counted.step(row.key, "")
            self._observe(
                counts, f"{EXECUTION}{SEPARATOR}{execution.status}", execution.finished_ns - execution.started_ns,
                row.trace_id, row.span_id, execution.finished_ns,
            )  # fmt: skip
            if row.has_started:
                counts.count(STARTED, 1)
            for code, statuses in ENDED_AS.items():
                if execution.status in statuses:
                    counts.amounts[code] = max(counts.amounts.get(code, 0), execution.finished_ns)  # type: ignore[type-var]
        self._attempts = attempts_of(connection, self._executions) if has_attempts else {}
        failed = self._failed if self._failed is not None else occurrences.counts_of(connection, self._executions)
        since = occurrences.counted_since(connection) if failed else 0
        for execution_id, by_group in failed.items():
            key, counted = self._executions.get(execution_id, (None, None))
            if key is None or counted is None or counted.execution.finished_ns < since:
                continue
            counts = self.counted.step(key, "")
            for group_id, times in by_group.items():
                counts.count(code_of(FAILURES, group_id), times)

    @staticmethod
    def _observe(counts: _StepCounts, code: Code, duration_ns: int, trace_id: str, span_id: str, ended_ns: int) -> None:
        bucket = counts.of(code).observe_ns(duration_ns)
        exemplars = counts.exemplars.get(code)
        if exemplars is None:
            exemplars = counts.exemplars[code] = {}
        exemplars[bucket] = (max(0, duration_ns), trace_id, span_id, ended_ns)

    def step(self, row: CountedStepRow) -> None:
        """Count a step that ended."""
        (
            execution_id, step_id, name, status, started, finished, attempt, dependency, queue, backoff, run,
            unaccounted, scheduled, folded, resources, _, span_id, skip_reason,
        ) = row  # fmt: skip
        entry = self._executions.get(execution_id)
        if entry is None:
            return
        key, execution = entry
        counts = self.counted.step(key, name)
        if folded is not None:
            decoded = decode_folded(folded)
            _count_folded(counts, decoded)
            if step_id in execution.critical_path:
                counts.count(CRITICAL, decoded.busy_ns)
            return
        if status == "skipped":
            counts.count(f"{SKIPPED}{SEPARATOR}{skip_reason or ''}", 1)
            return
        if started is None:
            return
        of_status = _codes_of(status)
        self._observe(counts, of_status[0], finished - started, execution.trace_id, span_id, finished)
        counts.wait(_DEPENDENCY, dependency or 0)
        if unaccounted:
            counts.wait(_UNACCOUNTED, unaccounted)
        if scheduled:
            counts.wait(_SCHEDULED, scheduled)
        if step_id in execution.critical_path:
            counts.count(CRITICAL, critical_ns_of(started, finished, queue, backoff, run))
        has_last = False
        for number, outcome, ended, queued, backed_off, used in self._attempts.get((execution_id, step_id), ()):
            counts.wait(_QUEUE, queued)
            if number > 1 and backed_off:
                counts.wait(_BACKOFF, backed_off)
            counts.count(_codes_of(outcome)[1], 1)
            if used is not None:
                _count_use(counts, used)
            has_last |= number == attempt
            # The last attempt was followed by another one, unless the step ended with it.
            if number != attempt or ended != finished:
                counts.count(RETRIES, 1)
        if not has_last:
            # The only attempt: it has no row.
            counts.wait(_QUEUE, queue or 0)
            if attempt > 1 and backoff:
                counts.wait(_BACKOFF, backoff)
            counts.count(of_status[1], 1)
            if resources is not None:
                _count_use(counts, resources)

    def is_plain(self, execution_id: str, step_id: str) -> bool:
        """Whether a step is counted, and its attempts have no rows."""
        return execution_id in self._executions and (execution_id, step_id) not in self._attempts

    def plain_steps(self, key: Key, steps: PlainSteps, executions: Mapping[str, ExecutionRow]) -> None:
        """Count many plain steps (see `is_plain`), as `step` would one by one."""
        counts, (duration, attempts) = self.counted.step(key, steps.name), _codes_of(steps.status)
        counts.of(duration).add(steps.durations)
        newest = {bucket: i for i, bucket in enumerate(steps.classic)}
        exemplars = counts.exemplars.setdefault(duration, {})
        for bucket, i in newest.items():
            trace_id = executions[steps.execution_ids[i]].trace_id
            exemplars[bucket] = (steps.durations_ns[i], trace_id, steps.span_ids[i], steps.finished_ns[i])
        counts.wait_all(_DEPENDENCY, steps.dependency_ns)
        counts.wait_all(_QUEUE, steps.queue_ns)
        counts.wait_all(_UNACCOUNTED, list(filter(None, steps.unaccounted_ns)))
        counts.wait_all(_SCHEDULED, list(filter(None, steps.scheduled_ns)))
        if steps.critical_ns:
            counts.count(CRITICAL, steps.critical_ns)
        counts.count(attempts, len(steps.durations_ns))
        for use, _ in steps.uses:
            _count_resources(counts, use)

    def pack(self) -> None:
        """See `Counted.pack`."""
        self.counted.pack()

    def report(self, execution_id: str, report: CountedReport) -> None:
        """Count a measure or cost that a step reported."""
        entry = self._executions.get(execution_id)
        if entry is None:
            return
        counts = self.counted.step(entry[0], report.step)
        if report.kind == "measure":
            counts.of(code_of(MEASURE, report.name, report.unit)).observe(report.value)
        elif report.kind == "cost":
            _count_spent(counts, report.name, report.value, report.tokens_in, report.tokens_out)


def unsettled(connection: Connection, ids: Collection[str]) -> frozenset[str]:
    """Those of the executions that have ended but are not counted yet, because spans of theirs may still arrive."""
    column = series_unsettled.c.execution_id
    waiting: set[str] = set()
    all_ids = sorted(ids)
    for i in range(0, len(all_ids), CHUNK):
        waiting.update(connection.execute(select(column).where(column.in_(all_ids[i : i + CHUNK]))).scalars())
    return frozenset(waiting)


def attempts_of(connection: Connection, ids: Iterable[str]) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    """The stored attempts of executions, by execution and step: (attempt, status, end, queue, backoff, resources)."""
    by_step: dict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)
    all_ids = list(ids)
    for i in range(0, len(all_ids), CHUNK):
        for row in connection.execute(_ATTEMPTS_OF, {"ids": all_ids[i : i + CHUNK]}):
            by_step[row[0], row[1]].append(tuple(row[2:]))
    return by_step


def _count_use(counts: _StepCounts, stored: str) -> None:
    """What an attempt used, as it is stored."""
    use = decoded(stored)
    if use is not None:
        _count_resources(counts, use)


def _count_resources(counts: _StepCounts, use: Resources) -> None:
    if use.cpu_seconds is not None:
        counts.of(CPU).observe_ns(cpu_ns_of(use.cpu_seconds))
    if use.peak_memory_bytes is not None and not use.is_shared:
        counts.of(MEMORY).observe_bytes(use.peak_memory_bytes)


def _count_spent(counts: _StepCounts, model: str, usd: float, tokens_in: int, tokens_out: int) -> None:
    if usd:
        counts.count(code_of(COST, model), billionths(usd))
    for kind, tokens in (("input", tokens_in), ("output", tokens_out)):
        if tokens:
            counts.count(code_of(TOKENS, model, kind), tokens)


def _count_folded(counts: _StepCounts, folded: Folded) -> None:
    for status, runs in folded.by_status.items():
        counts.of(f"{DURATION}{SEPARATOR}{status}").add(_durations(runs))
        if attempts := runs.count - folded.between_attempts.get(status, 0):
            counts.count(f"{ATTEMPTS}{SEPARATOR}{status}", attempts)
    for status, times in folded.retrying.items():
        counts.count(f"{ATTEMPTS}{SEPARATOR}{status}", times)
        counts.count(RETRIES, times)
    for reason, row in folded.waits.items():
        counts.of(f"{WAIT}{SEPARATOR}{reason}").add(Distribution.from_row(row))
    if not folded.waits:
        _count_old_waits(counts, folded)
    for kind, row in folded.uses.items():
        if kind in (CPU, MEMORY):
            counts.of(kind).add(Distribution.from_row(row))
    for model in folded.models:
        _count_spent(counts, model.model, model.usd, model.tokens_in, model.tokens_out)
    for measure in folded.measures:
        counts.of(code_of(MEASURE, measure.name, measure.unit)).add(_measured(measure))


def _durations(runs: FoldedRuns) -> Distribution:
    durations = Distribution(runs.sum_ns)
    native = durations.native
    native.schema, native.count, native.zero_count = runs.schema, runs.count, runs.zero_count
    native.positive = dict(runs.buckets)
    durations.classic = dict(runs.classic)
    if not runs.classic:
        # Recorded by a version that did not keep classic buckets: each native one counts by its upper bound.
        if runs.zero_count:
            durations.classic[0] = runs.zero_count
        for index, count in runs.buckets.items():
            bucket = bisect_left(DURATION_BUCKETS, upper_bound(index, runs.schema))
            durations.classic[bucket] = durations.classic.get(bucket, 0) + count
    return durations


def _count_old_waits(counts: _StepCounts, folded: Folded) -> None:
    """Waits of a version that kept only their number and sum: all as long as their average."""
    runs = folded.by_status.values()
    waits = (
        (_DEPENDENCY, folded.count, sum(r.dependency_ns for r in runs)),
        (_QUEUE, folded.count + folded.retries_started, sum(r.queue_ns for r in runs)),
        (_UNACCOUNTED, folded.unaccounted_count, sum(r.unaccounted_ns for r in runs)),
        (_BACKOFF, folded.backoff_count, folded.backoff_ns),
    )
    for code, times, total_ns in waits:
        if times:
            average = Distribution()
            average.observe_ns(total_ns // times)
            counts.of(code).add(_repeated(average, times, total_ns))


def _repeated(average: Distribution, times: int, total: Sum) -> Distribution:
    """A single value's distribution, as if it had been seen a number of times."""
    native = average.native
    native.count, native.zero_count = times, times if native.zero_count else 0
    native.positive, native.negative = dict.fromkeys(native.positive, times), dict.fromkeys(native.negative, times)
    average.classic = dict.fromkeys(average.classic, times)
    average.total = total
    return average


def _measured(measure: FoldedMeasure) -> Distribution:
    if measure.values is not None:
        return Distribution.from_row(measure.values)
    # Recorded by a version that kept only number, sum and extremes: all as large as their average.
    average, total = Distribution.of_measures(), ExactSum.parse(measure.total)
    average.observe(total.value / measure.count)
    return _repeated(average, measure.count, total)
