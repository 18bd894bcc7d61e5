"""A timeline drawn in the terminal: bars in time, waits, retries, skipped steps, the critical path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tachograph.clock import NS
from tachograph_exporter.times import human
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline, WorkflowStepTimelineEntry
from tachograph_exporter.views.schemas.trends import WorkflowTrends

COLOURS: Final = {
    "completed": "green",
    "failed": "red",
    "timeout": "red",
    "lost": "magenta",
    "cancelled": "yellow",
    "running": "cyan",
    "retrying": "yellow",
    "pending": "bright_black",
    "skipped": "bright_black",
}
MARKS: Final = {
    "completed": "✔",
    "failed": "✘",
    "timeout": "⏱",
    "lost": "?",
    "cancelled": "■",
    "running": "▶",
    "retrying": "↻",
    "pending": "·",
    "skipped": "–",
}
MAX_ROWS: Final = 60


def printable(text: str, keep: str = "") -> str:
    """Without what would move a terminal's cursor or change its state."""
    return "".join(c if c.isprintable() or c in keep else "�" for c in text)


class TimelineView:
    """Renders a timeline as wide as the console; very long ones show the critical path, failures and slowest steps."""

    def __init__(self, timeline: WorkflowExecutionTimeline) -> None:
        self.timeline = timeline

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        timeline = self.timeline
        total = timeline.total_duration_seconds or timeline.elapsed_seconds or 0.0
        yield _headline(timeline, total)
        steps = self._chosen()
        origin = _moment(timeline.started_at) if timeline.started_at else 0.0
        names = min(max((cell_len(step.step_name) for step in steps), default=4) + 2, max(14, options.max_width // 3))
        width = max(10, options.max_width - names - 26)
        yield Text(_axis(names, width, total), style="bright_black")
        for step in steps:
            yield from _row(step, names, width, origin, total)
        left_out = len(timeline.step_timeline) - len(steps)
        if left_out:
            yield Text(f"  … and {left_out} more steps, none of them slower, failed or critical", style="bright_black")
        yield from _footer(timeline)

    def _chosen(self) -> Sequence[WorkflowStepTimelineEntry]:
        steps = self.timeline.step_timeline
        if len(steps) <= MAX_ROWS:
            return steps
        ranked = sorted(
            range(len(steps)),
            key=lambda i: (
                not steps[i].on_critical_path and steps[i].status in ("completed", "skipped", "pending"),
                -(steps[i].duration_seconds or 0),
            ),
        )
        return [steps[i] for i in sorted(ranked[:MAX_ROWS])]


def _headline(timeline: WorkflowExecutionTimeline, total: float) -> Text:
    colour = COLOURS.get(timeline.status, "white")
    text = Text()
    text.append(f"{MARKS.get(timeline.status, ' ')} {printable(timeline.workflow_name)} ", style=f"bold {colour}")
    text.append(f"{timeline.status} ", style=colour)
    text.append(f"in {human(round(total * NS))}" if timeline.completed_at else f"for {human(round(total * NS))}")
    text.append(f"   {timeline.execution_id}", style="bright_black")
    return text


def _axis(names: int, width: int, total: float) -> str:
    left, right = "0", human(round(total * NS))
    middle = human(round(total * NS / 2))
    line = left + " " * max(1, width // 2 - len(left) - len(middle) // 2) + middle
    return " " * (names + 2) + line + " " * max(1, width - len(line) - len(right)) + right


def _row(step: WorkflowStepTimelineEntry, names: int, width: int, origin: float, total: float) -> Iterator[Segment]:
    colour = COLOURS.get(step.status, "white")
    yield Segment("◆ " if step.on_critical_path else "  ", Style.parse("bold yellow"))
    indent = "  " if step.parent_step_id else ""
    name = printable(indent + step.step_name)
    if cell_len(name) >= names:
        name = set_cell_size(name, names - 2) + "…"
    yield Segment(set_cell_size(name, names), Style.parse("dim" if step.status == "skipped" else "none"))
    yield from _bar(step, width, origin, total, colour)
    yield Segment(f" {MARKS.get(step.status, ' ')} ", Style.parse(colour))
    if step.status == "skipped":
        yield Segment((step.skip_reason or "skipped").replace("_", " "), Style.parse("bright_black"))
    else:
        length = step.duration_seconds if step.duration_seconds is not None else step.elapsed_seconds
        yield Segment(f"{human(round(length * NS)) if length is not None else '':>9}")
        if step.retry_count:
            yield Segment(f" ↻{step.retry_count}", Style.parse("yellow"))
    yield Segment("\n")


def _bar(step: WorkflowStepTimelineEntry, width: int, origin: float, total: float, colour: str) -> Iterator[Segment]:
    """Work as blocks in the status's colour, failed attempts in red, waiting for a slot or backoff as dots."""
    cells = [(" ", "none")] * width

    def column(seconds: float) -> int:
        return min(width - 1, max(0, int(seconds / total * width))) if total > 0 else 0

    for attempt in step.attempts:
        begin = _moment(attempt.started_at) - origin
        waited = attempt.queue_seconds + attempt.backoff_seconds
        for i in range(column(begin - waited), column(begin)):
            cells[i] = ("·", "bright_black")
    for attempt in step.attempts:
        begin = _moment(attempt.started_at) - origin
        length = attempt.duration_seconds if attempt.duration_seconds is not None else total - begin
        failed = attempt.status in ("failed", "timeout")
        style = "red" if failed else colour
        if step.on_critical_path and not failed:
            style = f"bold {style}"
        first, last = column(begin), column(begin + length)
        for i in range(first, last + 1):
            cells[i] = ("█" if i < last or begin + length > i * total / width else "▌", style)
        if first == last:
            cells[first] = ("▏" if length * width < total * 0.3 else "▌", style)
        if failed and attempt.attempt <= step.retry_count:
            cells[last] = ("╳", "red")
    run: list[str] = []
    current = "none"
    for character, style in cells:
        if style != current and run:
            yield Segment("".join(run), Style.parse(current))
            run = []
        current = style
        run.append(character)
    yield Segment("".join(run), Style.parse(current))


def _footer(timeline: WorkflowExecutionTimeline) -> Iterator[Text]:
    parts = [f"{timeline.completed_step_count} completed"]
    for count, word in (
        (timeline.failed_step_count, "failed"),
        (timeline.skipped_step_count, "skipped"),
        (timeline.running_step_count, "running"),
        (sum(step.retry_count for step in timeline.step_timeline), "retries"),
    ):
        if count:
            parts.append(f"{count} {word}")
    line = Text("  " + " · ".join(parts), style="bright_black")
    if timeline.parallelism is not None:
        work = human(round(timeline.work_seconds * NS))
        line.append(f" · {work} of work, parallelism {timeline.parallelism:.2f}")
    if timeline.cost_usd:
        line.append(f" · ${timeline.cost_usd:.4g}")
    yield line
    if timeline.critical_path:
        share = timeline.critical_path_seconds
        path = Text("  ◆ critical path ", style="yellow")
        path.append(human(round(share * NS)), style="bold yellow")
        shown = [step.step_name for step in timeline.critical_path]
        if len(shown) > 8:
            shown = [*shown[:4], "…", *shown[-3:]]
        path.append(": " + " → ".join(map(printable, shown)))
        yield path
    if timeline.error_message:
        yield Text(f"  {timeline.error_type}: {printable(timeline.error_message, keep=chr(10))}", style="red")
    yield Text(f"  trace {timeline.trace_id}", style="bright_black")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _span(value: float | None) -> str:
    return human(round(value * NS)) if value is not None else "–"


def _percent(value: float | None) -> str:
    return f"{value:.1f} %" if value is not None else "–"


def metrics_text(found: WorkflowMetricsSummary) -> Group:
    """A workflow's figures for people."""
    text = Text()
    text.append(printable(found.workflow_name), style="bold")
    text.append(f"   {found.workflow_id}\n", style="bright_black")
    counts = ", ".join(f"{figures.count} {status}" for status, figures in sorted(found.by_status.items()))
    if found.open_executions:
        counts += f"{', ' if counts else ''}{found.open_executions} open"
    text.append(f"  executions  {found.total_executions} ({counts or 'none yet'})\n")
    text.append(f"  success     {_percent(found.success_rate)}\n")
    text.append(
        f"  duration    {_span(found.average_duration_seconds)} on average, "
        f"{_span(found.min_duration_seconds)} to {_span(found.max_duration_seconds)}\n"
    )
    text.append(f"  percentiles p50 {_span(found.p50)}, p90 {_span(found.p90)}, p95 {_span(found.p95)}, ")
    text.append(f"p99 {_span(found.p99)}")
    if found.cost_usd:
        text.append(f"\n  cost        {found.cost_usd:.4f} USD, {found.tokens_in + found.tokens_out} tokens")
    table = Table("step", "runs", "success", "p50", "p95", "p99", "wait", "retries", "path", box=None)
    for step in found.steps[:MAX_ROWS]:
        wait = step.wait.dependency + step.wait.queue + step.wait.backoff if step.wait is not None else None
        share = _percent(100 * step.critical_path_share if step.critical_path_share is not None else None)
        table.add_row(
            Text(printable(step.step_name)), str(step.count), _percent(step.success_rate), _span(step.p50),
            _span(step.p95), _span(step.p99), _span(wait), str(step.retry_count), share,
        )  # fmt: skip
    return Group(text, *([table] if found.steps else []))


def trends_table(found: WorkflowTrends) -> Table:
    """A workflow's trend for people."""
    title = printable(found.workflow_name + (f" · {found.step_name}" if found.step_name is not None else ""))
    table = Table(
        "from", "executions", "success", "p50", "p95", "p99", "cost", box=None, title=Text(title), title_justify="left"
    )
    for bucket in found.buckets[-MAX_ROWS:]:
        table.add_row(
            bucket.start[:16].replace("T", " "), str(bucket.total_executions), _percent(bucket.success_rate),
            _span(bucket.p50), _span(bucket.p95), _span(bucket.p99),
            f"{bucket.cost_usd:.4f}" if bucket.cost_usd else "",
        )  # fmt: skip
    return table


def comparison_table(found: ExecutionComparison) -> Table:
    """A comparison for people: the steps to blame first."""
    table = Table("step", "took", "before", "times", "unusual", "blame", box=None)
    for step in found.steps[:MAX_ROWS]:
        table.add_row(
            Text(("● " if step.on_critical_path else "  ") + printable(step.step_name)),
            _span(step.seconds),
            _span(step.reference_seconds),
            f"{step.ratio:.3g}" if step.ratio is not None else "–",
            f"p{step.percentile:.3g}" if step.percentile is not None else "",
            _percent(100 * step.blame) if step.blame else "",
            style="bold red" if step.step_name == found.culprit else "",
        )
    return table
