"""Repetitions of a step past a bound, recorded together.

A loop that calls a step a million times must not cost a million rows, nor keep anything of a call that has ended. So
each step name has a bound, under the execution or the step that it runs in, and the execution has one for all its
steps. Repetitions past it are *folded*: they share a step id, and a `Fold` adds them up. Every repetition still has its
own events and its own span; only its row is shared. See `StepsFolded`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from tachograph.clock import NS
from tachograph.distribution import DURATION_BUCKETS, Distribution, DistributionRow
from tachograph.events import (
    Event,
    Failure,
    Folded,
    FoldedLog,
    FoldedMeasure,
    FoldedModel,
    FoldedRuns,
    Listener,
    StepCost,
    StepEvent,
    StepFinished,
    StepLogged,
    StepMeasured,
    StepRetrying,
    StepsFolded,
    StepStarted,
)
from tachograph.exact_sum import ExactSum, billionths
from tachograph.histogram import ExponentialHistogram
from tachograph.identity import StepRef
from tachograph.resources import Resources, UseTotals, cpu_ns_of, total_of

OTHER: Final = "other"
"""The name under which repetitions are folded when too many names are."""
MAX_AFTER: Final = 1_000
"""Steps in between the repetitions of a fold that are kept."""
MAX_LOGS: Final = 20
MAX_MESSAGE: Final = 1_000
MAX_MEASURES: Final = 100
MAX_MODELS: Final = 100
MAX_EXECUTIONS: Final = 10_000
_EMIT_NS: Final = NS
"""How often a fold says what it adds up to while its step is repeated."""


class Limits(NamedTuple):
    """How many steps have rows of their own.

    Attributes:
        repetitions: of one name under one execution or enclosing step.
        steps: of one execution in all.
        names: folds under one execution or enclosing step; further names are folded into one.
    """

    repetitions: int = 1_000
    steps: int = 20_000
    names: int = 1_000


_limits = Limits()


def limits() -> Limits:
    """The limits for executions that start now."""
    return _limits


def set_limits(new: Limits) -> None:
    """Set the limits for executions that start from now on."""
    global _limits
    _limits = new


class RowCount:
    """How many steps of an execution have rows of their own."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows = 0


class Repetitions:
    """How often each step was repeated under one execution or step; callers hold the execution's lock.

    Attributes:
        numbers: repetitions with rows of their own, by key (the step's name, and in another process that one's token).
        folds: by key.
    """

    __slots__ = ("folds", "limits", "numbers")

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = _limits if limits is None else limits
        self.numbers: dict[str, int] = {}
        self.folds: dict[str, Fold] = {}

    def index(self, key: str, count: RowCount) -> int | None:
        """The index of the next repetition, counted from 0; None: it is folded."""
        index = self.numbers.get(key, 0)
        if index >= self.limits.repetitions or count.rows >= self.limits.steps:
            return None
        self.numbers[key] = index + 1
        count.rows += 1
        return index

    def fold_name(self, name: str, token: str) -> str:
        """The name under which a repetition of a step is folded."""
        folds = self.folds
        return name if name + token in folds or len(folds) < self.limits.names else OTHER


class _Runs:
    """Grows into `FoldedRuns`."""

    __slots__ = (
        "backoff_ns", "classic", "cost_nano_usd", "dependency_ns", "durations", "last_ns", "max_ns", "min_ns",
        "queue_ns", "retries", "run_ns", "scheduled_ns", "sum_ns", "tokens_in", "tokens_out", "unaccounted_ns", "use",
    )  # fmt: skip

    def __init__(self) -> None:
        self.use: UseTotals | None = None
        self.sum_ns = self.min_ns = self.max_ns = self.last_ns = self.retries = self.dependency_ns = 0
        self.unaccounted_ns = self.scheduled_ns = self.queue_ns = self.backoff_ns = self.run_ns = 0
        self.cost_nano_usd = self.tokens_in = self.tokens_out = 0
        self.durations = ExponentialHistogram()
        self.classic: dict[int, int] = {}

    @classmethod
    def of(cls, frozen: FoldedRuns) -> _Runs:
        runs = cls()
        for name in (
            "sum_ns", "min_ns", "max_ns", "last_ns", "retries", "dependency_ns", "unaccounted_ns",
            "scheduled_ns", "queue_ns", "backoff_ns", "run_ns", "cost_nano_usd", "tokens_in", "tokens_out",
        ):  # fmt: skip
            setattr(runs, name, getattr(frozen, name))
        durations = runs.durations = ExponentialHistogram(schema=frozen.schema)
        durations.count, durations.sum, durations.zero_count = frozen.count, frozen.sum_ns / NS, frozen.zero_count
        durations.min, durations.max = frozen.min_ns / NS, frozen.max_ns / NS
        durations.positive = dict(frozen.buckets)
        runs.classic = dict(frozen.classic)
        runs.use = frozen.use.copy() if frozen.use is not None else None
        return runs

    def add_use(self, use: Resources, run_ns: int) -> None:
        totals = self.use
        if totals is None:
            totals = self.use = UseTotals()
        totals.observe(use, run_ns)

    def add(self, event: StepFinished) -> None:
        now, durations = event.time_ns, self.durations
        duration_ns = now - event.started_ns
        if duration_ns < 0:
            duration_ns = 0
        if duration_ns < self.min_ns or not durations.count:
            self.min_ns = duration_ns
        if duration_ns > self.max_ns:
            self.max_ns = duration_ns
        if now > self.last_ns:
            self.last_ns = now
        self.sum_ns += duration_ns
        self.run_ns += event.run_ns
        self.dependency_ns += event.dependency_ns
        self.unaccounted_ns += event.unaccounted_ns
        self.scheduled_ns += event.scheduled_ns
        if event.attempt != 1 or event.queue_ns:
            self.retries += event.attempt - 1
            self.queue_ns += event.queue_ns
            self.backoff_ns += event.backoff_ns
        durations.observe(seconds := duration_ns / NS)
        index = bisect_left(DURATION_BUCKETS, seconds)
        self.classic[index] = self.classic.get(index, 0) + 1

    def frozen(self) -> FoldedRuns:
        durations = self.durations
        return FoldedRuns(
            durations.count, self.sum_ns, self.min_ns, self.max_ns, self.last_ns, self.retries, self.dependency_ns,
            self.unaccounted_ns, self.queue_ns, self.backoff_ns, self.run_ns,
            self.cost_nano_usd, self.tokens_in, self.tokens_out,
            durations.schema, durations.zero_count, dict(sorted(durations.positive.items())),
            dict(sorted(self.classic.items())), self.scheduled_ns, self.use.copy() if self.use is not None else None,
        )  # fmt: skip


class _Spent:
    """What an open repetition has reported to have cost; it counts with the status the repetition ends with."""

    __slots__ = ("cost_nano_usd", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        self.cost_nano_usd = self.tokens_in = self.tokens_out = 0


class Fold:
    """Adds up the folded repetitions of one step: a listener that notes their events and passes them on.

    Safe to use from any thread. ``inner`` counts the steps inside them, which are all folded too.
    """

    __slots__ = (
        "_after", "_backoff_count", "_backoff_ns", "_between", "_busy_ns", "_busy_since", "_by_status", "_due_ns",
        "_emit", "_emitted", "_ended_ns", "_failure", "_is_final", "_lock", "_logs", "_measures", "_models",
        "_retries_started", "_retrying", "_running", "_sequence", "_started", "_step_id", "_time_ns",
        "_unaccounted_count", "_used", "_uses", "_values", "_waits", "inner", "ref",
    )  # fmt: skip

    def __init__(self, ref: StepRef, emit: Listener) -> None:
        self.ref = ref
        self._step_id = ref.step_id
        self.inner = Repetitions(_limits._replace(repetitions=0))
        self._emit = emit
        self._lock = threading.Lock()
        # Of the first repetition: its start and the waits before it.
        self._started: tuple[int, int, int, int] | None = None
        # What the repetitions that run have reported to have cost, by span id.
        self._running: dict[str, _Spent | None] = {}
        self._sequence = self._busy_ns = self._busy_since = self._ended_ns = self._time_ns = 0
        self._emitted = -1
        self._due_ns = 0
        self._is_final = False
        self._by_status: dict[str, _Runs] = {}
        self._after: dict[str, None] = {}
        self._failure: Failure | None = None
        self._measures: dict[tuple[str, str], tuple[int, ExactSum, float, float]] = {}
        self._models: dict[str, tuple[float, int, int]] = {}
        self._retrying: dict[str, int] = {}
        self._between: dict[str, int] = {}
        self._retries_started = self._backoff_count = self._backoff_ns = self._unaccounted_count = 0
        self._logs: deque[FoldedLog] = deque(maxlen=MAX_LOGS)
        self._waits: dict[str, Distribution] = {}
        # What the earlier attempts of repetitions that run used, by span id.
        self._used: dict[str, list[Resources]] = {}
        self._uses: dict[str, Distribution] = {}
        self._values: dict[tuple[str, str], Distribution] = {}

    @classmethod
    def resumed(cls, ref: StepRef, folded: Folded) -> Fold:
        """A fold as it was stored. The repetitions that ran then are not known one by one; note their ends."""
        fold = cls(ref, lambda event: None)
        fold._sequence, fold._ended_ns, fold._busy_ns = folded.sequence, folded.ended_ns, folded.busy_ns
        fold._started = (folded.started_ns, folded.dependency_ns, folded.unaccounted_ns, folded.scheduled_ns)
        if folded.running:
            fold._running[""] = None
            fold._busy_since = folded.running_since_ns
        fold._by_status = {status: _Runs.of(runs) for status, runs in folded.by_status.items()}
        fold._after = dict.fromkeys(folded.after)
        fold._models = {m.model: (m.usd, m.tokens_in, m.tokens_out) for m in folded.models}
        fold._retrying, fold._between = dict(folded.retrying), dict(folded.between_attempts)
        fold._retries_started, fold._unaccounted_count = folded.retries_started, folded.unaccounted_count
        fold._backoff_count, fold._backoff_ns = folded.backoff_count, folded.backoff_ns
        fold._failure = folded.failure
        fold._measures = {(m.name, m.unit): (m.count, ExactSum.parse(m.total), m.min, m.max) for m in folded.measures}
        fold._logs.extend(folded.logs)
        fold._waits = {reason: Distribution.from_row(row) for reason, row in folded.waits.items()}
        fold._uses = {kind: Distribution.from_row(row) for kind, row in folded.uses.items()}
        fold._values = {(m.name, m.unit): Distribution.from_row(m.values) for m in folded.measures if m.values}
        return fold

    def __call__(self, event: Event) -> None:
        """Note an event and pass it on. Events of steps inside the repetitions are only passed on."""
        if event.step.step_id != self._step_id:  # type: ignore[union-attr]
            self._emit(event)
            return
        is_due = self.note(event)  # type: ignore[arg-type]
        self._emit(event)
        if is_due:
            self.emit()

    def waited_for(self, step_id: str) -> None:
        """Note which step a repetition waited for; the caller holds the execution's lock."""
        if step_id and step_id != self.ref.step_id and step_id not in self._after and len(self._after) < MAX_AFTER:
            self._after[step_id] = None

    def note(self, event: StepEvent) -> bool:
        """Add an event of a repetition. Returns whether it is time to `emit`."""
        kind, now = type(event), event.time_ns
        with self._lock:
            if kind is StepFinished:
                self._finished(event)  # type: ignore[arg-type]
            elif kind is StepStarted:
                if event.attempt == 1:  # type: ignore[union-attr]
                    if self._started is None:
                        self._started = (
                            now, event.dependency_ns, event.unaccounted_ns, event.scheduled_ns,  # type: ignore[union-attr]
                        )  # fmt: skip
                    if not self._running:
                        self._busy_since = now
                    self._running[event.step.span_id] = None
                    self._waited("dependency", event.dependency_ns)  # type: ignore[union-attr]
                    if event.unaccounted_ns:  # type: ignore[union-attr]
                        self._unaccounted_count += 1
                        self._waited("unaccounted", event.unaccounted_ns)  # type: ignore[union-attr]
                    if event.scheduled_ns:  # type: ignore[union-attr]
                        self._waited("scheduled", event.scheduled_ns)  # type: ignore[union-attr]
                else:
                    self._retries_started += 1
                    if event.backoff_ns:  # type: ignore[union-attr]
                        self._backoff_count += 1
                        self._backoff_ns += event.backoff_ns  # type: ignore[union-attr]
                        self._waited("backoff", event.backoff_ns)  # type: ignore[union-attr]
                self._waited("queue", event.queue_ns)  # type: ignore[union-attr]
            elif isinstance(event, StepRetrying):
                self._retrying[event.status.value] = self._retrying.get(event.status.value, 0) + 1
                if event.resources is not None:
                    self._observe_use(event.resources)
                    self._used.setdefault(event.step.span_id, []).append(event.resources)
            elif isinstance(event, StepCost):
                self._cost(event)
            elif isinstance(event, StepMeasured):
                self._measured(event)
            elif isinstance(event, StepLogged):
                self._logs.append(FoldedLog(now, event.level, event.message[:MAX_MESSAGE]))
            else:
                return False
            self._sequence += 1
            if now > self._time_ns:
                self._time_ns = now
            return self._is_final or now >= self._due_ns

    def _waited(self, reason: str, wait_ns: int) -> None:
        waits = self._waits.get(reason)
        if waits is None:
            waits = self._waits[reason] = Distribution()
        waits.observe_ns(wait_ns)

    def _finished(self, event: StepFinished) -> None:
        running, span_id, now = self._running, event.step.span_id, event.time_ns
        if span_id not in running:
            span_id = ""  # Of a fold that was resumed.
        spent = running.pop(span_id, None)
        if not running and now > self._busy_since:
            self._busy_ns += now - self._busy_since
            self._busy_since = now
        status = event.status._value_
        runs = self._by_status.get(status)
        if runs is None:
            runs = self._by_status[status] = _Runs()
        runs.add(event)
        if event.resources is not None and not event.between_attempts:
            self._observe_use(event.resources)
            if not self._used:
                runs.add_use(event.resources, event.run_ns)
        if self._used:
            uses = self._used.pop(span_id, [])
            if event.resources is not None and not event.between_attempts:
                uses.append(event.resources)
            if (use := total_of(uses)) is not None:
                runs.add_use(use, event.run_ns)
        if spent is not None:
            runs.cost_nano_usd += spent.cost_nano_usd
            runs.tokens_in += spent.tokens_in
            runs.tokens_out += spent.tokens_out
        if now > self._ended_ns:
            self._ended_ns = now
        if event.failure is not None:
            self._failure = event.failure
        if event.between_attempts:
            self._between[status] = self._between.get(status, 0) + 1

    def _observe_use(self, use: Resources) -> None:
        uses = self._uses
        if use.cpu_seconds is not None:
            cpu = uses.get("cpu")
            if cpu is None:
                cpu = uses["cpu"] = Distribution()
            cpu.observe_ns(cpu_ns_of(use.cpu_seconds))
        if use.peak_memory_bytes is not None and not use.is_shared:
            memory = uses.get("memory")
            if memory is None:
                memory = uses["memory"] = Distribution.of_measures()
            memory.observe_bytes(use.peak_memory_bytes)

    def _cost(self, event: StepCost) -> None:
        span_id = event.step.span_id
        spent: _Spent | _Runs | None = self._running.get(span_id)
        if spent is None:
            if span_id in self._running:
                spent = self._running[span_id] = _Spent()
            else:  # It comes after the repetition's end.
                spent = next(iter(self._by_status.values()), None) or self._by_status.setdefault("completed", _Runs())
        spent.cost_nano_usd += billionths(event.usd)
        spent.tokens_in += event.tokens_in
        spent.tokens_out += event.tokens_out
        model = event.model if event.model in self._models or len(self._models) < MAX_MODELS else OTHER
        usd, tokens_in, tokens_out = self._models.get(model, (0.0, 0, 0))
        self._models[model] = (usd + event.usd, tokens_in + event.tokens_in, tokens_out + event.tokens_out)

    def _measured(self, event: StepMeasured) -> None:
        key = (event.name, event.unit)
        if key not in self._measures and len(self._measures) >= MAX_MEASURES:
            key = (OTHER, "")
        count, total, low, high = self._measures.get(key, (0, ExactSum(0, 0), event.value, event.value))
        self._measures[key] = (
            count + 1, total + ExactSum.of(event.value), min(low, event.value), max(high, event.value)
        )  # fmt: skip
        values = self._values.get(key)
        if values is None:
            values = self._values[key] = Distribution.of_measures()
        values.observe(event.value)

    def folded(self) -> Folded:
        """What the repetitions add up to so far."""
        with self._lock:
            return self._folded()

    def _folded(self) -> Folded:
        started_ns, dependency_ns, unaccounted_ns, scheduled_ns = self._started or (self._time_ns, 0, 0, 0)
        return Folded(
            sequence=self._sequence,
            running=len(self._running),
            started_ns=started_ns,
            ended_ns=self._ended_ns,
            busy_ns=self._busy_ns,
            running_since_ns=self._busy_since if self._running else 0,
            dependency_ns=dependency_ns,
            unaccounted_ns=unaccounted_ns,
            scheduled_ns=scheduled_ns,
            by_status={status: runs.frozen() for status, runs in self._by_status.items()},
            after=tuple(self._after),
            failure=self._failure,
            measures=tuple(
                FoldedMeasure(name, unit, count, total.text, low, high, self._values_of(name, unit))
                for (name, unit), (count, total, low, high) in self._measures.items()
            ),
            models=tuple(FoldedModel(model, *spent) for model, spent in self._models.items()),
            retrying=dict(self._retrying),
            between_attempts=dict(self._between),
            retries_started=self._retries_started,
            backoff_count=self._backoff_count,
            backoff_ns=self._backoff_ns,
            unaccounted_count=self._unaccounted_count,
            logs=tuple(self._logs),
            waits={reason: waits.to_row() for reason, waits in self._waits.items()},
            uses={kind: uses.to_row() for kind, uses in self._uses.items()},
        )

    def _values_of(self, name: str, unit: str) -> DistributionRow | None:
        values = self._values.get((name, unit))
        return values.to_row() if values is not None else None

    def emit(self, *, is_final: bool = False, again: bool = False) -> None:
        """Say what the repetitions add up to, unless nothing has changed since it was said; ``again``: anyway."""
        with self._lock:
            if is_final:
                again |= not self._is_final
                self._is_final = True
            if self._emitted == self._sequence and not again:
                return
            self._emitted, self._due_ns = self._sequence, self._time_ns + _EMIT_NS
            event = StepsFolded(
                step=self.ref,
                time_ns=self._time_ns,
                folded=self._folded(),
                is_final=self._is_final and not self._running,
            )
        self._emit(event)

    @property
    def is_running(self) -> bool:
        """Whether a repetition runs."""
        return bool(self._running)

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = threading.Lock()


_lock = threading.Lock()
# By execution, then by enclosing step ("" for none), then by step id.
_open: OrderedDict[str, dict[str, dict[str, Fold]]] = OrderedDict()


def open_fold(ref: StepRef, emit: Listener) -> Fold:
    """A new fold of the steps that share ``ref.step_id``."""
    fold = Fold(ref, emit)
    with _lock:
        folds = _open.setdefault(ref.execution.execution_id, {})
        folds.setdefault(ref.parent_step_id or "", {})[ref.step_id] = fold
        if len(_open) > MAX_EXECUTIONS:
            _open.popitem(last=False)
    return fold


def find(ref: StepRef) -> Fold | None:
    """The fold that a step is part of."""
    folds = _open.get(ref.execution.execution_id)
    return folds.get(ref.parent_step_id or "", {}).get(ref.step_id) if folds is not None else None


def relayed(event: StepEvent, emit: Listener) -> None:
    """Note an event of a folded repetition in a child process."""
    fold = find(event.step)
    if fold is None:
        fold = open_fold(event.step, emit)
    if fold.note(event):
        fold.emit()


def folds_of(execution_id: str, parent_step_id: str | None = None) -> list[Fold]:
    """The folds of an execution, directly under it or under one of its steps."""
    return list(_open.get(execution_id, {}).get(parent_step_id or "", {}).values())


def finish(execution_id: str) -> None:
    """The execution ends: what its folds add up to is final."""
    if execution_id in _open:
        with _lock:
            folds = _open.pop(execution_id, {})
        for inner in list(folds.values()):
            for fold in list(inner.values()):
                fold.emit(is_final=True)


def finish_inside(ref: StepRef) -> None:
    """A step ends: so do the folds inside it, except where a repetition still runs."""
    folds = _open.get(ref.execution.execution_id)
    if folds is None or ref.step_id not in folds:
        return
    with _lock:
        inner = folds.pop(ref.step_id, {})
        running = {step_id: fold for step_id, fold in inner.items() if fold.is_running}
        if running:
            folds[ref.step_id] = running
    for fold in inner.values():
        if not fold.is_running:
            fold.emit(is_final=True)


def emit_all(*, again: bool = False) -> None:
    """Say what has not been said yet of all folds that are open in this process."""
    if _open:
        for fold in list(_all()):
            fold.emit(again=again)


def _all() -> Iterator[Fold]:
    with _lock:
        folds = [fold for parents in _open.values() for inner in parents.values() for fold in inner.values()]
    yield from folds


def after_fork() -> None:
    """In a forked child: what is folded in the parent is said there."""
    global _lock
    _lock = threading.Lock()
    for parents in _open.values():
        for inner in parents.values():
            for fold in inner.values():
                fold.after_fork()
    _open.clear()
