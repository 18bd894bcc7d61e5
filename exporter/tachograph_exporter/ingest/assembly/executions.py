"""The spans of a trace as executions. A pure function of the spans that are there."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from tachograph.critical_path import path_of
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
from tachograph_exporter.store.recovery import INGESTED

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMESPACE: Final = uuid.UUID("5b7ac6a1-5c1e-5f8e-8a55-0f6f746c7021")


class AssembledExecution(NamedTuple):
    """One execution.

    ``root`` is its own span, if it has come. ``is_named``: what it is an execution of is known, not guessed.
    ``sources``: for each event what it is told by, the same in every reading: a span's id, or a key that several share.
    ``spans``: those that are of it, its own not among them. ``settles``: a step may have several spans, or outlast the
    span above it, so that only when nothing more comes it is sure how a step ended.
    """

    execution: ExecutionRef
    root: SpanRecord | None
    events: list[Event]
    sources: list[Any]
    is_named: bool
    spans: Sequence[SpanRecord]
    settles: bool

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, as far as is known."""
        return type(self.events[-1]) is ExecutionFinished

    def keyed(self) -> Iterator[tuple[EventKey, Event]]:
        """Its events as a run here would have told them, each with a key by which another reading has it too."""
        for event, source in zip(self.events, self.sources, strict=True):
            if isinstance(event, StepRetrying | StepFinished):
                # Spans tell of an attempt when it has ended.
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

    ``avoid``: ids that other workspaces' executions have; one whose engine gave it such an id gets another.
    ``is_quiet``: nothing has come for so long that an execution without a span of its own has ended with its last step.
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
    given = rule.workflow_id(root) if root is not None and rule.workflow_id is not None else None
    of_workflow = given if isinstance(given, str) and _UUID.fullmatch(given) else workflow_id(workspace, name)
    run = run_of(rule, root if root is not None else spans[0])
    ref = ExecutionRef(
        workspace=workspace,
        workflow=name,
        workflow_id=of_workflow,
        execution_id=_execution_id(workspace, rule, run, trace.trace_id, key, avoid),
        trace_id=trace.trace_id,
        span_id=root.span_id if root is not None else (spans[0].parent_span_id or spans[0].span_id),
        parent_span_id=(root.parent_span_id or None) if root is not None else None,
        version=_version(rule, root),
        origin=Origin.INGESTED,
    )
    steps = steps_of(root, spans, trace)
    begun = root.start_ns if root is not None else min([span.start_ns for span in spans])
    identify(ref, steps)
    ended = next((span for span in spans if trace.role(span.span_id) is Role.END), None)
    end, status, blamed = _end(root, rule, steps, (ended, trace.rules[ended.span_id]) if ended else None, is_quiet)
    events: list[Event] = [ExecutionStarted(execution=ref, time_ns=begun, step_count=len(steps), process=INGESTED)]
    sources: list[Any] = [ref.execution_id]
    counts: dict[StepStatus, int] = defaultdict(int)
    work = 0
    ends = {step.step_id: step.finished_ns for step in steps}
    for step in steps:
        if end is None and step.rule.retries and step.finished_ns is not None and has_failed(step):
            # It may be tried again for as long as the execution runs.
            step.is_asked_again, step.finished_ns, ends[step.step_id] = True, None, None
        for event in step_events(step, ends, begun):
            events.append(event)
            sources.append(step.source)
            if type(event) is StepFinished:
                counts[event.status] += 1
                work += event.run_ns if step.parent is None else 0
            elif type(event) is StepSkipped:
                counts[StepStatus.SKIPPED] += 1
    failed = counts[StepStatus.FAILED] + counts[StepStatus.TIMEOUT]
    if end is not None and failed and status is ExecutionStatus.COMPLETED and _is_lasting(rule, steps):
        # Nobody above these steps waited for them, so nobody above says that one failed.
        status, blamed = ExecutionStatus.FAILED, next(s for s in steps if has_failed(s)).last
    if end is not None:
        events.append(
            ExecutionFinished(
                execution=ref,
                time_ns=end,
                status=status,
                started_ns=begun,
                step_count=len(steps),
                completed_step_count=counts[StepStatus.COMPLETED],
                failed_step_count=failed,
                skipped_step_count=counts[StepStatus.SKIPPED],
                work_ns=work,
                critical_path=path_of([step for step in steps if step.finished_ns is not None]),
                failure=failure_of(blamed, rule) if status is not ExecutionStatus.COMPLETED and blamed else None,
            )
        )
    else:
        events.append(Heartbeat(execution=ref, time_ns=now_ns))
    sources.append(ref.execution_id)
    settles = rule.opens or rule.lasting or any(may_grow(step) for step in steps)
    return AssembledExecution(ref, root, events, sources, is_named, spans, settles)


def _is_lasting(rule: Rule, steps: Sequence[AssembledStep]) -> bool:
    return rule.lasting or any(step.rule.lasting for step in steps)


def _end(
    root: SpanRecord | None,
    rule: Rule,
    steps: Sequence[AssembledStep],
    ended: tuple[SpanRecord, Rule | None] | None,
    is_quiet: bool,
) -> tuple[int | None, ExecutionStatus, SpanRecord | None]:
    """When an execution ended (None: it has not), how, and the span that says why. ``ended``: the span of role END."""
    if root is None or (rule.opens and root.end_ns <= root.start_ns):
        if ended is not None:
            span, says = ended
            return span.end_ns or span.start_ns, ExecutionStatus(_outcome(says or rule, span)), span
        if root is not None:
            return None, ExecutionStatus.RUNNING, None
    is_lasting = _is_lasting(rule, steps)
    if root is None:
        if not (is_lasting and is_quiet and steps) or any(step.finished_ns is None for step in steps):
            return None, ExecutionStatus.RUNNING, None
        return max(step.finished_ns or 0 for step in steps), ExecutionStatus.COMPLETED, None
    end = root.end_ns
    if not end or (is_lasting and any(step.finished_ns is None for step in steps)):
        return None, ExecutionStatus.RUNNING, None
    if is_lasting:
        end = max([end, *[step.finished_ns or 0 for step in steps]])
        if rule.role in (Role.STEP, Role.QUEUED):
            # It is a step, or asked for one, and that says how it went.
            return end, ExecutionStatus.COMPLETED, None
    return end, ExecutionStatus(_outcome(rule, root)), root


def _outcome(rule: Rule, span: SpanRecord) -> str:
    word = rule.status(span)
    return word if word in OUTCOMES else "completed"


def _version(rule: Rule, root: SpanRecord | None) -> str:
    given = rule.version(root) if root is not None and rule.version is not None else None
    return clean(str(given or "1"))[:NAME_LIMIT]


def _name_of(root: SpanRecord | None, rule: Rule, spans: list[SpanRecord]) -> tuple[str, bool]:
    """An execution's name, and whether something says that it is its name."""
    if root is not None:
        return clean(str(rule.name(root) or root.name or "unnamed"))[:NAME_LIMIT], True
    if rule.workflow is not None and (named := rule.workflow(spans[0])) is not None:
        return clean(str(named))[:NAME_LIMIT], True
    for span in spans:
        for attribute in ("workflow.definition.name", "cicd.pipeline.name"):
            if attribute in span.attributes:
                return clean(str(span.attributes[attribute]))[:NAME_LIMIT], False
    return spans[0].service[:NAME_LIMIT], False


def _execution_id(workspace: str, rule: Rule, run: Any, trace_id: str, key: str, avoid: frozenset[str]) -> str:
    if isinstance(run, str) and _UUID.fullmatch(run) and run not in avoid:
        return run
    # Without an id of its engine's, it is the execution of its trace: also before its root has come.
    own = f"{trace_id}:{rule.engine}:{run}" if run is not None else f"{trace_id}:{key}"
    return str(uuid.uuid5(_NAMESPACE, f"{workspace}/{own}"))
