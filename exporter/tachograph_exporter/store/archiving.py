"""Moving executions that ended long ago from the tables to the archive, or deleting them.

Each UTC day goes through these steps, in this order, so that nothing is lost wherever it stops:

1. its rows are written to a temporary file, which is synced and renamed into place;
2. the file is read back and compared with the rows as they are in the tables now, under the writers' lock;
3. in the same transaction, rows that are equal get an entry in ``archived_executions`` and leave the tables; those that
   changed meanwhile stay for the next run.

If it stops between 1 and 3, the next run writes the same file again. Rollups keep counting what was archived.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, func, insert, literal, or_, select

from tachograph.clock import NS
from tachograph.errors import ArchiveError
from tachograph_exporter.store import input_values, locking, log_rows, partitions, span_values, stacks, state
from tachograph_exporter.store.archive import PART_TABLES, load_pyarrow, parquet_schema, read_records
from tachograph_exporter.store.failure_groups import occurrences
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups.periods import DAY, floor
from tachograph_exporter.store.schema import (
    archived_executions,
    lineage_events,
    open_spans,
    span_resources,
    spans,
    trace_keys,
    traces,
    workflow_executions,
)
from tachograph_exporter.store.span_index import Source
from tachograph_exporter.store.span_index_reading import drop_days
from tachograph_exporter.store.span_search import START
from tachograph_exporter.store.trace_groups import TRACE

if TYPE_CHECKING:
    from tachograph_exporter.store.database import Database

CHUNK: Final = 200
"""Executions moved in one transaction; other writers wait no longer than that takes."""

_executions = workflow_executions.c


class Moved(NamedTuple):
    """The outcome of `archive`. ``left``: executions that changed meanwhile and stay for the next run."""

    executions: int
    files: tuple[Path, ...]
    bytes: int
    left: int


def archive(
    database: Database,
    older_than_ns: int,
    directory: Path | None,
    *,
    on_day: Callable[[str, int], None] = lambda day, executions: None,
) -> Moved:
    """Move executions that ended before the UTC day of a moment to ``directory``, or delete them (None).

    Spans that arrived by OTLP are deleted with executions, and stay when executions are moved.

    ``on_day`` is called after each day, with its date and the number of executions that left the tables. Safe to stop
    at any moment and to run again. Raises `ArchiveError`.
    """
    if directory is not None:
        load_pyarrow()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArchiveError(f"cannot write to {directory}: {error.strerror}") from None
    cutoff = floor(older_than_ns // NS, DAY)
    moved, left, size = 0, 0, 0
    files: list[Path] = []
    while True:
        oldest = database.look(lambda c: _oldest(c, cutoff))
        if oldest is None:
            break
        day = floor(oldest // NS, DAY)
        ids = database.look(functools.partial(_ended_on, day_s=day))
        path: Path | None = None
        if directory is not None:
            path = _path(directory, day, ids)
            size += _write(database, ids, path)
            files.append(path)
        moved_today = 0
        for i in range(0, len(ids), CHUNK):
            chunk = ids[i : i + CHUNK]
            moved_today += database.run(functools.partial(_move, ids=chunk, path=path, day_s=day))
        moved += moved_today
        left += len(ids) - moved_today
        on_day(_date(day), moved_today)
        if moved_today < len(ids):
            break  # Some are being written to right now; they stay for the next run.
    database.run(functools.partial(drop_days, source=Source.RECORDED, before_ns=cutoff * NS))
    database.run(functools.partial(input_values.drop_days, before_ns=cutoff * NS))
    if directory is None:
        delete_spans(database, cutoff * NS)
        delete_logs(database, cutoff * NS)
    database.run(_drop_empty_partitions)
    return Moved(moved, tuple(files), size, left)


def delete_spans(database: Database, before_ns: int) -> int:
    """Delete traces that ended before a moment and have received nothing since. Returns the number of spans.

    A trace stays as long as one of its group does, or something in it runs. Executions that were read from traces stay.
    Safe to stop at any moment.
    """
    total = 0
    while True:
        deleted = database.run(functools.partial(_delete_spans, before_ns=before_ns))
        if deleted is None:
            return total
        total += deleted


def delete_logs(database: Database, before_ns: int) -> None:
    """Delete the log records of traces without spans that have received nothing since a moment."""
    while database.run(functools.partial(_delete_logs, before_ns=before_ns)):
        pass


def _delete_logs(connection: Connection, before_ns: int) -> int:
    locking.lock(connection)
    old = log_rows.old_traces(connection, before_ns, CHUNK)
    for workspace, trace in old:
        log_rows.forget_traces(connection, workspace, [trace])
    return len(old)


def _delete_spans(connection: Connection, before_ns: int) -> int | None:
    """Delete some old traces. Returns the number of spans, or None when no old trace is left."""
    columns = traces.c
    old = connection.execute(
        select(columns.workspace_id, columns.trace_id)
        .where(columns.end_ns < before_ns, columns.changed_ns < before_ns, ~_is_needed(before_ns))
        .limit(CHUNK)
    ).all()
    if not old:
        drop_days(connection, Source.ARRIVED, before_ns)
        oldest = connection.execute(select(func.min(START))).scalar()
        span_values.drop_days(connection, before_ns if oldest is None else min(before_ns, oldest))
        connection.execute(delete(span_resources).where(span_resources.c.id.not_in(select(spans.c.resource_id))))
        return None
    trace_ids: dict[str, list[str]] = {}
    for workspace, trace in old:
        trace_ids.setdefault(workspace, []).append(trace)
    deleted = 0
    for workspace, ids in trace_ids.items():
        log_rows.forget_traces(connection, workspace, ids)
        for table in (open_spans, traces, lineage_events, trace_keys, spans):
            result = connection.execute(
                delete(table).where(table.c.workspace_id == workspace, table.c.trace_id.in_(ids))
            )
        deleted += result.rowcount
    return deleted


def _is_needed(before_ns: int) -> ColumnElement[bool]:
    """Whether an old trace tells of what goes on: another one of its group is younger, or an open span was heard of."""
    own, other, younger = trace_keys.alias(), trace_keys.alias(), traces.alias()
    beside = (
        select(younger.c.trace_id)
        .select_from(own)
        .join(other, (other.c.workspace_id == own.c.workspace_id) & (other.c.trace_id == own.c.trace_id))
        .join(
            younger,
            (younger.c.workspace_id == other.c.workspace_id)
            & (younger.c.trace_id == func.substr(other.c.key, len(TRACE) + 1)),
        )
        .where(
            own.c.workspace_id == traces.c.workspace_id,
            own.c.key == literal(TRACE) + traces.c.trace_id,
            other.c.key.like(f"{TRACE}%"),
            or_(younger.c.end_ns >= before_ns, younger.c.changed_ns >= before_ns),
        )
    )
    alive = select(open_spans.c.span_id).where(
        open_spans.c.workspace_id == traces.c.workspace_id,
        open_spans.c.trace_id == traces.c.trace_id,
        open_spans.c.seen_ns >= before_ns,
        open_spans.c.lost_ns.is_(None),
    )
    return or_(beside.exists(), alive.exists())


def count_before(connection: Connection, older_than_ns: int) -> int:
    """How many executions `archive` would move or delete."""
    cutoff = floor(older_than_ns // NS, DAY)
    ended = (_executions.finished_ns < cutoff * NS, _executions.rank >= FIRST_TERMINAL_RANK)
    return int(connection.execute(select(func.count()).select_from(workflow_executions).where(*ended)).scalar_one())


def _oldest(connection: Connection, cutoff_s: int) -> int | None:
    finished_ns: int | None = connection.execute(
        select(func.min(_executions.finished_ns)).where(
            _executions.finished_ns < cutoff_s * NS, _executions.rank >= FIRST_TERMINAL_RANK
        )
    ).scalar()
    return finished_ns


def _ended_on(connection: Connection, day_s: int) -> list[str]:
    statement = (
        select(_executions.execution_id)
        .where(
            _executions.finished_ns >= day_s * NS,
            _executions.finished_ns < (day_s + DAY) * NS,
            _executions.rank >= FIRST_TERMINAL_RANK,
        )
        .order_by(_executions.execution_id)
    )
    return list(connection.execute(statement).scalars())


def _date(day_s: int) -> str:
    return datetime.fromtimestamp(day_s, UTC).strftime("%Y-%m-%d")


def _path(directory: Path, day_s: int, ids: Sequence[str]) -> Path:
    # The same executions give the same name, so running again leaves no file behind.
    digest = hashlib.blake2b("".join(ids).encode(), digest_size=6).hexdigest()
    return directory.resolve() / f"executions-{_date(day_s)}-{digest}.parquet"


def _records(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Everything the tables hold of these executions, by id."""
    rows = connection.execute(select(workflow_executions).where(_executions.execution_id.in_(ids))).mappings()
    records: dict[str, dict[str, Any]] = {
        row["execution_id"]: {**row, **{name: [] for name in PART_TABLES}} for row in rows
    }
    for name, table in PART_TABLES.items():
        statement = select(table).where(table.c.execution_id.in_(ids)).order_by(*table.primary_key)
        for row in connection.execute(statement).mappings():
            part = dict(row)
            records[part.pop("execution_id")][name].append(part)
    return records


def _write(database: Database, ids: Sequence[str], path: Path) -> int:
    pa, pq = load_pyarrow()
    temporary = path.with_suffix(".tmp")
    schema = parquet_schema(pa)
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for i in range(0, len(ids), CHUNK):
                chunk = ids[i : i + CHUNK]
                records = database.look(functools.partial(_records, ids=chunk))
                rows = [records[execution_id] for execution_id in chunk if execution_id in records]
                writer.write_table(pa.Table.from_pylist(rows, schema))
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
    """Take those of the executions out of the tables that the file holds as they are. Returns their number."""
    locking.lock(connection)
    if path is not None:
        stored = _records(connection, ids)
        written = read_records(path, ids)
        ids = [
            execution_id
            for execution_id in ids
            if execution_id in stored and stored[execution_id] == written.get(execution_id)
        ]
    if not ids:
        return 0
    # From here on, the rollups of these days cannot be rebuilt from the tables.
    state.set_watermark(connection, day_s + DAY)
    if path is not None:
        columns = [column.name for column in archived_executions.columns if column.name != "archive"]
        source = select(*[_executions[name] for name in columns], literal(str(path))).where(
            _executions.execution_id.in_(ids)
        )
        connection.execute(delete(archived_executions).where(archived_executions.c.execution_id.in_(ids)))
        connection.execute(insert(archived_executions).from_select([*columns, "archive"], source))
    else:
        occurrences.leave(connection, ids)
    stacks.remove(connection, ids)
    for table in (*PART_TABLES.values(), workflow_executions):
        connection.execute(delete(table).where(table.c.execution_id.in_(ids)))
    return len(ids)


def _drop_empty_partitions(connection: Connection) -> None:
    """Drop the partitions of past months that are empty (PostgreSQL)."""
    now = datetime.now(UTC)
    for month in partitions.months(connection):
        if month >= (now.year, now.month):
            continue
        locking.lock(connection)
        name = partitions.name_of("workflow_executions", month)
        if connection.exec_driver_sql(f"SELECT 1 FROM {name} LIMIT 1").first() is None:  # noqa: S608 - our own name
            partitions.drop(connection, month)
