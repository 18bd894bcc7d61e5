"""The run or workflow that an argument of a command means."""

from __future__ import annotations

from typing import Annotated, TypeVar

import typer

from tachograph_exporter.cli.common import err, fail
from tachograph_exporter.cli.moments import moment
from tachograph_exporter.cli.sources import Source
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.reading.references import AmbiguousRun, NoSuchRun, find_run_id, hint
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline

T = TypeVar("T")

WorkflowArgument = Annotated[str, typer.Argument(help="Workflow name or id.")]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run: its id, the beginning or the end of its id, 'last', or a workflow's name for its last run.",
    ),
]


def run_id(source: Source, text: str) -> str:
    """The whole id of the run that ``text`` means. Prints an error and exits if it means none, or several."""
    try:
        return find_run_id(source, text)
    except AmbiguousRun as error:
        err.print(f"{error.count} runs have ids that begin or end with {shown(text)}:")
        for run in error.candidates:
            when = moment(run.started_at or run.created_at)
            err.print(f"  {run.execution_id}  {when}  {shown(run.workflow_name)} {run.status}", soft_wrap=True)
        fail(str(error))
    except NoSuchRun as error:
        fail(str(error))


def of_workflow(source: Source, name: str, answer: T | None) -> T:
    """What a source answers about a workflow. None: print that there is no such workflow, and exit."""
    if answer is None:
        fail(f'no workflow "{name}" in {source.name}{hint(name, source.names())}')
    return answer


def timeline_of(source: Source, execution_id: str) -> WorkflowExecutionTimeline:
    """A run by its whole id. Prints an error and exits if there is none."""
    timeline = source.timeline(execution_id)
    if timeline is None:
        fail(f'no run "{execution_id}" in {source.name}')
    return timeline
