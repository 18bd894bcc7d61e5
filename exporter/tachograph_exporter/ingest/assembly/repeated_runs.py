"""Runs of one job that was asked for again though it had succeeded: each of them is a step, not an attempt of one."""

from __future__ import annotations

from collections.abc import MutableMapping

from tachograph_exporter.ingest.assembly.assembled_step import AssembledStep
from tachograph_exporter.ingest.assembly.trace import start_order
from tachograph_exporter.ingest.assembly.tries import tries_of
from tachograph_exporter.ingest.spans import SpanRecord


def split_repeated(by_span: MutableMapping[str, AssembledStep]) -> None:
    """Part the runs of jobs whose engine repeats them (`Rule.repeats`) after each that succeeded.

    ``by_span``: the steps by the ids of their spans, which is brought up to date.
    """
    for step in {id(step): step for step in by_span.values()}.values():
        if step.rule.repeats and not step.attempts and len(step.spans) + len(step.queued) > 2:
            _split(step, by_span)


def _split(step: AssembledStep, by_span: MutableMapping[str, AssembledStep]) -> None:
    spans, queued, outcomes = step.spans, step.queued, step.outcomes
    # A worker asks for the next run. What others sent was before all of them, whatever their clocks say.
    workers = {span.resource_id for _, span in spans}
    by_workers = [span for _, span in queued if span.resource_id in workers]
    latest_ns = max([span.start_ns for span in (*[span for _, span in spans], *by_workers)], default=0)
    # The starts of those that succeeded, and after which it was asked for again.
    successes = [attempt for attempt in tries_of(spans, (), outcomes) if attempt.status == "completed"]
    cuts = [attempt.start_ns for attempt in successes if attempt.end_ns and attempt.start_ns < latest_ns]
    if not cuts:
        return
    parts = [
        step,
        *[AssembledStep(step.name, step.rule, step.first, (step.source, n)) for n in range(1, len(cuts) + 1)],
    ]
    owners: dict[str, AssembledStep] = {}
    for part in parts:
        part.spans, part.queued, part.outcomes, part.index = [], [], [], step.index

    def part_at(span: SpanRecord) -> AssembledStep:
        is_first = span.resource_id not in workers
        return parts[0 if is_first else sum(span.start_ns > cut for cut in cuts)]

    for rule, span in spans:
        owner = owners[span.span_id] = part_at(span)
        owner.spans.append((rule, span))
    for rule, span in queued:
        owner = owners[span.span_id] = part_at(span)
        owner.queued.append((rule, span))
    for rule, span in outcomes:
        (owners.get(span.parent_span_id) or part_at(span)).outcomes.append((rule, span))
    for part in parts:
        part.first = min([span for _, span in part.spans or part.queued or part.outcomes], key=start_order)
    for span_id, owner in by_span.items():
        if owner is step:
            by_span[span_id] = owners.get(span_id, step)
