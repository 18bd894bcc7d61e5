"""How a run failed, whether it failed so before, and whether the next ones recovered."""

from __future__ import annotations

from collections.abc import Iterator

from tachograph.clock import NS
from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.store.failure_groups.template import template_of
from tachograph_exporter.store.samples import SampledRun
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.causes.case import Case
from tachograph_exporter.views.causes.claims import (
    CERTAIN,
    NOT_KNOWN,
    claim,
    failure_url,
    failures_url,
    length,
    plural,
    timeline_url,
)
from tachograph_exporter.views.metrics import COMPLETED
from tachograph_exporter.views.schemas.why import Claim


class SameFailure:
    """Tells whether other runs failed as one did: for the same cause, as groups of failures tell causes apart.

    Of runs whose groups are not known, with an error of the same type and with the same message, but for what varies.
    """

    def __init__(self, run: SampledRun) -> None:
        self._run = run
        self._template = template_of(run.error_message or "")

    def __call__(self, other: SampledRun) -> bool:
        """Whether it failed so, too."""
        if other.status not in UNSUCCESSFUL:
            return False
        if other.failure_group is not None and self._run.failure_group is not None:
            return other.failure_group == self._run.failure_group
        return (other.error_type or "") == (self._run.error_type or "") and (
            template_of(other.error_message or "") == self._template
        )


def outcome(case: Case) -> Iterator[Claim]:
    """How the run ended: in which step, with which error, after how many attempts."""
    row, step = case.run.execution, case.focus
    error = f": {_said(step.error_type, step.error_message)}" if step is not None and _has_error(step) else ""
    if not error and (row.error_type or row.error_message):
        error = f": {_said(row.error_type, row.error_message)}"
    words = {"timeout": "timed out", "lost": "was lost"}.get(row.status, "failed")
    where = f" in step “{step.name}”" if step is not None else ""
    tries = f" after {plural(step.attempt, 'attempt')}" if step is not None and step.attempt > 1 else ""
    yield claim(
        "outcome",
        step.name if step is not None else row.workflow,
        f"The run {words}{where}{tries}{error}.",
        CERTAIN,
        timeline_url(case.execution_id, step.name if step is not None else None),
        status=row.status,
        step=step.name if step is not None else None,
        error_type=(step.error_type if step is not None else None) or row.error_type,
        attempts=step.attempt if step is not None else None,
    )


def _has_error(step: StoredStep) -> bool:
    return bool(step.error_type or step.error_message)


def _said(error_type: str | None, message: str | None) -> str:
    line = " ".join((message or "").split())
    text = line if len(line) <= 200 else f"{line[:199]}…"
    return ": ".join(part for part in (error_type, text) if part)


def reason(case: Case) -> Iterator[Claim]:
    """The error as the cause, or the time limit."""
    row, step = case.run.execution, case.focus
    error_type = (step.error_type if step is not None else None) or row.error_type
    is_timeout = row.status == "timeout" or (step is not None and step.status == "timeout")
    url = timeline_url(case.execution_id, step.name if step is not None else None)
    if is_timeout:
        subject = step if step is not None and step.status == "timeout" else None
        name = f"step “{subject.name}”" if subject is not None else "the run"
        lasted = _lasted(subject) if subject is not None else (row.finished_ns - row.started_ns) / NS
        usual = next(
            (s.reference_seconds for s in case.comparison.steps if subject and s.step_id == subject.step_id), None
        )
        usually = f"; it usually takes {length(usual)}" if usual is not None else ""
        yield claim(
            "timeout",
            subject.name if subject is not None else row.workflow,
            f"A time limit stopped {name} after {length(lasted)}{usually}.",
            CERTAIN,
            url,
            seconds=lasted,
            usual_seconds=usual,
        )
    elif row.status == "lost":
        text = "Its process ended, or was cut off, without a word; why is not known."
        yield claim("lost", row.workflow, text, NOT_KNOWN, url, last_seen_at=rfc3339(row.last_seen_ns))
    elif error_type:
        text = (
            f"{error_type} was raised{f' in “{step.name}”' if step is not None else ''}; what caused it is not known."
        )
        yield claim("error", error_type, text, NOT_KNOWN, url, error_type=error_type)


def _lasted(step: StoredStep) -> float:
    started = step.attempt_started_ns if step.attempt_started_ns is not None else step.started_ns
    return ((step.finished_ns or 0) - started) / NS if started is not None else 0.0


def before(case: Case) -> Iterator[Claim]:
    """The same failure in earlier runs."""
    row = case.run.execution
    failed_so = SameFailure(case.sampled)
    earlier = [run for run in case.sample if run.finished_ns < row.finished_ns]
    same = [run for run in earlier if failed_so(run)]
    group = case.sampled.failure_group
    url = failure_url(group) if group is not None else failures_url(case.workflow_id, row.error_type)
    if not same:
        if earlier:
            text = f"It did not fail so in the {plural(len(earlier), 'run')} before."
            yield claim("before", None, text, CERTAIN, url, failure_group=group, same=0, runs=len(earlier))
        return
    streak = 0
    for run in reversed(earlier):
        if not failed_so(run):
            break
        streak += 1
    streak_text = f", the last {streak} in a row" if streak > 1 else ""
    yield claim(
        "before",
        same[0].execution_id,
        f"{len(same):,} of the {len(earlier):,} runs before failed so too{streak_text}; the first on "
        f"{rfc3339(same[0].finished_ns)[:16].replace('T', ' ')} UTC.",
        CERTAIN,
        url,
        failure_group=group,
        same=len(same),
        runs=len(earlier),
        in_a_row=streak,
        first_execution_id=same[0].execution_id,
        first_at=rfc3339(same[0].finished_ns),
    )


def later(case: Case) -> Iterator[Claim]:
    """Whether the runs after this one recovered."""
    row = case.run.execution
    after = [run for run in case.sample if run.finished_ns > row.finished_ns]
    if not after:
        return
    first = next((run for run in after if run.status == COMPLETED), None)
    if first is None:
        text = f"It has not recovered: none of the {plural(len(after), 'run')} after it completed."
        yield claim("later", None, text, CERTAIN, timeline_url(after[-1].execution_id), completed=0, runs=len(after))
        return
    number = after.index(first)
    text = (
        "The next run completed."
        if number == 0
        else f"It recovered: the {_ordinal(number + 1)} run after it completed."
    )
    yield claim(
        "later",
        first.execution_id,
        text,
        CERTAIN,
        timeline_url(first.execution_id),
        execution_id=first.execution_id,
        failed_between=number,
    )


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
