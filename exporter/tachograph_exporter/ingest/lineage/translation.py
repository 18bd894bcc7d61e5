"""OpenLineage events as spans: one for each run that is an execution or a try of a step (see `vocabulary`).

A pure function of the events that are there. The spans have the ids that they had when fewer events were there, so that
what is stored is replaced. A step that never ran has a span without length.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from tachograph_exporter.ingest.lineage import vocabulary as words
from tachograph_exporter.ingest.lineage.edges import complete
from tachograph_exporter.ingest.lineage.events import LineageError, LineageEvent
from tachograph_exporter.ingest.lineage.keys import airflow_key
from tachograph_exporter.ingest.lineage.runs import Run, Step, number_of, runs_of, steps_of, workflow_of
from tachograph_exporter.ingest.spans import SpanRecord, record

_INTERNAL: Final = 1
_SERVER: Final = 2
_ERROR: Final = 2
_REASONS: Final = frozenset({"task_failure", "all_tasks_deadlocked", "timed_out"})
"""Airflow's words for why a DAG's run failed: the error is that of a task."""


def trace_id_of(workspace_id: str, run_id: str) -> str:
    """The trace id of the spans of a run and all runs in it."""
    return hashlib.blake2b(f"{workspace_id}/{run_id}".encode(), digest_size=16, person=b"lineage trace").hexdigest()


def span_id_of(run_id: str) -> str:
    """The id of a run's span."""
    return hashlib.blake2b(run_id.encode(), digest_size=8, person=b"lineage span").hexdigest()


def spans_of(events: Iterable[LineageEvent], trace_id: str) -> list[SpanRecord]:
    """The spans of the runs that events tell of. All events of a trace must be given together."""
    runs = runs_of(events)
    within: dict[str, list[Run]] = defaultdict(list)
    for run in runs.values():
        if run.execution is not run and run.is_told:
            within[run.execution.run_id].append(run)
    spans: list[SpanRecord] = []
    for run in runs.values():
        inner = within.get(run.run_id, [])
        if run.execution is not run or not (run.is_told or inner):
            continue
        steps = steps_of(run, inner)
        complete(run, steps)
        if run.is_told:
            spans.append(_execution_span(run, trace_id, steps))
        for step in steps:
            spans += _step_spans(step, trace_id)
    return spans


def _execution_span(run: Run, trace_id: str, steps: Sequence[Step]) -> SpanRecord:
    states = run.states
    word = run.end.lower()
    if word and states is not None and states.run_state in words.STATES:
        word = states.run_state
    error = run.error
    if error is not None and not error.stack and error.message in _REASONS:
        failed = [step.last.error for step in steps if step.tries and step.last.end == "FAIL" and step.last.error]
        error = failed[0] if failed else error
    attributes = {words.EXECUTION: run.run_id, words.WORKFLOW: workflow_of(run), words.STATE: word or None}
    parent = span_id_of(run.above.run_id) if run.above is not None else ""
    return _span(
        run, trace_id, parent, run.started_ns, run.ended_ns or 0, attributes, error if run.end == "FAIL" else None
    )


def _step_spans(step: Step, trace_id: str) -> list[SpanRecord]:
    execution = step.execution
    links = [_first_span_id(other) for other in step.depends_on]
    attributes: dict[str, Any] = {
        words.EXECUTION: execution.run_id,
        words.WORKFLOW: workflow_of(execution),
        words.STEP: step.key,
        words.STEP_NAME: step.name,
        words.STEP_INDEX: step.index,
    }
    if step.is_untold:
        traits = words.traits(has_edges=step.knows_dependencies, is_rootless=not execution.is_told)
        attributes |= {words.STATE: step.word, words.TRAITS: traits}
        stand_in = Run(_untold_id(step), execution.namespace, f"{execution.job}.{step.name}")
        stand_in.engine, stand_in.integration = execution.engine, execution.integration
        stand_in.facts = execution.facts
        parent = span_id_of(execution.run_id)
        return [_span(stand_in, trace_id, parent, step.started_ns, step.ended_ns, attributes, None, links)]
    return [
        _try_span(step, number, run, trace_id, attributes, links) for number, run in enumerate(step.tries, 1)
    ]  # fmt: skip


def _try_span(
    step: Step, number: int, run: Run, trace_id: str, attributes: Mapping[str, Any], links: Sequence[str]
) -> SpanRecord:
    execution, is_last = step.execution, run is step.last
    word, started_ns, ended_ns = run.end.lower(), run.started_ns, run.ended_ns
    if run.end == "ABORT" and run.integration == "DBT":
        # A node that dbt did not run, because one before it failed.
        word, started_ns = "upstream_failed", ended_ns or started_ns
    if is_last and step.word:
        word = words.SKIPPED_ITSELF if step.word == "skipped" else step.word
    if ended_ns is None and execution.ended_ns is not None:
        # Its end never came. What the engine says of it holds; otherwise nobody knows.
        ended_ns, word = max(execution.ended_ns, started_ns), word or "lost"
    facts = run.facts
    if is_last and word == "fail" and execution.ended_ns is None and facts is not None:
        word = "up_for_retry" if facts.try_number <= facts.retries else word
    traits = words.traits(has_edges=step.knows_dependencies, is_rootless=not execution.is_told)
    own = {
        **attributes,
        words.TRY: number_of(run) or number,
        words.STATE: word or None,
        words.TRAITS: traits,
    }
    above = run.told_above
    parent = span_id_of(above.run_id if above is not None else execution.run_id)
    error = run.error if run.end == "FAIL" and words.STATES.get(word) != "skipped" else None
    return _span(run, trace_id, parent, started_ns, ended_ns or 0, own, error, links)


def _untold_id(step: Step) -> str:
    return f"{step.execution.run_id}/{step.key}"


def _first_span_id(step: Step) -> str:
    return span_id_of(_untold_id(step) if step.is_untold else step.first.run_id)


def _span(
    run: Run,
    trace_id: str,
    parent: str,
    started_ns: int,
    ended_ns: int,
    attributes: Mapping[str, Any],
    error: LineageError | None,
    links: Sequence[str] = (),
) -> SpanRecord:
    is_execution = words.STEP not in attributes
    span = Span(
        trace_id=bytes.fromhex(trace_id),
        span_id=bytes.fromhex(span_id_of(run.run_id)),
        parent_span_id=bytes.fromhex(parent),
        name=run.job,
        kind=_SERVER if is_execution else _INTERNAL,  # type: ignore[arg-type]
        start_time_unix_nano=started_ns,
        end_time_unix_nano=ended_ns,
    )
    facts = run.facts
    key = airflow_key(facts.dag_id, facts.run_id) if facts is not None and facts.dag_id and facts.run_id else None
    own = {
        words.KEY: key,
        words.RUN: run.run_id,
        words.JOB: run.job,
        words.NAMESPACE: run.namespace,
        words.JOB_TYPE: run.job_type,
    }
    for key, value in {**own, **attributes}.items():
        if value is None or (value == "" and key != words.TRAITS):
            continue
        attribute = span.attributes.add(key=key)
        if isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.string_value = value
    if error is not None or words.STATES.get(str(attributes.get(words.STATE))) == "failed":
        span.status.code = _ERROR  # type: ignore[assignment]
        span.status.message = error.message if error is not None else ""
    if error is not None:
        event = span.events.add(name="exception", time_unix_nano=ended_ns)
        for key, text in (("type", error.type), ("message", error.message), ("stacktrace", error.stack)):
            if text:
                event.attributes.add(key=f"exception.{key}").value.string_value = text
    for link in links:
        span.links.add(trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(link))
    service = (run.integration or run.engine or "openlineage").lower()
    resource_id, resource, resource_attributes = _resource(service)
    return record(span, service, words.SCOPE, resource_id, resource, resource_attributes)


@functools.lru_cache(maxsize=256)
def _resource(service: str) -> tuple[str, bytes, Mapping[str, Any]]:
    message = ResourceSpans(resource=Resource())
    message.resource.attributes.add(key="service.name").value.string_value = service
    message.scope_spans.add().scope.name = words.SCOPE
    encoded = message.SerializeToString(deterministic=True)
    return hashlib.blake2b(encoded, digest_size=16).hexdigest(), encoded, {"service.name": service}
