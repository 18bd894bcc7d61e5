"""``tachograph refused``: records that the store refused and set aside."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    JsonOption,
    YesOption,
    app,
    confirm,
    fail,
    json_text,
    open_database,
    out,
    print_json,
    read,
    report_errors,
    write,
)
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.retrying import retry
from tachograph_exporter.ingest.rule_file import read_rules
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.ingest.spans import request_as_json
from tachograph_exporter.store import refused as refused_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.refused import RefusedRecord
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.times import rfc3339

refused_app = typer.Typer(no_args_is_help=True, help="Look at records that the store refused, and retry them.")
app.add_typer(refused_app, name="refused")

RecordArgument = Annotated[str, typer.Argument(help="Record id, as shown by `refused list`.")]
_PAGE = 100


class _Item(msgspec.Struct):
    """A refused record as it is listed."""

    id: str
    kind: str
    workspace: str
    subject: str
    refused_at: str
    tries: int
    reason: str


@refused_app.command("list")
def list_refused(database: DatabaseOption = DATABASE, as_json: JsonOption = False) -> None:
    """List refused records, oldest first, with the reason. The subject is the id of a run or trace."""
    records = read(database, lambda c: refused_rows.listed(c, limit=refused_rows.MAX_RECORDS))
    if as_json:
        print_json(
            [_Item(r.id, r.kind, r.workspace, r.subject, rfc3339(r.refused_ns), r.tries, r.reason) for r in records]
        )
        return
    for r in records:
        tried = f", tried {r.tries} times" if r.tries > 1 else ""
        out.print(f"[bold]{r.id}[/]  {r.kind} of {shown(r.subject)}, {rfc3339(r.refused_ns)}{tried}", soft_wrap=True)
        out.print(f"    {shown(r.reason)}", soft_wrap=True)
    if not records:
        out.print("no records were refused")


@refused_app.command("show")
def show(record_id: RecordArgument, database: DatabaseOption = DATABASE) -> None:
    """Print a refused record as JSON: an event (of OpenLineage, too), or an OTLP request."""
    record = read(database, lambda c: refused_rows.find(c, record_id))
    if record is None:
        fail(f'no refused record with id "{record_id}"')
    if record.kind in (refused_rows.EVENT, refused_rows.LINEAGE):
        sys.stdout.write(record.payload.decode() + "\n")
    else:
        sys.stdout.write(json_text(request_as_json(record.payload)) + "\n")


@refused_app.command("retry")
def retry_refused(
    record_id: Annotated[str | None, typer.Argument(help="Record id. Default: all records.")] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="TOML file of rules that map received spans to runs and steps.")
    ] = None,
    database: DatabaseOption = DATABASE,
) -> None:
    """Store refused records again, for instance after an upgrade; exit code 1 if some are refused again."""
    with report_errors(), open_database(database, must_exist=True) as store:
        writer = StoreWriter(store)
        spans = SpanStore(writer, lambda _events: None, read_rules(mapping) if mapping is not None else BUILT_IN)
        stored = left = 0
        for record in _records(store, record_id):
            reason = retry(writer, spans, record)
            if reason:
                left += 1
                out.print(f"  [yellow]refused again[/] {record.id}: {shown(reason)}", soft_wrap=True)
            else:
                stored += 1
    out.print(f"{stored} record(s) stored, {left} refused again")
    raise typer.Exit(1 if left else 0)


def _records(store: Database, record_id: str | None) -> Iterator[RefusedRecord]:
    if record_id is not None:
        record = store.look(lambda c: refused_rows.find(c, record_id))
        if record is None:
            fail(f'no refused record with id "{record_id}"')
        yield record
        return
    after = ""
    while page := store.look(lambda c, after=after: refused_rows.listed(c, after, _PAGE)):  # type: ignore[misc]
        yield from page
        after = page[-1].id


@refused_app.command("delete")
def delete(record_id: RecordArgument, yes: YesOption = False, database: DatabaseOption = DATABASE) -> None:
    """Delete a refused record."""
    confirm(f"Delete the refused record {record_id}? It is the only copy.", yes=yes)
    if not write(database, lambda c: refused_rows.remove(c, record_id)):
        fail(f'no refused record with id "{record_id}"')
    out.print(f"[green]✔[/] deleted {shown(record_id)}")
