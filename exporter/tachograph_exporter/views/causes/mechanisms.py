"""What the additional time of a step went into: retries, a slot, spans below it, work, or an unexplained wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from tachograph.clock import NS
from tachograph.redaction import mask_text
from tachograph.resources import decoded
from tachograph_exporter.store.failure_groups.template import template_of
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.views.causes.case import MIN_SHARE, Case
from tachograph_exporter.views.causes.claims import (
    CERTAIN,
    LIKELY,
    claim,
    length,
    plural,
    timeline_url,
    trace_url,
)
from tachograph_exporter.views.causes.differences import MIN_USUAL
from tachograph_exporter.views.causes.features import of_resources
from tachograph_exporter.views.causes.statistics import median
from tachograph_exporter.views.schemas.why import Claim, Scalar

_IDLE: Final = 0.2
"""The share of the additional time up to which a step that computed no longer than this waited."""
_CPU: Final = "cpu_seconds"


def additional_parts(case: Case) -> tuple[int, int, int, int] | None:
    """Additional nanoseconds of the step to look at: all, waiting for a slot, retrying, in the last attempt."""
    parts = case.focus_parts
    if parts is None:
        return None
    now, usual = parts
    total = now.total_ns - usual.total_ns
    if total <= 0:
        return None
    return (
        total,
        now.queue_ns - usual.queue_ns,
        now.retries_ns - usual.retries_ns,
        now.last_ns - usual.last_ns,
    )


def is_queueing(case: Case) -> bool:
    """Whether most of the additional time was a wait for a slot: of the step to look at, or of all on the path."""
    parts = additional_parts(case)
    if parts is not None:
        return parts[1] >= MIN_SHARE * parts[0]
    return _queue_on_path(case) is not None


def _queue_on_path(case: Case) -> tuple[float, float] | None:
    """Seconds that the steps on the critical path waited for slots, and usually wait, if that made the run slow."""
    additional = case.comparison.difference_seconds or 0
    path = [step for step in case.comparison.steps if step.on_critical_path and step.step_id is not None]
    if additional <= 0 or not path or not case.is_known:
        return None
    now = sum(step.queue_seconds or 0 for step in path)
    ids = [step.step_id for step in path if step.step_id is not None]
    usual = median(
        [
            sum((run.steps[step_id].queue_ns or 0) / NS for step_id in ids if step_id in run.steps)
            for run in case.usual.values()
        ]
    )
    return (now, usual) if now - usual >= MIN_SHARE * additional else None


def retries(case: Case) -> Iterator[Claim]:
    """Attempts that failed before the last one, with the waits after them."""
    parts, focus = additional_parts(case), case.focus
    if parts is None or focus is None or parts[2] < MIN_SHARE * parts[0] or focus.attempt < 2:
        return
    failed = [a for a in case.run.attempts if a.step_id == focus.step_id and a.attempt < focus.attempt]
    errors = Counter(
        (a.error_type or "", template_of(a.error_message or "")) for a in failed if a.error_type or a.error_message
    )
    (error, _), count = errors.most_common(1)[0] if errors else (("", ""), 0)
    message = next((a.error_message for a in failed if (a.error_type or "") == error and a.error_message), None)
    backoff = sum(a.backoff_ns for a in failed) / NS + (focus.backoff_ns or 0) / NS
    reason = f" with {error}" if error else ""
    said = f" ({_short(message)})" if message else ""
    yield claim(
        "retries",
        error or focus.name,
        f"{plural(focus.attempt - 1, 'attempt')} of “{focus.name}” failed{reason}{said} before the last one: "
        f"{length(parts[2] / NS)} more than usual, failed attempts and the waits after them.",
        CERTAIN,
        timeline_url(case.execution_id, focus.name),
        step=focus.name,
        failed_attempts=focus.attempt - 1,
        error_type=error or None,
        same_error=count,
        additional_seconds=parts[2] / NS,
        backoff_seconds=backoff,
    )


def queue(case: Case) -> Iterator[Claim]:
    """Waiting for a slot."""
    parts, focus = additional_parts(case), case.focus
    if parts is not None and focus is not None:
        if parts[1] < MIN_SHARE * parts[0]:
            return
        waited = (focus.queue_ns or 0) / NS
        usual = waited - parts[1] / NS
        subject, who = focus.name, f"Step “{focus.name}” was ready and"
    else:
        on_path = _queue_on_path(case)
        if on_path is None:
            return
        waited, usual = on_path
        subject, who = "steps", "The steps on the critical path were ready and"
    yield claim(
        "queue",
        subject,
        f"{who} waited {length(waited)} for a slot; usually it is {length(usual)}.",
        CERTAIN,
        timeline_url(case.execution_id, focus.name if focus is not None else None),
        step=focus.name if focus is not None else None,
        queue_seconds=waited,
        usual_queue_seconds=usual,
    )


def slot_holder(case: Case) -> Iterator[Claim]:
    """Who ran in the same process while the step waited for a slot of it."""
    focus, process = case.focus, getattr(case.run.execution, "process", None)
    if focus is None or focus.started_ns is None or not focus.queue_ns or not process or not is_queueing(case):
        return
    low, high = focus.started_ns - focus.queue_ns, focus.started_ns
    overlaps: Counter[str] = Counter()
    runs: dict[str, str] = {}
    for beside in case.beside:
        if beside.process != process or beside.workflow_id == case.workflow_id:
            continue
        until = beside.finished_ns if beside.finished_ns is not None else high
        overlap = min(until, high) - max(beside.started_ns, low)
        if overlap > 0:
            overlaps[beside.workflow] += overlap
            runs.setdefault(beside.workflow, beside.execution_id)
    if not overlaps:
        return
    workflow, overlap = overlaps.most_common(1)[0]
    if overlap < MIN_SHARE * focus.queue_ns:
        return
    yield claim(
        "slot",
        workflow,
        f"Likely: workflow “{workflow}” held the slot: it ran in the same process for "
        f"{length(min(overlap, focus.queue_ns) / NS)} of that wait.",
        LIKELY,
        timeline_url(runs[workflow]),
        execution_id=runs[workflow],
        workflow=workflow,
        overlap_seconds=overlap / NS,
    )


def below(case: Case) -> Iterator[Claim]:
    """Spans below the step that took the additional time."""
    parts, focus = additional_parts(case), case.focus
    if focus is None or not case.below:
        return
    top = case.below[0]
    additional = parts[3] if parts is not None else (focus.finished_ns or 0) - (focus.started_ns or 0)
    if additional <= 0 or top.additional_ns < MIN_SHARE * additional:
        return
    if parts is not None and parts[3] < MIN_SHARE * parts[0]:
        return
    is_compared = top.references >= MIN_USUAL
    usually = (
        f"usually {length(top.usual_ns / NS)} ×{top.usual_count:,}"
        if is_compared and top.usual_count
        else "usually there is none"
        if is_compared
        else "what is usual is not known"
    )
    name = mask_text(top.name, 200)
    lasted = (focus.finished_ns or 0) - (focus.started_ns or 0)
    took = (
        f"{length(top.self_ns / NS)} of step “{focus.name}” were `{_short(name)}` ×{top.span_count:,}"
        if top.self_ns <= lasted
        else f"`{_short(name)}` ×{top.span_count:,} took {length(top.self_ns / NS)} in step “{focus.name}”, "
        "some at the same time"
    )
    yield claim(
        "below",
        name,
        f"{took}; {usually}.",
        CERTAIN if is_compared else LIKELY,
        trace_url(case.run.execution.trace_id),
        step=focus.name,
        span=name,
        seconds=top.self_ns / NS,
        count=top.span_count,
        usual_seconds=top.usual_ns / NS if is_compared else None,
        usual_count=top.usual_count if is_compared else None,
        reference_runs=top.references,
    )


def upstream(case: Case) -> Iterator[Claim]:
    """A run of another workflow that the step ended with, as it usually does."""
    other, focus = case.upstream, case.focus
    if other is None or focus is None or other.finished_ns is None:
        return
    yield claim(
        "upstream",
        other.workflow,
        f"Likely: step “{focus.name}” waited for workflow “{other.workflow}”, which ended just before it, "
        "as it does in usual runs.",
        LIKELY,
        f"/api/workflows/executions/{other.execution_id}/why",
        execution_id=other.execution_id,
        workflow=other.workflow,
    )


def work(case: Case) -> Iterator[Claim]:
    """Whether the step computed or waited in its additional time, if its processor time is known."""
    parts, focus = additional_parts(case), case.focus
    if parts is None or focus is None or parts[3] < MIN_SHARE * parts[0]:
        return
    use = decoded(focus.resources)
    usual = [cpu for run in case.usual.values() if (cpu := _cpu(case, run.execution_id, focus)) is not None]
    if use is None or use.cpu_seconds is None or len(usual) < MIN_USUAL:
        return
    additional, usually = parts[3] / NS, median(usual)
    computed = use.cpu_seconds - usually
    values: dict[str, Scalar] = {
        "step": focus.name,
        "cpu_seconds": use.cpu_seconds,
        "usual_cpu_seconds": usually,
        "additional_seconds": additional,
    }
    url = timeline_url(case.execution_id, focus.name)
    if computed >= MIN_SHARE * additional:
        text = (
            f"Step “{focus.name}” computed: {length(use.cpu_seconds)} of processor time instead of {length(usually)}."
        )
        yield claim("working", focus.name, text, CERTAIN, url, **values)
    elif computed < _IDLE * additional:
        on_what = "" if any(below(case)) else " On what is not known."
        text = (
            f"Step “{focus.name}” waited: it used {length(use.cpu_seconds)} of processor time, usually "
            f"{length(usually)}.{on_what}"
        )
        # Of a shared process only the step's own thread is known: others may have computed for it.
        yield claim("waiting", focus.name, text, LIKELY if use.is_shared else CERTAIN, url, **values)


def _cpu(case: Case, execution_id: str, focus: StoredStep) -> float | None:
    detail = case.details.get((execution_id, focus.step_id))
    if detail is None or detail.resources is None:
        return None
    for feature in of_resources("", detail.resources):
        if feature.key == f".{_CPU}" and isinstance(feature.value, float):
            return feature.value
    return None


def _short(text: str, limit: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
