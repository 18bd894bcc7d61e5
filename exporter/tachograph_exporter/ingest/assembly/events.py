"""Steps put together from spans, told in events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

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
from tachograph_exporter.ingest.assembly.steps import AssembledStep
from tachograph_exporter.ingest.assembly.trace import start_order
from tachograph_exporter.ingest.rules import Rule
from tachograph_exporter.ingest.spans import SpanRecord, clean

OUTCOMES: Final = frozenset({"completed", "failed", "cancelled", "timeout"})


def start_of(event: StepRetrying | StepFinished) -> StepStarted:
    """The start of the attempt whose end this is."""
    is_first = event.attempt == 1
    if isinstance(event, StepRetrying):
        started, queue, backoff = event.started_ns, event.queue_ns, event.backoff_ns
    else:
        started, queue, backoff = event.attempt_started_ns, event.last_queue_ns, event.last_backoff_ns
    return StepStarted(
        step=event.step,
        time_ns=started,
        attempt=event.attempt,
        dependency_ns=event.dependency_ns if is_first else 0,
        queue_ns=queue,
        backoff_ns=backoff,
    )


def step_events(step: AssembledStep, ends: Mapping[str, int | None], begun: int) -> Iterator[Event]:
    """A step's events."""
    assert step.ref is not None  # noqa: S101
    ref, rule, last = step.ref, step.rule, step.last
    if step.is_pending:
        yield StepReady(step=ref, time_ns=last.start_ns)
        return
    word = rule.status(last)
    parts = [(rule, span) for span in step.spans] if len(step.spans) > 1 else (step.attempts or [(rule, last)])
    if len(parts) > 1:
        parts = sorted(parts, key=lambda part: start_order(part[1]))
    if word == "skipped" and last.end_ns:
        yield StepSkipped(step=ref, time_ns=last.end_ns, reason=SkipReason.CONDITION)
        return
    first = step.first_ns
    before = [end for one in step.depends_on if (end := ends.get(one)) is not None and end <= first]
    origin = step.parent.first_ns if step.parent is not None else begun
    # Where it is told when it was asked for, that is when it was ready.
    ready = max([origin, *before]) if step.ready_ns is None else min(max(origin, step.ready_ns), first)
    dependency, queue = max(0, ready - origin), max(0, first - ready)
    number = _number(rule, last, len(parts))
    if len(parts) == 1 and rule.attempt is not None:
        number = max(number, 1)
    run = sum(max(0, (span.end_ns or span.start_ns) - span.start_ns) for _, span in parts)
    for i, (own, span) in enumerate(parts if step.is_asked_again else parts[:-1]):
        if span.end_ns:
            yield StepRetrying(
                step=ref,
                time_ns=span.end_ns,
                attempt=i + 1,
                status=StepStatus.TIMEOUT if own.status(span) == "timeout" else StepStatus.FAILED,
                started_ns=span.start_ns,
                delay_ns=max(0, parts[i + 1][1].start_ns - span.end_ns) if i + 1 < len(parts) else 0,
                failure=failure_of(span, own),
                dependency_ns=dependency if i == 0 else 0,
                queue_ns=queue if i == 0 else 0,
                backoff_ns=max(0, span.start_ns - parts[i - 1][1].end_ns) if i else 0,
            )
    if step.is_asked_again:
        return
    newest = parts[-1][1]
    attempt = max(len(parts), number)
    waited = max(0, newest.start_ns - parts[-2][1].end_ns) if len(parts) > 1 and parts[-2][1].end_ns else 0
    if not last.end_ns:
        yield StepStarted(
            step=ref, time_ns=newest.start_ns, attempt=attempt, dependency_ns=dependency,
            queue_ns=queue if attempt == 1 else 0, backoff_ns=waited,
        )  # fmt: skip
        return
    blamed = last if last.is_error or last.exception else newest
    status = StepStatus(word) if word in OUTCOMES else StepStatus.FAILED
    yield StepFinished(
        step=ref,
        time_ns=last.end_ns,
        status=status,
        attempt=attempt,
        started_ns=first,
        attempt_started_ns=newest.start_ns,
        dependency_ns=dependency,
        queue_ns=queue,
        # What of its time no attempt was running.
        backoff_ns=max(0, last.end_ns - first - run),
        run_ns=min(run, last.end_ns - first),
        last_queue_ns=queue if len(parts) == 1 else 0,
        last_backoff_ns=waited,
        failure=failure_of(blamed, rule) if status is not StepStatus.COMPLETED else None,
    )


def _number(rule: Rule, span: SpanRecord, otherwise: int) -> int:
    given = rule.attempt(span) if rule.attempt is not None else None
    try:
        return int(given) - rule.first_attempt + 1 if given is not None else otherwise
    except (TypeError, ValueError):
        return otherwise


def failure_of(span: SpanRecord, rule: Rule) -> Failure:
    kind, message, stack = span.exception or ("", "", "")
    kind = kind or str(span.attributes.get("error.type") or "Error")
    why = rule.why(span) if rule.why is not None else None
    message = message or span.status_message or str(why or "") or "the span says that it failed, not why"
    return Failure(
        clean(kind)[:300], clean(mask_text(message))[:4000], clean(mask_text(stack))[:20_000] if stack else None
    )
