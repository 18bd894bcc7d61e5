"""A recorded execution as spans, for trace viewers: the ids, times, attributes and events it was exported with.

Only what handlers, samplers and processors add to a span is not stored. Span limits do not apply here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from tachograph.events import ExecutionStatus, Failure, StepStatus
from tachograph.identity import ExecutionRef
from tachograph.resources import Resources, decoded
from tachograph.spans import semconv
from tachograph.spans.attributes import (
    add_cost,
    attempt_attributes,
    attempt_span_id,
    attempt_state_attributes,
    exception_attributes,
    execution_attributes,
    execution_state_attributes,
    log_attributes,
    measure_attributes,
    step_attributes,
    step_state_attributes,
)
from tachograph.spans.ended_spans import EndedSpan
from tachograph.version import version
from tachograph_exporter.ingest.spans import SpanRecord, record
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.span_index import RECORDED_SERVICE
from tachograph_exporter.store.steps import StoredStep, by_step

SERVICE: Final = RECORDED_SERVICE
_RESOURCE_ATTRIBUTES: Final = {"service.name": SERVICE}
# Trace flags "sampled", and that it is known whether the parent is remote (it is not).
_FLAGS_LOCAL_PARENT: Final = 0x101
_FLAGS_UNKNOWN_PARENT: Final = 0x001


def spans_of_run(run: StoredRun, workspace: str) -> list[SpanRecord]:
    """The spans of an execution: its own, one per step that started or was skipped, and the attempts of those retried.

    ``workspace`` is the slug. Spans of what still runs have not ended (``end_ns`` 0).
    """
    resource = _resource()
    spans = _Spans(run, workspace).build()
    return [record(span, SERVICE, semconv.SCOPE, "", resource, _RESOURCE_ATTRIBUTES) for span in spans]


def ended_spans(run: StoredRun, workspace: str) -> dict[str, EndedSpan]:
    """What the spans of `spans_of_run` say of times and outcomes, by span id. ``end_ns`` is 0 for one that is open."""
    return {
        span.span_id.hex(): EndedSpan(
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            span.status.code == Status.STATUS_CODE_ERROR,
            # The state comes last.
            next((a.value.string_value for a in reversed(span.attributes) if a.key in _STATUSES), None),
        )
        for span in _Spans(run, workspace).build()
    }


_STATUSES: Final = frozenset({semconv.STEP_STATUS, semconv.EXECUTION_STATUS})


def ended_span(span: SpanRecord) -> EndedSpan:
    """What a span that arrived says, if it is one of ours."""
    status = span.attributes.get(semconv.STEP_STATUS) or span.attributes.get(semconv.EXECUTION_STATUS)
    return EndedSpan(span.start_ns, span.end_ns, span.is_error, str(status) if status is not None else None)


class _Spans:
    def __init__(self, run: StoredRun, workspace: str) -> None:
        row = run.execution
        self._run = run
        self._trace_id = bytes.fromhex(row.trace_id)
        ref = ExecutionRef(
            workspace=workspace,
            workflow=row.workflow,
            workflow_id=row.workflow_id,
            execution_id=row.execution_id,
            trace_id=row.trace_id,
            span_id=row.span_id,
            version=row.version,
        )
        self._execution_attributes = execution_attributes(ref)
        self._span_ids = {step.step_id: step.span_id for step in run.steps}
        self._attempts = by_step(run.attempts)
        self._reports = by_step(run.reports)

    def build(self) -> list[Span]:
        spans = [self._root()]
        for step in self._run.steps:
            if step.started_ns is not None or step.finished_ns is not None:
                spans.append(self._step(step))
                spans += self._attempts_of(step)
        return spans

    def _root(self) -> Span:
        row = self._run.execution
        start = row.started_ns if row.started_ns is not None else row.created_ns
        span = self._span(row.span_id, row.parent_span_id, semconv.run_span_name(row.workflow), start, row.finished_ns)
        span.kind = Span.SPAN_KIND_SERVER
        if row.parent_span_id:
            span.flags = _FLAGS_UNKNOWN_PARENT
        _add(span.attributes, self._execution_attributes)
        _add(span.attributes, execution_state_attributes(ExecutionStatus(row.status)))
        _fail(span, row.error_type, row.error_message, row.error_stack)
        return span

    def _step(self, step: StoredStep) -> Span:
        start = step.started_ns if step.started_ns is not None else step.finished_ns
        span = self._span(step.span_id, step.parent_span_id, step.name, start or 0, step.finished_ns)
        wait_ns = sum(
            ns or 0
            for ns in (step.dependency_ns, step.unaccounted_ns, step.scheduled_ns, step.queue_ns, step.backoff_ns)
        )
        _add(span.attributes, step_attributes(self._execution_attributes, step))
        state = step_state_attributes(
            StepStatus(step.status), step.attempt, wait_ns, step.skip_reason, decoded(step.resources)
        )
        for report in self._reports.get(step.step_id, ()):
            if report.kind == "cost":
                add_cost(state, report.value, report.tokens_in, report.tokens_out, report.name)
            elif report.kind == "measure":
                _event(span, semconv.MEASURE_EVENT, report.time_ns,
                       measure_attributes(report.name, report.value, report.unit))  # fmt: skip
            else:
                _event(span, semconv.LOG_EVENT, report.time_ns, log_attributes(report.unit, report.name))
        _add(span.attributes, state)
        for dependency in step.depends_on:
            if dependency in self._span_ids:
                span.links.add(trace_id=self._trace_id, span_id=bytes.fromhex(self._span_ids[dependency]))
        _fail(span, step.error_type, step.error_message, step.error_stack)
        return span

    def _attempts_of(self, step: StoredStep) -> list[Span]:
        """Spans of the attempts of a step that was retried, and of the one that runs now, which has no row yet."""
        rows = self._attempts.get(step.step_id, [])
        spans = []
        for row in rows:
            span = self._attempt(step, row.attempt, row.status, row.started_ns, row.finished_ns, _used(row))
            # Archives and rows of earlier versions have no stack.
            _fail(span, row.error_type, row.error_message, getattr(row, "error_stack", None))
            spans.append(span)
        if step.status == StepStatus.RUNNING and step.attempt > 1 and all(row.attempt != step.attempt for row in rows):
            spans.append(self._attempt(step, step.attempt, step.status, step.attempt_started_ns or 0, None, None))
        return spans

    def _attempt(
        self, step: StoredStep, attempt: int, status: str, start_ns: int, end_ns: int | None, used: Resources | None
    ) -> Span:
        name = semconv.attempt_span_name(step.name, attempt)
        span = self._span(attempt_span_id(step.span_id, attempt), step.span_id, name, start_ns, end_ns)
        _add(span.attributes, attempt_attributes(self._execution_attributes, step, attempt))
        _add(span.attributes, attempt_state_attributes(StepStatus(status), used))
        return span

    def _span(self, span_id: str, parent: str | None, name: str, start_ns: int, end_ns: int | None) -> Span:
        return Span(
            trace_id=self._trace_id,
            span_id=bytes.fromhex(span_id),
            parent_span_id=bytes.fromhex(parent) if parent else b"",
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=start_ns,
            end_time_unix_nano=end_ns or 0,
            flags=_FLAGS_LOCAL_PARENT,
        )


def _used(row: Any) -> Resources | None:
    # Archives and rows of earlier versions have none.
    return decoded(getattr(row, "resources", None))


def _fail(span: Span, kind: str | None, message: str | None, stack: str | None) -> None:
    if kind is None:
        return
    failure = Failure(kind, message or "", stack)
    span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=failure.message))
    _add(span.attributes, {semconv.ERROR_TYPE: failure.type})
    end_ns = span.end_time_unix_nano or span.start_time_unix_nano
    _event(span, semconv.EXCEPTION_EVENT, end_ns, exception_attributes(failure))


def _event(span: Span, name: str, time_ns: int, attributes: Mapping[str, Any]) -> None:
    _add(span.events.add(name=name, time_unix_nano=time_ns).attributes, attributes)


def _add(to: Any, attributes: Mapping[str, Any]) -> None:
    to.extend([KeyValue(key=key, value=_value(value)) for key, value in attributes.items()])


def _value(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(double_value=value)


def _resource() -> bytes:
    resource = ResourceSpans()
    resource.resource.attributes.add(key="service.name").value.string_value = SERVICE
    scope = resource.scope_spans.add().scope
    scope.name, scope.version = semconv.SCOPE, version()
    return resource.SerializeToString(deterministic=True)
