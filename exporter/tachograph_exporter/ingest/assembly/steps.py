"""The steps among the spans of an execution. Pure functions of the spans that are there.

Spans arrive in any order, twice, in batches over minutes, or never. So whenever some arrive, the trace is assembled
anew from all stored spans: the result depends on what arrived, not on when. Missing spans are tolerated: an execution
without its root is running; a step without its parent is a step of the execution.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tachograph.events import FAILED
from tachograph.run_window import RunWindow
from tachograph_exporter.ingest.assembly.assembled_step import AssembledStep, NestedRun
from tachograph_exporter.ingest.assembly.repeated_runs import split_repeated
from tachograph_exporter.ingest.assembly.trace import NearestAncestor, TraceSpans, WithinExecution, start_order
from tachograph_exporter.ingest.assembly.tries import Matched, status_of
from tachograph_exporter.ingest.built_in_rules import ANY, CONSUMED, SENT
from tachograph_exporter.ingest.rules import RETRYING, Kind, Role, Rule
from tachograph_exporter.ingest.spans import SpanRecord, clean

NAME_LIMIT: Final = 200
_FAILURES: Final = frozenset({*FAILED, RETRYING, "lost"})
"""How an attempt ended that another one followed."""


class _Steps:
    """The steps of an execution while its spans are assigned to them."""

    def __init__(self, trace: TraceSpans) -> None:
        self.trace = trace
        self.by_span: dict[str, AssembledStep] = {}
        self.by_key: dict[Any, AssembledStep] = {}

    def key_of(self, rule: Rule, span: SpanRecord) -> Any:
        """What attempts of one step have in common: the key of the span, or of the span that asked for it."""
        key = rule.key(span) if rule.key is not None else None
        if key is None and rule.role is not Role.QUEUED:
            above = self.trace.rules.get(span.parent_span_id)
            if above is not None and above.role is Role.QUEUED and above.engine == rule.engine:
                key = above.key(self.trace.spans_by_id[span.parent_span_id]) if above.key is not None else None
                if key is None and rule.engine != ANY.engine:
                    key = span.parent_span_id
        return (rule.engine, key if isinstance(key, str) else repr(key)) if key is not None else None

    def add(self, rule: Rule, span: SpanRecord, kind: str) -> AssembledStep:
        """Assign a span to the step with its key, or to a new one."""
        key = self.key_of(rule, span)
        step = self.by_key.get(key) if key is not None else None
        if step is None:
            step = AssembledStep(_step_name(rule, span), rule, span, key)
            if rule.index is not None and (index := rule.index(span)) is not None:
                step.index = clean(str(index))[:NAME_LIMIT]
            if key is not None:
                self.by_key[key] = step
        elif kind == "spans" and step.rule.role is not Role.STEP:
            step.rule, step.name = rule, _step_name(rule, span)
        elif rule.names_step:
            step.name = _step_name(rule, span)
        getattr(step, kind).append((rule, span))
        self.by_span[span.span_id] = step
        return step


def steps_of(
    root: SpanRecord | None, spans: list[SpanRecord], trace: TraceSpans, nested: Sequence[NestedRun] = ()
) -> list[AssembledStep]:
    """The steps among an execution's spans, ordered by their start; the executions inside it are steps, too."""
    spans_by_id, rules = trace.spans_by_id, trace.rules
    steps = _Steps(trace)
    attempts: list[Matched] = []
    outcomes: list[Matched] = []
    queued: list[Matched] = []
    unknown: list[SpanRecord] = []
    has_steps = False
    if root is not None and (rule := rules[root.span_id]) is not None and rule.role is Role.QUEUED:
        queued.append((rule, root))
        has_steps = rule.engine != ANY.engine
    for span in spans:
        rule = rules[span.span_id]
        if rule is None:
            unknown.append(span)
            continue
        role = rule.role
        if role is Role.STEP:
            steps.add(rule, span, "spans")
        elif role is Role.ATTEMPT:
            attempts.append((rule, span))
        elif role is Role.QUEUED:
            queued.append((rule, span))
        elif role is Role.OUTCOME:
            outcomes.append((rule, span))
            continue
        else:
            continue
        has_steps = has_steps or rule.engine != ANY.engine
    if not has_steps:
        # Spans of unknown kind: the children of the root are the steps.
        top = root.span_id if root is not None else None
        for span in unknown:
            if span.kind == Kind.PRODUCER and rules.get(span.parent_span_id) is SENT:
                continue  # It sent the message that the span above it stands for.
            if span.parent_span_id == top or span.parent_span_id not in spans_by_id:
                steps.add(CONSUMED if span.kind == Kind.CONSUMER else ANY, span, "spans")
    _merge_repetitions(steps)
    _add_attempts(attempts, steps)
    _add_outcomes(outcomes, steps)
    _add_queued(queued, steps)
    split_repeated(steps.by_span)
    _add_nested(nested, steps)
    assembled = list({id(step): step for step in steps.by_span.values()}.values())
    _place_within(assembled, steps)
    assembled.sort(key=lambda step: (step.first_ns, step.first.span_id))
    return assembled


def stand_in(steps: list[AssembledStep], name: str, rule: Rule, root: SpanRecord) -> None:
    """Add a step for an execution's own span, around all others."""
    # The same span may be a step of the execution around it.
    step = AssembledStep(name, rule, root, ("itself", root.span_id))
    step.spans.append((rule, root))
    step.settle()
    for other in steps:
        if other.parent is None:
            other.parent = step
    steps.insert(0, step)


def _step_name(rule: Rule, span: SpanRecord) -> str:
    return clean(str(rule.name(span) or span.name or "unnamed"))[:NAME_LIMIT]


def _merge_repetitions(steps: _Steps) -> None:
    """Steps without a key, of the same name and parent, are attempts of one if each but the last failed before the next
    began: a loop that goes on after a success is several steps."""
    failed = {key for step in steps.by_span.values() if (key := _repeated(step, is_failure=True)) is not None}
    if not failed:
        return
    groups: dict[Any, list[AssembledStep]] = defaultdict(list)
    for step in steps.by_span.values():
        if (key := _repeated(step)) in failed:
            groups[key].append(step)
    for group in groups.values():
        group.sort(key=lambda step: start_order(step.first))
        first, *others = group
        if others and _are_attempts([step.spans[0] for step in group]):
            for step in others:
                first.spans += step.spans
                steps.by_span[step.first.span_id] = first


def _repeated(step: AssembledStep, *, is_failure: bool = False) -> Any:
    """What attempts of a step without a key have in common; None: it has a key, or (``is_failure``) did not fail."""
    rule, span = step.rule, step.first
    if rule.attempt is not None or rule.lasting or len(step.spans) != 1:
        return None
    if rule.key is not None and (not rule.of_agent or rule.key(span) is not None):
        return None
    if rule.of_agent and rule.step_type == "tool":
        # An agent that calls a tool again after a failure was told of it in between.
        return None
    if is_failure and status_of(rule, span) not in _FAILURES:
        return None
    return (rule.engine, step.name, span.parent_span_id, step.index)


def _are_attempts(spans: Sequence[Matched]) -> bool:
    for (rule, span), (_, following) in itertools.pairwise(spans):
        if span.over_ns > following.start_ns or status_of(rule, span) not in _FAILURES:
            return False
    return True


def _add_attempts(attempts: Sequence[Matched], steps: _Steps) -> None:
    trace = steps.trace
    ancestor = NearestAncestor(trace.spans_by_id, WithinExecution(steps.by_span, trace)) if attempts else None
    orphans: list[Matched] = []
    for rule, span in attempts:
        key = steps.key_of(rule, span)
        owner = steps.by_key.get(key) if key is not None else None
        if owner is None and key is None and ancestor is not None:
            owner = steps.by_span.get(ancestor(span.span_id) or "")
        if owner is not None:
            owner.attempts.append((rule, span))
        else:
            orphans.append((rule, span))
    for rule, span in orphans:
        # The step's own span has not arrived: its attempts stand in for it.
        key = steps.key_of(rule, span) or (rule.engine, "attempts of", _step_name(rule, span))
        owner = steps.by_key.get(key)
        if owner is None:
            owner = steps.by_key[key] = AssembledStep(_step_name(rule, span), rule, span, key)
            if rule.index is not None and (index := rule.index(span)) is not None:
                owner.index = clean(str(index))[:NAME_LIMIT]
        owner.spans.append((rule, span))
        steps.by_span[span.span_id] = owner


def _add_outcomes(outcomes: Sequence[Matched], steps: _Steps) -> None:
    for rule, span in outcomes:
        owner = steps.by_span.get(span.parent_span_id)
        if owner is None and (key := steps.key_of(rule, span)) is not None:
            owner = steps.by_key.get(key)
            if owner is None:
                owner = steps.by_key[key] = AssembledStep(_step_name(rule, span), rule, span, key)
                steps.by_span[span.span_id] = owner
        if owner is not None:
            owner.outcomes.append((rule, span))


def _add_queued(queued: Sequence[Matched], steps: _Steps) -> None:
    """Assign the spans that asked for steps; some of those have not started, or not started again."""
    if not queued:
        return
    below: dict[str, dict[int, AssembledStep]] = defaultdict(dict)
    for step in {id(step): step for step in steps.by_span.values()}.values():
        for _, span in step.spans:
            below[span.parent_span_id][id(step)] = step
    for rule, span in queued:
        owners = below.get(span.span_id)
        if owners is None:
            steps.add(rule, span, "queued")
            continue
        for owner in owners.values():
            owner.queued.append((rule, span))
            owner.name = _step_name(rule, span) if rule.names_step else owner.name
            steps.by_span.setdefault(span.span_id, owner)
            if (key := steps.key_of(rule, span)) is not None:
                steps.by_key.setdefault(key, owner)


def _add_nested(nested: Sequence[NestedRun], steps: _Steps) -> None:
    """Add the executions inside this one. Where it is the only one inside a step, that step stands for it."""
    if not nested:
        return
    trace, by_span = steps.trace, steps.by_span
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
            step.asked_ns = step.ready_ns = asked.start_ns
        by_span[run.root.span_id] = step


def _place_within(assembled: Iterable[AssembledStep], steps: _Steps) -> None:
    """Find each step's attempts, and the step that it is inside, or that it follows."""
    trace, by_span = steps.trace, steps.by_span
    ancestor = NearestAncestor(trace.spans_by_id, WithinExecution(by_span, trace))
    for step in assembled:
        step.settle()
        if step.run is not None:
            step.parent = by_span.get(ancestor(step.run.root.span_id) or "")
            continue
        asking = step.queued[0][1] if step.queued else None
        outer = by_span.get(ancestor(step.first.span_id if asking is None else asking.span_id) or "")
        if outer is step:
            outer = None
        if asking is not None:
            # It follows the step that asked for it and is not inside it: that step did not wait for it.
            step.after = outer
        elif step.rule.follows and outer is not None and outer.rule.follows:
            step.after = outer
        else:
            step.parent = outer
    _break_cycles(assembled)


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


def _break_cycles(steps: Iterable[AssembledStep]) -> None:
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
