"""The attempts of a step, from the spans of its attempts, of the step itself, of its queueing and of its outcome."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from tachograph.clock import NS
from tachograph_exporter.ingest.assembly.trace import start_order
from tachograph_exporter.ingest.rules import Read, Rule
from tachograph_exporter.ingest.spans import LONGEST_SECONDS, SpanRecord

MAX_LOST: Final = 20
"""Attempts without spans that are shown at most."""
LOST: Final = ("Lost", "no span tells of this attempt, only the number of the next one", "")
Matched = tuple[Rule, SpanRecord]
"""A span, and the rule that it matches."""


_UNDECIDED: Final = ("completed", "running", "lost")
"""Statuses of an attempt that a span of another kind may correct."""


def status_of(rule: Rule, span: SpanRecord) -> str:
    """How a span ended, as `Rule.status` has it; or that it is running, or was lost: what it says so far is no end."""
    if not span.end_ns:
        return "lost" if span.is_lost else "running"
    return rule.status(span)


class Try:
    """One attempt. ``end_ns`` is 0 while it runs; ``status`` as `Rule.status` has it.

    ``ready_ns`` is when it was asked for, if a span says so, ``due_ns`` when it was to start at the earliest.
    ``exception`` is (type, message, stack); without it, ``blamed`` says why it failed.
    """

    __slots__ = ("blamed", "due_ns", "end_ns", "exception", "number", "ready_ns", "rule", "span", "start_ns", "status")

    def __init__(self, rule: Rule, span: SpanRecord, number: int | None = None) -> None:
        self.rule = rule
        self.span = self.blamed = span
        self.number = number
        self.start_ns = span.start_ns
        self.end_ns = span.over_ns
        self.status = status_of(rule, span)
        self.exception = span.exception
        self.ready_ns = _time(rule.ready, span)
        self.due_ns = _time(rule.due, span)

    def continue_with(self, rule: Rule, span: SpanRecord) -> None:
        """Another span of the same attempt, which was put aside in between (deferred, rescheduled)."""
        self.start_ns = min(self.start_ns, span.start_ns)
        if not span.over_ns or (self.end_ns and span.over_ns >= self.end_ns):
            self.rule, self.blamed, self.end_ns = rule, span, span.over_ns
            self.status = status_of(rule, span)
            self.exception = span.exception or self.exception

    def decide(self, rule: Rule, span: SpanRecord) -> None:
        """A span of another kind says how the attempt ended."""
        status = rule.status(span)
        if not span.end_ns or (status == "completed" and self.status not in _UNDECIDED):
            return
        if status != "completed" or self.status != "completed":
            self.status = status if self.status in _UNDECIDED else self.status
            self.end_ns = self.end_ns or span.end_ns
        if span.is_error and not self.blamed.is_error:
            self.rule, self.blamed = rule, span
        self.exception = self.exception or span.exception


def tries_of(spans: Sequence[Matched], attempts: Sequence[Matched], outcomes: Sequence[Matched]) -> list[Try]:
    """The attempts of a step, first to last.

    ``spans`` are the step's own (one for all attempts or one for each), ``attempts`` those of attempts only.
    """
    if len(spans) == 1 and not attempts and not outcomes:
        rule, span = spans[0]
        if rule.moments is not None and (tries := _by_moments(rule, span)):
            return tries
        return [Try(rule, span, rule.number(span) if rule.attempt is not None else None)]
    tries = _numbered(attempts) if attempts else _numbered(spans)
    if attempts:
        _add_steps(tries, spans)
    _add_outcomes(tries, outcomes)
    return tries


def with_lost_ones(tries: list[Try]) -> list[Try]:
    """The attempts with those that only the numbers of later ones tell of: their processes died, or their spans were
    lost. When they ran is not known; no time is claimed for them."""
    if all(attempt.number is None or attempt.number <= place + 1 for place, attempt in enumerate(tries)):
        return tries
    complete: list[Try] = []
    for attempt in tries:
        missing = (attempt.number or 0) - 1 - len(complete)
        if 0 < missing <= MAX_LOST:
            at_ns = max(complete[-1].end_ns if complete else 0, attempt.ready_ns or attempt.start_ns)
            at_ns = min(at_ns, attempt.start_ns)
            complete += [_lost(attempt, at_ns) for _ in range(missing)]
        complete.append(attempt)
    return complete


def _lost(later: Try, at_ns: int) -> Try:
    attempt = Try(later.rule, later.span)
    attempt.start_ns = attempt.end_ns = at_ns
    attempt.status, attempt.exception, attempt.ready_ns, attempt.due_ns = "failed", LOST, None, None
    return attempt


def _by_moments(rule: Rule, span: SpanRecord) -> list[Try]:
    assert rule.moments is not None  # noqa: S101
    tries = []
    low = span.start_ns
    high = span.end_ns or low + round(LONGEST_SECONDS * NS)
    for start_ns, end_ns, status, exception in rule.moments(span):
        attempt = Try(rule, span)
        # Events have times of their own, and any.
        low = attempt.start_ns = min(max(low, start_ns), high)
        attempt.end_ns = min(max(low, end_ns), high) if end_ns else 0
        attempt.status, attempt.exception = status, exception
        tries.append(attempt)
    if span.is_lost and tries and not tries[-1].end_ns:
        tries[-1].status, tries[-1].end_ns = "lost", max(span.lost_ns, tries[-1].start_ns)
    return tries


def _numbered(spans: Sequence[Matched]) -> list[Try]:
    """One attempt for each number, or for each span where the spans have no numbers; in the order they began."""
    tries: list[Try] = []
    by_number: dict[int, Try] = {}
    for rule, span in sorted(spans, key=_start):
        number = rule.number(span) if rule.attempt is not None else None
        same = by_number.get(number) if number is not None else None
        if same is not None:
            same.continue_with(rule, span)
            continue
        attempt = Try(rule, span, number)
        tries.append(attempt)
        if number is not None:
            by_number[number] = attempt
    return tries


def _add_steps(tries: list[Try], spans: Sequence[Matched]) -> None:
    """What the step's own spans say of its attempts: how they ended, and that there were more of them."""
    by_number = {attempt.number: attempt for attempt in tries if attempt.number is not None}
    last = tries[-1]
    added: list[Try] = []
    for rule, span in sorted(spans, key=_start):
        number = rule.number(span)
        attempt = by_number.get(number) if number is not None else last
        if attempt is None:
            # Its own span has not arrived, or its process died.
            attempt = Try(rule, span, number)
            added.append(attempt)
            if number is not None:
                by_number[number] = attempt
        elif span.is_lost:
            if not attempt.end_ns:
                attempt.status, attempt.end_ns = "lost", span.lost_ns
        elif span.end_ns:
            attempt.status = rule.status(span)
            attempt.exception = attempt.exception or span.exception
            if span.status_message or not attempt.blamed.is_error:
                attempt.rule, attempt.blamed = rule, span
            attempt.end_ns = attempt.end_ns or span.end_ns
    if added:
        tries += added
        tries.sort(key=lambda attempt: (attempt.number or 0, attempt.start_ns))
        for before, attempt in itertools.pairwise(tries):
            # One span for all attempts begins with the first of them.
            attempt.start_ns = max(attempt.start_ns, before.end_ns) if before.end_ns else attempt.start_ns
            attempt.end_ns = max(attempt.end_ns, attempt.start_ns) if attempt.end_ns else 0
    # What lies before the first attempt is waiting, what lies before a further one its backoff, and then its queue, if
    # a span of its own says so.
    first = tries[0]
    for rule, span in spans:
        attempt = by_number.get(rule.number(span) or 0)
        if attempt is not None and attempt is not first and attempt.ready_ns is None:
            earlier = [other.end_ns or other.start_ns for other in tries if other.start_ns < attempt.start_ns]
            if max(earlier, default=attempt.start_ns) <= span.start_ns < attempt.start_ns:
                attempt.ready_ns = span.start_ns
    starts = [span.start_ns for rule, span in spans if len(spans) == 1 or rule.number(span) in (None, first.number)]
    if starts and min(starts) < first.start_ns:
        first.ready_ns = min(starts)


def _add_outcomes(tries: list[Try], outcomes: Sequence[Matched]) -> None:
    by_span = {attempt.span.span_id: attempt for attempt in tries}
    for rule, span in sorted(outcomes, key=_start):
        attempt = by_span.get(span.parent_span_id)
        if attempt is not None:
            attempt.decide(rule, span)
            continue
        # Nothing else tells of this attempt: whoever ran it was killed.
        attempt = by_span[span.parent_span_id] = Try(rule, span)
        tries.append(attempt)
    tries.sort(key=lambda attempt: attempt.start_ns)


def _start(matched: Matched) -> tuple[int, str]:
    return start_order(matched[1])


def _time(read: Read | None, span: SpanRecord) -> int | None:
    value = read(span) if read is not None else None
    return value if isinstance(value, int) else None


def set_ready(tries: Sequence[Try], queued: Sequence[Matched]) -> bool:
    """Say of each attempt when it was asked for. Returns whether one more was asked for, which has not started yet.

    ``queued``: the spans that asked for the step, by start.
    """
    if not queued:
        return False
    asked = [span.start_ns for _, span in queued]
    ids = {span.span_id: span.start_ns for _, span in queued}
    before = -1
    last_used = -1
    for number, attempt in enumerate(tries):
        # The span above it; or else the last one since the attempt before it.
        time_ns = ids.get(attempt.span.parent_span_id)
        if time_ns is None or time_ns <= before:
            place = bisect_right(asked, attempt.start_ns) - 1
            time_ns = asked[place] if place >= 0 and asked[place] > before else None
            if time_ns is None and number < len(queued):
                # By a clock that is ahead of the worker's, it was asked for after it had started.
                asking = queued[number][1]
                time_ns = asking.start_ns if asking.resource_id != attempt.span.resource_id else None
        if time_ns is not None and attempt.ready_ns is None:
            attempt.ready_ns = min(time_ns, attempt.start_ns)
        before = attempt.start_ns
        last_used = max(last_used, time_ns if time_ns is not None else attempt.start_ns)
    if asked[-1] <= last_used:
        return False
    # What others asked for counts if there is more of it than attempts: their clocks may be minutes ahead.
    workers = {attempt.span.resource_id for attempt in tries}
    if any(span.start_ns > last_used for _, span in queued if span.resource_id in workers):
        return True
    others = [span.start_ns for rule, span in queued if span.resource_id not in workers and not rule.schedules]
    return len(others) > len(tries) and others[-1] > last_used
