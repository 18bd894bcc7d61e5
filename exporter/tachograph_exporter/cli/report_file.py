"""``tachograph report``: a run as one HTML file."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from tachograph_exporter.cli.common import ReadWorkspaceOption, app, err, fail
from tachograph_exporter.cli.opening import open_source
from tachograph_exporter.cli.references import RunArgument, run_id
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.cli.terminal import shown

_STANDARD_OUTPUT: Final = "-"


@app.command()
def report(
    run: RunArgument = "last",
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="File to write; - is standard output.", show_default=False),
    ] = _STANDARD_OUTPUT,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """Write a run as one HTML file, for a ticket, a mail or the artefacts of a job: it opens without a service."""
    if output == _STANDARD_OUTPUT and sys.stdout.isatty():
        fail("a report is a file for a browser; give it a name: -o run.html")
    with open_source(database, url, workspace) as source:
        page = source.report(run_id(source, run))
    if output == _STANDARD_OUTPUT:
        sys.stdout.buffer.write(page)
        sys.stdout.buffer.flush()
        return
    try:
        _write(Path(output), page)
    except OSError as error:
        fail(f"cannot write to {output}: {error.strerror or error}")
    err.print(f"{shown(output)}: {len(page) / 1e6:.1f} MB", soft_wrap=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file that has its name only once it is whole; what had the name before is kept until then."""
    target = path.resolve()
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        # A pipe or a device; a directory is an error.
        target.write_bytes(content)
        return
    part = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
