"""Agents' runs in a trace: which span is the run, and what each span spent, counted once."""

from __future__ import annotations

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
    the graph it is.
    """
    outermost = {span_id for span_id, rule in rules.items() if rule is not None and rule.is_outermost}
    if not outermost:
        return rules
    below = inside(spans_by_id, outermost)
    steps: dict[int, Rule] = {}
    plumbing: dict[int, Rule] = {}
    for span_id in outermost & below:
        rule = rules[span_id]
        assert rule is not None  # noqa: S101
        span = spans_by_id[span_id]
        above = spans_by_id.get(span.parent_span_id)
        above_rule = rules.get(span.parent_span_id)
        is_step = True
        if above is not None and above_rule is not None and above_rule.is_outermost:
            is_step = above_rule.name(above) != rule.name(span) and not is_nameless_graph(above, span)
        made, role = (steps, Role.STEP) if is_step else (plumbing, Role.INSIDE)
        if id(rule) not in made:
            made[id(rule)] = msgspec.structs.replace(rule, role=role, ends_as_last_agent=False)
        rules[span_id] = made[id(rule)]
    return rules


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
