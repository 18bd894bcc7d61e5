"""The events of a step that was assembled from spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

import msgspec

from tachograph.events import (
    Event,
    Failure,
    SkipReason,
    StepFinished,
    StepReady,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.redaction import mask_text
from tachograph.run_window import RunWindow
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.ingest.assembly.steps import AssembledStep, bounds, outcome_of
from tachograph_exporter.ingest.assembly.trace import start_order
from tachograph_exporter.ingest.rules import Rule
from tachograph_exporter.ingest.spans import SpanRecord, clean

OUTCOMES: Final = frozenset({"completed", "failed", "cancelled", "timeout", "lost"})
ABANDONED: Final = Failure("Abandoned", "still running when its run ended")
"""Why an execution inside another one is a lost step of it: its end is unknown, the other one's is known."""
SILENT: Final = Failure("Lost", "its process died: no sign of life of this span since")
"""Why a span is lost that never ended."""
_ATTEMPT_STATUSES: Final = {"timeout": StepStatus.TIMEOUT, "lost": StepStatus.LOST}
E = TypeVar("E", StepReady, StepStarted, StepRetrying, StepFinished)


def step_events(
    step: AssembledStep, ends: Mapping[str, int | None], window: RunWindow, lost_ns: int | None = None
) -> Iterator[Event]:
    """A step's events. ``window`` is the time of the execution; ``ends`` are the ends of all steps' places by id.

    ``lost_ns``: when the execution was last seen, if it is lost; whether a step that had been asked for ran is unknown.

    Events have the times that spans say; waits and running time are those of the step's place in the execution.
    """
    assert step.ref is not None  # noqa: S101
    assert step.place is not None  # noqa: S101
    ref, rule, last, place = step.ref, step.rule, step.last, step.place
    limits = bounds(step, window)
    attempts = StepAttempts(ref, limits.start_ns)

    def at(time_ns: int) -> int:
        return limits.cut(time_ns + place.shift_ns)

    if step.is_pending:
        yield _shown(attempts.ready(at(last.start_ns)), last.start_ns)
        if lost_ns is not None:
            attempts.started(at(lost_ns))
            yield attempts.finished(at(lost_ns), StepStatus.LOST, SILENT)
        return
    outcome = outcome_of(rule, last)
    if outcome == "skipped" and last.end_ns and step.run is None:
        yield StepSkipped(step=ref, time_ns=last.end_ns, reason=SkipReason.CONDITION)
        return
    # When it was asked for, if a span says so; without, nothing proves that it waited for a slot.
    asked_ns = step.ready_ns
    ready_ns = place.start_ns if asked_ns is None else min(at(asked_ns), place.start_ns)
    earlier = [end for step_id in step.depends_on if (end := ends.get(step_id)) is not None and end <= ready_ns]
    if step.after is not None and asked_ns is not None:
        # The step that asked for it had done so before it ended.
        earlier.append(ready_ns)
    met_ns = max([limits.start_ns, *earlier])
    if asked_ns is not None:
        attempts.ready(ready_ns, met_ns)
    if step.run is not None:
        started_ns, ended_ns = step.run.started_ns, step.finished_ns
        started = _shown(attempts.started(place.start_ns, ready_ns=met_ns), started_ns)
        if ended_ns is None:
            yield started
            return
        status = StepStatus(step.run.status) if step.run.status is not None else StepStatus.LOST
        failure = step.run.failure if step.run.status is not None else ABANDONED
        finished = attempts.finished(at(ended_ns), status, failure if status is not StepStatus.COMPLETED else None)
        yield _shown(finished, ended_ns, started_ns=started_ns, attempt_started_ns=started_ns)
        return
    parts = [(rule, span) for span in step.spans] if len(step.spans) > 1 else (step.attempts or [(rule, last)])
    if len(parts) > 1:
        parts = sorted(parts, key=lambda part: start_order(part[1]))
    final = None if step.is_queued_again else len(parts) - 1
    for i, (part_rule, span) in enumerate(parts):
        number = max(len(parts), _attempt_number(rule, last, len(parts))) if i == final else i + 1
        begin_ns, end_ns = span.start_ns, span.over_ns
        started = _shown(attempts.started(at(begin_ns), attempt=number, ready_ns=met_ns), begin_ns)
        if i != final and end_ns:
            retrying = attempts.retrying(
                at(end_ns),
                _ATTEMPT_STATUSES.get(outcome_of(part_rule, span), StepStatus.FAILED),
                max(0, parts[i + 1][1].start_ns - end_ns) if i + 1 < len(parts) else 0,
                failure_of(span, part_rule),
            )
            yield _shown(retrying, end_ns, started_ns=begin_ns)
    if final is None:
        if lost_ns is not None:
            yield attempts.finished(at(lost_ns), StepStatus.LOST, SILENT)
        return
    if not last.over_ns:
        yield started
        return
    newest = parts[-1][1]
    status = StepStatus(outcome) if outcome in OUTCOMES else StepStatus.FAILED
    blamed = last if last.is_error or last.exception else newest
    failure = failure_of(blamed, rule) if status is not StepStatus.COMPLETED else None
    finished = attempts.finished(
        at(last.over_ns), status, failure, attempt_ended_ns=at(newest.over_ns or newest.start_ns)
    )
    yield _shown(finished, last.over_ns, started_ns=parts[0][1].start_ns, attempt_started_ns=newest.start_ns)


def _shown(event: E, time_ns: int, **times: int) -> E:
    """The event with the times that the spans say."""
    times["time_ns"] = time_ns
    if all(getattr(event, name) == value for name, value in times.items()):
        return event
    return msgspec.structs.replace(event, **times)


def _attempt_number(rule: Rule, span: SpanRecord, default: int) -> int:
    value = rule.attempt(span) if rule.attempt is not None else None
    try:
        return int(value) - rule.first_attempt + 1 if value is not None else default
    except (TypeError, ValueError):
        return default


def failure_of(span: SpanRecord, rule: Rule) -> Failure:
    """What a failed span says went wrong; secrets are masked. Of a lost one, that nothing was heard of it."""
    if span.is_lost:
        return SILENT
    kind, message, stack = span.exception or ("", "", "")
    kind = kind or str(span.attributes.get("error.type") or "Error")
    reason = rule.why(span) if rule.why is not None else None
    message = message or span.status_message or str(reason or "") or "the span gives no reason"
    return Failure(
        clean(kind)[:300], clean(mask_text(message))[:4000], clean(mask_text(stack))[:20_000] if stack else None
    )
