"""Executions that begin and end in one transaction: they are counted from the rows that it writes, not read back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import compress
from operator import itemgetter, sub
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, bindparam, select, union_all

from tachograph.distribution import Distribution
from tachograph.resources import decoded
from tachograph_exporter.store.driver_select import IDS, DriverSelect
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
_PATH: Final = EXECUTION_ROWS.columns.index("critical_path")
_NAME, _RANK, _STATUS, _ATTEMPT, _STARTED, _FINISHED, _SKIPPED, _FOLDED, _RESOURCES = (
    STEP_ROWS.columns.index(name) for name in (
        "name", "rank", "status", "attempt", "started_ns", "finished_ns", "skip_reason", "folded", "resources",
    )
)  # fmt: skip
_OF_PLAIN_STEP: Final = itemgetter(*(
    STEP_ROWS.columns.index(name) for name in (
        "execution_id", "step_id", "span_id", "started_ns", "finished_ns", "dependency_ns", "queue_ns", "backoff_ns",
        "run_ns", "scheduled_ns", "unaccounted_ns", "resources",
    )
))  # fmt: skip
_PARTS: Final = DriverSelect(union_all(*[
    select(table.c.execution_id).where(table.c.execution_id.in_(bindparam(IDS, expanding=True)))
    for table in (workflow_step_executions, workflow_step_attempts, workflow_step_reports)
]))  # fmt: skip


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
        ids.difference_update([row[0] for row in _PARTS.rows(connection, in_order[i : i + _CHUNK])])
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
    counted: tuple[Any, ...] = _OF_STEP(row)
    return counted


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
    (
        ids, step_ids, span_ids, started, finished, dependency, queue, backoff, run, scheduled, unaccounted, resources
    ) = zip(*map(_OF_PLAIN_STEP, rows), strict=True)  # fmt: skip
    durations_ns = list(map(sub, finished, started))
    if min(durations_ns) < 0:
        # A clock was set back.
        durations_ns = [max(0, duration) for duration in durations_ns]
    durations = Distribution()
    on_path = [step_id in critical_paths[key] for key, step_id in zip(ids, step_ids, strict=True)]
    parts = [compress(times, on_path) for times in (started, finished, queue, backoff, run)]
    critical_ns = sum(map(critical_ns_of, *parts))
    uses = []
    if any(resources):
        uses = [
            (use, ran or 0)
            for stored, end, ran in zip(resources, finished, run, strict=True)
            if stored is not None and end >= resources_since_ns and (use := decoded(stored)) is not None
        ]
    return PlainSteps(
        rows[0][_NAME], rows[0][_STATUS], ids, span_ids, finished, durations_ns, _times(dependency), _times(queue),
        _times(scheduled), _times(unaccounted), durations, durations.observe_all_ns(durations_ns),
        sum(_times(backoff)), sum(_times(run)), critical_ns, uses,
    )  # fmt: skip


def _times(column: Sequence[int | None]) -> Sequence[int]:
    """A column of times; those that are not known count as none."""
    return [wait or 0 for wait in column] if None in column else column  # type: ignore[return-value]
