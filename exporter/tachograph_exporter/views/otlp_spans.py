"""A recorded execution as spans, for trace viewers: ids, times and attributes as it was exported with."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from tachograph.clock import NS
from tachograph.events import ExecutionStatus, StepStatus
from tachograph.spans import semconv
from tachograph.version import version
from tachograph_exporter.ingest.spans import SpanRecord, record
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import StoredStep

SERVICE: Final = "tachograph"
_AROUND: Final = {"service.name": SERVICE}


def spans_of_run(run: StoredRun, workspace: str) -> list[SpanRecord]:
    """The spans of an execution: its own, one for each step, one for each attempt where there were several.

    What still runs has spans that have not ended (``end_ns`` 0).
    """
    row = run.execution
    resource = _resource()
    made: list[Span] = []
    root = _span(
        row.trace_id, row.span_id, row.parent_span_id, semconv.run_span_name(row.workflow), Span.SPAN_KIND_SERVER
    )
    root.start_time_unix_nano = row.started_ns if row.started_ns is not None else row.created_ns
    root.end_time_unix_nano = row.finished_ns or 0
    status = ExecutionStatus(row.status)
    about: dict[str, Any] = {
        semconv.WORKFLOW_NAME: row.workflow,
        semconv.WORKFLOW_ID: row.workflow_id,
        semconv.WORKFLOW_VERSION: row.version,
        semconv.WORKSPACE: workspace,
        semconv.EXECUTION_ID: row.execution_id,
        semconv.PIPELINE_NAME: row.workflow,
        semconv.PIPELINE_RUN_ID: row.execution_id,
    }
    _describe(root, {**about, semconv.EXECUTION_STATUS: status.value})
    if status in semconv.EXECUTION_RESULTS:
        _describe(root, {semconv.PIPELINE_RESULT: semconv.EXECUTION_RESULTS[status]})
    _fail(root, row.error_type, row.error_message, row.error_stack, row.finished_ns)
    made.append(root)
    span_ids = {step.step_id: step.span_id for step in run.steps}
    attempts: dict[str, list[Any]] = defaultdict(list)
    for attempt in run.attempts:
        attempts[attempt.step_id].append(attempt)
    for step in run.steps:
        if step.started_ns is None and step.finished_ns is None:
            continue
        made.append(_step_span(run, step, about, span_ids))
        several = attempts.get(step.step_id, [])
        made += [_attempt_span(run, step, attempt) for attempt in several if len(several) > 1]
    return [record(span, SERVICE, semconv.SCOPE, "", resource, _AROUND) for span in made]


def _step_span(run: StoredRun, step: StoredStep, about: dict[str, Any], span_ids: dict[str, str]) -> Span:
    made = _span(run.execution.trace_id, step.span_id, step.parent_span_id, step.name, Span.SPAN_KIND_INTERNAL)
    begun = step.started_ns if step.started_ns is not None else step.finished_ns
    made.start_time_unix_nano = begun or 0
    made.end_time_unix_nano = step.finished_ns or 0
    status = StepStatus(step.status)
    waits = (step.dependency_ns or 0) + (step.queue_ns or 0) + (step.backoff_ns or 0)
    _describe(made, about)
    _describe(
        made,
        {
            semconv.STEP_NAME: step.name,
            semconv.STEP_ID: step.step_id,
            semconv.STEP_TYPE: step.step_type,
            semconv.STEP_ATTEMPT: step.attempt,
            semconv.STEP_STATUS: status.value,
            semconv.STEP_WAIT: waits / NS,
            semconv.TASK_NAME: step.name,
            semconv.TASK_RUN_ID: f"{run.execution.execution_id}/{step.step_id}",
        },
    )
    if status in semconv.STEP_RESULTS:
        _describe(made, {semconv.TASK_RESULT: semconv.STEP_RESULTS[status]})
    if step.skip_reason is not None:
        _describe(made, {semconv.STEP_SKIP_REASON: step.skip_reason})
    for one in step.depends_on:
        if one in span_ids:
            made.links.add(trace_id=made.trace_id, span_id=bytes.fromhex(span_ids[one]))
    _fail(made, step.error_type, step.error_message, step.error_stack, step.finished_ns)
    return made


def _attempt_span(run: StoredRun, step: StoredStep, attempt: Any) -> Span:
    # Attempts' own span ids are not kept; the same each time they are asked for will do.
    number = (int(step.span_id, 16) + attempt.attempt) % (1 << 64) or 1
    name = semconv.attempt_span_name(step.name, attempt.attempt)
    made = _span(run.execution.trace_id, f"{number:016x}", step.span_id, name, Span.SPAN_KIND_INTERNAL)
    made.start_time_unix_nano, made.end_time_unix_nano = attempt.started_ns, attempt.finished_ns
    _describe(
        made,
        {
            semconv.EXECUTION_ID: run.execution.execution_id,
            semconv.STEP_NAME: step.name,
            semconv.STEP_ID: step.step_id,
            semconv.STEP_ATTEMPT: attempt.attempt,
            semconv.STEP_STATUS: attempt.status,
        },
    )
    _fail(made, attempt.error_type, attempt.error_message, None, attempt.finished_ns)
    return made


def _span(trace_id: str, span_id: str, parent: str | None, name: str, kind: Span.SpanKind.ValueType) -> Span:
    return Span(
        trace_id=bytes.fromhex(trace_id),
        span_id=bytes.fromhex(span_id),
        parent_span_id=bytes.fromhex(parent) if parent else b"",
        name=name,
        kind=kind,
        flags=0x101,
    )


def _describe(span: Span, attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        span.attributes.add(key=key).value.CopyFrom(_value(value))


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return AnyValue(double_value=value) if isinstance(value, float) else AnyValue(string_value=str(value))


def _fail(span: Span, kind: str | None, message: str | None, stack: str | None, at_ns: int | None) -> None:
    if kind is None:
        return
    span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=message or ""))
    _describe(span, {semconv.ERROR_TYPE: kind})
    event = span.events.add(name="exception", time_unix_nano=at_ns or span.start_time_unix_nano)
    for key, text in (("exception.type", kind), ("exception.message", message), ("exception.stacktrace", stack)):
        if text:
            event.attributes.add(key=key).value.string_value = text


def _resource() -> bytes:
    made = ResourceSpans()
    made.resource.attributes.add(key="service.name").value.string_value = SERVICE
    scope = made.scope_spans.add().scope
    scope.name, scope.version = semconv.SCOPE, version()
    return made.SerializeToString(deterministic=True)
