"""The events of a step that was assembled from spans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from tachograph.events import (
    Event,
    Failure,
    SkipReason,
    StepCost,
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
from tachograph_exporter.ingest.assembly.agents import Spent
from tachograph_exporter.ingest.assembly.assembled_step import AssembledStep, NestedRun
from tachograph_exporter.ingest.assembly.steps import bounds
from tachograph_exporter.ingest.assembly.trace import start_order
from tachograph_exporter.ingest.assembly.tries import Try
from tachograph_exporter.ingest.built_in_rules import ANY
from tachograph_exporter.ingest.lineage.vocabulary import SKIPPED_ITSELF
from tachograph_exporter.ingest.rules import Kind, Rule
from tachograph_exporter.ingest.spans import SpanRecord, clean

OUTCOMES: Final = frozenset({"completed", "failed", "cancelled", "timeout", "lost"})
ABANDONED: Final = Failure("Abandoned", "still running when its run ended")
"""Why an execution inside another one is a lost step of it: its end is unknown, the other one's is known."""
UNTOLD: Final = Failure("Lost", "its run has ended, and nothing tells how it did itself")
"""Why a step is lost that had started, and whose end was never told."""
UNHEARD: Final = Failure("Lost", "it was asked for, and no span tells whether it ran")
"""Why a step is lost that was still queued, as far as the spans tell, when its execution ended."""
MAX_ATTEMPT: Final = (1 << 31) - 1
"""The greatest number of an attempt that a database holds."""
E = TypeVar("E", StepReady, StepStarted, StepRetrying, StepFinished)
SILENT: Final = Failure("Lost", "its process died: no sign of life of this span since")
"""Why a span is lost that never ended."""
_ATTEMPT_STATUSES: Final = {"timeout": StepStatus.TIMEOUT, "lost": StepStatus.LOST}


def step_events(
    step: AssembledStep, ends: Mapping[str, int | None], window: RunWindow, *, ended_ns: int | None
) -> Iterator[Event]:
    """A step's events. ``window`` is the time of the execution; ``ends`` are the ends of all steps' places by id.

    ``ended_ns``: the end of the execution, if it has ended.

    Events have the times that spans say; waits and running time are those of the step's place in the execution.
    """
    assert step.ref is not None  # noqa: S101
    assert step.place is not None  # noqa: S101
    limits = bounds(step, window)
    place, shift_ns = step.place, step.place.shift_ns
    attempts = StepAttempts(step.ref, limits.start_ns)

    def at(time_ns: int) -> int:
        return limits.cut(time_ns + shift_ns)

    if step.is_blocked and ended_ns is not None:
        yield StepSkipped(step=step.ref, time_ns=ended_ns, reason=SkipReason.UPSTREAM_FAILED)
        return
    if step.is_pending and ended_ns is not None:
        yield from _unheard(step, attempts, ended_ns, at)
        return
    if step.is_pending:
        ready_ns = step.ready_ns if step.ready_ns is not None else step.first_ns
        yield _shown(attempts.ready(at(ready_ns)), ready_ns)
        return
    tries = step.tries
    is_skipped = bool(tries) and tries[-1].status == "skipped" and step.finished_ns is not None
    if is_skipped and (reason := _skip_reason(step)) is not SkipReason.ITSELF:
        yield StepSkipped(step=step.ref, time_ns=step.finished_ns or 0, reason=reason)
        return
    # When it was asked for, if a span says so; without, nothing proves that it waited for a slot.
    asked_ns = step.ready_ns
    ready_ns = place.start_ns if asked_ns is None else min(at(asked_ns), place.start_ns)
    due_ns = ready_ns if step.due_ns is None else max(ready_ns, min(at(step.due_ns), place.start_ns))
    met_ns = limits.start_ns
    for step_id in step.depends_on:
        end = ends.get(step_id)
        if end is not None and met_ns < end <= due_ns:
            met_ns = end
    if step.after is not None and asked_ns is not None:
        # The step that asked for it had done so before it ended; whether it was due at once is another matter.
        met_ns = max(met_ns, ready_ns if step.asked_ns is None else min(at(step.asked_ns), ready_ns))
    if asked_ns is not None:
        attempts.ready(due_ns, met_ns, ready_ns)
    if step.run is not None:
        yield from _run_events(step, step.run, attempts, at, met_ns)
        return
    final = None if step.is_between_attempts else len(tries) - 1
    for i, attempt in enumerate(tries):
        number = _number(tries, i)
        begin_ns, end_ns = attempt.start_ns, attempt.end_ns
        if i:
            _back_off(attempts, attempt, at)
        started = _shown(attempts.started(at(begin_ns), attempt=number, ready_ns=met_ns), begin_ns)
        if i == final or not end_ns:
            continue
        retrying = attempts.retrying(
            at(end_ns),
            _ATTEMPT_STATUSES.get(attempt.status, StepStatus.FAILED),
            max(0, tries[i + 1].start_ns - end_ns) if i + 1 < len(tries) else 0,
            failure_of_try(attempt),
        )
        yield _shown(retrying, end_ns, started_ns=begin_ns)
    if final is None:
        if ended_ns is not None:
            # Whether it was tried again is not known.
            yield attempts.finished(at(ended_ns), StepStatus.LOST, UNHEARD)
        return
    newest = tries[-1]
    if step.finished_ns is None:
        yield started
        return
    status = StepStatus(newest.status) if newest.status in OUTCOMES or newest.status == "lost" else StepStatus.FAILED
    failure = failure_of_try(newest) if status is not StepStatus.COMPLETED and not is_skipped else None
    if status is StepStatus.LOST:
        failure = UNTOLD
    finished = attempts.finished(
        at(step.finished_ns), status, failure, attempt_ended_ns=at(newest.end_ns or newest.start_ns)
    )
    finished = _shown(finished, step.finished_ns, started_ns=tries[0].start_ns, attempt_started_ns=newest.start_ns)
    yield _skipped_itself(finished) if is_skipped else finished


def step_costs(step: AssembledStep, spent: Mapping[str, Spent]) -> Iterator[StepCost]:
    """What a step's attempts spent on models, as far as the spans tell. ``spent``: by span id."""
    assert step.ref is not None  # noqa: S101
    if not spent:
        return
    for number, (_, span) in enumerate(sorted(step.spans, key=lambda matched: start_order(matched[1])), start=1):
        cost = spent.get(span.span_id)
        if cost is not None:
            usage = cost.usage
            yield StepCost(
                step=step.ref, time_ns=span.end_ns or span.start_ns, sequence=number, attempt=number,
                usd=cost.usd or 0.0, tokens_in=usage.tokens_in, tokens_out=usage.tokens_out,
                model=usage.model,
            )  # fmt: skip


def _run_events(
    step: AssembledStep, run: NestedRun, attempts: StepAttempts, at: Callable[[int], int], met_ns: int
) -> Iterator[Event]:
    """The events of a step that is an execution of its own."""
    assert step.place is not None  # noqa: S101
    started_ns, ended_ns = run.started_ns, step.finished_ns
    started = _shown(attempts.started(step.place.start_ns, ready_ns=met_ns), started_ns)
    if ended_ns is None:
        yield started
        return
    status = StepStatus(run.status) if run.status is not None else StepStatus.LOST
    failure = run.failure if run.status is not None else ABANDONED
    finished = attempts.finished(at(ended_ns), status, failure if status is not StepStatus.COMPLETED else None)
    yield _shown(finished, ended_ns, started_ns=started_ns, attempt_started_ns=started_ns)


def _unheard(step: AssembledStep, attempts: StepAttempts, ended_ns: int, at: Callable[[int], int]) -> Iterator[Event]:
    """A step that was asked for, of an execution that ended: whether it ever ran is not known."""
    asked_ns = min(step.ready_ns if step.ready_ns is not None else step.first_ns, ended_ns)
    _shown(attempts.started(at(asked_ns)), asked_ns)
    finished = attempts.finished(at(ended_ns), StepStatus.LOST, UNHEARD)
    yield _shown(finished, ended_ns, started_ns=asked_ns, attempt_started_ns=asked_ns)


def _skip_reason(step: AssembledStep) -> SkipReason:
    newest = step.tries[-1]
    word = str(newest.rule.state(newest.blamed)).lower() if newest.rule.state is not None else ""
    if word == "upstream_failed":
        return SkipReason.UPSTREAM_FAILED
    # Only the span of its process proves that it ran, or events of its run.
    return SkipReason.ITSELF if step.attempts or word == SKIPPED_ITSELF else SkipReason.CONDITION


def _skipped_itself(event: StepFinished) -> StepSkipped:
    """The end of a step that ran, and skipped itself."""
    return StepSkipped(
        step=event.step, time_ns=event.time_ns, reason=SkipReason.ITSELF, attempt=event.attempt,
        started_ns=event.started_ns, dependency_ns=event.dependency_ns, unaccounted_ns=event.unaccounted_ns,
        scheduled_ns=event.scheduled_ns, queue_ns=event.queue_ns, backoff_ns=event.backoff_ns, run_ns=event.run_ns,
    )  # fmt: skip


def _number(tries: Sequence[Try], place: int) -> int:
    """The number of an attempt: the engine's, but at least its place."""
    number = tries[place].number
    if number is None or place < len(tries) - 1:
        return place + 1
    return max(place + 1, min(number, MAX_ATTEMPT))


def _back_off(attempts: StepAttempts, attempt: Try, at: Callable[[int], int]) -> None:
    """What a further attempt waited for: for its time to come, then for a slot."""
    moments = [time_ns for time_ns in (attempt.ready_ns, attempt.due_ns) if time_ns is not None]
    if moments:
        attempts.backed_off(at(min(max(moments), attempt.start_ns)))


def _shown(event: E, time_ns: int, **times: int) -> E:
    """The event with the times that the spans say."""
    if event.time_ns == time_ns:
        for name, value in times.items():
            if getattr(event, name) != value:
                break
        else:
            return event
    return msgspec.structs.replace(event, time_ns=time_ns, **times)


def failure_of_try(attempt: Try) -> Failure:
    """What went wrong in an attempt."""
    return failure_of(attempt.blamed, attempt.rule, attempt.exception)


def tells_why(rule: Rule, span: SpanRecord) -> bool:
    """Whether a failed span says what went wrong."""
    reason = rule.why(span) if rule.why is not None else None
    return bool(span.exception or span.status_message or reason or span.attributes.get("error.type"))


def failure_of(span: SpanRecord, rule: Rule, exception: tuple[str, str, str] | None = None) -> Failure:
    """What a failed span says went wrong (or ``exception``, if that is known better); secrets are masked.

    Of a lost one, that nothing was heard of it.
    """
    if span.is_lost and exception is None:
        return SILENT
    kind, message, stack = exception or span.exception or ("", "", "")
    cause = rule.cause(span) if rule.cause is not None else None
    kind = str(cause or kind) or str(span.attributes.get("error.type") or "Error")
    reason = rule.why(span) if rule.why is not None else None
    message = message or span.status_message or str(reason or "") or "the span gives no reason"
    return Failure(
        clean(kind)[:300], clean(mask_text(message))[:4000], clean(mask_text(stack))[:20_000] if stack else None
    )


def attempts_of(step: AssembledStep) -> Iterator[tuple[str, int]]:
    """The id of each attempt's span, and the attempt's number.

    The step's own span, or one that says how an attempt ended, stands in for it as long as its own has not arrived.
    """
    if step.attempts:
        for rule, span in step.spans:
            yield span.span_id, rule.number(span) or 1
    numbers = {attempt.span.span_id: _number(step.tries, place) for place, attempt in enumerate(step.tries)}
    for _, span in step.outcomes:
        if span.parent_span_id in numbers:
            yield span.span_id, numbers[span.parent_span_id]
    yield from numbers.items()


def running_span(step: AssembledStep) -> str | None:
    """The id of the span of the attempt that runs, if one does."""
    if step.run is not None or not step.tries or step.finished_ns is not None or step.is_between_attempts:
        return None
    if step.rule is ANY and step.first.kind == Kind.PRODUCER:
        return None  # Whoever reads the message will be the step.
    return step.tries[-1].span.span_id if not step.tries[-1].end_ns else None
