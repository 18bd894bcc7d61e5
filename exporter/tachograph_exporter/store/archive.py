"""The archive: executions that ended long ago, moved from the tables to Parquet files, still listed and readable.

A file holds the executions that ended on one UTC day, a row each, with their steps, attempts and reports as lists of
structs in it; any Parquet reader can query it. For every day, in this order, so that nothing is lost wherever it stops:

1. the rows are written to a temporary file, which is synced and renamed to its place;
2. the file is read back, and compared with the rows as they are in the tables now, under the writers' lock;
3. in the same transaction, what is equal gets an entry in ``archived_executions`` and leaves the tables; what changed
   meanwhile stays for the next time.

Stopped between 1 and 3, the next run writes the same file again. Rollups keep counting what was archived.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import Connection, Row, Table, delete, func, insert, literal, select

from tachograph.clock import NS
from tachograph.errors import ArchiveError
from tachograph_exporter.store import locking, partitions, state
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups import periods
from tachograph_exporter.store.schema import (
    archived_executions,
    span_operations,
    span_resources,
    spans,
    traces,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_reports,
)
from tachograph_exporter.store.steps import StoredStep

if TYPE_CHECKING:
    from tachograph_exporter.store.database import Database

CHUNK: Final = 200
"""Executions moved in one transaction: other writers wait no longer than that takes."""
_PARTS: Final = {
    "steps": workflow_step_executions,
    "attempts": workflow_step_attempts,
    "reports": workflow_step_reports,
}
_executions = workflow_executions.c
_decode_ids: Final = msgspec.json.Decoder(list[str]).decode


class Moved(NamedTuple):
    """What a run of `archive` did."""

    executions: int
    files: tuple[Path, ...]
    bytes: int
    left: int


def archive(
    database: Database,
    older_than_ns: int,
    directory: Path | None,
    *,
    told: Callable[[str, int], None] = lambda day, executions: None,
) -> Moved:
    """Move executions that ended before a moment (its UTC day begins) to ``directory``, or delete them (None).

    Spans that arrived by OTLP go when executions are deleted, and stay when they are moved.

    ``told`` hears of each day that is done. Safe to stop at any moment and to run again. Raises `ArchiveError`.
    """
    if directory is not None:
        _arrow()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArchiveError(f"cannot write to {directory}: {error.strerror}") from None
    cutoff = periods.floor(older_than_ns // NS, periods.DAY)
    moved, left, size = 0, 0, 0
    files: list[Path] = []
    while True:
        oldest = database.look(lambda c: _oldest(c, cutoff))
        if oldest is None:
            break
        day = periods.floor(oldest // NS, periods.DAY)
        ids = database.look(functools.partial(_ids_of, day_s=day))
        path: Path | None = None
        if directory is not None:
            path = _path(directory, day, ids)
            size += _write(database, ids, path)
            files.append(path)
        gone = 0
        for i in range(0, len(ids), CHUNK):
            chunk = ids[i : i + CHUNK]
            gone += database.run(functools.partial(_move, ids=chunk, path=path, day_s=day))
        moved += gone
        left += len(ids) - gone
        told(datetime.fromtimestamp(day, UTC).strftime("%Y-%m-%d"), gone)
        if gone < len(ids):
            break  # Something writes to them right now; they stay for the next time.
    if directory is None:
        delete_spans(database, cutoff * NS)
    database.run(_drop_empty)
    return Moved(moved, tuple(files), size, left)


def delete_spans(database: Database, before_ns: int) -> int:
    """Delete traces that ended before a moment and of which nothing came since; how many spans.

    Executions that were read from them stay. Safe to stop at any moment.
    """
    gone = 0
    while True:
        found = database.run(functools.partial(_delete_spans, before_ns=before_ns))
        if found is None:
            return gone
        gone += found


def _delete_spans(connection: Connection, before_ns: int) -> int | None:
    there = traces.c
    old = connection.execute(
        select(there.workspace_id, there.trace_id)
        .where(there.end_ns < before_ns, there.changed_ns < before_ns)
        .limit(CHUNK)
    ).all()
    if not old:
        operations = span_operations.c
        connection.execute(delete(span_operations).where(operations.last_ns < before_ns - periods.HOUR * NS))
        connection.execute(delete(span_resources).where(span_resources.c.id.not_in(select(spans.c.resource_id))))
        return None
    gone = 0
    ids: dict[str, list[str]] = {}
    for workspace, trace in old:
        ids.setdefault(workspace, []).append(trace)
    for workspace, several in ids.items():
        for table in (traces, spans):
            done = connection.execute(
                delete(table).where(table.c.workspace_id == workspace, table.c.trace_id.in_(several))
            )
        gone += done.rowcount
    return gone


def _oldest(connection: Connection, cutoff_s: int) -> int | None:
    found: int | None = connection.execute(
        select(func.min(_executions.finished_ns)).where(
            _executions.finished_ns < cutoff_s * NS, _executions.rank >= FIRST_TERMINAL_RANK
        )
    ).scalar()
    return found


def _ids_of(connection: Connection, day_s: int) -> list[str]:
    statement = (
        select(_executions.execution_id)
        .where(
            _executions.finished_ns >= day_s * NS,
            _executions.finished_ns < (day_s + periods.DAY) * NS,
            _executions.rank >= FIRST_TERMINAL_RANK,
        )
        .order_by(_executions.execution_id)
    )
    return list(connection.execute(statement).scalars())


def _path(directory: Path, day_s: int, ids: Sequence[str]) -> Path:
    day = datetime.fromtimestamp(day_s, UTC).strftime("%Y-%m-%d")
    # Of the same executions it is the same file, so doing it again leaves nothing behind.
    digest = hashlib.blake2b("".join(ids).encode(), digest_size=6).hexdigest()
    return directory.resolve() / f"executions-{day}-{digest}.parquet"


def _records(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Everything in the tables of these executions, by id."""
    rows = connection.execute(select(workflow_executions).where(_executions.execution_id.in_(ids))).mappings()
    found: dict[str, dict[str, Any]] = {row["execution_id"]: {**row, **{name: [] for name in _PARTS}} for row in rows}
    for name, table in _PARTS.items():
        parts = select(table).where(table.c.execution_id.in_(ids)).order_by(*table.primary_key)
        for row in connection.execute(parts).mappings():
            part = dict(row)
            found[part.pop("execution_id")][name].append(part)
    return found


def _write(database: Database, ids: Sequence[str], path: Path) -> int:
    pa, pq = _arrow()
    temporary = path.with_suffix(".tmp")
    schema = _schema(pa)
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for i in range(0, len(ids), CHUNK):
                chunk = ids[i : i + CHUNK]
                records = database.look(functools.partial(_records, ids=chunk))
                writer.write_table(pa.Table.from_pylist([records[one] for one in chunk if one in records], schema))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        with _opened(path.parent) as parent:
            os.fsync(parent)
        return path.stat().st_size
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ArchiveError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _move(connection: Connection, ids: Sequence[str], path: Path | None, day_s: int) -> int:
    """Of these executions, take those out of the tables that are in the file as they are; how many."""
    locking.lock(connection)
    if path is not None:
        there = _records(connection, ids)
        kept = _read(path, ids)
        ids = [one for one in ids if one in there and there[one] == kept.get(one)]
    if not ids:
        return 0
    # From now on these days' rollups are all there is of them.
    state.set_watermark(connection, day_s + periods.DAY)
    if path is not None:
        columns = [column.name for column in archived_executions.columns if column.name != "archive"]
        source = select(*[_executions[name] for name in columns], literal(str(path))).where(
            _executions.execution_id.in_(ids)
        )
        connection.execute(delete(archived_executions).where(archived_executions.c.execution_id.in_(ids)))
        connection.execute(insert(archived_executions).from_select([*columns, "archive"], source))
    for table in (*_PARTS.values(), workflow_executions):
        connection.execute(delete(table).where(table.c.execution_id.in_(ids)))
    return len(ids)


def _drop_empty(connection: Connection) -> None:
    """Drop monthly partitions of the past in which nothing is left (PostgreSQL)."""
    now = datetime.now(UTC)
    for month in partitions.months(connection):
        if month >= (now.year, now.month):
            continue
        locking.lock(connection)
        name = partitions.name_of("workflow_executions", month)
        if connection.exec_driver_sql(f"SELECT 1 FROM {name} LIMIT 1").first() is None:  # noqa: S608 - our own name
            partitions.drop(connection, month)


# --- reading --------------------------------------------------------------------------------------------------------


def run(connection: Connection, workspace: str, execution_id: str) -> StoredRun | None:
    """An archived execution of a workspace, or None. Raises `ArchiveError` when its file cannot be read."""
    archived = archived_executions.c
    row = connection.execute(
        select(archived.archive).where(archived.execution_id == execution_id, archived.workspace_id == workspace)
    ).first()
    if row is None:
        return None
    record = _read(Path(row.archive), [execution_id]).get(execution_id)
    if record is None:
        raise ArchiveError(f"{row.archive} does not hold it")
    parts = {name: record.pop(name) for name in _PARTS}
    steps = []
    for part in parts["steps"]:
        fields = {name: part[name] for name in StoredStep.__struct_fields__}
        steps.append(StoredStep(**{**fields, "depends_on": _decode_ids(part["depends_on"])}))
    steps.sort(
        key=lambda step: (step.step_order, step.started_ns or step.ready_ns or step.finished_ns or 0, step.step_id)
    )
    execution = SimpleNamespace(**record, archive=row.archive)
    return StoredRun(
        cast("Row[Any]", execution),
        steps,
        cast("Sequence[Row[Any]]", [SimpleNamespace(**part) for part in parts["attempts"]]),
        cast("Sequence[Row[Any]]", [SimpleNamespace(**part) for part in parts["reports"]]),
    )


def _read(path: Path, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    _, pq = _arrow()
    try:
        # Rows are in order of id: only the groups that can hold these are read.
        table = pq.read_table(path, filters=[("execution_id", "in", list(ids))])
    except FileNotFoundError:
        raise ArchiveError(f"its file {path} is not there") from None
    except (OSError, ValueError) as error:
        raise ArchiveError(f"its file {path} cannot be read: {error}") from None
    return {record["execution_id"]: record for record in table.to_pylist()}


def forget_workflow(connection: Connection, workspace: str, workflow_id: str) -> None:
    """Take a workflow's executions off the archive's index; the files stay as they are."""
    archived = archived_executions.c
    connection.execute(
        delete(archived_executions).where(archived.workspace_id == workspace, archived.workflow_id == workflow_id)
    )


def among(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Which of these executions are archived."""
    archived = archived_executions.c.execution_id
    return set(connection.execute(select(archived).where(archived.in_(ids))).scalars())


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ArchiveError("the archive needs more: pip install 'tachograph[archive]'") from None
    return pyarrow, pyarrow.parquet


def _schema(pa: Any) -> Any:
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}

    def fields(table: Table) -> list[Any]:
        return [pa.field(column.name, kinds[column.type.python_type]) for column in table.columns]

    parts = [pa.field(name, pa.list_(pa.struct(fields(table)[1:]))) for name, table in _PARTS.items()]
    return pa.schema([*fields(workflow_executions), *parts])


__all__ = ["Moved", "among", "archive", "forget_workflow", "run"]
