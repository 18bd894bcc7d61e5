"""The spans of a trace as executions, told in events. A pure function of the spans that are there.

Spans come in any order, twice, in pieces over minutes, or never. So every time some arrive, the trace is put together
anew from all that are kept: the answer depends on what arrived, not on when. What is missing is missing quietly: an
execution whose root has not come yet is running; a step whose parent has not come hangs under its execution.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from tachograph.identity import ExecutionRef, StepRef, step_id
from tachograph.inferred_dependencies import InferredDependencies
from tachograph_exporter.ingest.assembly.trace import NearestAbove, TraceSpans, start_order
from tachograph_exporter.ingest.built_in_rules import ANY
from tachograph_exporter.ingest.rules import Role, Rule
from tachograph_exporter.ingest.spans import SpanRecord, clean

NAME_LIMIT: Final = 200
_MOMENT: Final = operator.itemgetter(0, 1, 2)


class AssembledStep:
    """A step while it is put together: its spans, one for every attempt (or one for all).

    A step that was asked for and has not begun has the span that asked for it, and ``is_pending``.
    """

    __slots__ = (
        "after", "attempts", "depends_on", "finished_ns", "is_asked_again", "is_pending", "last", "name", "parent",
        "parent_step_id", "ready_ns", "ref", "rule", "source", "spans", "started_ns", "step_id",
    )  # fmt: skip

    def __init__(self, name: str, rule: Rule, span: SpanRecord, key: Any = None, *, is_pending: bool = False) -> None:
        self.name = name
        self.rule = rule
        self.source = span.span_id if key is None else key
        self.spans = [span]
        self.attempts: list[tuple[Rule, SpanRecord]] = []
        self.is_pending = is_pending
        # It has run, and was asked for once more since.
        self.is_asked_again = False
        self.parent: AssembledStep | None = None
        self.ref: StepRef | None = None
        self.last = span
        # When it was asked for, where a span says that, and the step it comes after, where that is the span above it.
        self.ready_ns: int | None = None
        self.after: AssembledStep | None = None
        # What `analysis` asks of a step.
        self.step_id = ""
        self.depends_on: tuple[str, ...] = ()
        self.parent_step_id: str | None = None
        self.started_ns: int | None = None
        self.finished_ns: int | None = None

    @property
    def first_ns(self) -> int:
        """When it started, or was asked for."""
        return self.started_ns if self.started_ns is not None else self.last.start_ns

    def settle(self) -> None:
        """All its spans are there: when did it start and end?"""
        spans = self.spans
        self.last = spans[0] if len(spans) == 1 else max(spans, key=start_order)
        if self.is_pending:
            return
        # Where attempts have spans of their own, what comes before the first is waiting.
        own = spans if len(spans) > 1 or not self.attempts else [span for _, span in self.attempts]
        self.started_ns = min([span.start_ns for span in own])
        self.finished_ns = None if self.is_asked_again else self.last.end_ns or None


def may_grow(step: AssembledStep) -> bool:
    rule = step.rule
    return bool(step.attempts) or rule.key is not None or rule.lasting or rule.retries or rule.role is Role.ATTEMPT


def has_failed(step: AssembledStep) -> bool:
    return step.finished_ns is not None and step.rule.status(step.last) in ("failed", "timeout")


def steps_of(root: SpanRecord | None, spans: list[SpanRecord], trace: TraceSpans) -> list[AssembledStep]:
    """The steps among an execution's spans, by when they started."""
    found, rules = trace.found, trace.rules
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
        if not is_step and not has_steps and (span.parent_span_id == top or span.parent_span_id not in found):
            # Spans of no known kind: the children of the root are the steps.
            is_step = rule is None
            rule = ANY
        if not is_step or rule is None:
            continue
        key = rule.key(span) if rule.key is not None else None
        known = by_key.get((rule.engine, key)) if key is not None else None
        if known is not None:
            known.spans.append(span)
            by_span[span.span_id] = known
            continue
        step = by_span[span.span_id] = AssembledStep(_step_name(rule, span), rule, span, key)
        if key is not None:
            by_key[rule.engine, key] = step
    above = NearestAbove(found, by_span)
    orphans: list[tuple[Rule, SpanRecord]] = []
    for rule, span in attempts:
        owner = above(span.span_id)
        if owner is not None:
            by_span[owner].attempts.append((rule, span))
        else:
            orphans.append((rule, span))
    for rule, span in orphans:
        # The step's own span has not come: its attempts stand for it.
        name = _step_name(rule, span)
        known = by_key.get((rule.engine, "attempts of", name))
        if known is None:
            known = by_key[rule.engine, "attempts of", name] = AssembledStep(name, rule, span, name)
        else:
            known.spans.append(span)
        by_span[span.span_id] = known
    _add_pending(queued, spans, trace, by_span, by_key)
    steps = list({id(step): step for step in by_span.values()}.values())
    above = NearestAbove(found, by_span)
    for step in steps:
        step.settle()
        first = min(step.spans, key=start_order)
        asked = step.spans[0] if step.is_pending else found.get(first.parent_span_id)
        is_asked = asked is not None and trace.role(asked.span_id) is Role.QUEUED
        around = by_span.get(above(asked.span_id if asked is not None and is_asked else first.span_id) or "")
        if around is step:
            around = None
        if asked is not None and is_asked:
            # It comes after the step that asked for it, not inside it: who asks does not wait.
            step.ready_ns, step.after = asked.start_ns, around
        elif step.rule.follows and around is not None and around.rule.follows:
            step.after = around
        else:
            step.parent = around
    _without_circles(steps)
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
    """Steps that were asked for and have not begun, or not begun again."""
    taken = {span.parent_span_id for span in spans if trace.role(span.span_id) is Role.STEP}
    for span in queued:
        rule = trace.rules[span.span_id]
        if span.span_id in taken or rule is None:
            continue
        key = rule.key(span) if rule.key is not None else None
        known = by_key.get((rule.engine, key)) if key is not None else None
        if known is None:
            step = by_span[span.span_id] = AssembledStep(_step_name(rule, span), rule, span, key, is_pending=True)
            if key is not None:
                by_key[rule.engine, key] = step
        else:
            known.is_asked_again = True


def _without_circles(steps: Sequence[AssembledStep]) -> None:
    """No step is inside one that is inside it, whatever spans say."""
    safe: set[int] = set()
    for step in steps:
        path: list[AssembledStep] = []
        on_path: set[int] = set()
        at: AssembledStep | None = step
        while at is not None and id(at) not in safe:
            if id(at) in on_path:
                at.parent = None
                break
            path.append(at)
            on_path.add(id(at))
            at = at.parent
        safe.update(on_path)


def identify(ref: ExecutionRef, steps: list[AssembledStep]) -> None:
    """Give every step its id, and what it depends on: by links and who asked for it, else by the order they ran in."""
    repetitions: dict[str, int] = defaultdict(int)
    by_span = {span.span_id: step for step in steps for span in step.spans if not step.is_pending}
    for step in steps:
        index = repetitions[step.name]
        repetitions[step.name] += 1
        step.step_id = step_id(ref.workflow_id, step.name, index)
    has_links = any(step.after is not None for step in steps) or any(
        link in by_span for step in steps for span in step.spans for link in span.links
    )
    inferred = _inferred(steps) if not has_links else {}
    repetitions.clear()
    spans_of = {step.step_id: step.spans[0].span_id for step in steps}
    for order, step in enumerate(steps):
        if has_links:
            linked = [by_span[link] for span in step.spans for link in span.links if link in by_span]
            if step.after is not None:
                linked.insert(0, step.after)
            depends_on = tuple(dict.fromkeys(other.step_id for other in linked if other is not step))
        else:
            depends_on = inferred.get(step.step_id, ())
        step.depends_on = depends_on
        step.parent_step_id = step.parent.step_id if step.parent is not None else None
        first = step.spans[0] if len(step.spans) == 1 else min(step.spans, key=start_order)
        step.ref = StepRef(
            execution=ref,
            step_id=step.step_id,
            name=step.name,
            span_id=first.span_id,
            parent_span_id=first.parent_span_id or ref.span_id,
            step_order=order + 1,
            index=repetitions[step.name],
            depends_on=depends_on,
            links=tuple([spans_of[one] for one in depends_on if one in spans_of]),
            parent_step_id=step.parent_step_id,
        )
        repetitions[step.name] += 1


def _inferred(steps: list[AssembledStep]) -> dict[str, tuple[str, ...]]:
    moments: list[tuple[int, int, int, AssembledStep]] = []
    for number, step in enumerate(steps):
        if step.parent is None and step.started_ns is not None:
            moments.append((step.started_ns, 1, number, step))
            if step.finished_ns is not None:
                # What ends when another starts was there before it; what takes no time ends after it began.
                moments.append((step.finished_ns, 0 if step.finished_ns > step.started_ns else 2, number, step))
    order = InferredDependencies()
    found: dict[str, tuple[str, ...]] = {}
    moments.sort(key=_MOMENT)
    for at, kind, _, step in moments:
        if kind == 1:
            found[step.step_id] = order.started(step.step_id, at)
        else:
            order.finished(step.step_id, at)
    return found
