"""``tachograph import``: record a run that another engine left on disk."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

import tachograph
from tachograph.integrations import dbt, nextflow
from tachograph.report import Run
from tachograph.variables import DATABASE_VARIABLE
from tachograph_exporter.cli.common import DATABASE, app, fail, report_errors
from tachograph_exporter.cli.terminal import printable
from tachograph_exporter.defaults import URL_VARIABLE

_FLUSH_SECONDS: Final = 60.0


class Kind(StrEnum):
    """Whose run it is."""

    DBT = "dbt"
    NEXTFLOW = "nextflow"


@app.command("import")
def import_run(
    kind: Annotated[Kind, typer.Argument(help="Whose run it is.")],
    path: Annotated[
        Path,
        typer.Argument(
            help="Where dbt wrote run_results.json and manifest.json: its target directory. Of Nextflow: the file that "
            "-with-trace wrote."
        ),
    ],
    url: Annotated[str | None, typer.Option(metavar="URL", help="The service; by default TACHOGRAPH_URL.")] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"Or the database; by default TACHOGRAPH_DATABASE_URL, else {DATABASE}."),
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Slug of the workspace.")] = None,
    workflow: Annotated[
        str | None, typer.Option(help="Of Nextflow: what the run is called; by default like the file's directory.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Of Nextflow: its name of the run; by default made of the file.")
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(help="Of Nextflow: of the times in the file, such as Europe/Berlin; by default this machine's."),
    ] = None,
) -> None:
    """Record a run that another engine left on disk: an invocation of dbt, a run of Nextflow.

    The same run is recorded once, however often it is imported.
    """
    if database is not None and url is not None:
        fail("give either --database or --url, not both")
    logging.basicConfig(level=logging.WARNING)
    if database is None and url is None and not os.environ.get(DATABASE_VARIABLE) and not os.environ.get(URL_VARIABLE):
        database = DATABASE
    with report_errors():
        recorder = tachograph.configure(database=database, url=url, workspace=workspace, registry=None, spans=False)
        run = _import(kind, path, workflow, run_id, timezone)
        is_delivered = recorder.flush(_FLUSH_SECONDS)
        recorder.close()
    typer.echo(f"{printable(run.ref.workflow)} {run.execution_id}")
    if not is_delivered:
        fail("it waits on this machine until the service or database takes it: tachograph spool", code=1)


def _import(kind: Kind, path: Path, workflow: str | None, run_id: str | None, timezone: str | None) -> Run:
    if kind is Kind.DBT:
        return dbt.import_target(path)
    try:
        zone = ZoneInfo(timezone) if timezone else None
    except (ZoneInfoNotFoundError, ValueError):
        fail(f"{printable(timezone or '')} is not the name of a time zone")
    return nextflow.import_trace(path, workflow=workflow, run_id=run_id, timezone=zone)
