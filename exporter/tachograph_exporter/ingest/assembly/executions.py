"""The executions in a trace, as events. A pure function of the spans that are there."""

from __future__ import annotations

import itertools
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

import msgspec

from tachograph.clock import MAX_NS
from tachograph.critical_path import critical_path_of
from tachograph.events import (
    FAILED,
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Heartbeat,
    StepFinished,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, Origin, workflow_id
from tachograph.run_window import RunWindow, placed
from tachograph.workflow.attempts import start_of
from tachograph_exporter.ingest.assembly.assembled_step import (
    AssembledStep,
    NestedRun,
    has_failed,
    may_be_repeated,
    may_grow,
    was_lost,
)
from tachograph_exporter.ingest.assembly.dependencies import identify, mark_blocked
from tachograph_exporter.ingest.assembly.events import (
    OUTCOMES,
    SILENT,
    attempts_of,
    failure_of,
    failure_of_try,
    running_span,
    step_costs,
    step_events,
    tells_why,
)
from tachograph_exporter.ingest.assembly.steps import NAME_LIMIT, place, stand_in, steps_of
from tachograph_exporter.ingest.assembly.trace import TraceSpans, executions_of, nesting, run_of
from tachograph_exporter.ingest.built_in_rules import ANY, BUILT_IN
from tachograph_exporter.ingest.lineage.joining import joined
from tachograph_exporter.ingest.rules import RETRYING, RUNNING, Kind, Role, Rule, Rulebook
from tachograph_exporter.ingest.spans import EARLIEST_NS, SpanRecord, clean
from tachograph_exporter.store.merging import INGESTED_PROCESS

_COMPLETED: Final = ExecutionStatus.COMPLETED
_OF_STEPS: Final = frozenset({Role.STEP, Role.ATTEMPT, Role.QUEUED})
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOST: Final = frozenset({StepStatus.LOST.value, ExecutionStatus.LOST.value})
_NAMESPACE: Final = uuid.UUID("5b7ac6a1-5c1e-5f8e-8a55-0f6f746c7021")


class LastAttempt(NamedTuple):
    """The span of a step's last attempt, and its number."""

    span_id: str
    attempt: int


class AssembledExecution(NamedTuple):
    """One execution.

    Attributes:
        root: its own span, if it has arrived.
        events: what happened, as far as the spans tell.
        sources: for each event a key of what it was read from, stable when the trace is assembled again: the id of a
            span, or a key that several spans share.
        is_named: whether the spans name its workflow; otherwise the name is a guess.
        spans: its spans without the root.
        may_be_a_step: a span that has not arrived may show that it is no execution.
        is_parent_near: that span is of the same process, so it comes when it has ended.
        starts: the keys of the starts of attempts, by the id of the attempt's span.
        running: those of these spans that have not ended.
        has_id_of_run: its id derives from its run, not from its trace.
        is_lasting: its steps may outlast its own span, so that it has ended is inferred.
        unsure: the last attempts of steps that have failed and may be tried again, by the step's source.
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
    may_be_a_step: bool
    starts: Mapping[str, EventKey] = {}
    running: AbstractSet[str] = frozenset()
    has_id_of_run: bool = False
    unsure: Mapping[Any, LastAttempt] = {}
    is_lasting: bool = False
    is_parent_near: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, as far as the spans tell."""
        return type(self.events[-1]) is ExecutionFinished

    def keyed(self) -> Iterator[tuple[EventKey, Event]]:
        """Its events as if it had been recorded here, each with a key that is stable across assemblies."""
        for event, source in zip(self.events, self.sources, strict=True):
            if isinstance(event, StepRetrying | StepFinished) or (
                isinstance(event, StepSkipped) and event.started_ns is not None
            ):
                # A span arrives when the attempt has ended, so the start is implied.
                yield (StepStarted, source, event.attempt), start_of(event)
            # What is lost may end after all, and that is another event.
            key = source if getattr(event, "status", "") not in _LOST else ("lost", source)
            yield (type(event), key, getattr(event, "attempt", 0)), event


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
    ``is_quiet``: no span has arrived for so long that an execution without a root has ended, if a step of it failed.
    """
    trace = TraceSpans(joined(spans), book)
    heads, groups = executions_of(trace)
    around = nesting(heads, groups, trace)
    runs = {key: _Run(workspace, trace, *head, groups.get(key, []), avoid) for key, head in heads.items()}
    for key, following in _successions(heads).items():
        runs[key].followed_ns = following
    nested: dict[str, list[_Run]] = defaultdict(list)
    for key, outer in around.items():
        nested[outer].append(runs[key])
    # A step's end is that of the execution which it is, so inner ones first; ids of steps are known outer ones first.
    inner_first = [*reversed(around), *[key for key in runs if key not in around]]
    for key in inner_first:
        runs[key].settle(nested.get(key, ()), is_quiet)
    for key in reversed(inner_first):
        runs[key].identify(runs[around[key]] if key in around else None)
    return [run.assembled(now_ns) for run in runs.values()]


def _successions(heads: Mapping[str, tuple[str, SpanRecord | None, Rule]]) -> dict[str, int]:
    """When the next execution of its series began, for executions that have one."""
    series: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for key, (_, root, rule) in heads.items():
        if root is not None and rule.series is not None and (value := rule.series(root)) is not None:
            series[rule.engine, repr(value)].append((root.start_ns, key))
    return {
        key: following
        for members in series.values()
        for (_, key), (following, _) in itertools.pairwise(sorted(members))
    }


class _Run:
    """One execution during assembly."""

    def __init__(
        self,
        workspace: str,
        trace: TraceSpans,
        head: str,
        root: SpanRecord | None,
        rule: Rule,
        spans: list[SpanRecord],
        avoid: frozenset[str],
    ) -> None:
        self.workspace = workspace
        self.trace = trace
        self.root = root
        self.rule = rule
        self.spans = spans
        self.name, self.is_named = _name_of(root, rule, spans, trace)
        first = root if root is not None else spans[0]
        self.trace_id = first.trace_id
        run = run_of(rule, first)
        if run is None and root is not None and rule.together is not None and len(keys := rule.together(root)) > 1:
            run = keys[0]
        self.has_id_of_run = run is not None and (rule.across_traces or rule.together is not None)
        self.execution_id = _execution_id(workspace, rule, run, self.trace_id, head, avoid)
        self.started_ns = root.start_ns if root is not None else min([span.start_ns for span in spans])
        self.queued_ns: int | None = None
        if root is not None and rule.began is not None:
            self._read_times(root, rule)
        self.followed_ns: int | None = None
        """When the next execution of its series began: then this one had ended."""
        self.ended_ns: int | None = None
        self.status = ExecutionStatus.RUNNING
        self.failure: Failure | None = None
        self.may_change = True
        self.steps: list[AssembledStep] = []
        self.ref: ExecutionRef | None = None

    def _read_times(self, root: SpanRecord, rule: Rule) -> None:
        """When it was queued and when it started, where its span begins with the former."""
        began = rule.began(root) if rule.began is not None else None
        if isinstance(began, int) and root.start_ns <= began <= max(root.end_ns, root.start_ns):
            self.started_ns = began
        queued = rule.queued(root) if rule.queued is not None else None
        if isinstance(queued, int) and EARLIEST_NS <= queued <= self.started_ns:
            self.queued_ns = queued

    def settle(self, nested: Sequence[_Run], is_quiet: bool) -> None:
        """Find the steps, and the end. ``nested``: the executions inside this one, settled."""
        root, rule, trace = self.root, self.rule, self.trace
        steps = self.steps = steps_of(root, self.spans, trace, [run.nested() for run in nested])
        if root is not None and rule.of_agent and root.span_id in trace.spent:
            # Only the span of the whole run says what it spent.
            stand_in(steps, self.name, msgspec.structs.replace(rule, role=Role.STEP), root)
        mark_blocked(steps)
        end_ns, status, blamed = self._end(is_quiet)
        if end_ns is not None:
            is_lasting = _is_lasting(rule, steps)
            if status is ExecutionStatus.COMPLETED and is_lasting:
                # No span above these steps waited for them, so none of them says that a step failed.
                if any(map(has_failed, steps)):
                    status = ExecutionStatus.FAILED
                elif any(map(was_lost, steps)):
                    status = ExecutionStatus.LOST
                elif any(step.tries and step.tries[-1].status == "cancelled" for step in steps):
                    status = ExecutionStatus.CANCELLED
            if status is ExecutionStatus.COMPLETED and rule.ends_as_last_agent:
                agents = [step for step in steps if step.rule.is_frame and step.parent is None]
                last = max(agents, key=lambda step: step.finished_ns or end_ns, default=None)
                if last is not None and has_failed(last):
                    # What the agent was doing at its end may know more than the agent's span.
                    doing = max([step for step in steps if not step.rule.is_frame], key=_end_of, default=last)
                    blamed_step = doing if has_failed(doing) and doing.first.exception is not None else last
                    newest = blamed_step.tries[-1]
                    status, blamed = ExecutionStatus.FAILED, (newest.rule, newest.blamed)
            elif status is ExecutionStatus.COMPLETED and rule.of_agent and _was_given_up(root, steps):
                status = ExecutionStatus.CANCELLED
            for step in steps:
                if step.run is not None and step.finished_ns is None:
                    step.finished_ns = max(end_ns, step.first_ns)
            if status is not ExecutionStatus.COMPLETED:
                self.failure = self._failure(status, blamed)
        self.ended_ns, self.status = end_ns, status
        # What is not final of an execution inside this one is not final of its step.
        self.may_change = (
            rule.opens
            or rule.lasting
            or any(may_grow(step) for step in steps)
            or any(run.ended_ns is None or run.may_change for run in nested)
            or self._has_orphans()
            or self._has_unread_messages()
        )

    def _failure(self, status: ExecutionStatus, blamed: tuple[Rule, SpanRecord] | None) -> Failure | None:
        """Why it failed: what its own span says; if that says nothing, the first of its steps that failed.

        If it says that a step has failed, without a reason, the last of them: those before it were put up with.
        """
        if status is ExecutionStatus.LOST:
            return SILENT
        is_wrapped = (
            blamed is not None and blamed[1].exception is not None and blamed[1].exception[0] in blamed[0].wraps
        )
        if blamed is not None and not is_wrapped and tells_why(*blamed):
            return failure_of(blamed[1], blamed[0])
        failed = [step for step in self.steps if has_failed(step)] if status.value in FAILED else []
        if failed:
            failed.sort(key=lambda step: (step.finished_ns or 0, step.first.span_id))
            culprit = failed[-1] if is_wrapped else failed[0]
            failure = failure_of_try(culprit.tries[-1]) if culprit.run is None else culprit.run.failure
            if failure is not None:
                return failure
        return failure_of(blamed[1], blamed[0]) if blamed is not None else None

    def _end(self, is_quiet: bool) -> tuple[int | None, ExecutionStatus, tuple[Rule, SpanRecord] | None]:
        """When it ended (None: not yet), how, and the span that says so."""
        root, rule, steps = self.root, self.rule, self.steps
        is_open = None, ExecutionStatus.RUNNING, None
        if root is None or (rule.opens and 0 < root.end_ns <= root.start_ns):
            for span in self.spans:
                end_rule = self.trace.rules[span.span_id]
                if end_rule is not None and end_rule.role is Role.END:
                    return span.end_ns or span.start_ns, _outcome(end_rule, span), (end_rule, span)
            if root is not None:
                if self.followed_ns is None:
                    return is_open
                # It was continued: only one execution of a series can be open.
                ends = [step.finished_ns for step in steps if step.finished_ns is not None]
                return max([root.start_ns, *[min(end, self.followed_ns) for end in ends]]), _COMPLETED, None
        is_lasting = _is_lasting(rule, steps)
        has_open = any(step.finished_ns is None and not step.is_blocked for step in steps)
        ends = [step.finished_ns for step in steps if step.finished_ns is not None]
        if root is None:
            # How it ended, only a failure tells: of an engine that exports no span for it, too.
            if (
                not (is_lasting and is_quiet and ends)
                or has_open
                or not any(has_failed(s) or was_lost(s) for s in steps)
            ):
                return is_open
            return max(ends), _COMPLETED, None
        if root.is_lost and not any(step.finished_ns is None and step.is_running for step in steps):
            # Nothing runs any more, or is known to.
            return max([root.lost_ns, *ends]), ExecutionStatus.LOST, (rule, root)
        if not root.end_ns or (is_lasting and has_open) or _goes_on(rule, root):
            return is_open
        if not is_lasting:
            return root.end_ns, _outcome(rule, root), (rule, root)
        end_ns = max([root.end_ns, *ends])
        if rule.role in (Role.STEP, Role.QUEUED):
            # The root is a step, or asked for one, and that step has the outcome.
            return end_ns, _COMPLETED, None
        return end_ns, _outcome(rule, root), (rule, root)

    @property
    def may_be_a_step(self) -> bool:
        """Whether a span that has not arrived may show that it is a step of something else: one above it, which is of
        another agent's run, or the one that asked for it in another trace.
        """
        span = self.root
        if span is not None and self.rule.linked and span.elsewhere and not span.parent_span_id:
            return True
        if span is None or not self.rule.is_outermost:
            return False
        highest = self._highest()
        return bool(highest.parent_span_id) and highest.parent_span_id not in self.trace.spans_by_id

    def _highest(self) -> SpanRecord:
        """The highest span above its own that has arrived, or that one; of spans in a circle any."""
        span, seen = self.root if self.root is not None else self.spans[0], set[str]()
        while span.span_id not in seen and (above := self.trace.spans_by_id.get(span.parent_span_id)) is not None:
            seen.add(span.span_id)
            span = above
        return span

    def _has_orphans(self) -> bool:
        """Whether what is a step depends on a span that has not arrived: where no rule says which spans are steps."""
        trace = self.trace
        rules = (trace.rules[span.span_id] for span in self.spans)
        if any(r is not None and r.engine != ANY.engine and r.role in _OF_STEPS for r in rules):
            return False
        return any(span.parent_span_id and span.parent_span_id not in trace.spans_by_id for span in self.spans)

    def _has_unread_messages(self) -> bool:
        """Whether a message was sent, and the span of whoever reads it has not arrived: that one will be the step."""
        rules = self.trace.rules
        own = (self.root, *self.spans) if self.root is not None else self.spans
        return any(span.kind == Kind.PRODUCER and rules[span.span_id] is None for span in own)

    def nested(self) -> NestedRun:
        """What the execution around this one needs to know of it."""
        assert self.root is not None  # noqa: S101 - it is found by its root
        status = self.status.value if self.ended_ns is not None else None
        return NestedRun(
            self.execution_id, self.name, self.root, self.rule.engine, self.started_ns, self.ended_ns, status,
            self.failure,
        )  # fmt: skip

    def identify(self, around: _Run | None) -> None:
        """Set the ids of the execution and its steps. ``around``: the execution that it ran inside, identified."""
        root, rule = self.root, self.rule
        engine_id = rule.workflow_id(root) if root is not None and rule.workflow_id is not None else None
        if not (isinstance(engine_id, str) and _UUID.fullmatch(engine_id)):
            engine_id = workflow_id(self.workspace, self.name)
        parent_step = None
        if around is not None:
            parent_step = next((step for step in around.steps if step.child_execution_id == self.execution_id), None)
        self.ref = ExecutionRef(
            workspace=self.workspace,
            workflow=self.name,
            workflow_id=engine_id,
            execution_id=self.execution_id,
            trace_id=self.trace_id,
            span_id=root.span_id if root is not None else (self.spans[0].parent_span_id or self.spans[0].span_id),
            parent_span_id=(root.parent_span_id or None) if root is not None else None,
            version=_version(rule, root),
            origin=Origin.INGESTED,
            parent_execution_id=around.execution_id if around is not None else None,
            parent_step_id=parent_step.step_id if parent_step is not None else None,
        )
        identify(self.ref, self.steps)

    def assembled(self, now_ns: int) -> AssembledExecution:
        """The execution's events."""
        assert self.ref is not None  # noqa: S101
        ref, steps, end_ns = self.ref, self.steps, self.ended_ns
        window = RunWindow.of(self.started_ns, end_ns, now_ns)
        place(steps, window)
        events: list[Event] = [
            ExecutionStarted(execution=ref, time_ns=self.started_ns, step_count=len(steps), process=INGESTED_PROCESS)
        ]
        sources: list[Any] = [ref.execution_id]
        if self.queued_ns is not None:
            events.insert(0, ExecutionQueued(execution=ref, time_ns=self.queued_ns, process=INGESTED_PROCESS))
            sources.append(ref.execution_id)
        counts: dict[str, int] = defaultdict(int)
        work_ns = 0
        ends = {step.step_id: step.place.end_ns if step.place is not None else None for step in steps}
        for step in steps:
            if end_ns is None and step.rule.retries and step.finished_ns is not None and has_failed(step):
                # It may be retried as long as the execution runs.
                step.is_queued_again, step.finished_ns, ends[step.step_id] = True, None, None
            for cost in step_costs(step, self.trace.spent):
                events.append(cost)
                sources.append(step.source)
            for event in step_events(step, ends, window, ended_ns=end_ns):
                events.append(event)
                sources.append(step.source)
                if type(event) is StepFinished:
                    counts[event.status] += 1
                    work_ns += event.run_ns if step.parent is None else 0
                elif type(event) is StepSkipped:
                    counts[StepStatus.SKIPPED] += 1
                    work_ns += event.run_ns if step.parent is None else 0
                    step.started_ns = event.started_ns  # As stored: what never ran is on no critical path.
        if end_ns is not None:
            ended = [step for step in steps if step.finished_ns is not None]
            events.append(
                ExecutionFinished(
                    execution=ref,
                    time_ns=end_ns,
                    status=self.status,
                    started_ns=self.started_ns,
                    step_count=len(steps),
                    completed_step_count=counts[StepStatus.COMPLETED],
                    failed_step_count=sum(count for status, count in counts.items() if status in FAILED),
                    skipped_step_count=counts[StepStatus.SKIPPED],
                    # Many long steps beside each other may add up to more than a database holds.
                    work_ns=min(work_ns, MAX_NS),
                    critical_path=critical_path_of(placed(ended, window)),
                    failure=self.failure,
                )
            )
        else:
            events.append(Heartbeat(execution=ref, time_ns=now_ns))
        sources.append(ref.execution_id)
        return AssembledExecution(
            ref, self.root, events, sources, self.is_named, self.spans, self.may_change, self.may_be_a_step,
            {span_id: (StepStarted, step.source, number) for step in steps for span_id, number in attempts_of(step)},
            frozenset([span_id for step in steps if (span_id := running_span(step)) is not None]), self.has_id_of_run,
            {
                step.source: LastAttempt(step.tries[-1].span.span_id, len(step.tries))
                for step in steps
                if self._may_be_tried_again(step)
            },
            _is_lasting(self.rule, steps), self._highest().is_parent_near,
        )  # fmt: skip

    def _may_be_tried_again(self, step: AssembledStep) -> bool:
        """Whether what runs a step that has failed goes on, and may run it again."""
        if self.ended_ns is not None or not may_be_repeated(step):
            return False
        above = self.trace.spans_by_id.get(step.first.parent_span_id)
        return above is None or not above.over_ns


def _was_given_up(root: SpanRecord | None, steps: Sequence[AssembledStep]) -> bool:
    """Whether an agent was cancelled while it waited for a step: its own span does not say how it ended."""
    if root is None or root.status_code or not root.end_ns:
        return False
    last = max([step for step in steps if step.tries], key=_end_of, default=None)
    return last is not None and last.tries[-1].status == "cancelled" and _end_of(last) >= root.end_ns


def _end_of(step: AssembledStep) -> int:
    return step.finished_ns or 0


def _is_lasting(rule: Rule, steps: Sequence[AssembledStep]) -> bool:
    return rule.lasting or any(step.rule.lasting for step in steps)


def _outcome(rule: Rule, span: SpanRecord) -> ExecutionStatus:
    outcome = rule.status(span)
    return ExecutionStatus(outcome) if outcome in OUTCOMES else _COMPLETED


def _version(rule: Rule, root: SpanRecord | None) -> str:
    version = rule.version(root) if root is not None and rule.version is not None else None
    return clean(str(version or "1"))[:NAME_LIMIT]


def _goes_on(rule: Rule, root: SpanRecord) -> bool:
    """Whether an execution goes on though its span has ended: it is tried again, in a process without a span of it."""
    return rule.role is Role.EXECUTION and rule.status(root) in (RUNNING, RETRYING)


def _asked_name(rule: Rule, spans: Sequence[SpanRecord], trace: TraceSpans) -> Any:
    """What the span calls the workflow that asked for an execution without a span of its own."""
    series = rule.series(spans[0]) if rule.series is not None else None
    if series is None:
        return None
    for span in trace.order:
        asking = trace.rules[span.span_id]
        if asking is None or asking.role is not Role.INSIDE or asking.workflow is None or asking.series is None:
            continue
        if asking.engine == rule.engine and asking.series(span) == series:
            return asking.workflow(span)
    return None


def _name_of(root: SpanRecord | None, rule: Rule, spans: list[SpanRecord], trace: TraceSpans) -> tuple[str, bool]:
    """The name of an execution's workflow, and whether the spans say so (see `AssembledExecution.is_named`)."""
    if root is not None:
        return clean(str(rule.name(root) or root.name or "unnamed"))[:NAME_LIMIT], True
    if rule.workflow is not None and (name := rule.workflow(spans[0])) is not None:
        return clean(str(name))[:NAME_LIMIT], True
    if (name := _asked_name(rule, spans, trace)) is not None:
        return clean(str(name))[:NAME_LIMIT], True
    for span in spans:
        for attribute in ("workflow.definition.name", "cicd.pipeline.name"):
            if attribute in span.attributes:
                return clean(str(span.attributes[attribute]))[:NAME_LIMIT], False
    service = spans[0].service
    # Where an engine's span is missing, its service is surely not what the workflow is called.
    return (service if rule.engine == ANY.engine else f"unnamed ({service})")[:NAME_LIMIT], False


def _execution_id(workspace: str, rule: Rule, run: Any, trace_id: str, key: str, avoid: frozenset[str]) -> str:
    if isinstance(run, str) and _UUID.fullmatch(run) and run not in avoid:
        return run
    # Without an id from its engine, the id derives from the trace, so it is the same before the root arrives.
    if run is not None and rule.across_traces:
        execution_id = str(uuid.uuid5(_NAMESPACE, f"{workspace}/run/{rule.engine}:{run}"))
        if execution_id not in avoid:
            return execution_id
    source = f"{trace_id}:{rule.engine}:{run}" if run is not None else f"{trace_id}:{key}"
    return str(uuid.uuid5(_NAMESPACE, f"{workspace}/{source}"))
