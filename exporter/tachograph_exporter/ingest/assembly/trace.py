"""The spans of a trace, or of several that belong together, classified by rules and grouped into executions."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

from tachograph_exporter.ingest.assembly.agents import Spent, spent_by_span, within_agents
from tachograph_exporter.ingest.built_in_rules import ANY, RECEIVED, SENT
from tachograph_exporter.ingest.rules import Kind, Role, Rule, Rulebook
from tachograph_exporter.ingest.spans import SpanRecord

_UNKNOWN: Final = "?"
_RECEIVING: Final = frozenset({int(Kind.SERVER), int(Kind.CONSUMER)})


def start_order(span: SpanRecord) -> tuple[int, str]:
    return (span.start_ns, span.span_id)


class TraceSpans:
    """The spans of a trace by id and by start, and the rule that each of them matches (None: unknown)."""

    def __init__(self, spans: Sequence[SpanRecord], book: Rulebook) -> None:
        self.spans_by_id = {span.span_id: span for span in spans}
        matched = {span.span_id: book.find(span) for span in self.spans_by_id.values()}
        self.rules = within_agents(self.spans_by_id, matched)
        self._prices = book.prices
        self.order = sorted(self.spans_by_id.values(), key=start_order)
        self.roots = frozenset(
            span_id for span_id, rule in self.rules.items() if rule is not None and rule.role is Role.EXECUTION
        )
        self._read_kinds()

    def _read_kinds(self) -> None:
        """A message that was sent and processed is a step, also where no rule knows the spans.

        An engine that has executions of its own says when they end, whoever still reads its messages.
        """
        rules, spans_by_id = self.rules, self.spans_by_id
        rooted = {spans_by_id[span_id].trace_id for span_id in self.roots}
        for span in self.order:
            if span.kind in _RECEIVING and rules[span.span_id] is None and span.trace_id not in rooted:
                sender = spans_by_id.get(span.parent_span_id)
                if sender is not None and sender.kind == Kind.PRODUCER and rules[sender.span_id] in (None, SENT):
                    rules[sender.span_id], rules[span.span_id] = SENT, RECEIVED

    @functools.cached_property
    def spent(self) -> Mapping[str, Spent]:
        """What its spans spent on models, by span id."""
        return spent_by_span(self.spans_by_id, self.rules, self._prices)

    def role(self, span_id: str) -> Role | None:
        """The role of a span, or None if it is unknown."""
        rule = self.rules.get(span_id)
        return rule.role if rule is not None else None


class WithinExecution:
    """Those of ``targets``, and the roots of executions, so that a search for ancestors ends at the execution's own."""

    def __init__(self, targets: Container[str], trace: TraceSpans) -> None:
        self._targets = targets
        self._roots = trace.roots

    def __contains__(self, span_id: object) -> bool:
        return span_id in self._targets or span_id in self._roots


class NearestAncestor:
    """For each span its nearest ancestor among ``targets``. Visits every span once, however deeply they are nested."""

    def __init__(self, spans_by_id: Mapping[str, SpanRecord], targets: Container[str]) -> None:
        self._spans_by_id = spans_by_id
        self._targets = targets
        self._answers: dict[str, str | None] = {}

    def __call__(self, span_id: str) -> str | None:
        answers, path, current = self._answers, [], span_id
        while True:
            if current in answers:
                answer = answers[current]
                break
            # Spans on a cycle come back here and have no such ancestor.
            answers[current] = None
            path.append(current)
            span = self._spans_by_id.get(current)
            parent = span.parent_span_id if span is not None else ""
            if not parent or parent in self._targets:
                answer = parent or None
                break
            current = parent
        for visited in path:
            answers[visited] = answer
        return answer


def executions_of(
    trace: TraceSpans,
) -> tuple[dict[str, tuple[str, SpanRecord | None, Rule]], dict[str, list[SpanRecord]]]:
    """The executions of a trace, and the other spans of each.

    Both are keyed by the id of the execution's root span, or by its run where the root has not arrived. An execution
    is the key that its id derives from, its root span (if any) and the rule.
    """
    rules, order = trace.rules, trace.order
    roots = {s.span_id: s for s in order if (r := rules[s.span_id]) is not None and r.role is Role.EXECUTION}
    groups: dict[str, list[SpanRecord]] = defaultdict(list)
    heads: dict[str, tuple[str, SpanRecord | None, Rule]] = {}
    by_run: dict[str, str] = {}
    first_roots: dict[str, SpanRecord] = {}
    """By trace, the first of its spans without a parent."""
    for span in order:
        if not span.parent_span_id:
            first_roots.setdefault(span.trace_id, span)
    first_root = next(iter(first_roots.values()), None)
    for span_id, span in roots.items():
        rule = rules[span_id]
        assert rule is not None  # noqa: S101
        heads[span_id] = ("" if span is first_roots.get(span.trace_id) else span_id, span, rule)
        if (run := run_of(rule, span)) is not None:
            by_run[f"{rule.engine}:{run}"] = span_id
    unnamed = {(s.trace_id, r.engine) for s in order if (r := rules[s.span_id]) is not None and _is_unnamed_step(r, s)}
    of_engines = {
        span.trace_id
        for span in order
        if ((rule := rules[span.span_id]) is not None and span.span_id in roots and not rule.of_agent)
        or (_belongs(rule, span) and not _is_beside(rule, span.trace_id, unnamed))
    }
    known_traces = of_engines | {span.trace_id for span in roots.values()}
    ancestor, highest_ancestor = NearestAncestor(trace.spans_by_id, roots), _highest_ancestors(trace)

    def is_below_missing(span: SpanRecord) -> bool:
        """Whether the execution of a step has not arrived, nor what is around the executions that are known."""
        return span.trace_id in of_engines and span.trace_id not in first_roots

    firsts = _firsts(trace, roots, lambda span: roots.get(ancestor(span.span_id) or "") or highest_ancestor(span))
    for span in order:
        if span.span_id in roots:
            continue
        rule = rules[span.span_id]
        head: str | None
        if rule is not None and (run := run_of(rule, span)) is not None:
            # The span names its execution, whose root may be above it, elsewhere or still missing.
            head = by_run.get(f"{rule.engine}:{run}") or f"{rule.engine}:{run}"
            heads.setdefault(head, (head, None, rule))
        elif roots and (head := ancestor(span.span_id)) is not None:
            pass
        elif rule is not None and is_below_missing(span) and _is_unnamed_step(rule, span):
            head = _UNKNOWN
            heads.setdefault(head, ("", None, rule))
        elif span.trace_id not in known_traces or (
            # A task is of the run that it would be of without the agents that run in it.
            rule is not None and span.trace_id not in of_engines and _is_unnamed_step(rule, span)
        ):
            # Spans of unknown kind: those without a parent are executions, orphans belong to the first of them.
            highest = highest_ancestor(span)
            if highest.parent_span_id:
                highest = first_roots.get(highest.trace_id) or first_root or highest
            highest = firsts.get(highest.span_id, highest)
            is_root = not highest.parent_span_id
            head = highest.span_id if is_root else _UNKNOWN
            key = "" if not is_root or highest is first_roots[highest.trace_id] else head
            heads.setdefault(head, (key, highest if is_root else None, rules[highest.span_id] or ANY))
        else:
            head = None
        if head is not None and (head != span.span_id or (rule is not None and rule.role is Role.STEP)):
            groups[head].append(span)
    for head in [head for head, (_, root, _) in heads.items() if root is None]:
        if not any((rule := rules[span.span_id]) is None or rule.role is not Role.INSIDE for span in groups[head]):
            # A signal, a query: what they belong to is in another trace.
            del heads[head], groups[head]
    return heads, groups


def _firsts(
    trace: TraceSpans, roots: Container[str], top_of: Callable[[SpanRecord], SpanRecord]
) -> dict[str, SpanRecord]:
    """For spans at the top that are of one execution with others, because spans below them share a key, the first one.

    ``roots``: the ids of the spans of executions; one of them comes before all others.
    """
    targets: dict[str, str] = {}
    tops: dict[str, SpanRecord] = {}
    by_key: dict[tuple[str, str], str] = {}

    def find(span_id: str) -> str:
        while (target := targets.get(span_id, span_id)) != span_id:
            targets[span_id] = targets.get(target, target)
            span_id = target
        return span_id

    def rank(span_id: str) -> tuple[bool, tuple[int, str]]:
        return span_id not in roots, start_order(tops[span_id])

    for span in trace.order:
        rule = trace.rules[span.span_id]
        if rule is None or rule.together is None or not (keys := rule.together(span)):
            continue
        top = top_of(span)
        if top.parent_span_id and top.span_id not in roots:
            continue  # What is above it has not arrived.
        tops[top.span_id] = top
        for key in keys:
            one, other = find(top.span_id), find(by_key.setdefault((rule.engine, key), top.span_id))
            if one != other:
                one, other = sorted((one, other), key=rank)
                targets[other] = one
    return {span_id: tops[find(span_id)] for span_id in targets}


def nesting(
    heads: Mapping[str, tuple[str, SpanRecord | None, Rule]],
    groups: Mapping[str, Sequence[SpanRecord]],
    trace: TraceSpans,
) -> dict[str, str]:
    """For each execution that ran inside another one of the trace the key of that one, outermost executions first.

    Its root span is below a span of the other. A run that another one continued as is beside it, not inside it.
    """
    owners = {root.span_id: head for head, (_, root, _) in heads.items() if root is not None}
    for head, spans in groups.items():
        for span in spans:
            owners.setdefault(span.span_id, head)
    ancestor = NearestAncestor(trace.spans_by_id, owners)
    above: dict[str, str] = {}
    for head, (_, root, rule) in heads.items():
        if root is not None and rule.role is Role.EXECUTION and (span_id := ancestor(root.span_id)) in owners:
            above[head] = owners[span_id]
    depths: dict[str, int] = {}
    outer: dict[str, str] = {}
    for start in heads:
        path: dict[str, None] = {}
        current: str | None = start
        while current is not None and current not in depths and current not in path:
            path[current] = None
            current = above.get(current)
        if current in path:
            # Whatever the spans say, no execution is inside itself.
            del above[next(reversed(path))]
        for head in reversed(path):
            around = above.get(head)
            if around is not None and _is_same(heads[head], heads[around]):
                around = outer.get(around)
            depths[head] = 0
            if around is not None:
                outer[head] = around
                depths[head] = depths[around] + 1
    return {head: outer[head] for head in sorted(outer, key=depths.__getitem__)}


def _is_same(inner: tuple[str, SpanRecord | None, Rule], around: tuple[str, SpanRecord | None, Rule]) -> bool:
    """Whether two root spans are of one run, or of runs that follow each other."""
    (_, span, rule), (_, other, other_rule) = inner, around
    if span is None or other is None or rule.engine != other_rule.engine:
        return False
    run = run_of(rule, span)
    if run is not None and run == run_of(other_rule, other):
        return True
    series = rule.series(span) if rule.series is not None else None
    return series is not None and other_rule.series is not None and series == other_rule.series(other)


def _belongs(rule: Rule | None, span: SpanRecord) -> bool:
    """Whether a span is part of an execution whose root is another span, arrived or not."""
    if rule is None or rule.of_agent:
        # Where no agent's run is known, a call of a model is a step of whatever is around it.
        return False
    return rule.role in (Role.INSIDE, Role.END) or run_of(rule, span) is not None


def _is_unnamed_step(rule: Rule, span: SpanRecord) -> bool:
    """Whether a span is a step that only the spans above it can give an execution to."""
    return rule.role in (Role.STEP, Role.ATTEMPT, Role.QUEUED) and not rule.of_agent and run_of(rule, span) is None


def _is_beside(rule: Rule | None, trace_id: str, unnamed: Container[tuple[str, str]]) -> bool:
    """Whether a span is part of what is around such steps of its engine: as long as that is missing, it says nothing of
    where they belong."""
    return rule is not None and rule.role is Role.INSIDE and (trace_id, rule.engine) in unnamed


def run_of(rule: Rule | None, span: SpanRecord) -> Any:
    """The engine's id of the execution that a span belongs to, if the span says so."""
    return rule.run_id(span) if rule is not None and rule.run_id is not None else None


def _highest_ancestors(trace: TraceSpans) -> Callable[[SpanRecord], SpanRecord]:
    """For each span its highest ancestor that has arrived, or itself."""
    spans_by_id, answers = trace.spans_by_id, dict[str, SpanRecord]()

    def highest(span: SpanRecord) -> SpanRecord:
        path, current = [], span
        while current.span_id not in answers:
            answers[current.span_id] = current
            path.append(current.span_id)
            current = spans_by_id.get(current.parent_span_id, current)
        answer = answers[current.span_id]
        for visited in path:
            answers[visited] = answer
        return answer

    return highest
