"""The spans of a trace with what they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

from tachograph_exporter.ingest.built_in_rules import ANY
from tachograph_exporter.ingest.rules import Role, Rule, Rulebook
from tachograph_exporter.ingest.spans import SpanRecord

_UNKNOWN: Final = "?"


def start_order(span: SpanRecord) -> tuple[int, str]:
    return (span.start_ns, span.span_id)


class TraceSpans:
    """The spans of a trace with what they are."""

    def __init__(self, spans: Sequence[SpanRecord], book: Rulebook) -> None:
        self.found = {span.span_id: span for span in spans}
        self.rules = {span.span_id: book.find(span) for span in self.found.values()}
        self.order = sorted(self.found.values(), key=start_order)
        self.trace_id = self.order[0].trace_id

    def role(self, span_id: str) -> Role | None:
        """What a span is, if that is known."""
        rule = self.rules.get(span_id)
        return rule.role if rule is not None else None


class NearestAbove:
    """For each span the nearest one above it that is wanted. Every span is walked over once, however deep they lie."""

    def __init__(self, found: Mapping[str, SpanRecord], wanted: Container[str]) -> None:
        self._found = found
        self._wanted = wanted
        self._known: dict[str, str | None] = {}

    def __call__(self, span_id: str) -> str | None:
        known, path, at = self._known, [], span_id
        while True:
            if at in known:
                answer = known[at]
                break
            # Who comes back here goes in a circle.
            known[at] = None
            path.append(at)
            span = self._found.get(at)
            parent = span.parent_span_id if span is not None else ""
            if not parent or parent in self._wanted:
                answer = parent or None
                break
            at = parent
        for one in path:
            known[one] = answer
        return answer


def executions_of(
    trace: TraceSpans,
) -> tuple[dict[str, tuple[str, SpanRecord | None, Rule]], dict[str, list[SpanRecord]]]:
    """The executions by the span (or run) they begin with: what their id is made of, their own span and its rule.

    And the other spans of each.
    """
    rules, order = trace.rules, trace.order
    roots = {s.span_id: s for s in order if (r := rules[s.span_id]) is not None and r.role is Role.EXECUTION}
    groups: dict[str, list[SpanRecord]] = defaultdict(list)
    heads: dict[str, tuple[str, SpanRecord | None, Rule]] = {}
    by_run: dict[str, str] = {}
    first_root = next((span for span in order if not span.parent_span_id), None)
    for span_id, span in roots.items():
        rule = rules[span_id]
        assert rule is not None  # noqa: S101
        heads[span_id] = ("" if span is first_root else span_id, span, rule)
        if (run := run_of(rule, span)) is not None:
            by_run[f"{rule.engine}:{run}"] = span_id
    is_known = bool(roots) or any(_belongs(rules[span.span_id], span) for span in order)
    above, top = NearestAbove(trace.found, roots), _tops(trace)
    for span in order:
        if span.span_id in roots:
            continue
        rule = rules[span.span_id]
        head: str | None
        if rule is not None and (run := run_of(rule, span)) is not None:
            # It says which execution it is of, be that one's own span above it, elsewhere or still to come.
            head = by_run.get(f"{rule.engine}:{run}") or f"{rule.engine}:{run}"
            heads.setdefault(head, (head, None, rule))
        elif roots and (head := above(span.span_id)) is not None:
            pass
        elif not is_known:
            # Spans of no known kind: those without a parent are executions; who lost its parent belongs to the first.
            highest = top(span)
            if highest.parent_span_id:
                highest = first_root or highest
            is_root = not highest.parent_span_id
            head = highest.span_id if is_root else _UNKNOWN
            key = "" if not is_root or highest is first_root else head
            heads.setdefault(head, (key, highest if is_root else None, rules[highest.span_id] or ANY))
        else:
            head = None
        if head is not None and (head != span.span_id or (rule is not None and rule.role is Role.STEP)):
            groups[head].append(span)
    return heads, groups


def _belongs(rule: Rule | None, span: SpanRecord) -> bool:
    """Whether a span is part of an execution that another span is the root of, come or not."""
    return rule is not None and (rule.role in (Role.INSIDE, Role.END) or run_of(rule, span) is not None)


def run_of(rule: Rule | None, span: SpanRecord) -> Any:
    """The id that an engine gave the execution a span belongs to, if the span says it."""
    return rule.run_id(span) if rule is not None and rule.run_id is not None else None


def _tops(trace: TraceSpans) -> Callable[[SpanRecord], SpanRecord]:
    """For each span the highest one above it that is there, or itself."""
    found, known = trace.found, dict[str, SpanRecord]()

    def top(span: SpanRecord) -> SpanRecord:
        path, at = [], span
        while at.span_id not in known:
            known[at.span_id] = at
            path.append(at.span_id)
            at = found.get(at.parent_span_id, at)
        answer = known[at.span_id]
        for one in path:
            known[one] = answer
        return answer

    return top
