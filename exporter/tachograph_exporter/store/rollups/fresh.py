"""Executions that begin and end in one transaction: they are counted from the rows that it writes, not read back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, bindparam, select, union_all

from tachograph.distribution import Distribution
from tachograph.resources import decoded
from tachograph_exporter.store.merging import FIRST_TERMINAL_STEP_RANK
from tachograph_exporter.store.plain_steps import PlainSteps
from tachograph_exporter.store.schema import (
    EXECUTION_ROWS,
    STEP_ROWS,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_reports,
)
from tachograph_exporter.store.state import RESOURCES_SINCE, state_of
from tachograph_exporter.store.totals import critical_ns_of

MIN_GROUPED: Final = 4
"""Of fewer steps, columns are not worth making."""
_CHUNK: Final = 400
_T = TypeVar("_T", bound=Hashable)


class Fresh(NamedTuple):
    """Executions of which all rows are written in one transaction: nothing of them has to be read back.

    ``executions`` and ``steps`` are rows as `counting` reads them. ``plain``: groups of further steps, of one name and
    status each, as they are stored (see `schema`).
    """

    executions: Mapping[str, tuple[Any, ...]] = {}
    steps: Sequence[tuple[Any, ...]] = ()
    plain: Sequence[Sequence[tuple[Any, ...]]] = ()
    resources_since_ns: int = 0


NOTHING_FRESH: Final = Fresh()
_OF_EXECUTION: Final = itemgetter(*(
    EXECUTION_ROWS.columns.index(name) for name in (
        "execution_id", "workspace_id", "workflow_id", "status", "started_ns", "finished_ns", "queued_ns", "work_ns",
        "critical_path_ns", "critical_path", "trace_id", "span_id",
    )
))  # fmt: skip
_OF_STEP: Final = itemgetter(*(
    STEP_ROWS.columns.index(name) for name in (
        "execution_id", "step_id", "name", "status", "started_ns", "finished_ns", "attempt", "dependency_ns",
        "queue_ns", "backoff_ns", "run_ns", "unaccounted_ns", "scheduled_ns", "folded", "resources", "span_id",
        "skip_reason",
    )
))  # fmt: skip
_OF_STEP_RESOURCES: Final = 14
_PATH: Final = EXECUTION_ROWS.columns.index("critical_path")
(
    _STEP_ID, _NAME, _SPAN, _RANK, _STATUS, _ATTEMPT, _STARTED, _FINISHED, _DEPENDENCY, _QUEUE, _BACKOFF, _RUN,
    _SKIPPED, _UNACCOUNTED, _SCHEDULED, _FOLDED, _RESOURCES,
) = (
    STEP_ROWS.columns.index(name) for name in (
        "step_id", "name", "span_id", "rank", "status", "attempt", "started_ns", "finished_ns", "dependency_ns",
        "queue_ns", "backoff_ns", "run_ns", "skip_reason", "unaccounted_ns", "scheduled_ns", "folded", "resources",
    )
)  # fmt: skip
_PARTS: Final = union_all(*[
    select(table.c.execution_id).where(table.c.execution_id.in_(bindparam("ids", expanding=True)))
    for table in (workflow_step_executions, workflow_step_attempts, workflow_step_reports)
])  # fmt: skip


def fresh(
    connection: Connection,
    executions: Mapping[str, tuple[Any, ...]],
    steps: Collection[tuple[Any, ...]],
    others: AbstractSet[str],
    ended: AbstractSet[str],
) -> Fresh:
    """Those of the executions that ended, and of which nothing is stored, from the rows that are going to be.

    ``others``: executions that have further rows. The caller has claimed their workflows.
    """
    ids = {key for key in ended - others if executions[key][_PATH] is not None}
    in_order = list(ids)
    for i in range(0, len(in_order), _CHUNK):
        # Steps may have been told of before their execution was.
        ids.difference_update(connection.execute(_PARTS, {"ids": in_order[i : i + _CHUNK]}).scalars())
    if not ids:
        return NOTHING_FRESH
    by_kind: defaultdict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)
    rest: list[tuple[Any, ...]] = []
    for row in steps:
        if row[_RANK] < FIRST_TERMINAL_STEP_RANK or row[0] not in ids:
            continue
        if row[_ATTEMPT] == 1 and row[_STARTED] is not None and row[_SKIPPED] is None and row[_FOLDED] is None:
            by_kind[row[_NAME], row[_STATUS]].append(row)
        else:
            rest.append(row)
    plain = [rows for rows in by_kind.values() if len(rows) >= MIN_GROUPED]
    rest += [row for rows in by_kind.values() if len(rows) < MIN_GROUPED for row in rows]
    since = 0
    if any(row[_RESOURCES] is not None for row in steps):
        since = int(state_of(connection, RESOURCES_SINCE) or 0)
    of_executions = {key: _OF_EXECUTION(executions[key]) for key in ids}
    return Fresh(of_executions, [_counted_row(row, since) for row in rest], plain, since)


def _counted_row(row: tuple[Any, ...], resources_since_ns: int) -> tuple[Any, ...]:
    if row[_RESOURCES] is not None and (row[_FINISHED] or 0) < resources_since_ns:
        row = (*row[:_RESOURCES], None, *row[_RESOURCES + 1 :])
    return _OF_STEP(row)


def plain_steps(
    fresh: Fresh, places: Mapping[str, _T], critical_paths: Mapping[str, AbstractSet[str]]
) -> Iterator[tuple[_T, PlainSteps]]:
    """The groups of plain steps, divided by the places of their executions; ``critical_paths`` are step ids."""
    is_divided = len(set(places.values())) > 1
    for rows in fresh.plain:
        if not is_divided:
            yield places[rows[0][0]], _columns(rows, critical_paths, fresh.resources_since_ns)
            continue
        by_place: defaultdict[_T, list[tuple[Any, ...]]] = defaultdict(list)
        for row in rows:
            by_place[places[row[0]]].append(row)
        for place, part in by_place.items():
            yield place, _columns(part, critical_paths, fresh.resources_since_ns)


def _columns(
    rows: Sequence[tuple[Any, ...]], critical_paths: Mapping[str, AbstractSet[str]], resources_since_ns: int
) -> PlainSteps:
    # A clock may have been set back.
    durations_ns = [max(0, row[_FINISHED] - row[_STARTED]) for row in rows]
    durations = Distribution()
    critical = [
        critical_ns_of(row[_STARTED], row[_FINISHED], row[_QUEUE], row[_BACKOFF], row[_RUN])
        for row in rows
        if row[_STEP_ID] in critical_paths[row[0]]
    ]
    used = [row for row in rows if row[_RESOURCES] is not None and row[_FINISHED] >= resources_since_ns]
    return PlainSteps(
        rows[0][_NAME], rows[0][_STATUS], _column(rows, 0), _column(rows, _SPAN), _column(rows, _FINISHED),
        durations_ns, _times(rows, _DEPENDENCY), _times(rows, _QUEUE), _times(rows, _SCHEDULED),
        _times(rows, _UNACCOUNTED), durations, durations.observe_all_ns(durations_ns), sum(_times(rows, _BACKOFF)),
        sum(_times(rows, _RUN)), sum(critical),
        [(use, row[_RUN] or 0) for row in used if (use := decoded(row[_RESOURCES])) is not None],
    )  # fmt: skip


def _column(rows: Iterable[tuple[Any, ...]], place: int) -> list[Any]:
    return [row[place] for row in rows]


def _times(rows: Iterable[tuple[Any, ...]], place: int) -> list[int]:
    return [row[place] or 0 for row in rows]
