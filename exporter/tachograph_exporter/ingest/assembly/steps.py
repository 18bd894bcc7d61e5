"""The steps among the spans of an execution. Pure functions of the spans that are there.

Spans arrive in any order, twice, in batches over minutes, or never. So whenever some arrive, the trace is assembled
anew from all stored spans: the result depends on what arrived, not on when. Missing spans are tolerated: an execution
without its root is running; a step without its parent is a step of the execution.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tachograph.events import FAILED, Failure, StepStatus
from tachograph.identity import ExecutionRef, StepRef, step_id
from tachograph.inferred_dependencies import Dependencies, InferredDependencies
from tachograph.run_window import Place, RunWindow
from tachograph.spans import semconv
from tachograph_exporter.ingest.assembly.trace import NearestAncestor, TraceSpans, WithinExecution, start_order
from tachograph_exporter.ingest.built_in_rules import ANY
from tachograph_exporter.ingest.rules import Role, Rule
from tachograph_exporter.ingest.spans import SpanRecord, clean

NAME_LIMIT: Final = 200
TYPE_LIMIT: Final = 16
_MOMENT: Final = operator.itemgetter(0, 1, 2)


class NestedRun(NamedTuple):
    """An execution that ran inside another one; ``status`` is None while it is open."""

    execution_id: str
    workflow: str
    root: SpanRecord
    engine: str
    started_ns: int
    ended_ns: int | None
    status: str | None
    failure: Failure | None


class AssembledStep:
    """A step during assembly: its spans, one per attempt or one for all attempts.

    A step that was queued and has not started has the span that queued it, and ``is_pending``. A step that is an
    execution of its own has the root span of that one, and ``run``.
    """

    __slots__ = (
        "after", "attempts", "child_execution_id", "depends_on", "finished_ns", "is_pending", "is_queued_again",
        "last", "name", "parent", "parent_step_id", "place", "ready_ns", "ref", "rule", "run", "source", "spans",
        "started_ns", "step_id",
    )  # fmt: skip

    def __init__(self, name: str, rule: Rule, span: SpanRecord, key: Any = None, *, is_pending: bool = False) -> None:
        self.name = name
        self.rule = rule
        self.source = span.span_id if key is None else key
        self.spans = [span]
        self.attempts: list[tuple[Rule, SpanRecord]] = []
        self.is_pending = is_pending
        # It has run, and was queued again since.
        self.is_queued_again = False
        self.parent: AssembledStep | None = None
        self.ref: StepRef | None = None
        self.last = span
        self.run: NestedRun | None = None
        self.child_execution_id: str | None = None
        self.place: Place | None = None
        # When it was queued, if a span says so, and the step it follows, if that one's span is above its own.
        self.ready_ns: int | None = None
        self.after: AssembledStep | None = None
        # What `tachograph.critical_path` reads.
        self.step_id = ""
        self.depends_on: tuple[str, ...] = ()
        self.parent_step_id: str | None = None
        self.started_ns: int | None = None
        self.finished_ns: int | None = None

    @property
    def first_ns(self) -> int:
        """When it started, or was queued."""
        return self.started_ns if self.started_ns is not None else self.last.start_ns

    def settle(self) -> None:
        """Set start and end, once all its spans are assigned."""
        spans = self.spans
        self.last = spans[0] if len(spans) == 1 else max(spans, key=start_order)
        if self.is_pending:
            return
        if self.run is not None:
            self.started_ns, self.finished_ns = self.run.started_ns, self.run.ended_ns
            return
        # If attempts have spans of their own, the time before the first one is waiting.
        attempts = spans if len(spans) > 1 or not self.attempts else [span for _, span in self.attempts]
        self.started_ns = min([span.start_ns for span in attempts])
        if attempts is not spans and spans[0].start_ns < self.started_ns:
            self.ready_ns = spans[0].start_ns
        self.finished_ns = None if self.is_queued_again else self.last.over_ns or None


def may_grow(step: AssembledStep) -> bool:
    """Whether later spans may be further attempts of the step."""
    rule = step.rule
    return bool(step.attempts) or rule.key is not None or rule.lasting or rule.retries or rule.role is Role.ATTEMPT


def outcome_of(rule: Rule, span: SpanRecord) -> str:
    """How a span ended, or that it was lost: whatever it says so far was not its end."""
    return StepStatus.LOST.value if span.is_lost else rule.status(span)


def has_failed(step: AssembledStep) -> bool:
    """Whether it has ended as failed."""
    status = outcome_of(step.rule, step.last) if step.run is None else step.run.status
    return step.finished_ns is not None and status in FAILED


def steps_of(
    root: SpanRecord | None, spans: list[SpanRecord], trace: TraceSpans, nested: Sequence[NestedRun] = ()
) -> list[AssembledStep]:
    """The steps among an execution's spans, ordered by their start; the executions inside it are steps, too."""
    spans_by_id, rules = trace.spans_by_id, trace.rules
    by_span: dict[str, AssembledStep] = {}
    by_key: dict[Any, AssembledStep] = {}
    attempts: list[tuple[Rule, SpanRecord]] = []
    queued = [span for span in spans if trace.role(span.span_id) is Role.QUEUED]
    if root is not None and trace.role(root.span_id) is Role.QUEUED:
        queued.insert(0, root)
    has_steps = bool(queued) or any(trace.role(span.span_id) in (Role.STEP, Role.ATTEMPT) for span in spans)
    top = root.span_id if root is not None else None
    for span in spans:
        rule = rules[span.span_id]
        if rule is not None and rule.role is Role.ATTEMPT:
            attempts.append((rule, span))
            continue
        is_step = rule is not None and rule.role is Role.STEP
        if not is_step and not has_steps and (span.parent_span_id == top or span.parent_span_id not in spans_by_id):
            # Spans of unknown kind: the children of the root are the steps.
            is_step = rule is None
            rule = ANY
        if not is_step or rule is None:
            continue
        key = rule.key(span) if rule.key is not None else None
        same = by_key.get((rule.engine, key)) if key is not None else None
        if same is not None:
            same.spans.append(span)
            by_span[span.span_id] = same
            continue
        step = by_span[span.span_id] = AssembledStep(_step_name(rule, span), rule, span, key)
        if key is not None:
            by_key[rule.engine, key] = step
    ancestor = NearestAncestor(spans_by_id, WithinExecution(by_span, trace))
    orphans: list[tuple[Rule, SpanRecord]] = []
    for rule, span in attempts:
        owner = ancestor(span.span_id)
        if owner in by_span:
            by_span[owner].attempts.append((rule, span))
        else:
            orphans.append((rule, span))
    for rule, span in orphans:
        # The step's own span has not arrived: its attempts stand in for it.
        name = _step_name(rule, span)
        owner_step = by_key.get((rule.engine, "attempts of", name))
        if owner_step is None:
            owner_step = by_key[rule.engine, "attempts of", name] = AssembledStep(name, rule, span, name)
        else:
            owner_step.spans.append(span)
        by_span[span.span_id] = owner_step
    _add_pending(queued, spans, trace, by_span, by_key)
    _add_nested(nested, trace, by_span)
    steps = list({id(step): step for step in by_span.values()}.values())
    ancestor = NearestAncestor(spans_by_id, WithinExecution(by_span, trace))
    for step in steps:
        step.settle()
        if step.run is not None:
            step.parent = by_span.get(ancestor(step.run.root.span_id) or "")
            continue
        first = min(step.spans, key=start_order)
        queueing = step.spans[0] if step.is_pending else spans_by_id.get(first.parent_span_id)
        if queueing is not None and trace.role(queueing.span_id) is not Role.QUEUED:
            queueing = None
        outer = by_span.get(ancestor(first.span_id if queueing is None else queueing.span_id) or "")
        if outer is step:
            outer = None
        if queueing is not None:
            # It follows the step that queued it and is not inside it: that step did not wait for it.
            step.ready_ns, step.after = queueing.start_ns, outer
        elif step.rule.follows and outer is not None and outer.rule.follows:
            step.after = outer
        else:
            step.parent = outer
    _break_cycles(steps)
    steps.sort(key=lambda step: (step.first_ns, step.spans[0].span_id))
    return steps


def _step_name(rule: Rule, span: SpanRecord) -> str:
    return clean(str(rule.name(span) or span.name or "unnamed"))[:NAME_LIMIT]


def _add_pending(
    queued: Sequence[SpanRecord],
    spans: Sequence[SpanRecord],
    trace: TraceSpans,
    by_span: dict[str, AssembledStep],
    by_key: dict[Any, AssembledStep],
) -> None:
    """Add steps that were queued and have not started, or not started again."""
    started = {span.parent_span_id for span in spans if trace.role(span.span_id) is Role.STEP}
    for span in queued:
        rule = trace.rules[span.span_id]
        if span.span_id in started or rule is None:
            continue
        key = rule.key(span) if rule.key is not None else None
        same = by_key.get((rule.engine, key)) if key is not None else None
        if same is None:
            step = by_span[span.span_id] = AssembledStep(_step_name(rule, span), rule, span, key, is_pending=True)
            if key is not None:
                by_key[rule.engine, key] = step
        else:
            same.is_queued_again = True


def _add_nested(nested: Sequence[NestedRun], trace: TraceSpans, by_span: dict[str, AssembledStep]) -> None:
    """Add the executions inside this one. Where it is the only one inside a step, that step stands for it."""
    ancestor = NearestAncestor(trace.spans_by_id, WithinExecution(by_span, trace))
    around = [by_span.get(ancestor(run.root.span_id) or "") for run in nested]
    counts: dict[int, int] = defaultdict(int)
    for step in around:
        counts[id(step)] += 1
    for run, outer in zip(nested, around, strict=True):
        if outer is not None and counts[id(outer)] == 1:
            outer.child_execution_id = run.execution_id
            continue
        step = AssembledStep(run.workflow, Rule(engine=run.engine, role=Role.STEP), run.root)
        step.run, step.child_execution_id = run, run.execution_id
        asked = trace.spans_by_id.get(run.root.parent_span_id)
        if asked is not None and trace.role(asked.span_id) in (Role.INSIDE, Role.QUEUED):
            # The span that asked for the execution.
            step.ready_ns = asked.start_ns
        by_span[run.root.span_id] = step


def place(steps: Sequence[AssembledStep], window: RunWindow) -> None:
    """Set every step's place in the execution: within ``window``, and not before the step around it."""
    for step in steps:
        chain: list[AssembledStep] = []
        current: AssembledStep | None = step
        while current is not None and current.place is None:
            chain.append(current)
            current = current.parent
        for inner in reversed(chain):
            inner.place = bounds(inner, window).place(inner.first_ns, inner.finished_ns)


def bounds(step: AssembledStep, window: RunWindow) -> RunWindow:
    """The time within which a step can lie."""
    outer = step.parent.place if step.parent is not None else None
    return window if outer is None else RunWindow(outer.start_ns, window.end_ns)


def _break_cycles(steps: Sequence[AssembledStep]) -> None:
    """Make sure that no step is inside itself, whatever the spans say."""
    safe: set[int] = set()
    for step in steps:
        path: list[AssembledStep] = []
        on_path: set[int] = set()
        current: AssembledStep | None = step
        while current is not None and id(current) not in safe:
            if id(current) in on_path:
                current.parent = None
                break
            path.append(current)
            on_path.add(id(current))
            current = current.parent
        safe.update(on_path)


def identify(ref: ExecutionRef, steps: list[AssembledStep]) -> None:
    """Set every step's id and dependencies: from links and queueing spans, else inferred from the order they ran in."""
    repetitions: dict[str, int] = defaultdict(int)
    by_span = {span.span_id: step for step in steps for span in step.spans if not step.is_pending}
    for step in steps:
        index = repetitions[step.name]
        repetitions[step.name] += 1
        step.step_id = step_id(ref.workflow_id, step.name, index)
    has_links = any(step.after is not None for step in steps) or any(
        link in by_span for step in steps for span in step.spans for link in span.links
    )
    runs = {step.step_id for step in steps if step.run is not None}
    inferred = _inferred(steps) if runs or not has_links else {}
    repetitions.clear()
    spans_of = {step.step_id: step.spans[0].span_id for step in steps}
    for order, step in enumerate(steps):
        dependency_count, after = 0, inferred.get(step.step_id)
        if has_links:
            linked = [by_span[link] for span in step.spans for link in span.links if link in by_span]
            if step.after is not None:
                linked.insert(0, step.after)
            ids = [other.step_id for other in linked if other is not step]
            if runs and after is not None:
                # Nothing says what a nested execution waited for, nor what waited for it: the program ran on after it.
                if step.run is not None and not ids:
                    ids, dependency_count = [*after[0]], after[1]
                else:
                    ids += [other for other in after[0] if other in runs]
            depends_on = tuple(dict.fromkeys(ids))
        elif after is not None:
            depends_on, dependency_count = after
        else:
            depends_on = ()
        step.depends_on = depends_on
        step.parent_step_id = step.parent.step_id if step.parent is not None else None
        first = step.spans[0] if len(step.spans) == 1 else min(step.spans, key=start_order)
        step.ref = StepRef(
            execution=ref,
            step_id=step.step_id,
            name=step.name,
            span_id=first.span_id,
            parent_span_id=first.parent_span_id or ref.span_id,
            step_type=_step_type(step),
            step_order=order + 1,
            index=repetitions[step.name],
            depends_on=depends_on,
            dependency_count=dependency_count,
            links=tuple([spans_of[other] for other in depends_on if other in spans_of]),
            parent_step_id=step.parent_step_id,
            child_execution_id=step.child_execution_id,
        )
        repetitions[step.name] += 1


def _step_type(step: AssembledStep) -> str:
    if step.run is not None:
        return "workflow"
    kind = step.last.attributes.get(semconv.STEP_TYPE)
    return clean(kind) if isinstance(kind, str) and 0 < len(kind) <= TYPE_LIMIT else "task"


def _inferred(steps: list[AssembledStep]) -> dict[str, Dependencies]:
    moments: list[tuple[int, int, int, AssembledStep]] = []
    for number, step in enumerate(steps):
        if step.parent is None and step.started_ns is not None:
            # What a step waited for had ended when it was asked for; after that it waited for a slot.
            began = step.started_ns if step.ready_ns is None else min(step.ready_ns, step.started_ns)
            moments.append((began, 1, number, step))
            if step.finished_ns is not None:
                # At the same moment ends come before starts, but a step of zero length ends after its own start.
                moments.append((step.finished_ns, 0 if step.finished_ns > began else 2, number, step))
    order = InferredDependencies()
    inferred: dict[str, Dependencies] = {}
    moments.sort(key=_MOMENT)
    for time_ns, kind, _, step in moments:
        if kind == 1:
            inferred[step.step_id] = order.started(step.step_id, time_ns)
        else:
            order.finished(step.step_id, time_ns)
    return inferred
