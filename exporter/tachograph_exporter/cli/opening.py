"""Opens the source that a command reads: a database or a service."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from tachograph.variables import DATABASE_VARIABLE
from tachograph_exporter.cli.common import DATABASE, fail, open_database, report_errors
from tachograph_exporter.cli.sources import Source
from tachograph_exporter.defaults import URL_VARIABLE


def chosen(database: str | None, url: str | None) -> tuple[str, str | None]:
    """(a database, a service or None) that options and environment name.

    An option comes before a variable, and a database before a service. Neither: the default database.
    """
    if database is not None and url is not None:
        fail("give either --database or --url, not both")
    if database is None and url is None:
        database = os.environ.get(DATABASE_VARIABLE) or None
        if database is None:
            url = os.environ.get(URL_VARIABLE) or None
    return database or DATABASE, url


@contextlib.contextmanager
def open_source(database: str | None, url: str | None, workspace: str | None) -> Iterator[Source]:
    """The source that options and environment name, see `chosen`. Its errors end the command."""
    path, address = chosen(database, url)
    with report_errors():
        if address is not None:
            # Who asks a service needs no database, and the other way round.
            from tachograph_exporter.cli.service_source import ServiceSource

            yield ServiceSource(address, workspace)
            return
        with open_database(path, must_exist=True) as store:
            from tachograph_exporter.cli.database_source import DatabaseSource

            yield DatabaseSource(store, workspace or "default")
