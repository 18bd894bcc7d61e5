"""``tachograph why``: why a run was slow or failed."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.text import Text

from tachograph_exporter.cli.common import (
    JsonOption,
    OutputOption,
    ReadWorkspaceOption,
    app,
    duration_ns,
    out,
    print_json,
)
from tachograph_exporter.cli.opening import open_source
from tachograph_exporter.cli.references import RunArgument, run_id
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.cli.terminal import printable
from tachograph_exporter.views.schemas.why import Claim, WhyAnswer

MAX_DIFFERENCES: Final = 8
_SYMBOLS: Final = {"certain": "●", "likely": "◐", "not known": "○"}
_STYLES: Final = {
    "usual": "green", "slow": "yellow", "failed": "bold red", "lost": "bold red", "running": "cyan", "pending": "cyan",
}  # fmt: skip


@app.command()
def why(
    run: RunArgument = "last",
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    baseline: Annotated[str, typer.Option(help="How far back the usual runs go.")] = "28d",
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Say why a run was slow or failed, or what it is doing now, with the evidence."""
    back_ns = duration_ns(baseline)
    with open_source(database, url, workspace) as source:
        answer = source.why(run_id(source, run), back_ns)
    if as_json:
        print_json(answer)
    else:
        _show(answer)


def _show(answer: WhyAnswer) -> None:
    head = Text()
    head.append(printable(answer.workflow_name), style="bold")
    head.append(f" {answer.verdict}", style=_STYLES.get(answer.verdict, ""))
    head.append(f"   {answer.execution_id}", style="bright_black")
    out.print(head, soft_wrap=True)
    for claim in answer.claims:
        out.print(_line(claim), soft_wrap=True)
    if answer.causes:
        out.print(Text("why", style="bold"))
    for cause in answer.causes:
        out.print(_line(cause), soft_wrap=True)
    named = {cause.evidence.values.get("key") for cause in answer.causes}
    others = [difference for difference in answer.differences if difference.key not in named]
    if others:
        out.print(Text("what else differs", style="bold"))
    for difference in others[:MAX_DIFFERENCES]:
        out.print(Text(f"  ◌ {printable(difference.text)}", style="bright_black"), soft_wrap=True)
    sample = answer.sample
    if sample.run_count:
        counts = f"{sample.run_count:,} runs compared, {sample.usual_count:,} of them usual, {sample.tested:,} values"
        out.print(Text(f"{counts}; ● certain  ◐ likely  ○ not known", style="bright_black"), soft_wrap=True)


def _line(claim: Claim) -> Text:
    return Text(f"  {_SYMBOLS[claim.certainty]} {printable(claim.text)}")
