"""A step during assembly: the spans that are of it, and what follows from them."""

from __future__ import annotations

from typing import Any, NamedTuple

from tachograph.events import FAILED, Failure
from tachograph.identity import StepRef
from tachograph.run_window import Place
from tachograph_exporter.ingest.assembly.trace import start_order
from tachograph_exporter.ingest.assembly.tries import Matched, Try, set_ready, tries_of, with_lost_ones
from tachograph_exporter.ingest.rules import RETRYING, Role, Rule
from tachograph_exporter.ingest.spans import SpanRecord


class NestedRun(NamedTuple):
    """An execution that ran inside another one; ``status`` is None while it is open."""

    execution_id: str
    workflow: str
    root: SpanRecord
    engine: str
    started_ns: int
    ended_ns: int | None
    status: str | None
    failure: Failure | None


class AssembledStep:
    """A step during assembly.

    A step that is an execution of its own has the root span of that one, and ``run``.

    Attributes:
        spans: its own; those of attempts if it has no others.
        attempts: spans of attempts only.
        queued: spans that asked for it; they are all it has if it has not started.
        outcomes: spans that only say how an attempt ended.
        tries: its attempts, first to last.
        is_queued_again: it ran, and was asked for again since.
        is_blocked: it will not start, because a step that it waits for failed.
        asked_ns: when it was asked for, if a span says so.
        ready_ns: when its dependencies were met, if a span says so: from then on it waited for a worker.
        due_ns: a later time that it was asked for, if a span says so: only from then on it waited for a worker.
        after: the step that asked for it, or whose span is above its own as a dependency.
    """

    __slots__ = (
        "after", "asked_ns", "attempts", "child_execution_id", "dependency_count", "depends_on", "due_ns",
        "finished_ns", "first", "index", "is_blocked", "is_queued_again", "name", "outcomes", "parent",
        "parent_step_id", "place", "queued", "ready_ns", "ref", "rule", "run", "source", "spans", "started_ns",
        "step_id", "tries",
    )  # fmt: skip

    def __init__(self, name: str, rule: Rule, first: SpanRecord, key: Any = None) -> None:
        self.name = name
        self.rule = rule
        self.first = first
        self.source = first.span_id if key is None else key
        self.spans: list[Matched] = []
        self.attempts: list[Matched] = []
        self.queued: list[Matched] = []
        self.outcomes: list[Matched] = []
        self.tries: list[Try] = []
        self.is_queued_again = False
        self.is_blocked = False
        self.index: str | None = None
        self.parent: AssembledStep | None = None
        self.ref: StepRef | None = None
        self.run: NestedRun | None = None
        self.child_execution_id: str | None = None
        self.place: Place | None = None
        self.asked_ns: int | None = None
        self.ready_ns: int | None = None
        self.due_ns: int | None = None
        self.after: AssembledStep | None = None
        self.dependency_count = 0
        # What `tachograph.critical_path` reads.
        self.step_id = ""
        self.depends_on: tuple[str, ...] = ()
        self.parent_step_id: str | None = None
        self.started_ns: int | None = None
        self.finished_ns: int | None = None

    @property
    def is_pending(self) -> bool:
        """Whether it was asked for and has not started."""
        return not self.tries and self.run is None

    @property
    def is_running(self) -> bool:
        """Whether an attempt of it runs, as far as is known."""
        return self.run is not None or (bool(self.tries) and not self.is_between_attempts and not self.is_blocked)

    @property
    def first_ns(self) -> int:
        """When it started, or was asked for."""
        return self.started_ns if self.started_ns is not None else self.first.start_ns

    @property
    def is_between_attempts(self) -> bool:
        """Whether its last attempt failed and another one is due."""
        return self.is_queued_again or (bool(self.tries) and self.tries[-1].status == RETRYING)

    def settle(self) -> None:
        """Find its attempts, start and end, once all its spans are assigned."""
        if self.run is not None:
            self.started_ns, self.finished_ns = self.run.started_ns, self.run.ended_ns
            return
        spans = self.spans
        if spans or self.attempts or self.outcomes:
            self.tries = tries_of(spans, self.attempts, self.outcomes)
        queued = self.queued
        if queued:
            queued.sort(key=lambda matched: start_order(matched[1]))
            self.asked_ns = queued[0][1].start_ns
            ready = [matched for matched in queued if not matched[0].waits]
            self.is_queued_again = set_ready(self.tries, ready) and bool(self.tries)
            if not self.tries and ready:
                self.ready_ns = ready[-1][1].start_ns
        tries = self.tries
        if tries and tries[-1].number is not None:
            tries = self.tries = with_lost_ones(tries)
        if not tries:
            self.first = queued[0][1]
            return
        if len(spans) > 1:
            self.first = min([span for _, span in spans], key=start_order)
        self.started_ns = tries[0].start_ns
        first = tries[0]
        if first.ready_ns is not None:
            self.ready_ns = first.ready_ns
        if first.due_ns is not None and self.ready_ns is not None and self.ready_ns < first.due_ns:
            self.due_ns = min(first.due_ns, first.start_ns)
        elif queued and queued[0][0].schedules and first.ready_ns is not None and self.asked_ns is not None:
            # Whoever keeps the time asked for it again when that had come.
            self.ready_ns, self.due_ns = min(self.asked_ns, first.ready_ns), first.ready_ns
        if not self.is_between_attempts and tries[-1].end_ns:
            self.finished_ns = tries[-1].end_ns
            if self.attempts and spans:
                # Its own span, if it is one for all attempts, says when it ended.
                ends = [span.over_ns for _, span in spans]
                self.finished_ns = max(ends) if all(ends) and max(ends) >= tries[-1].start_ns else tries[-1].end_ns
                if not all(ends) and len(spans) == 1:
                    self.finished_ns = None


def may_grow(step: AssembledStep) -> bool:
    """Whether later spans may be further attempts of the step."""
    rule = step.rule
    return bool(step.attempts) or rule.key is not None or rule.lasting or rule.retries or rule.role is Role.ATTEMPT


def may_be_repeated(step: AssembledStep) -> bool:
    """Whether an agent's library may run a step that failed again, as another span beside it: no key tells of that."""
    rule, span = step.rule, step.first
    if not rule.of_agent or rule.step_type == "tool" or rule.attempt is not None or step.run is not None:
        return False
    return (rule.key is None or rule.key(span) is None) and has_failed(step)


def has_failed(step: AssembledStep) -> bool:
    """Whether it has ended as failed."""
    if step.finished_ns is None:
        return False
    status = step.tries[-1].status if step.run is None else step.run.status
    return status in FAILED


def was_lost(step: AssembledStep) -> bool:
    """Whether nothing was heard of it any more while it ran."""
    return step.run is None and bool(step.tries) and step.tries[-1].status == "lost"
