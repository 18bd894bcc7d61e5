"""A timeline, drawn for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from tachograph.clock import NS
from tachograph.events import FAILED
from tachograph_exporter.cli.labels import fitted
from tachograph_exporter.cli.moments import moment
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline, WorkflowStepTimelineEntry

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
    """Make characters visible that could move the terminal's cursor or change its state; ``keep`` exempts some.

    Controls become their pictures (a tab ``␉``, an escape ``␛``); anything else that is not printable becomes ``�``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _PICTURES.get(c, "�") for c in text)


_PICTURES: Final = {**{chr(code): chr(0x2400 + code) for code in range(32)}, "\x7f": "␡"}
"""Unicode's control pictures."""


def shown(text: object) -> str:
    """Text from outside (a name, an error, a sentence) for a string with markup: shown as it is, and without effect.

    No tag may follow directly: a backslash at the end of the text would escape it.
    """
    return _BRACKET.sub(_escaped, printable(str(text), keep="\n"))


_BRACKET: Final = re.compile(r"(\\*)\[([a-z#/@][^[]*?\])?")


def _escaped(match: re.Match[str]) -> str:
    # `rich` halves the backslashes before a tag, and drops one before any other bracket.
    backslashes, tag = match[1], match[2]
    if tag:
        return f"{backslashes}{backslashes}\\[{tag}"
    return f"{backslashes}\\[" if backslashes else "["


class PlainConsole(Console):
    """A console that writes only its own control characters, even where `printable` was not called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments to print."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control is None and not text.isprintable():
                yield Segment(printable(text, keep="\n"), segment.style)
            else:
                yield segment


class TimelineView:
    """A timeline as wide as the console. A long one shows the critical path, failures and the slowest steps."""

    def __init__(self, timeline: WorkflowExecutionTimeline) -> None:
        self.timeline = timeline

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        timeline = self.timeline
        total = timeline.total_duration_seconds or timeline.elapsed_seconds or 0.0
        yield _headline(timeline, total)
        steps = self._visible_steps()
        origin = _timestamp(timeline.started_at) if timeline.started_at else 0.0
        names = min(max((_name_length(step) for step in steps), default=4) + 2, max(14, options.max_width // 3))
        labels = _labels(steps, names)
        width = max(10, options.max_width - names - 26)
        yield Text(_axis(names, width, total), style="bright_black")
        for step, label in zip(steps, labels, strict=True):
            yield from _row(step, label, names, width, origin, total)
        left_out = len(timeline.step_timeline) - len(steps)
        if left_out:
            yield Text(
                f"  … and {left_out} more steps, all faster, none failed or on the critical path", style="bright_black"
            )
        yield from _footer(timeline)

    def _visible_steps(self) -> Sequence[WorkflowStepTimelineEntry]:
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


def _name_length(step: WorkflowStepTimelineEntry) -> int:
    return cell_len(step.step_name) + (len(f" ×{step.folded.count:,} more") if step.folded is not None else 0)


def _headline(timeline: WorkflowExecutionTimeline, total: float) -> Text:
    colour = COLOURS.get(timeline.status, "white")
    text = Text()
    text.append(f"{MARKS.get(timeline.status, ' ')} {printable(timeline.workflow_name)} ", style=f"bold {colour}")
    text.append(f"{timeline.status} ", style=colour)
    text.append(
        f"in {format_duration(round(total * NS))}"
        if timeline.completed_at
        else f"for {format_duration(round(total * NS))}"
    )
    text.append(f"   {timeline.execution_id}", style="bright_black")
    return text


def _axis(names: int, width: int, total: float) -> str:
    left, right = "0", format_duration(round(total * NS))
    middle = format_duration(round(total * NS / 2))
    line = left + " " * max(1, width // 2 - len(left) - len(middle) // 2) + middle
    return " " * (names + 2) + line + " " * max(1, width - len(line) - len(right)) + right


def _labels(steps: Sequence[WorkflowStepTimelineEntry], width: int) -> list[str]:
    """What each step is called within so many cells, the last of them free."""
    names = [printable(("  " if step.parent_step_id else "") + step.step_name) for step in steps]
    more = [f" ×{step.folded.count:,} more" if step.folded is not None else "" for step in steps]
    labels = fitted(names, max(8, width - 2 - max(map(len, more), default=0)))
    return [label + text for label, text in zip(labels, more, strict=True)]


def _row(
    step: WorkflowStepTimelineEntry, name: str, names: int, width: int, origin: float, total: float
) -> Iterator[Segment]:
    colour = COLOURS.get(step.status, "white")
    yield Segment("◆ " if step.on_critical_path else "  ", Style.parse("bold yellow"))
    yield Segment(set_cell_size(name, names), Style.parse("dim" if step.status == "skipped" else "none"))
    yield from _bar(step, width, origin, total, colour)
    yield Segment(f" {MARKS.get(step.status, ' ')} ", Style.parse(colour))
    if step.status == "skipped":
        yield Segment((step.skip_reason or "skipped").replace("_", " "), Style.parse("bright_black"))
    else:
        length = step.duration_seconds if step.duration_seconds is not None else step.elapsed_seconds
        yield Segment(f"{format_duration(round(length * NS)) if length is not None else '':>9}")
        if step.retry_count:
            yield Segment(f" ↻{step.retry_count}", Style.parse("yellow"))
    yield Segment("\n")


def _bar(step: WorkflowStepTimelineEntry, width: int, origin: float, total: float, colour: str) -> Iterator[Segment]:
    """Work as blocks in the status's colour, failed attempts in red, queueing, backoff and countdowns as dots."""
    cells = [(" ", "none")] * width

    def column(seconds: float) -> int:
        return min(width - 1, max(0, int(seconds / total * width))) if total > 0 else 0

    for attempt in step.attempts:
        begin = _timestamp(attempt.started_at) - origin
        waited = attempt.queue_seconds + attempt.backoff_seconds
        if attempt.attempt == 1 and step.wait is not None:
            waited += step.wait.scheduled
        for i in range(column(begin - waited), column(begin)):
            cells[i] = ("·", "bright_black")
    for attempt in step.attempts:
        begin = _timestamp(attempt.started_at) - origin
        length = attempt.duration_seconds if attempt.duration_seconds is not None else total - begin
        failed = attempt.status in FAILED
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
        work = format_duration(round(timeline.work_seconds * NS))
        line.append(f" · {work} of work, parallelism {timeline.parallelism:.2f}")
    if timeline.cost_usd:
        line.append(f" · ${timeline.cost_usd:.4g}")
    if tokens := timeline.tokens_in + timeline.tokens_out:
        line.append(f" · {tokens} tokens")
    yield line
    if timeline.critical_path:
        seconds = timeline.critical_path_seconds
        path = Text("  ◆ critical path ", style="yellow")
        path.append(format_duration(round(seconds * NS)), style="bold yellow")
        names = [step.step_name for step in timeline.critical_path]
        if len(names) > 8:
            names = [*names[:4], "…", *names[-3:]]
        path.append(": " + " → ".join(map(printable, names)))
        yield path
    if timeline.error_message:
        yield Text(f"  {timeline.error_type}: {printable(timeline.error_message, keep=chr(10))}", style="red")
    started = f"started {moment(timeline.started_at)}, " if timeline.started_at is not None else ""
    yield Text(f"  {started}trace {timeline.trace_id}", style="bright_black")


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
