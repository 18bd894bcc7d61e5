"""``tachograph stack``: what the steps of a run do now, and what sampled ones did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.text import Text

from tachograph.clock import NS
from tachograph_exporter.cli.common import JsonOption, OutputOption, ReadWorkspaceOption, app, fail, out, print_json
from tachograph_exporter.cli.moments import moment
from tachograph_exporter.cli.opening import open_source
from tachograph_exporter.cli.references import RunArgument, run_id
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.cli.terminal import COLOURS, MARKS, printable
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.schemas.stacks import ExecutionStacks, SeenStack, StacksProfile, StepStacks
from tachograph_exporter.views.stacks import folded_text, speedscope

MAX_STEPS: Final = 20
MAX_STACKS: Final = 10
"""Stacks of a step that are shown; the rest is in ``--json``."""
_WIDTH: Final = 12
_QUIET: Final = "bright_black"


@app.command()
def stack(
    run: RunArgument = "last",
    step: Annotated[str | None, typer.Argument(metavar="[STEP]", help="Only this step (name or id).")] = None,
    ask: Annotated[
        bool, typer.Option("--ask/--no-ask", help="Ask the processes of a run that runs what they do now.")
    ] = True,
    folded: Annotated[bool, typer.Option("--folded", help="Print folded stacks, for flame graphs.")] = False,
    file: Annotated[
        Path | None, typer.Option("--speedscope", metavar="FILE", help="Write a file for https://www.speedscope.app.")
    ] = None,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Show what the steps of a run do now, and what those did that took longer than usual."""
    with open_source(database, url, workspace) as source:
        answer = source.stacks(run_id(source, run), [step] if step is not None else [], is_asked=ask)
    if file is not None:
        try:
            file.write_bytes(msgspec.json.encode(speedscope(answer)))
        except OSError as error:
            fail(f"cannot write {file}: {error.strerror}")
    if as_json:
        print_json(answer)
    elif folded:
        out.print(Text(printable(folded_text(answer), "\n")), end="", soft_wrap=True)
    elif file is not None:
        out.print(f"{len(answer.items)} profile(s) in {file}", soft_wrap=True)
    else:
        _show(answer)


def _show(answer: ExecutionStacks) -> None:
    head = Text(f"{printable(answer.workflow_name)} ", style="bold")
    head.append(answer.status, style=COLOURS.get(answer.status, ""))
    head.append(f"   {answer.execution_id}", style=_QUIET)
    out.print(head, soft_wrap=True)
    if answer.message:
        out.print(f"  {answer.message}", style="yellow", soft_wrap=True)
    # Of a run that was asked, what earlier requests found is no answer.
    items = [item for item in answer.items if item.profile or (item.now and (item.now.is_new or not answer.message))]
    items = [item for item in items if answer.answer != "answered" or item.profile or (item.now and item.now.is_new)]
    for item in items[:MAX_STEPS]:
        for line in _lines(item, is_answered=answer.answer == "answered"):
            out.print(line, soft_wrap=True)
    if len(items) > MAX_STEPS:
        out.print(f"  {len(items) - MAX_STEPS} more attempts; name a step, or use --json", style=_QUIET)
    if not items and not answer.message:
        out.print("  nothing was sampled: no step took longer than usual", style=_QUIET)


def _lines(item: StepStacks, *, is_answered: bool) -> Iterator[Text]:
    attempt = f", attempt {item.attempt}" if item.attempt > 1 else ""
    yield Text(f"{MARKS.get(item.status, ' ')} {printable(item.step_name)}", style="bold").append(
        f"  {item.status}{attempt}", style=_QUIET
    )
    if item.now is not None and (item.now.is_new or (item.profile is None and not is_answered)):
        yield Text(f"  at {moment(item.now.taken_at)}", style=_QUIET)
        for seen in item.now.stacks[:MAX_STACKS]:
            yield from _tree(seen)
        if len(item.now.stacks) > MAX_STACKS:
            yield Text(f"    and {len(item.now.stacks) - MAX_STACKS} more stacks", style=_QUIET)
        if not item.now.stacks:
            yield Text("    none of its threads is in Python code", style=_QUIET)
    if item.profile is not None:
        yield from _profile(item.profile)


def _tree(seen: SeenStack) -> Iterator[Text]:
    times = f"  ×{seen.count}" if seen.count > 1 else ""
    for depth, frame in enumerate(seen.frames):
        indent = "  " * min(depth, 20)
        is_last = depth == len(seen.frames) - 1
        yield Text(
            f"    {indent}{'└ ' if depth else ''}{printable(frame)}{times if is_last else ''}",
            style="bold" if is_last else "",
        )


def _profile(profile: StacksProfile) -> Iterator[Text]:
    took = format_duration(round(profile.seconds * NS))
    left_out = f", {profile.dropped_count:,} left out" if profile.dropped_count else ""
    yield Text(f"  sampled for {took}, {profile.sample_count:,} times{left_out}", style=_QUIET)
    for top in profile.top[:5]:
        bar = "█" * max(1, round(_WIDTH * top.share))
        yield Text(f"    {bar:<{_WIDTH}} {100 * top.share:3.0f} %  {printable(top.function)}")
    if profile.stacks:
        yield Text("  most often", style=_QUIET)
        yield from _tree(SeenStack(frames=profile.stacks[0].frames, count=1))
