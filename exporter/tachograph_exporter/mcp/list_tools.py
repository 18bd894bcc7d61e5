"""Tools about runs, failures and workflows as lists: ``runs``, ``failures``, ``trends`` and ``late``."""

from __future__ import annotations

from typing import Final

from tachograph.clock import NS
from tachograph_exporter.mcp.answers import (
    ChangeLine,
    FailedRun,
    FailuresAnswer,
    GroupLine,
    LateAnswer,
    LateLine,
    LateStart,
    RunLine,
    RunsAnswer,
    TrendLine,
    TrendsAnswer,
)
from tachograph_exporter.mcp.arguments import FailuresArguments, LateArguments, RunsArguments, TrendsArguments
from tachograph_exporter.mcp.budget import Answer, fitted
from tachograph_exporter.mcp.context import Context, ToolError
from tachograph_exporter.mcp.wording import MESSAGE, NAME, NOTICE, SENTENCE, asking, marked, plain, plain_or_none
from tachograph_exporter.reading.queries import FailureQuery, RunQuery
from tachograph_exporter.reading.references import likely
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.schemas.executions import WorkflowExecutionResponse
from tachograph_exporter.views.schemas.failures import FailureGroupDetail, FailureGroupSummary
from tachograph_exporter.views.schemas.night import NightWorkflow
from tachograph_exporter.views.trends import BUCKETS, MAX_BUCKETS

_MAX_GROUPS: Final = 25
_MAX_BUCKETS: Final = 24
_MAX_CHANGES: Final = 8
_MAX_WORKFLOWS: Final = 60
_MAX_STARTS: Final = 4
_MAX_NIGHT_NS: Final = 8 * 86_400 * NS
_MAX_FRAMES: Final = 6


def lasting(seconds: float | None) -> str:
    """Seconds as a duration for people."""
    return format_duration(round(seconds * NS)) if seconds is not None else "an unknown time"


def no_workflow(context: Context, name: str) -> ToolError:
    """There is no such workflow; perhaps another is meant."""
    return ToolError(f"there is no workflow {marked(name, NAME)}{asking(likely(name, context.reader.names()))}")


def runs(context: Context, asked: RunsArguments) -> Answer:
    """List runs."""
    workflow = context.workflow(asked.workflow) if asked.workflow is not None else None
    query = RunQuery(
        workflow=workflow, statuses=tuple(asked.status), error=asked.error,
        from_ns=context.time_ns(asked.since), to_ns=context.time_ns(asked.until),
    )  # fmt: skip
    items, total = context.reader.runs(query, asked.limit)
    if not items and workflow is not None and workflow not in context.reader.names():
        raise no_workflow(context, workflow)

    def build(rows: int) -> Answer:
        lines = [_run_line(context, item) for item in items[:rows]]
        text = [NOTICE, f"{len(lines)} of {total} runs, newest first:"]
        for item in items[:rows]:
            took = item.duration_seconds
            how_long = f"took {lasting(took)}" if took is not None else f"for {lasting(item.elapsed_seconds)} so far"
            error = f", error {marked(_error_of(item), MESSAGE)}" if item.error_message or item.error_type else ""
            text.append(
                f"- {item.execution_id} {marked(item.workflow_name, NAME)} {item.status}, "
                f"started {item.started_at or 'not yet'}, {how_long}{error}"
            )
        left = len(items) - len(lines)
        return Answer("\n".join(text), RunsAnswer(total=total, runs=lines, left_out=left))

    return fitted(build, max(1, len(items)))


def _run_line(context: Context, item: WorkflowExecutionResponse) -> RunLine:
    return RunLine(
        run_id=item.execution_id,
        workflow=plain(item.workflow_name, NAME),
        status=item.status,
        started_at=item.started_at,
        duration_seconds=item.duration_seconds,
        error=plain(_error_of(item), MESSAGE) or None,
        page=context.page(item.execution_id),
    )


def _error_of(item: WorkflowExecutionResponse) -> str:
    return ": ".join(part for part in (item.error_type, item.error_message) if part)


def failures(context: Context, asked: FailuresArguments) -> Answer:
    """List failures by cause, or show one cause."""
    from_ns = context.time_ns(asked.since)
    if asked.group is not None:
        detail = context.reader.failure(asked.group, from_ns, _MAX_GROUPS)
        if detail is None:
            raise ToolError(
                f"there is no group of failures {marked(asked.group, NAME)}; `failures` without `group` lists them"
            )
        return fitted(lambda rows: _one_group(context, detail, rows), _MAX_GROUPS)
    workflow = context.workflow(asked.workflow) if asked.workflow is not None else None
    query = FailureQuery(workflow=workflow, from_ns=from_ns, states=tuple(asked.state))
    page = context.reader.failures(query, _MAX_GROUPS)
    if page is None:
        raise no_workflow(context, workflow or "")

    def build(rows: int) -> Answer:
        groups = page.items[:rows]
        text = [NOTICE, f"{len(groups)} of {page.total} causes of failures, {page.window_from} to {page.window_to}:"]
        text += [_group_text(group) for group in groups]
        structure = FailuresAnswer(
            window_from=page.window_from, window_to=page.window_to, total=page.total,
            groups=[_group_line(group) for group in groups],
            frames=[], by_version={}, by_host={}, runs=[], left_out=page.total - len(groups),
        )  # fmt: skip
        return Answer("\n".join(text), structure)

    return fitted(build, _MAX_GROUPS)


def _one_group(context: Context, detail: FailureGroupDetail, rows: int) -> Answer:
    occurrences = detail.occurrences[:rows]
    few = min(rows, _MAX_FRAMES)
    by_version = {
        plain(f"{entry.workflow_name} {entry.workflow_version}", NAME): entry.failures
        for entry in detail.by_version[:few]
    }
    by_host = {plain(entry.host, NAME): entry.failures for entry in detail.by_host[:few]}
    text = [NOTICE, _group_text(detail.group)]
    if detail.frames:
        text.append("in " + " < ".join(marked(frame, NAME) for frame in detail.frames[:few]))
    for title, counts in (("by version", by_version), ("by host", by_host)):
        if counts:
            text.append(f"{title}: " + ", ".join(f"{marked(name, NAME)} {count}" for name, count in counts.items()))
    text.append(f"{len(occurrences)} of {detail.total} failures, newest first:")
    for entry in occurrences:
        step = f", step {marked(entry.step_name, NAME)}" if entry.step_name is not None else ""
        text.append(f"- {entry.execution_id} {marked(entry.workflow_name, NAME)}{step}, {entry.at}")
    structure = FailuresAnswer(
        window_from=detail.window_from, window_to=detail.window_to, total=1,
        groups=[_group_line(detail.group)],
        frames=[plain(frame, NAME) for frame in detail.frames[:few]],
        by_version=by_version, by_host=by_host,
        runs=[
            FailedRun(
                run_id=entry.execution_id, workflow=plain(entry.workflow_name, NAME),
                step=plain_or_none(entry.step_name, NAME), at=entry.at, version=plain(entry.workflow_version, NAME),
                page=context.page(entry.execution_id),
            )
            for entry in occurrences
        ],
        left_out=detail.total - len(occurrences),
    )  # fmt: skip
    return Answer("\n".join(text), structure)


def _places(group: FailureGroupSummary) -> list[str]:
    return [
        plain(place.workflow_name if place.step_name is None else f"{place.workflow_name} / {place.step_name}", NAME)
        for place in group.places[:3]
    ]


def _group_text(group: FailureGroupSummary) -> str:
    places = ", ".join(marked(place, NAME) for place in _places(group))
    new = " new," if group.is_new else ""
    since = f", since version {marked(group.new_since_version, NAME)}" if group.new_since_version is not None else ""
    location = f" in {marked(group.location, NAME)}" if group.location is not None else ""
    return (
        f"- group {group.id} {group.state},{new} {group.counts.failures} failures, {group.counts.executions} runs "
        f"failed: {marked(group.error_type, NAME)} {marked(group.message, MESSAGE)}{location}; at {places}; "
        f"first {group.first_seen_at}{since}, last {group.last_seen_at or 'not in this window'}"
    )


def _group_line(group: FailureGroupSummary) -> GroupLine:
    return GroupLine(
        group=group.id,
        error_type=plain(group.error_type, NAME),
        message=plain(group.message, MESSAGE),
        location=plain_or_none(group.location, NAME),
        state=group.state,
        is_new=group.is_new,
        new_since_version=plain_or_none(group.new_since_version, NAME),
        first_seen_at=group.first_seen_at,
        last_seen_at=group.last_seen_at,
        failures=group.counts.failures,
        failed_runs=group.counts.executions,
        places=_places(group),
        example_run_id=group.example.execution_id if group.example is not None else None,
    )


def trends(context: Context, asked: TrendsArguments) -> Answer:
    """Show how a workflow changes over time."""
    from_ns = context.time_ns(asked.since)
    if from_ns is not None and (context.now_ns - from_ns) // (BUCKETS[asked.bucket] * NS) > MAX_BUCKETS:
        raise ToolError(f"the range has more than {MAX_BUCKETS} buckets of {asked.bucket}; choose larger buckets")
    if from_ns is not None and from_ns > context.now_ns:
        raise ToolError("`since` is in the future")
    view = context.reader.trends(context.workflow(asked.workflow), asked.bucket, from_ns, asked.step)
    if view is None:
        raise no_workflow(context, asked.workflow)

    def build(rows: int) -> Answer:
        buckets = view.buckets[-rows:]
        changes = view.change_points[-min(rows, _MAX_CHANGES) :]
        what = f"step {marked(view.step_name, NAME)} of " if view.step_name is not None else ""
        text = [NOTICE, f"{what}{marked(view.workflow_name, NAME)}, {view.start} to {view.end}:"]
        text += [f"- change: {marked(change.sentence, SENTENCE)} (since {change.since})" for change in changes]
        if not changes:
            text.append("- no lasting change of durations")
        text.append(
            f"the newest {len(buckets)} of {len(view.buckets)} buckets of {view.bucket} (runs, failed, p50, p95):"
        )
        for bucket in buckets:
            text.append(
                f"- {bucket.start[:16]}Z {bucket.total_executions}, {bucket.failed_executions}, "
                f"{lasting(bucket.p50)}, {lasting(bucket.p95)}"
            )
        structure = TrendsAnswer(
            workflow=plain(view.workflow_name, NAME), step=plain_or_none(view.step_name, NAME), bucket=view.bucket,
            start=view.start, end=view.end,
            changes=[
                ChangeLine(
                    since=change.since, until=change.until, step=plain_or_none(change.step_name, NAME),
                    ratio=change.ratio, before_seconds=change.before_seconds, after_seconds=change.after_seconds,
                    sentence=plain(change.sentence, SENTENCE),
                )
                for change in changes
            ],
            buckets=[
                TrendLine(
                    start=bucket.start, runs=bucket.total_executions, failed=bucket.failed_executions,
                    p50_seconds=bucket.p50, p95_seconds=bucket.p95,
                )
                for bucket in buckets
            ],
            left_out=len(view.buckets) - len(buckets),
        )  # fmt: skip
        return Answer("\n".join(text), structure)

    return fitted(build, _MAX_BUCKETS)


def late(context: Context, asked: LateArguments) -> Answer:
    """Show what was expected and did not come, failed or still runs."""
    low = context.time_ns(asked.since) or 0
    until = context.time_ns(asked.until)
    high = until if until is not None else context.now_ns
    if not 0 < high - low <= _MAX_NIGHT_NS:
        raise ToolError("expected `since` before `until`, and at most eight days before")
    night = context.reader.night(low, high)
    troubled = sum(map(_has_trouble, night.workflows))

    def build(rows: int) -> Answer:
        workflows = night.workflows[:rows]
        text = [
            NOTICE,
            f"{night.start} to {night.end}: workflows: {len(night.workflows)}, {troubled} of them with a missing or "
            "late start, a failed run or an open one"
            + ("" if night.is_complete else "; the window has more than is shown"),
        ]
        text += [_late_text(workflow) for workflow in workflows]
        structure = LateAnswer(
            start=night.start, end=night.end, is_complete=night.is_complete,
            workflows=[_late_line(workflow) for workflow in workflows],
            left_out=len(night.workflows) - len(workflows),
        )  # fmt: skip
        if structure.left_out:
            text.append(f"{structure.left_out} more workflows are left out: choose a shorter window")
        return Answer("\n".join(text), structure)

    return fitted(build, max(1, min(_MAX_WORKFLOWS, len(night.workflows))))


def _unmet(workflow: NightWorkflow) -> list[LateStart]:
    starts = [
        LateStart(at=start.at, state=start.state, started_at=start.started_at)
        for start in workflow.expected
        if start.state != "started"
    ]
    return starts[-_MAX_STARTS:]


def _has_trouble(workflow: NightWorkflow) -> bool:
    is_late = any(start.state in ("late", "held") for start in workflow.expected)
    return bool(workflow.missing or workflow.failed or workflow.running or is_late)


def _late_text(workflow: NightWorkflow) -> str:
    counts = f"{workflow.missing} missing, {workflow.failed} failed, {workflow.running} running"
    text = f"- {marked(workflow.workflow, NAME)}: {counts}, {len(workflow.runs)} runs"
    for start in _unmet(workflow):
        started = f", started {start.started_at}" if start.started_at is not None else ""
        text += f"; {start.state}: expected {start.at}{started}"
    line = _late_line(workflow)
    if line.last_run_id is not None:
        text += f"; newest run {line.last_run_id} {line.last_status}"
        text += f", expected to end {line.expected_end_at}" if line.expected_end_at is not None else ""
    return text


def _late_line(workflow: NightWorkflow) -> LateLine:
    last = max(workflow.runs, key=lambda run: run.started_at or "", default=None)
    return LateLine(
        workflow=plain(workflow.workflow, NAME),
        missing=workflow.missing,
        failed=workflow.failed,
        running=workflow.running,
        runs=len(workflow.runs),
        starts=_unmet(workflow),
        last_run_id=last.execution_id if last is not None else None,
        last_status=last.status if last is not None else None,
        expected_end_at=last.expected_end_at if last is not None else None,
    )
