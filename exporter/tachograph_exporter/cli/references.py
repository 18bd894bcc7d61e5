"""Which run somebody means: by its id, a piece of it, ``last``, or the name of its workflow."""

from __future__ import annotations

import re
from typing import Annotated, Final, NoReturn, TypeVar

import typer

from tachograph_exporter.cli.common import err, fail
from tachograph_exporter.cli.moments import moment
from tachograph_exporter.cli.sources import RunQuery, Source
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline

T = TypeVar("T")

LAST: Final = "last"
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PIECE: Final = re.compile(r"[0-9a-f-]{4,36}")
_MAX_SHOWN: Final = 10

WorkflowArgument = Annotated[str, typer.Argument(help="Workflow name or id.")]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run: its id, the beginning or the end of its id, 'last', or a workflow's name for its last run.",
    ),
]


def run_id(source: Source, text: str) -> str:
    """The whole id of the run that ``text`` means. Prints an error and exits if it means none, or several.

    A workflow's name comes before a piece of an id, which has at least four characters.
    """
    if text == LAST:
        return _newest(source, None)
    if _ID.fullmatch(text.lower()):
        return text.lower()
    runs, _ = source.runs(RunQuery(workflow=text), 1)
    if runs:
        return runs[0].execution_id
    piece = text.strip().lstrip("….#").lower()
    if _PIECE.fullmatch(piece):
        runs, count = source.runs(RunQuery(id=piece), _MAX_SHOWN)
        if len(runs) == 1:
            return runs[0].execution_id
        if runs:
            err.print(f"{count} runs have ids that begin or end with {shown(piece)}:")
            for run in runs:
                when = moment(run.started_at or run.created_at)
                err.print(f"  {run.execution_id}  {when}  {shown(run.workflow_name)} {run.status}", soft_wrap=True)
            fail(f'"{text}" is ambiguous; give more of the id')
    return _nothing(source, text)


def _newest(source: Source, workflow: str | None) -> str:
    runs, _ = source.runs(RunQuery(workflow=workflow), 1)
    if not runs:
        fail(f"no runs yet in {source.name}")
    return runs[0].execution_id


def _nothing(source: Source, text: str) -> NoReturn:
    names = [workflow.name for workflow in source.workflows()]
    if text in names:
        fail(f'workflow "{text}" has no runs yet in {source.name}')
    fail(f'no run and no workflow is called "{text}" in {source.name}{hint(text, names)}')


def hint(text: str, names: list[str]) -> str:
    """``; did you mean …?`` for the name most like ``text``, or nothing."""
    # Only who mistypes a name pays for this.
    from difflib import get_close_matches

    close = get_close_matches(text[:200], names, 1)
    return f'; did you mean "{close[0]}"?' if close else ""


def of_workflow(source: Source, name: str, answer: T | None) -> T:
    """What a source answers about a workflow. None: print that there is no such workflow, and exit."""
    if answer is None:
        names = [workflow.name for workflow in source.workflows()]
        fail(f'no workflow "{name}" in {source.name}{hint(name, names)}')
    return answer


def timeline_of(source: Source, execution_id: str) -> WorkflowExecutionTimeline:
    """A run by its whole id. Prints an error and exits if there is none."""
    timeline = source.timeline(execution_id)
    if timeline is None:
        fail(f'no run "{execution_id}" in {source.name}')
    return timeline
