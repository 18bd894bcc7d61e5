"""The executions in a trace, as events. A pure function of the spans that are there."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from tachograph.critical_path import critical_path_of
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Heartbeat,
    StepFinished,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, Origin, workflow_id
from tachograph.workflow.attempts import start_of
from tachograph_exporter.ingest.assembly.events import OUTCOMES, failure_of, step_events
from tachograph_exporter.ingest.assembly.steps import (
    NAME_LIMIT,
    AssembledStep,
    has_failed,
    identify,
    may_grow,
    steps_of,
)
from tachograph_exporter.ingest.assembly.trace import TraceSpans, executions_of, run_of
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.rules import Role, Rule, Rulebook
from tachograph_exporter.ingest.spans import SpanRecord, clean
from tachograph_exporter.store.recovery import INGESTED_PROCESS

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMESPACE: Final = uuid.UUID("5b7ac6a1-5c1e-5f8e-8a55-0f6f746c7021")


class AssembledExecution(NamedTuple):
    """One execution.

    Attributes:
        root: its own span, if it has arrived.
        events: what happened, as far as the spans tell.
        sources: for each event a key of what it was read from, stable when the trace is assembled again: the id of a
            span, or a key that several spans share.
        is_named: whether the spans name its workflow; otherwise the name is a guess.
        spans: its spans without the root.
        settles: how a step ended is only certain when no more spans arrive, because a step may have several spans, or
            outlast its parent.
    """

    execution: ExecutionRef
    root: SpanRecord | None
    events: list[Event]
    sources: list[Any]
    is_named: bool
    spans: Sequence[SpanRecord]
    may_change: bool

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, as far as the spans tell."""
        return type(self.events[-1]) is ExecutionFinished

    def keyed(self) -> Iterator[tuple[EventKey, Event]]:
        """Its events as if it had been recorded here, each with a key that is stable across assemblies."""
        for event, source in zip(self.events, self.sources, strict=True):
            if isinstance(event, StepRetrying | StepFinished):
                # A span arrives when the attempt has ended, so the start is implied.
                yield (StepStarted, source, event.attempt), start_of(event)
            yield (type(event), source, getattr(event, "attempt", 0)), event


EventKey = tuple[type[Event], Any, int]


def assemble(
    workspace: str,
    spans: Sequence[SpanRecord],
    now_ns: int,
    book: Rulebook = BUILT_IN,
    avoid: frozenset[str] = frozenset(),
    *,
    is_quiet: bool = False,
) -> list[AssembledExecution]:
    """The executions in one trace. Costs O(spans).

    ``avoid``: execution ids in use in other workspaces; an execution with such an id from its engine gets another one.
    ``is_quiet``: no span has arrived for so long that an execution without a root has ended with its last step.
    """
    trace = TraceSpans(spans, book)
    heads, groups = executions_of(trace)
    return [
        _execution(workspace, trace, key, *head, groups.get(key, []), now_ns, avoid, is_quiet)
        for key, head in heads.items()
    ]


def _execution(
    workspace: str,
    trace: TraceSpans,
    head: str,
    key: str,
    root: SpanRecord | None,
    rule: Rule,
    spans: list[SpanRecord],
    now_ns: int,
    avoid: frozenset[str],
    is_quiet: bool,
) -> AssembledExecution:
    name, is_named = _name_of(root, rule, spans)
    engine_id = rule.workflow_id(root) if root is not None and rule.workflow_id is not None else None
    if not (isinstance(engine_id, str) and _UUID.fullmatch(engine_id)):
        engine_id = workflow_id(workspace, name)
    run = run_of(rule, root if root is not None else spans[0])
    ref = ExecutionRef(
        workspace=workspace,
        workflow=name,
        workflow_id=engine_id,
        execution_id=_execution_id(workspace, rule, run, trace.trace_id, key, avoid),
        trace_id=trace.trace_id,
        span_id=root.span_id if root is not None else (spans[0].parent_span_id or spans[0].span_id),
        parent_span_id=(root.parent_span_id or None) if root is not None else None,
        version=_version(rule, root),
        origin=Origin.INGESTED,
    )
    steps = steps_of(root, spans, trace)
    started_ns = root.start_ns if root is not None else min([span.start_ns for span in spans])
    identify(ref, steps)
    end_span = next((span for span in spans if trace.role(span.span_id) is Role.END), None)
    end_rule = trace.rules[end_span.span_id] if end_span is not None else None
    end_ns, status, blamed = _end(root, rule, steps, end_span, end_rule or rule, is_quiet)
    events: list[Event] = [
        ExecutionStarted(execution=ref, time_ns=started_ns, step_count=len(steps), process=INGESTED_PROCESS)
    ]
    sources: list[Any] = [ref.execution_id]
    counts: dict[StepStatus, int] = defaultdict(int)
    work_ns = 0
    ends = {step.step_id: step.finished_ns for step in steps}
    for step in steps:
        if end_ns is None and step.rule.retries and step.finished_ns is not None and has_failed(step):
            # It may be retried as long as the execution runs.
            step.is_queued_again, step.finished_ns, ends[step.step_id] = True, None, None
        for event in step_events(step, ends, started_ns):
            events.append(event)
            sources.append(step.source)
            if type(event) is StepFinished:
                counts[event.status] += 1
                work_ns += event.run_ns if step.parent is None else 0
            elif type(event) is StepSkipped:
                counts[StepStatus.SKIPPED] += 1
                step.started_ns = None  # As stored: what never ran is on no critical path.
    failed = counts[StepStatus.FAILED] + counts[StepStatus.TIMEOUT]
    if end_ns is not None and failed and status is ExecutionStatus.COMPLETED and _is_lasting(rule, steps):
        # No span above these steps waited for them, so none of them says that a step failed.
        status, blamed = ExecutionStatus.FAILED, next(s for s in steps if has_failed(s)).last
    if end_ns is not None:
        events.append(
            ExecutionFinished(
                execution=ref,
                time_ns=end_ns,
                status=status,
                started_ns=started_ns,
                step_count=len(steps),
                completed_step_count=counts[StepStatus.COMPLETED],
                failed_step_count=failed,
                skipped_step_count=counts[StepStatus.SKIPPED],
                work_ns=work_ns,
                critical_path=critical_path_of([step for step in steps if step.finished_ns is not None]),
                failure=failure_of(blamed, rule) if status is not ExecutionStatus.COMPLETED and blamed else None,
            )
        )
    else:
        events.append(Heartbeat(execution=ref, time_ns=now_ns))
    sources.append(ref.execution_id)
    may_change = rule.opens or rule.lasting or any(may_grow(step) for step in steps)
    return AssembledExecution(ref, root, events, sources, is_named, spans, may_change)


def _is_lasting(rule: Rule, steps: Sequence[AssembledStep]) -> bool:
    return rule.lasting or any(step.rule.lasting for step in steps)


def _end(
    root: SpanRecord | None,
    rule: Rule,
    steps: Sequence[AssembledStep],
    end_span: SpanRecord | None,
    end_rule: Rule,
    is_quiet: bool,
) -> tuple[int | None, ExecutionStatus, SpanRecord | None]:
    """When an execution ended (None: not yet), how, and the span that says why. ``end_span`` has the role END."""
    if root is None or (rule.opens and root.end_ns <= root.start_ns):
        if end_span is not None:
            return end_span.end_ns or end_span.start_ns, ExecutionStatus(_outcome(end_rule, end_span)), end_span
        if root is not None:
            return None, ExecutionStatus.RUNNING, None
    is_lasting = _is_lasting(rule, steps)
    if root is None:
        if not (is_lasting and is_quiet and steps) or any(step.finished_ns is None for step in steps):
            return None, ExecutionStatus.RUNNING, None
        return max(step.finished_ns or 0 for step in steps), ExecutionStatus.COMPLETED, None
    end_ns = root.end_ns
    if not end_ns or (is_lasting and any(step.finished_ns is None for step in steps)):
        return None, ExecutionStatus.RUNNING, None
    if is_lasting:
        end_ns = max([end_ns, *[step.finished_ns or 0 for step in steps]])
        if rule.role in (Role.STEP, Role.QUEUED):
            # The root is a step, or queued one, and that step has the outcome.
            return end_ns, ExecutionStatus.COMPLETED, None
    return end_ns, ExecutionStatus(_outcome(rule, root)), root


def _outcome(rule: Rule, span: SpanRecord) -> str:
    outcome = rule.status(span)
    return outcome if outcome in OUTCOMES else "completed"


def _version(rule: Rule, root: SpanRecord | None) -> str:
    version = rule.version(root) if root is not None and rule.version is not None else None
    return clean(str(version or "1"))[:NAME_LIMIT]


def _name_of(root: SpanRecord | None, rule: Rule, spans: list[SpanRecord]) -> tuple[str, bool]:
    """The name of an execution's workflow, and whether the spans say so (see `AssembledExecution.is_named`)."""
    if root is not None:
        return clean(str(rule.name(root) or root.name or "unnamed"))[:NAME_LIMIT], True
    if rule.workflow is not None and (name := rule.workflow(spans[0])) is not None:
        return clean(str(name))[:NAME_LIMIT], True
    for span in spans:
        for attribute in ("workflow.definition.name", "cicd.pipeline.name"):
            if attribute in span.attributes:
                return clean(str(span.attributes[attribute]))[:NAME_LIMIT], False
    return spans[0].service[:NAME_LIMIT], False


def _execution_id(workspace: str, rule: Rule, run: Any, trace_id: str, key: str, avoid: frozenset[str]) -> str:
    if isinstance(run, str) and _UUID.fullmatch(run) and run not in avoid:
        return run
    # Without an id from its engine, the id derives from the trace, so it is the same before the root arrives.
    source = f"{trace_id}:{rule.engine}:{run}" if run is not None else f"{trace_id}:{key}"
    return str(uuid.uuid5(_NAMESPACE, f"{workspace}/{source}"))
