"""The tool ``timeline_map``: a run of any size at one look, as groups of steps of one name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tachograph.clock import NS
from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.mcp.answers import MapLine, MapStep, TimelineMapAnswer
from tachograph_exporter.mcp.arguments import TimelineMapArguments
from tachograph_exporter.mcp.budget import Answer, fitted
from tachograph_exporter.mcp.context import RESOURCE, Context, ToolError
from tachograph_exporter.mcp.list_tools import lasting
from tachograph_exporter.mcp.run_tools import timeline_of
from tachograph_exporter.mcp.wording import MESSAGE, NAME, NOTICE, SHORT, asking, marked, plain
from tachograph_exporter.reading.references import likely
from tachograph_exporter.times import parse_time
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline, WorkflowStepTimelineEntry

WIDTH: Final = 32
"""How many characters wide the run is drawn."""
_MAX_ROWS: Final = 30
_OPEN: Final = ("running", "retrying")


def timeline_map(context: Context, asked: TimelineMapArguments) -> Answer:
    """Draw a run, or the steps of one name."""
    return map_of(context, timeline_of(context, asked.run), asked.step)


def map_of(context: Context, timeline: WorkflowExecutionTimeline, step: str | None = None) -> Answer:
    """A timeline at one look; with ``step``, the steps of this name. Raises `ToolError` if there are none."""
    by_name: dict[str, list[WorkflowStepTimelineEntry]] = {}
    for entry in timeline.step_timeline:
        by_name.setdefault(entry.step_name, []).append(entry)
    origin = _time(timeline.started_at)
    total = timeline.total_duration_seconds or timeline.elapsed_seconds
    chosen: list[WorkflowStepTimelineEntry] = []
    if step is not None:
        # A name may be asked for as it was shown.
        chosen = by_name.get(step) or [
            entry for name, entries in by_name.items() if plain(name, NAME) == step for entry in entries
        ]
        if not chosen:
            said = f"the run has no step {marked(step, NAME)}{asking(likely(step, list(by_name)))}"
            raise ToolError(f"{said}; without `step` all of them are shown")
    # The weightiest are kept, and shown by their start.
    groups = [_group(name, entries, origin) for name, entries in by_name.items()]
    groups.sort(key=lambda line: (not line.failed, not line.on_critical_path, -line.run_seconds))
    steps = sorted(chosen, key=_weight)

    def build(rows: int) -> Answer:
        kept = sorted(groups[:rows], key=_start) if step is None else []
        shown = steps[:rows]
        left = len(steps) - len(shown) if step is not None else len(groups) - len(kept)
        text = [
            NOTICE,
            f"run {timeline.execution_id} of {marked(timeline.workflow_name, NAME)} {timeline.status}: started "
            f"{timeline.started_at or 'not yet'}, {lasting(total)}; {timeline.step_count} steps, "
            f"{timeline.failed_step_count} failed, {timeline.running_step_count} running",
        ]
        if timeline.error_message or timeline.error_type:
            text.append(f"error: {marked(_error(timeline), MESSAGE)}")
        text += [f"{_drawn(line.first_start, line.last_end, total)} {_group_text(line)}" for line in kept]
        for entry in shown:
            start = _offset(entry.started_at, origin)
            end = _offset(entry.completed_at, origin)
            text.append(f"{_drawn(start, end, total)} {_step_text(entry)}")
        if left:
            what = "steps" if step is not None else "names of steps; ask for one of them with `step`"
            text.append(f"left out: {left} lighter {what}")
        structure = TimelineMapAnswer(
            run_id=timeline.execution_id, workflow=plain(timeline.workflow_name, NAME), status=timeline.status,
            started_at=timeline.started_at, total_seconds=total, step_count=timeline.step_count,
            failed_step_count=timeline.failed_step_count, running_step_count=timeline.running_step_count,
            error=plain(_error(timeline), MESSAGE) or None, groups=kept,
            steps=[_map_step(entry, origin) for entry in shown], left_out=left,
            page=context.page(timeline.execution_id), resource=RESOURCE + timeline.execution_id,
        )  # fmt: skip
        return Answer("\n".join(text), structure)

    return fitted(build, _MAX_ROWS)


def _group(name: str, entries: Sequence[WorkflowStepTimelineEntry], origin: int | None) -> MapLine:
    # Times of the API are of one length, so they compare as texts.
    starts = [entry.started_at for entry in entries if entry.started_at is not None]
    ends = [entry.completed_at for entry in entries if entry.completed_at is not None]
    running = sum(entry.folded.running if entry.folded is not None else entry.status in _OPEN for entry in entries)
    failed = [entry for entry in entries if _failures(entry)]
    return MapLine(
        step=plain(name, NAME),
        count=sum(entry.folded.count if entry.folded is not None else 1 for entry in entries),
        failed=sum(map(_failures, entries)),
        running=running,
        skipped=sum(entry.status == "skipped" for entry in entries),
        retries=sum(entry.retry_count for entry in entries),
        first_start=_offset(min(starts, default=None), origin),
        last_end=_offset(max(ends, default=None), origin) if not running else None,
        run_seconds=round(sum(entry.run_seconds or 0.0 for entry in entries), 3),
        slowest_seconds=max((d for entry in entries if (d := _slowest(entry)) is not None), default=None),
        on_critical_path=any(entry.on_critical_path for entry in entries),
        error=plain(_error(failed[0]), SHORT) or None if failed else None,
    )


def _failures(entry: WorkflowStepTimelineEntry) -> int:
    if entry.folded is not None:
        return entry.folded.failed + entry.folded.lost
    return int(entry.status in UNSUCCESSFUL)


def _slowest(entry: WorkflowStepTimelineEntry) -> float | None:
    return entry.folded.max if entry.folded is not None else entry.duration_seconds


def _error(of: WorkflowExecutionTimeline | WorkflowStepTimelineEntry) -> str:
    return ": ".join(part for part in (of.error_type, of.error_message) if part)


def _weight(entry: WorkflowStepTimelineEntry) -> tuple[bool, float]:
    return not _failures(entry), -(entry.duration_seconds or entry.elapsed_seconds or 0.0)


def _start(line: MapLine) -> tuple[bool, float]:
    return line.first_start is None, line.first_start or 0.0


def _map_step(entry: WorkflowStepTimelineEntry, origin: int | None) -> MapStep:
    return MapStep(
        step_id=entry.step_id,
        index=plain(str(entry.step_index), NAME) if entry.step_index is not None else None,
        status=entry.status,
        start=_offset(entry.started_at, origin),
        duration_seconds=entry.duration_seconds,
        retries=entry.retry_count,
        on_critical_path=entry.on_critical_path,
        error=plain(_error(entry), SHORT) or None,
    )


def _group_text(line: MapLine) -> str:
    # What a line has was made plain already.
    count = f" ×{line.count}" if line.count > 1 else ""
    facts = [f"{lasting(line.run_seconds)} running"]
    if line.count > 1 and line.slowest_seconds is not None:
        facts.append(f"slowest {lasting(line.slowest_seconds)}")
    for number, what in ((line.failed, "failed"), (line.running, "running now"), (line.skipped, "skipped")):
        if number:
            facts.append(f"{number} {what}")
    if line.retries:
        facts.append(f"{line.retries} retries")
    if line.on_critical_path:
        facts.append("critical")
    if line.error is not None:
        facts.append(f"error {marked(line.error, MESSAGE)}")
    return f"{marked(line.step, NAME * 2)}{count} {', '.join(facts)}"


def _step_text(entry: WorkflowStepTimelineEntry) -> str:
    index = f" [{marked(str(entry.step_index), NAME)}]" if entry.step_index is not None else ""
    critical = ", critical" if entry.on_critical_path else ""
    retries = f", {entry.retry_count} retries" if entry.retry_count else ""
    error = f", error {marked(_error(entry), SHORT)}" if entry.error_type or entry.error_message else ""
    took = lasting(entry.duration_seconds if entry.duration_seconds is not None else entry.elapsed_seconds)
    return f"{marked(entry.step_name, NAME)}{index} {entry.status} {took}{retries}{critical}{error}"


def _drawn(start: float | None, end: float | None, total: float | None) -> str:
    """When something ran, as a bar from the start of the run to its end."""
    if start is None or not total:
        return f"[{'':{WIDTH}}]"
    low = min(WIDTH - 1, max(0, int(start / total * WIDTH)))
    high = WIDTH if end is None else min(WIDTH, max(low + 1, round(end / total * WIDTH)))
    return f"[{' ' * low}{'#' * (high - low)}{' ' * (WIDTH - high)}]"


def _time(text: str | None) -> int | None:
    return parse_time(text, 0) if text is not None else None


def _offset(text: str | None, origin: int | None) -> float | None:
    moment = _time(text)
    return round((moment - origin) / NS, 6) if moment is not None and origin is not None else None
