"""What an open run does now: which steps run, since when, and what others wait for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tachograph.clock import NS
from tachograph.events import OPEN_STEP
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.causes.claims import CERTAIN, NOT_KNOWN, claim, length, plural, timeline_url
from tachograph_exporter.views.expected_end import ExpectedEnd, Usual
from tachograph_exporter.views.schemas.why import Claim

MAX_NAMED: Final = 5
"""Open steps that are named."""
_LATE: Final = 0.95
"""The quantile of usual durations after which a step takes longer than usual."""


def progress(run: StoredRun, expected: ExpectedEnd, usual: Usual, now_ns: int) -> Iterator[Claim]:
    """How long the run has been open, and when it is expected to end."""
    row = run.execution
    url = timeline_url(row.execution_id)
    if row.started_ns is None:
        waited = max(0, now_ns - (row.queued_ns if row.queued_ns is not None else row.created_ns)) / NS
        text = f"The run has waited {length(waited)} to start; what it waits for is not known."
        yield claim("queued", row.workflow, text, NOT_KNOWN, url, queued_seconds=waited)
        return
    elapsed = max(0, now_ns - row.started_ns) / NS
    late = usual.durations.quantile(_LATE) if usual.durations.count else None
    parts = [f"The run has been running for {length(elapsed)}"]
    if expected.usual_seconds is not None:
        parts.append(f"usually it takes {length(expected.usual_seconds)}")
    if late is not None and elapsed > late:
        parts.append(f"it takes longer than {100 * _LATE:.0f} % of the usual runs")
    elif expected.end_ns is not None:
        parts.append(f"it is expected to end in {length(max(0, expected.end_ns - now_ns) / NS)}")
    yield claim(
        "progress",
        row.workflow,
        f"{'; '.join(parts)}.",
        CERTAIN,
        url,
        elapsed_seconds=elapsed,
        usual_seconds=expected.usual_seconds,
        p95_seconds=late,
        is_late=late is not None and elapsed > late,
    )


def never_started(run: StoredRun) -> Claim:
    """A run that ended before it started."""
    row = run.execution
    error = " ".join((row.error_message or "").split())[:200]
    text = f"The run is {row.status}; it never started{f': {error}' if error else ''}."
    return claim("outcome", row.workflow, text, CERTAIN, timeline_url(row.execution_id), status=row.status)


def open_steps(run: StoredRun, usual: Usual, now_ns: int) -> Iterator[Claim]:
    """What each open step does: those that run first, the longest first."""
    steps = [step for step in run.steps if step.status in OPEN_STEP]
    inner = {step.parent_step_id for step in steps if step.parent_step_id is not None}
    steps = [step for step in steps if step.step_id not in inner]
    order = {"running": 0, "retrying": 1, "pending": 2}
    steps.sort(key=lambda step: (order.get(step.status, 3), step.started_ns or step.ready_ns or now_ns, step.step_id))
    names = {step.step_id: step.name for step in run.steps}
    for step in steps[:MAX_NAMED]:
        yield _of_step(run.execution.execution_id, step, usual, now_ns)
    if len(steps) > MAX_NAMED:
        text = f"{plural(len(steps) - MAX_NAMED, 'more step')} have not ended."
        yield claim("more", None, text, CERTAIN, timeline_url(run.execution.execution_id), steps=len(steps))
    if not steps and names and run.execution.started_ns is not None:
        last = max(run.steps, key=lambda step: step.finished_ns or 0)
        idle = max(0, now_ns - (last.finished_ns or run.execution.started_ns)) / NS
        text = f"No step has run for {length(idle)}, since “{last.name}” ended; what the run does is not known."
        yield claim("idle", last.name, text, NOT_KNOWN, timeline_url(run.execution.execution_id), seconds=idle)


def _of_step(execution_id: str, step: StoredStep, usual: Usual, now_ns: int) -> Claim:
    url = timeline_url(execution_id, step.name)
    if step.status == "pending" and step.started_ns is None:
        since = step.ready_ns if step.ready_ns is not None else now_ns
        if since > now_ns:
            left = (since - now_ns) / NS
            text = f"Step “{step.name}” is asked for a later time: it is due in {length(left)}."
            return claim("scheduled", step.name, text, CERTAIN, url, step=step.name, due=rfc3339(since))
        waited = max(0, now_ns - since) / NS
        text = f"Step “{step.name}” has been ready for {length(waited)} and waits for a slot."
        return claim("queue", step.name, text, CERTAIN, url, step=step.name, queue_seconds=waited)
    if step.status == "retrying":
        error = f" with {step.error_type}" if step.error_type else ""
        text = f"Step “{step.name}” waits to be tried again: attempt {step.attempt} failed{error}."
        return claim(
            "backoff", step.name, text, CERTAIN, url, step=step.name, attempt=step.attempt, error_type=step.error_type
        )
    started = step.attempt_started_ns if step.attempt_started_ns is not None else step.started_ns
    elapsed = max(0, now_ns - (started if started is not None else now_ns)) / NS
    durations = usual.steps.get(step.name)
    median = durations.quantile(0.5) if durations is not None and durations.count else None
    late = durations.quantile(_LATE) if durations is not None and durations.count else None
    is_late = late is not None and elapsed > late
    usually = f", usually {length(median)}" if median is not None else ""
    attempt = f" (attempt {step.attempt})" if step.attempt > 1 else ""
    longer = f": longer than {100 * _LATE:.0f} % of its usual runs" if is_late else ""
    return claim(
        "running",
        step.name,
        f"Step “{step.name}” has been running for {length(elapsed)}{attempt}{usually}{longer}.",
        CERTAIN,
        url,
        step=step.name,
        elapsed_seconds=elapsed,
        usual_seconds=median,
        p95_seconds=late,
        attempt=step.attempt,
        since=rfc3339(started) if started is not None else None,
        is_late=is_late,
    )


def late_steps(claims: Sequence[Claim]) -> list[Claim]:
    """Those of the open steps that take longer than usual, or wait: what an open run is held up by."""
    return [each for each in claims if each.kind in ("queue", "backoff") or each.evidence.values.get("is_late") is True]
