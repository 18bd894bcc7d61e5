"""Metrics, trends and comparisons as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tachograph.clock import NS
from tachograph_exporter.cli.common import out, print_json
from tachograph_exporter.cli.terminal import MAX_ROWS, printable
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.trends import WorkflowTrends


def _duration(value: float | None) -> str:
    return format_duration(round(value * NS)) if value is not None else "–"


def _percent(value: float | None) -> str:
    return f"{value:.1f} %" if value is not None else "–"


def metrics_text(summary: WorkflowMetricsSummary) -> Group:
    """A workflow's metrics and a table of its steps."""
    text = Text()
    text.append(printable(summary.workflow_name), style="bold")
    text.append(f"   {summary.workflow_id}\n", style="bright_black")
    counts = ", ".join(f"{figures.count} {status}" for status, figures in sorted(summary.by_status.items()))
    if summary.open_executions:
        counts += f"{', ' if counts else ''}{summary.open_executions} open"
    text.append(f"  executions  {summary.total_executions} ({counts or 'none yet'})\n")
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
    table = Table("step", "runs", "success", "p50", "p95", "p99", "wait", "retries", "path", box=None)
    for step in summary.steps[:MAX_ROWS]:
        wait = step.wait.dependency + step.wait.queue + step.wait.backoff if step.wait is not None else None
        share = _percent(100 * step.critical_path_share if step.critical_path_share is not None else None)
        table.add_row(
            Text(printable(step.step_name)), str(step.count), _percent(step.success_rate), _duration(step.p50),
            _duration(step.p95), _duration(step.p99), _duration(wait), str(step.retry_count), share,
        )  # fmt: skip
    return Group(text, *([table] if summary.steps else []))


def trends_table(trends: WorkflowTrends) -> Table:
    """A workflow's trends, a row per bucket."""
    title = printable(trends.workflow_name + (f" · {trends.step_name}" if trends.step_name is not None else ""))
    table = Table(
        "from", "executions", "success", "p50", "p95", "p99", "cost", box=None, title=Text(title), title_justify="left"
    )
    for bucket in trends.buckets[-MAX_ROWS:]:
        table.add_row(
            bucket.start[:16].replace("T", " "), str(bucket.total_executions), _percent(bucket.success_rate),
            _duration(bucket.p50), _duration(bucket.p95), _duration(bucket.p99),
            f"{bucket.cost_usd:.4f}" if bucket.cost_usd else "",
        )  # fmt: skip
    return table


def comparison_table(comparison: ExecutionComparison) -> Table:
    """A comparison, a row per step, the likeliest culprits first."""
    table = Table("step", "duration", "reference", "ratio", "percentile", "blame", box=None)
    for step in comparison.steps[:MAX_ROWS]:
        table.add_row(
            Text(("● " if step.on_critical_path else "  ") + printable(step.step_name)),
            _duration(step.seconds),
            _duration(step.reference_seconds),
            f"{step.ratio:.3g}" if step.ratio is not None else "–",
            f"p{step.percentile:.3g}" if step.percentile is not None else "",
            _percent(100 * step.blame) if step.blame else "",
            style="bold red" if step.step_name == comparison.culprit else "",
        )
    return table


def show_items(items: list[Any], columns: tuple[str, ...], as_json: bool) -> None:
    """Print a list of documents as a table, or as JSON."""
    if as_json:
        print_json(items)
        return
    table = Table(*[column.removesuffix("_at") for column in columns], box=None)
    for item in items:
        values = [getattr(item, column) for column in columns]
        table.add_row(*[Text(" ".join(v) if isinstance(v, list) else str(v if v is not None else "–")) for v in values])
    out.print(table)
