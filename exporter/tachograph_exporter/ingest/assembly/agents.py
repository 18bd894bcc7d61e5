"""Agents' runs in a trace: which span is the run, and what each span spent, counted once."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Container, Mapping
from typing import NamedTuple

import msgspec

from tachograph_exporter.ingest.agent_rules import is_nameless_graph
from tachograph_exporter.ingest.prices import Prices
from tachograph_exporter.ingest.rules import Role, Rule
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.usage import Usage


def within_agents(spans_by_id: Mapping[str, SpanRecord], rules: dict[str, Rule | None]) -> dict[str, Rule | None]:
    """The rules of a trace's spans: only the outermost agent, graph or chain is an execution, the others are steps.

    One with the name of the one right above it is that one again, and no step: a run and the graph it runs, a node and
    the graph it is. Several, of which each but the last failed, are its attempts (LangChain's ``with_retry``).
    """
    outermost = {span_id for span_id, rule in rules.items() if rule is not None and rule.is_outermost}
    if not outermost:
        return rules
    below = inside(spans_by_id, outermost)
    same = {span_id for span_id in outermost & below if _is_again(spans_by_id, rules, span_id)}
    groups: dict[str, list[SpanRecord]] = defaultdict(list)
    for span_id in same:
        groups[spans_by_id[span_id].parent_span_id].append(spans_by_id[span_id])
    roles = {parent: _role_of(group) for parent, group in groups.items()}
    replaced: dict[tuple[int, Role], Rule] = {}
    for span_id in outermost & below:
        rule = rules[span_id]
        assert rule is not None  # noqa: S101
        role = roles[spans_by_id[span_id].parent_span_id] if span_id in same else Role.STEP
        key = (id(rule), role)
        if key not in replaced:
            replaced[key] = msgspec.structs.replace(rule, role=role, ends_as_last_agent=False)
        rules[span_id] = replaced[key]
    return rules


def _role_of(spans: list[SpanRecord]) -> Role:
    """What spans are that repeat the one right above them."""
    if len(spans) == 1:
        return Role.INSIDE
    spans.sort(key=lambda span: (span.start_ns, span.span_id))
    are_attempts = all(
        before.is_error and before.end_ns <= after.start_ns for before, after in itertools.pairwise(spans)
    )
    return Role.ATTEMPT if are_attempts else Role.STEP


def _is_again(spans_by_id: Mapping[str, SpanRecord], rules: Mapping[str, Rule | None], span_id: str) -> bool:
    """Whether a span is the one right above it again."""
    span, rule = spans_by_id[span_id], rules[span_id]
    above, above_rule = spans_by_id.get(span.parent_span_id), rules.get(span.parent_span_id)
    if above is None or rule is None or above_rule is None or not above_rule.is_outermost:
        return False
    return bool(above_rule.name(above) == rule.name(span)) or is_nameless_graph(above, span)


def inside(spans_by_id: Mapping[str, SpanRecord], targets: Container[str]) -> set[str]:
    """The spans that have one of ``targets`` above them. Visits every span once."""
    answers: dict[str, bool] = {}
    for span_id in spans_by_id:
        path = []
        current = span_id
        answer = False
        while True:
            known = answers.get(current)
            if known is not None:
                answer = known
                break
            # Spans on a cycle come back here, and are inside nothing.
            answers[current] = False
            path.append(current)
            span = spans_by_id.get(current)
            parent = span.parent_span_id if span is not None else ""
            if not parent or parent in targets:
                answer = bool(parent)
                break
            current = parent
        for visited in path:
            answers[visited] = answer
    return {span_id for span_id in spans_by_id if answers[span_id]}


class Spent(NamedTuple):
    """What a span spent. ``usd`` is None if nothing says what it cost."""

    usage: Usage
    usd: float | None


def spent_by_span(
    spans_by_id: Mapping[str, SpanRecord], rules: Mapping[str, Rule | None], prices: Prices
) -> dict[str, Spent]:
    """What the spans of a trace spent, by span id, so that nothing is counted twice.

    A span around others may repeat what those say. Of model calls inside each other (a framework's span around that of
    a client library) the outermost counts; any other span (an agent that says what its run came to) counts only if no
    span below it says anything.
    """
    usages: dict[str, Usage] = {}
    model_calls: set[str] = set()
    for span_id, rule in rules.items():
        if rule is not None and rule.usage is not None and (usage := rule.usage(spans_by_id[span_id])) is not None:
            usages[span_id] = usage
            if rule.is_model_call:
                model_calls.add(span_id)
    if not usages:
        return {}
    repeated = inside(spans_by_id, model_calls) if model_calls else set()
    above: set[str] = set()
    for span_id in usages:
        span: SpanRecord | None = spans_by_id[span_id]
        while span is not None and span.parent_span_id not in above:
            above.add(span.parent_span_id)
            span = spans_by_id.get(span.parent_span_id)
    return {
        span_id: Spent(usage, prices.of(usage))
        for span_id, usage in usages.items()
        if span_id not in repeated and (span_id in model_calls or span_id not in above)
    }
