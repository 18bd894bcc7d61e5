"""Runs of one job that was asked for again though it had succeeded: each of them is a step, not an attempt of one."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

from tachograph_exporter.ingest.assembly.assembled_step import AssembledStep
from tachograph_exporter.ingest.assembly.trace import start_order
from tachograph_exporter.ingest.assembly.tries import Matched, tries_of
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
    # Its runs that succeeded: after each, it is another step that is asked for.
    successes = [attempt.span for attempt in tries_of(spans, (), outcomes) if attempt.status == "completed"]
    places = _places(spans, queued, [span for span in successes if span.end_ns])
    count = max(places.values()) + 1
    if count == 1:
        return
    parts = [
        step,
        *[AssembledStep(step.name, step.rule, step.first, (step.source, n)) for n in range(1, count)],
    ]
    owners: dict[str, AssembledStep] = {}
    for part in parts:
        part.spans, part.queued, part.outcomes, part.index = [], [], [], step.index
    for rule, span in spans:
        owner = owners[span.span_id] = parts[places[span.span_id]]
        owner.spans.append((rule, span))
    for rule, span in queued:
        owner = owners[span.span_id] = parts[places[span.span_id]]
        owner.queued.append((rule, span))
    for rule, span in outcomes:
        (owners.get(span.parent_span_id) or parts[_by_time(span, successes, count)]).outcomes.append((rule, span))
    for part in parts:
        if own := part.spans or part.queued or part.outcomes:
            part.first = min([span for _, span in own], key=start_order)
    for span_id, owner in by_span.items():
        if owner is step:
            by_span[span_id] = owners.get(span_id, step)


def _places(spans: Sequence[Matched], queued: Sequence[Matched], successes: Sequence[SpanRecord]) -> dict[str, int]:
    """After how many successes each run, and what asked for it, comes, by the span's id.

    By the spans above them: a run is below the span that asked for it, and asks for the next one itself. Only where
    those have not arrived, their times must do: the clocks of who sends a job and who runs it may be minutes apart.
    """
    runs, asks = ({span.span_id: span for _, span in matched} for matched in (spans, queued))
    succeeded = {span.span_id for span in successes}
    alone = sorted(
        [span for rule, span in queued if not (rule.waits or rule.schedules)
         and span.parent_span_id not in runs and span.parent_span_id not in asks],
        key=start_order,
    )  # fmt: skip
    first_sent = {span.span_id for span in alone[:1]} | (asks.keys() - {span.span_id for span in alone})
    places: dict[str, int] = {}
    for start in (*runs.values(), *asks.values()):
        path: list[SpanRecord] = []
        seen: set[str] = set()
        current: SpanRecord | None = start
        while current is not None and current.span_id not in places and current.span_id not in seen:
            path.append(current)
            seen.add(current.span_id)
            current = asks.get(current.parent_span_id) or runs.get(current.parent_span_id)
        for span in reversed(path):
            above = span.parent_span_id
            if above in places:
                places[span.span_id] = places[above] + (above in succeeded and span.span_id in asks)
            elif span.span_id in first_sent:
                places[span.span_id] = 0
            else:
                places[span.span_id] = _by_time(span, successes)
    numbers = {place: number for number, place in enumerate(sorted(set(places.values())))}
    return {span_id: numbers[place] for span_id, place in places.items()}


def _by_time(span: SpanRecord, successes: Sequence[SpanRecord], count: int = 0) -> int:
    place = sum(span.start_ns > success.start_ns for success in successes)
    return min(place, count - 1) if count else place
