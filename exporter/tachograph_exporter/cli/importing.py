"""``tachograph import``: record a run that another engine left on disk."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

import tachograph
from tachograph.integrations import dbt
from tachograph.variables import DATABASE_VARIABLE
from tachograph_exporter.cli.common import DATABASE, app, fail, report_errors
from tachograph_exporter.cli.terminal import printable
from tachograph_exporter.defaults import URL_VARIABLE

_FLUSH_SECONDS: Final = 60.0


class Kind(StrEnum):
    """Whose run it is."""

    DBT = "dbt"


@app.command("import")
def import_run(
    kind: Annotated[Kind, typer.Argument(help="Whose run it is.")],
    directory: Annotated[
        Path, typer.Argument(help="Where dbt wrote run_results.json and manifest.json: its target directory.")
    ],
    url: Annotated[str | None, typer.Option(metavar="URL", help="The service; by default TACHOGRAPH_URL.")] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"Or the database; by default TACHOGRAPH_DATABASE_URL, else {DATABASE}."),
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Slug of the workspace.")] = None,
) -> None:
    """Record a run that another engine left on disk: an invocation of dbt, from its target directory.

    The same run is recorded once, however often it is imported.
    """
    del kind  # There is one so far.
    if database is not None and url is not None:
        fail("give either --database or --url, not both")
    logging.basicConfig(level=logging.WARNING)
    if database is None and url is None and not os.environ.get(DATABASE_VARIABLE) and not os.environ.get(URL_VARIABLE):
        database = DATABASE
    with report_errors():
        recorder = tachograph.configure(database=database, url=url, workspace=workspace, registry=None, spans=False)
        run = dbt.import_target(directory)
        is_delivered = recorder.flush(_FLUSH_SECONDS)
        recorder.close()
    typer.echo(f"{printable(run.ref.workflow)} {run.execution_id}")
    if not is_delivered:
        fail("it waits on this machine until the service or database takes it: tachograph spool", code=1)
