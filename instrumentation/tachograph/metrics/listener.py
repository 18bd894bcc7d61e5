"""Events as Prometheus metrics; `tachograph.metrics.specs` defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry

from tachograph.clock import NS
from tachograph.events import (
    UNSUCCESSFUL,
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepCost,
    StepFinished,
    StepMeasured,
    StepRetrying,
    StepSkipped,
    StepStarted,
)
from tachograph.identity import ExecutionRef, StepRef
from tachograph.metrics.children import Trace
from tachograph.metrics.families import OTHER, CounterFamily, GaugeFamily, HistogramFamily, label_value
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import (
    BUCKETS,
    CRITICAL_PATH,
    EXECUTION_DURATION,
    EXECUTIONS_RUNNING,
    EXECUTIONS_STARTED,
    LAST_FAILURE,
    LAST_SUCCESS,
    METRICS,
    OLDEST_RUNNING,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_CPU,
    STEP_DURATION,
    STEP_MEASURE,
    STEP_MEMORY,
    STEP_RETRIES,
    STEP_TOKENS,
    STEP_WAIT,
    STEPS_RUNNING,
    STEPS_SKIPPED,
)
from tachograph.resources import Resources

_OTHERS: Final = (OTHER, OTHER)


class _StepSeries:
    """The series of one step, looked up once, so that an event costs attribute accesses instead of label look-ups.

    ``is_shared``: the limit on series is reached, and all of them are those of the other steps past it. Then series by
    status are looked up each time, because some of those may still be the step's own.
    """

    __slots__ = (
        "attempts", "dependency", "duration", "is_shared", "queue", "retries", "running", "uses", "waits", "workflow",
    )  # fmt: skip

    def __init__(self, metrics: MetricsListener, key: tuple[str, str, str]) -> None:
        wait = metrics._histograms[STEP_WAIT.name]
        dependency, queue = wait.labels(*key, "dependency"), wait.labels(*key, "queue")
        retries = metrics._counters[STEP_RETRIES.name].labels(*key)
        self.is_shared = key != retries.labels and dependency.labels == queue.labels
        self.dependency = dependency.observe
        self.queue = queue.observe
        self.waits: dict[str, Callable[[float], None]] = {}
        self.uses: dict[str, Callable[[float], None]] = {}
        self.duration: dict[str, Callable[[float, Trace | None], None]] = {}
        self.attempts: dict[str, Callable[[], None]] = {}
        self.retries = retries.inc
        self.workflow, self.running = metrics._steps_running(key[0], key[1])


class MetricsListener:
    """Turns events into metrics in ``registry``.

    Args:
        registry: a prometheus_client registry; the metrics are registered in it.
        buckets: upper bounds of the classic buckets, in seconds.
        series: holds the series and limits their number (default: a `SeriesRegistry` with the default limits).
        is_sampled: whether spans of the trace with this id are exported; only then an observation has an exemplar.
        measures: names of step measures counted in ``workflow_step_measure``. Others are only stored, because every
            name that a step invents would create series.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        buckets: Sequence[float] = BUCKETS,
        series: SeriesRegistry | None = None,
        is_sampled: Callable[[str], bool] = lambda trace_id: True,
        measures: Iterable[str] = (),
    ) -> None:
        self.registry = registry
        self.series = series or SeriesRegistry()
        self._is_sampled = is_sampled
        self._measures = frozenset(measures)
        self._generation = 0
        self._histograms: dict[str, HistogramFamily] = {}
        self._counters: dict[str, CounterFamily] = {}
        self._gauges: dict[str, GaugeFamily] = {}
        for spec in METRICS:
            family = self.series.family(spec, buckets=buckets)
            if isinstance(family, HistogramFamily):
                self._histograms[spec.name] = family
            elif isinstance(family, CounterFamily):
                self._counters[spec.name] = family
            elif isinstance(family, GaugeFamily):
                self._gauges[spec.name] = family
        registry.register(self.series)
        self._steps: dict[tuple[str, str, str], _StepSeries] = {}
        # The series of all steps past the limit, by the labels of their workflow's gauge.
        self._shared: dict[tuple[str, ...], _StepSeries] = {}
        # Span ids of steps with a running attempt, by their workflow's gauge and by execution.
        self._running_steps: dict[tuple[str, ...], dict[str, set[str]]] = {}
        # Start times of running executions, oldest first, by their workflow's gauge; and the gauge of each execution.
        self._running: dict[tuple[str, ...], dict[str, float]] = {}
        self._gauge_of: dict[str, tuple[str, ...]] = {}
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            StepFinished: self._step_finished,
            StepStarted: self._step_started,
            StepRetrying: self._step_retrying,
            StepSkipped: self._step_skipped,
            StepCost: self._cost,
            **({StepMeasured: self._measured} if self._measures else {}),
            ExecutionStarted: self._execution_started,
            ExecutionFinished: self._execution_finished,
        }
        self.handles = frozenset(self._handlers)

    def __call__(self, event: Event) -> None:
        """Count one event."""
        kind = type(event)
        handle = self._handlers.get(kind)
        if handle is not None:
            handle(event)

    def close(self) -> None:
        """Unregister the metrics."""
        self.registry.unregister(self.series)

    def _steps_running(self, workspace: str, workflow: str) -> tuple[tuple[str, ...], dict[str, set[str]]]:
        """The labels of a workflow's gauge, and the running steps behind it.

        Without a lock: only this listener's queue changes them.
        """
        gauge = self._gauges[STEPS_RUNNING.name].labels(workspace, workflow)
        running = self._running_steps.setdefault(gauge.labels, {})
        if gauge.source is None:
            gauge.source = lambda: sum([len(steps) for steps in list(running.values())])
        return gauge.labels, running

    def _series(self, ref: ExecutionRef, step: str) -> _StepSeries:
        key = (ref.workspace, ref.workflow, step)
        if self._generation != self.series.generation:
            # Old label sets were dropped; those cached here may be among them.
            self._generation = self.series.generation
            self._steps.clear()
            self._shared.clear()
        series = self._steps.get(key)
        if series is None:
            series = _StepSeries(self, (label_value(key[0]), label_value(key[1]), label_value(key[2])))
            if series.is_shared:
                return self._shared.setdefault(series.workflow, series)
            self._steps[key] = series
        return series

    def _waited(self, series: _StepSeries, step: StepRef, reason: str, wait_ns: int) -> None:
        observe = series.waits.get(reason)
        if observe is None:
            ref = step.execution
            key = (label_value(ref.workspace), label_value(ref.workflow), label_value(step.counted_as), reason)
            observe = self._histograms[STEP_WAIT.name].labels(*key).observe
            if not series.is_shared:
                series.waits[reason] = observe
        observe(wait_ns / NS)

    def _step_started(self, event: StepStarted) -> None:
        step = event.step
        series = self._series(step.execution, step.counted_as)
        execution_id = step.execution.execution_id
        running = series.running.get(execution_id)
        if running is None:
            series.running[execution_id] = {step.span_id}
        else:
            running.add(step.span_id)
        if event.attempt == 1:
            series.dependency(event.dependency_ns / NS)
            if event.unaccounted_ns:
                self._waited(series, step, "unaccounted", event.unaccounted_ns)
            if event.scheduled_ns:
                self._waited(series, step, "scheduled", event.scheduled_ns)
        elif event.backoff_ns:
            self._waited(series, step, "backoff", event.backoff_ns)
        series.queue(event.queue_ns / NS)

    def _stopped(self, series: _StepSeries, step: StepRef) -> None:
        """The step has no running attempt any more, if its start was counted here."""
        execution_id = step.execution.execution_id
        running = series.running.get(execution_id)
        if running is not None:
            running.discard(step.span_id)
            if not running:
                del series.running[execution_id]

    def _step_finished(self, event: StepFinished) -> None:
        step = event.step
        ref, name = step.execution, step.counted_as
        series = self._series(ref, name)
        status = str(event.status)
        duration = max(0, event.time_ns - event.started_ns)
        observe = series.duration.get(status)
        if observe is None:
            key = (label_value(ref.workspace), label_value(ref.workflow), label_value(name), status)
            observe = self._histograms[STEP_DURATION.name].labels(*key).observe
            if not series.is_shared:
                series.duration[status] = observe
        # An exemplar: it leads from the bucket to the trace.
        trace = (ref.trace_id, step.span_id, event.time_ns) if self._is_sampled(ref.trace_id) else None
        observe(duration / NS, trace)
        if not event.between_attempts:
            # The start of a lost step may have been counted here, or only in a process that has died.
            self._stopped(series, step)
            self._attempt(series, ref, name, status)
            if event.resources is not None:
                self._used(series, step, event.resources)

    def _used(self, series: _StepSeries, step: StepRef, use: Resources) -> None:
        if use.cpu_seconds is not None:
            self._observe_use(series, step, STEP_CPU.name, use.cpu_seconds)
        if use.peak_memory_bytes is not None and not use.is_shared:
            self._observe_use(series, step, STEP_MEMORY.name, use.peak_memory_bytes)

    def _observe_use(self, series: _StepSeries, step: StepRef, metric: str, value: float) -> None:
        observe = series.uses.get(metric)
        if observe is None:
            ref = step.execution
            key = (label_value(ref.workspace), label_value(ref.workflow), label_value(step.counted_as))
            observe = self._histograms[metric].labels(*key).observe
            if not series.is_shared:
                series.uses[metric] = observe
        observe(value)

    def _attempt(self, series: _StepSeries, ref: ExecutionRef, step: str, outcome: str) -> None:
        count = series.attempts.get(outcome)
        if count is None:
            key = (label_value(ref.workspace), label_value(ref.workflow), label_value(step), outcome)
            count = self._counters[STEP_ATTEMPTS.name].labels(*key).inc
            if not series.is_shared:
                series.attempts[outcome] = count
        count()

    def _step_retrying(self, event: StepRetrying) -> None:
        step, name = event.step, event.step.counted_as
        series = self._series(step.execution, name)
        self._stopped(series, step)
        series.retries()
        self._attempt(series, step.execution, name, event.status.value)
        if event.resources is not None:
            self._used(series, step, event.resources)

    def _step_skipped(self, event: StepSkipped) -> None:
        ref = event.step.execution
        key = (label_value(ref.workspace), label_value(ref.workflow), label_value(event.step.name), event.reason.value)
        self._counters[STEPS_SKIPPED.name].labels(*key).inc()

    def _cost(self, event: StepCost) -> None:
        ref = event.step.execution
        key = (
            label_value(ref.workspace),
            label_value(ref.workflow),
            label_value(event.step.counted_as),
            label_value(event.model),
        )
        if event.usd:
            self._counters[STEP_COST.name].labels(*key).inc(event.usd)
        if event.tokens_in:
            self._counters[STEP_TOKENS.name].labels(*key, "input").inc(event.tokens_in)
        if event.tokens_out:
            self._counters[STEP_TOKENS.name].labels(*key, "output").inc(event.tokens_out)

    def _measured(self, event: StepMeasured) -> None:
        if event.name in self._measures:
            ref = event.step.execution
            key = (ref.workspace, ref.workflow, event.step.counted_as, event.name, event.unit)
            self._histograms[STEP_MEASURE.name].labels(*map(label_value, key)).observe(event.value)

    def _execution_started(self, event: ExecutionStarted) -> None:
        ref = event.execution
        key = (label_value(ref.workspace), label_value(ref.workflow))
        self._counters[EXECUTIONS_STARTED.name].labels(*key).inc()
        gauge = self._gauges[EXECUTIONS_RUNNING.name].labels(*key)
        self._gauge_of[ref.execution_id] = gauge.labels
        running = self._running.setdefault(gauge.labels, {})
        running[ref.execution_id] = event.time_ns / NS
        gauge.set(len(running))
        if len(running) == 1:
            self._gauges[OLDEST_RUNNING.name].labels(*gauge.labels).set(event.time_ns / NS)

    def _execution_finished(self, event: ExecutionFinished) -> None:
        ref = event.execution
        key = (label_value(ref.workspace), label_value(ref.workflow))
        gauge = self._gauge_of.pop(ref.execution_id, None)
        if gauge is not None:
            running = self._running[gauge]
            running.pop(ref.execution_id, None)
            self._gauges[EXECUTIONS_RUNNING.name].labels(*gauge).set(len(running))
            oldest = self._gauges[OLDEST_RUNNING.name]
            if running:
                oldest.labels(*gauge).set(next(iter(running.values())))
            else:
                oldest.remove(*gauge)
                del self._running[gauge]
        # No step runs on after its execution, whatever became of its end.
        for labels in (key, _OTHERS):
            if (steps := self._running_steps.get(labels)) is not None:
                steps.pop(ref.execution_id, None)
        status = event.status.value
        trace = (ref.trace_id, ref.span_id, event.time_ns) if self._is_sampled(ref.trace_id) else None
        self._histograms[EXECUTION_DURATION.name].labels(*key, status).observe(event.duration_ns / NS, trace)
        if event.status is ExecutionStatus.COMPLETED:
            self._gauges[LAST_SUCCESS.name].labels(*key).set(event.time_ns / NS)
        elif event.status in UNSUCCESSFUL:
            self._gauges[LAST_FAILURE.name].labels(*key).set(event.time_ns / NS)
        critical: dict[str, int] = {}
        for part in event.critical_path:
            critical[part.step] = critical.get(part.step, 0) + part.duration_ns
        for step, duration_ns in critical.items():
            self._counters[CRITICAL_PATH.name].labels(*key, label_value(step)).inc(duration_ns / NS)
