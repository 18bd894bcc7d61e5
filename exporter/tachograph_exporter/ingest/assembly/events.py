"""The events of a step that was assembled from spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from tachograph.events import (
    Event,
    Failure,
    SkipReason,
    StepSkipped,
    StepStatus,
)
from tachograph.redaction import mask_text
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.ingest.assembly.steps import AssembledStep
from tachograph_exporter.ingest.assembly.trace import start_order
from tachograph_exporter.ingest.rules import Rule
from tachograph_exporter.ingest.spans import SpanRecord, clean

OUTCOMES: Final = frozenset({"completed", "failed", "cancelled", "timeout"})


def step_events(step: AssembledStep, ends: Mapping[str, int | None], execution_started_ns: int) -> Iterator[Event]:
    """A step's events. ``ends`` are the ends of all steps by id (None: not ended)."""
    assert step.ref is not None  # noqa: S101
    ref, rule, last = step.ref, step.rule, step.last
    origin_ns = step.parent.first_ns if step.parent is not None else execution_started_ns
    attempts = StepAttempts(ref, origin_ns)
    if step.is_pending:
        yield attempts.ready(last.start_ns)
        return
    outcome = rule.status(last)
    parts = [(rule, span) for span in step.spans] if len(step.spans) > 1 else (step.attempts or [(rule, last)])
    if len(parts) > 1:
        parts = sorted(parts, key=lambda part: start_order(part[1]))
    if outcome == "skipped" and last.end_ns:
        yield StepSkipped(step=ref, time_ns=last.end_ns, reason=SkipReason.CONDITION)
        return
    first_ns = step.first_ns
    if step.ready_ns is not None:
        # A span says when the step was queued.
        ready_ns = min(max(origin_ns, step.ready_ns), first_ns)
    else:
        earlier = [end for step_id in step.depends_on if (end := ends.get(step_id)) is not None and end <= first_ns]
        ready_ns = max([origin_ns, *earlier])
    attempts.ready(ready_ns)
    final = None if step.is_queued_again else len(parts) - 1
    for i, (part_rule, span) in enumerate(parts):
        number = max(len(parts), _attempt_number(rule, last, len(parts))) if i == final else i + 1
        started = attempts.started(span.start_ns, attempt=number)
        if i != final and span.end_ns:
            yield attempts.retrying(
                span.end_ns,
                StepStatus.TIMEOUT if part_rule.status(span) == "timeout" else StepStatus.FAILED,
                max(0, parts[i + 1][1].start_ns - span.end_ns) if i + 1 < len(parts) else 0,
                failure_of(span, part_rule),
            )
    if final is None:
        return
    if not last.end_ns:
        yield started
        return
    newest = parts[-1][1]
    status = StepStatus(outcome) if outcome in OUTCOMES else StepStatus.FAILED
    blamed = last if last.is_error or last.exception else newest
    failure = failure_of(blamed, rule) if status is not StepStatus.COMPLETED else None
    yield attempts.finished(last.end_ns, status, failure, attempt_ended_ns=newest.end_ns or newest.start_ns)


def _attempt_number(rule: Rule, span: SpanRecord, default: int) -> int:
    value = rule.attempt(span) if rule.attempt is not None else None
    try:
        return int(value) - rule.first_attempt + 1 if value is not None else default
    except (TypeError, ValueError):
        return default


def failure_of(span: SpanRecord, rule: Rule) -> Failure:
    """What a failed span says went wrong; secrets are masked."""
    kind, message, stack = span.exception or ("", "", "")
    kind = kind or str(span.attributes.get("error.type") or "Error")
    reason = rule.why(span) if rule.why is not None else None
    message = message or span.status_message or str(reason or "") or "the span gives no reason"
    return Failure(
        clean(kind)[:300], clean(mask_text(message))[:4000], clean(mask_text(stack))[:20_000] if stack else None
    )
