"""Events as Prometheus metrics; `tachograph.metrics.specs` defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry

from tachograph.clock import NS
from tachograph.events import (
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
from tachograph.identity import ExecutionRef
from tachograph.metrics.children import Trace
from tachograph.metrics.families import CounterFamily, GaugeFamily, HistogramFamily
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import (
    BUCKETS,
    CRITICAL_PATH,
    EXECUTION_DURATION,
    EXECUTIONS_RUNNING,
    EXECUTIONS_STARTED,
    LAST_SUCCESS,
    MEASURE_BUCKETS,
    METRICS,
    OLDEST_RUNNING,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_DURATION,
    STEP_MEASURE,
    STEP_RETRIES,
    STEP_TOKENS,
    STEP_WAIT,
    STEPS_RUNNING,
    STEPS_SKIPPED,
    CounterSpec,
    HistogramSpec,
)
from tachograph.outcomes import Outcomes

_MAX_LABEL: Final = 200


class _StepSeries:
    """The series of one step, looked up once, so that an event costs attribute accesses instead of label look-ups."""

    __slots__ = ("attempts", "backoff", "dependency", "duration", "queue", "retries", "running")

    def __init__(self, metrics: MetricsListener, key: tuple[str, str, str]) -> None:
        wait = metrics._histograms[STEP_WAIT.name]
        self.dependency = wait.labels(*key, "dependency").observe
        self.queue = wait.labels(*key, "queue").observe
        self.backoff: Callable[[float], None] | None = None
        self.duration: dict[str, Callable[[float, Trace | None], None]] = {}
        self.attempts: dict[str, Callable[[], None]] = {}
        self.retries = metrics._counters[STEP_RETRIES.name].labels(*key).inc
        self.running = metrics._steps_running(key[0], key[1])


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
        self.outcomes = Outcomes()
        self.registry = registry
        self.series = series or SeriesRegistry()
        self._is_sampled = is_sampled
        self._measures = frozenset(measures)
        self._generation = 0
        self._histograms: dict[str, HistogramFamily] = {}
        self._counters: dict[str, CounterFamily] = {}
        self._gauges: dict[str, GaugeFamily] = {}
        for spec in METRICS:
            description = (spec.name, spec.help, spec.labels)
            if isinstance(spec, HistogramSpec):
                bounds = MEASURE_BUCKETS if spec is STEP_MEASURE else buckets
                self._histograms[spec.name] = self.series.histogram(*description, buckets=bounds)
            elif isinstance(spec, CounterSpec):
                self._counters[spec.name] = self.series.counter(*description)
            else:
                self._gauges[spec.name] = self.series.gauge(*description)
        registry.register(self.series)
        self._steps: dict[tuple[str, str, str], _StepSeries] = {}
        # Steps with a running attempt, by workflow: (execution id, step span id).
        self._running_steps: dict[tuple[str, str], set[tuple[str, str]]] = {}
        # Start times of running executions, oldest first, by workflow.
        self._running: dict[tuple[str, str], dict[str, float]] = {}
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
        handle = self._handlers.get(type(event))
        if handle is not None:
            handle(event)

    def close(self) -> None:
        """Unregister the metrics."""
        self.registry.unregister(self.series)

    def restore_last_success(self, workspace: str, workflow: str, time_ns: int) -> None:
        """Set when a workflow last completed before this process started."""
        self._gauges[LAST_SUCCESS.name].labels(_label(workspace), _label(workflow)).set(time_ns / NS)

    def _steps_running(self, workspace: str, workflow: str) -> set[tuple[str, str]]:
        """The running steps behind a workflow's gauge. Without a lock: only this listener's queue changes them."""
        key = (workspace, workflow)
        running = self._running_steps.setdefault(key, set())
        self._gauges[STEPS_RUNNING.name].labels(*key).source = lambda: len(running)
        return running

    def _series(self, ref: ExecutionRef, step: str) -> _StepSeries:
        key = (ref.workspace, ref.workflow, step)
        if self._generation != self.series.generation:
            # Old label sets were dropped; those cached here may be among them.
            self._generation = self.series.generation
            self._steps.clear()
        series = self._steps.get(key)
        if series is None:
            clean = (_label(key[0]), _label(key[1]), _label(key[2]))
            series = self._steps[key] = _StepSeries(self, clean)
        return series

    def _step_started(self, event: StepStarted) -> None:
        step = event.step
        series = self._series(step.execution, step.name)
        series.running.add((step.execution.execution_id, step.span_id))
        if event.attempt == 1:
            series.dependency(event.dependency_ns / NS)
        elif event.backoff_ns:
            if series.backoff is None:
                ref = step.execution
                key = (_label(ref.workspace), _label(ref.workflow), _label(step.name))
                series.backoff = self._histograms[STEP_WAIT.name].labels(*key, "backoff").observe
            series.backoff(event.backoff_ns / NS)
        series.queue(event.queue_ns / NS)

    def _step_finished(self, event: StepFinished) -> None:
        step = event.step
        ref = step.execution
        series = self._series(ref, step.name)
        status = str(event.status)
        duration = event.time_ns - event.started_ns
        observe = series.duration.get(status)
        if observe is None:
            key = (_label(ref.workspace), _label(ref.workflow), _label(step.name), status)
            observe = series.duration[status] = self._histograms[STEP_DURATION.name].labels(*key).observe
        # An exemplar: it leads from the bucket to the trace.
        trace = (ref.trace_id, step.span_id, event.time_ns) if self._is_sampled(ref.trace_id) else None
        observe(duration / NS, trace)
        if not event.between_attempts:
            # The start of a lost step may have been counted here, or only in a process that has died.
            series.running.discard((ref.execution_id, step.span_id))
            self._attempt(series, ref, step.name, status)
        if step.folded_as is not None:
            self.outcomes.fold(ref.execution_id, step.step_id, event.attempt, duration)
        else:
            self.outcomes.note(ref.execution_id, step.step_id, status, event.attempt, duration)

    def _attempt(self, series: _StepSeries, ref: ExecutionRef, step: str, outcome: str) -> None:
        count = series.attempts.get(outcome)
        if count is None:
            key = (_label(ref.workspace), _label(ref.workflow), _label(step), outcome)
            count = series.attempts[outcome] = self._counters[STEP_ATTEMPTS.name].labels(*key).inc
        count()

    def _step_retrying(self, event: StepRetrying) -> None:
        step = event.step
        series = self._series(step.execution, step.name)
        series.running.discard((step.execution.execution_id, step.span_id))
        series.retries()
        self._attempt(series, step.execution, step.name, event.status.value)

    def _step_skipped(self, event: StepSkipped) -> None:
        ref = event.step.execution
        key = (_label(ref.workspace), _label(ref.workflow), _label(event.step.name), event.reason.value)
        self._counters[STEPS_SKIPPED.name].labels(*key).inc()
        self.outcomes.note(ref.execution_id, event.step.step_id, "skipped", 0, 0)

    def _cost(self, event: StepCost) -> None:
        ref = event.step.execution
        key = (_label(ref.workspace), _label(ref.workflow), _label(event.step.name), _label(event.model))
        if event.usd:
            self._counters[STEP_COST.name].labels(*key).inc(event.usd)
        if event.tokens_in:
            self._counters[STEP_TOKENS.name].labels(*key, "input").inc(event.tokens_in)
        if event.tokens_out:
            self._counters[STEP_TOKENS.name].labels(*key, "output").inc(event.tokens_out)

    def _measured(self, event: StepMeasured) -> None:
        if event.name in self._measures:
            ref = event.step.execution
            key = (ref.workspace, ref.workflow, event.step.name, event.name, event.unit)
            self._histograms[STEP_MEASURE.name].labels(*map(_label, key)).observe(event.value)

    def _execution_started(self, event: ExecutionStarted) -> None:
        ref = event.execution
        key = (_label(ref.workspace), _label(ref.workflow))
        self._counters[EXECUTIONS_STARTED.name].labels(*key).inc()
        self._gauges[EXECUTIONS_RUNNING.name].labels(*key).inc()
        running = self._running.setdefault(key, {})
        running[ref.execution_id] = event.time_ns / NS
        if len(running) == 1:
            self._gauges[OLDEST_RUNNING.name].labels(*key).set(event.time_ns / NS)

    def _execution_finished(self, event: ExecutionFinished) -> None:
        ref = event.execution
        key = (_label(ref.workspace), _label(ref.workflow))
        running = self._running.get(key)
        if running is not None and running.pop(ref.execution_id, None) is not None:
            self._gauges[EXECUTIONS_RUNNING.name].labels(*key).inc(-1)
            oldest = self._gauges[OLDEST_RUNNING.name]
            if running:
                oldest.labels(*key).set(next(iter(running.values())))
            else:
                oldest.remove(*key)
        status = event.status.value
        trace = (ref.trace_id, ref.span_id, event.time_ns) if self._is_sampled(ref.trace_id) else None
        self._histograms[EXECUTION_DURATION.name].labels(*key, status).observe(event.duration_ns / NS, trace)
        if event.status is ExecutionStatus.COMPLETED:
            self._gauges[LAST_SUCCESS.name].labels(*key).set(event.time_ns / NS)
        critical: dict[str, int] = {}
        for part in event.critical_path:
            critical[part.step] = critical.get(part.step, 0) + part.duration_ns
        for step, duration_ns in critical.items():
            self._counters[CRITICAL_PATH.name].labels(*key, _label(step)).inc(duration_ns / NS)
        self.outcomes.note(ref.execution_id, "", status, 0, event.duration_ns)


def _label(value: str) -> str:
    return value if len(value) <= _MAX_LABEL else value[: _MAX_LABEL - 1] + "…"
