"""Metrics, trends, comparisons and lists as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from tachograph.clock import NS
from tachograph_exporter.cli.columns import Column, show_table
from tachograph_exporter.cli.common import out, print_json
from tachograph_exporter.cli.moments import column, moment
from tachograph_exporter.cli.terminal import MAX_ROWS, printable, shown
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline
from tachograph_exporter.views.schemas.trends import WorkflowTrends

MAX_BELOW = 5
"""Names of spans below a step that are shown."""


def _duration(value: float | None) -> str:
    return format_duration(round(value * NS)) if value is not None else "–"


def _percent(value: float | None) -> str:
    return f"{value:.1f} %" if value is not None else "–"


def show_metrics(summary: WorkflowMetricsSummary) -> None:
    """Print a workflow's metrics and a table of its steps."""
    text = Text()
    text.append(printable(summary.workflow_name), style="bold")
    text.append(f"   {summary.workflow_id}\n", style="bright_black")
    counts = ", ".join(f"{figures.count} {status}" for status, figures in sorted(summary.by_status.items()))
    if summary.open_executions:
        counts += f"{', ' if counts else ''}{summary.open_executions} open"
    text.append(f"  runs        {summary.total_executions} ({counts or 'none yet'})\n")
    is_rated = summary.successful_executions + summary.failed_executions > 0
    text.append(f"  success     {_percent(summary.success_rate if is_rated else None)}\n")
    has_ended = summary.min_duration_seconds is not None
    text.append(
        f"  duration    {_duration(summary.average_duration_seconds if has_ended else None)} on average, "
        f"{_duration(summary.min_duration_seconds)} to {_duration(summary.max_duration_seconds)}\n"
    )
    text.append(
        f"  percentiles p50 {_duration(summary.p50)}, p90 {_duration(summary.p90)}, p95 {_duration(summary.p95)}, "
    )
    text.append(f"p99 {_duration(summary.p99)}")
    tokens = summary.tokens_in + summary.tokens_out
    if summary.cost_usd or tokens:
        cost = f"{summary.cost_usd:.4f} USD" if summary.cost_usd else "not known"
        text.append(f"\n  cost        {cost}, {tokens} tokens")
    out.print(text, soft_wrap=True)
    if not summary.steps:
        return
    columns = (
        Column("step"), Column("runs", 5, is_number=True), Column("success", 3, is_number=True),
        Column("p50", 0, is_number=True), Column("p95", 1, is_number=True), Column("p99", 6, is_number=True),
        Column("wait", 4, is_number=True), Column("retries", 2, is_number=True), Column("path", 7, is_number=True),
    )  # fmt: skip
    rows = []
    for step in summary.steps[:MAX_ROWS]:
        wait = step.wait.total if step.wait is not None else None
        share = _percent(100 * step.critical_path_share if step.critical_path_share is not None else None)
        rows.append((
            step.step_name, str(step.count), _percent(step.success_rate), _duration(step.p50), _duration(step.p95),
            _duration(step.p99), _duration(wait), str(step.retry_count), share,
        ))  # fmt: skip
    show_table(columns, rows)


def show_trends(trends: WorkflowTrends) -> None:
    """Print a workflow's trends, a row per bucket."""
    title = printable(trends.workflow_name + (f" · {trends.step_name}" if trends.step_name is not None else ""))
    out.print(Text(title, style="italic"))
    buckets = trends.buckets[-MAX_ROWS:]
    heading, times = column("from", [bucket.start for bucket in buckets])
    has_cost = any(bucket.cost_usd for bucket in buckets)
    columns = (
        Column(heading), Column("runs", 3, is_number=True), Column("success", 2, is_number=True),
        Column("p50", 0, is_number=True), Column("p95", 1, is_number=True), Column("p99", 4, is_number=True),
        *([Column("cost", 5, is_number=True)] if has_cost else []),
    )  # fmt: skip
    rows = []
    for bucket, start in zip(buckets, times, strict=True):
        row = (
            # Buckets begin at whole minutes.
            start.replace(":00", "", 1) if start.count(":") == 2 and start.endswith(":00") else start,
            str(bucket.total_executions), _percent(bucket.success_rate), _duration(bucket.p50), _duration(bucket.p95),
            _duration(bucket.p99),
        )  # fmt: skip
        rows.append((*row, f"{bucket.cost_usd:.4f}" if bucket.cost_usd else "") if has_cost else row)
    show_table(columns, rows)


def show_comparison(comparison: ExecutionComparison) -> None:
    """Print a comparison, a row per step, the likeliest culprits first."""
    side = comparison.execution
    when = f", started {moment(side.started_at)}" if side.started_at is not None else ""
    out.print(f"run {side.execution_id}: {side.status}{when}", style="bright_black", soft_wrap=True)
    columns = (
        Column("step"), Column("duration", is_number=True), Column("reference", 1, is_number=True),
        Column("ratio", 2, is_number=True), Column("percentile", 4, is_number=True), Column("blame", 3, is_number=True),
    )  # fmt: skip
    steps = comparison.steps[:MAX_ROWS]
    rows = [
        (
            ("● " if step.on_critical_path else "  ") + step.step_name,
            _duration(step.seconds),
            _duration(step.reference_seconds),
            f"×{step.ratio:.3g}" if step.ratio is not None else "–",
            f"p{step.percentile:.3g}" if step.percentile is not None else "",
            _percent(100 * step.blame) if step.blame else "",
        )
        for step in steps
    ]
    show_table(columns, rows, ["bold red" if step.step_name == comparison.culprit else "" for step in steps])
    if len(comparison.steps) > MAX_ROWS:
        out.print(f"… and {len(comparison.steps) - MAX_ROWS} more steps", style="bright_black")
    for step in comparison.steps:
        for spans in (step.below or ())[:MAX_BELOW]:
            usually = f"{_duration(spans.reference_seconds)} ×{spans.reference_count:,}"
            out.print(
                f"  below {shown(step.step_name)}: [bold]{_duration(spans.seconds)}[/] {shown(spans.name)} "
                f"×{spans.count:,} instead of {usually}",
                soft_wrap=True,
            )


def show_below(timeline: WorkflowExecutionTimeline) -> None:
    """Print what lies below the steps of a run, the longest first."""
    entries = [entry for entry in timeline.step_timeline if entry.below]
    if not entries:
        out.print("  below the steps there are no spans in this store", style="bright_black")
        return
    entries.sort(key=lambda entry: -sum(spans.seconds for spans in entry.below or ()))
    for entry in entries[:MAX_ROWS]:
        parts = [
            f"{_duration(spans.seconds)} {shown(spans.name) if spans.name is not None else 'others'} ×{spans.count:,}"
            for spans in (entry.below or ())[:MAX_BELOW]
        ]
        of = f" of {_duration(entry.duration_seconds)}" if entry.duration_seconds is not None else ""
        out.print(f"  [bold]{shown(entry.step_name)}[/]{of}: {', '.join(parts)}", soft_wrap=True)


def show_items(items: list[Any], columns: tuple[str, ...], as_json: bool) -> None:
    """Print a list of documents as a table, or as JSON. A narrow terminal leaves out the last columns but the id."""
    if as_json:
        print_json(items)
        return
    headings, cells = [], []
    for number, name in enumerate(columns):
        values = [getattr(item, name) for item in items]
        title = name.removesuffix("_at")
        if name.endswith("_at"):
            title, texts = column(title, values)
        else:
            texts = [" ".join(v) if isinstance(v, list) else str(v if v is not None else "–") for v in values]
        headings.append(Column(title, 0 if name in ("id", columns[0]) else number))
        cells.append(texts)
    show_table(headings, list(zip(*cells, strict=True)))
