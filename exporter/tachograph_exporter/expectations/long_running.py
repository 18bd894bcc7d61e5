"""Executions and steps that run longer than they may: past a deadline, or past what is usual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tachograph.clock import NS
from tachograph_exporter.expectations.findings import OVERDUE, STUCK, Finding
from tachograph_exporter.expectations.history import History
from tachograph_exporter.expectations.limits import Limits
from tachograph_exporter.times import format_duration

_MIN_LOOK_SECONDS: Final = 1.0
_MAX_LOOK_SECONDS: Final = 30.0
_MIN_USUAL_LOOK_SECONDS, _MAX_USUAL_LOOK_SECONDS = 60.0, 300.0
"""How often steps are looked at that are compared with what is usual: the longer their execution runs, the less."""


class LongRunning(NamedTuple):
    """What runs, or ran, for too long; the names of the steps that do now; and when to look again (unix ns)."""

    findings: Sequence[Finding]
    steps: Sequence[str]
    times: Sequence[int]


class _Limit(NamedTuple):
    """How long something may run, which kind of finding it is if it runs longer, and why, in words."""

    kind: str
    seconds: float
    reason: str


def find_long(limits: Limits, history: History, now_ns: int) -> LongRunning:
    """Executions, and steps of them, that take too long; and those that did."""
    times: list[int] = []
    findings = [*_executions(limits, history, now_ns, times)]
    too_long = {(finding.kind, finding.execution_id) for finding in findings}
    of_steps, names = _steps(limits, history, now_ns, times)
    findings += [finding for finding in of_steps if (finding.kind, finding.execution_id) not in too_long]
    return LongRunning(findings, sorted(names), times)


def _executions(limits: Limits, history: History, now: int, times: list[int]) -> Iterator[Finding]:
    limit = _limit_of_executions(limits, history.usual_p95_seconds)
    for run in history.runs:
        since = run.started_ns + round(limit.seconds * NS)
        end = run.finished_ns
        if (end if end is not None else now) <= since:
            if end is None:
                times.append(since + 1)
            continue
        took = format_duration((end if end is not None else now) - run.started_ns)
        running = [s.name for s in history.steps if s.execution_id == run.execution_id]
        steps = f" Running: {', '.join(running[:5])}." if running else ""
        yield Finding(
            limit.kind, run.execution_id, since, end, limits.severity,
            f"An execution {'has been running for' if end is None else 'took'} {took}; {limit.reason}.{steps}",
            ended_text(took, run.status), run.execution_id,
        )  # fmt: skip


def _limit_of_executions(limits: Limits, usual_p95: float | None) -> _Limit:
    if limits.deadline_seconds is not None:
        return _Limit(OVERDUE, limits.deadline_seconds, f"its deadline is {_text(limits.deadline_seconds)}")
    if usual_p95 is None:
        seconds = limits.stuck_unknown_seconds
        return _Limit(STUCK, seconds, f"nothing is known of how long it takes; the limit is {_text(seconds)}")
    return _usual_limit(limits, usual_p95)


def _limit_of_step(limits: Limits, history: History, name: str) -> _Limit | None:
    """None: it may run for as long as its execution."""
    expected = limits.steps.get(name)
    if expected is not None and expected.deadline_seconds is not None:
        return _Limit(OVERDUE, expected.deadline_seconds, f"its deadline is {_text(expected.deadline_seconds)}")
    usual_p95 = history.usual_steps.get(name)
    # Whoever gives a workflow a deadline says what is acceptable, whatever is usual.
    if usual_p95 is None or limits.deadline_seconds is not None:
        return None
    return _usual_limit(limits, usual_p95)


def _usual_limit(limits: Limits, usual_p95: float) -> _Limit:
    seconds = max(limits.stuck_factor * usual_p95, limits.stuck_seconds)
    reason = f"95 % of its executions took no longer than {_text(usual_p95)}; the limit is {_text(seconds)}"
    return _Limit(STUCK, seconds, reason)


def _steps(limits: Limits, history: History, now: int, times: list[int]) -> tuple[list[Finding], set[str]]:
    """Steps that run for too long, and those that ran past their deadline; and the names of the former.

    Of several of one name in an execution, the first is told.
    """
    findings: dict[str, Finding] = {}
    names: set[str] = set()
    # Steps start and end without anything else to notice, so they are looked at now and then.
    deadlines = [step.deadline_seconds for step in limits.steps.values() if step.deadline_seconds is not None]
    starts = [run.started_ns for run in history.runs if run.finished_ns is None]
    if deadlines and starts:
        times.append(now + round(min(max(min(deadlines) / 10, _MIN_LOOK_SECONDS), _MAX_LOOK_SECONDS) * NS))
    if starts and limits.deadline_seconds is None and history.usual_p95_seconds is not None:
        # No step is past what is usual before.
        earliest = min(starts) + round(limits.stuck_seconds * NS) + 1
        pause = min(max((now - min(starts)) / NS / 20, _MIN_USUAL_LOOK_SECONDS), _MAX_USUAL_LOOK_SECONDS)
        times.append(max(earliest, now + round(pause * NS)))
    for step in sorted(history.steps, key=lambda step: step.started_ns):
        limit = _limit_of_step(limits, history, step.name)
        if limit is None:
            continue
        since = step.started_ns + round(limit.seconds * NS)
        if now <= since:
            times.append(since + 1)
            continue
        names.add(step.name)
        key = step_key(step.execution_id, step.name)
        findings.setdefault(key, Finding(
            limit.kind, key, since, None, limits.severity,
            f"Its step “{step.name}” has been running for {format_duration(now - step.started_ns)}; {limit.reason}.",
            f"Its step “{step.name}” has ended.", step.execution_id,
        ))  # fmt: skip
    for long in sorted(history.long_steps, key=lambda long: long.started_ns):
        limit = _limit_of_step(limits, history, long.name)
        key = step_key(long.execution_id, long.name)
        if limit is None or limit.kind != OVERDUE or key in findings:
            continue
        took = format_duration(long.finished_ns - long.started_ns)
        findings[key] = Finding(
            limit.kind, key, long.started_ns + round(limit.seconds * NS), long.finished_ns, limits.severity,
            f"Its step “{long.name}” took {took}; {limit.reason}.",
            f"Its step “{long.name}” ended after {took}.", long.execution_id,
        )  # fmt: skip
    return list(findings.values()), names


def step_key(execution_id: str, name: str) -> str:
    """The key of a finding about a step of an execution."""
    return f"{execution_id}/{name}"[:200]


def ended_text(took: str, status: str) -> str:
    """What is told of an execution that took too long when it has ended."""
    return f"It ended after {took}, {status}."


def _text(seconds: float) -> str:
    return format_duration(round(seconds * NS))
