"""Adding up occurrences: the groups of a workspace in a range of time, and what is in one group.

Every statement reads a range of one index of the occurrences.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Integer, Row, and_, case, cast, func, select, tuple_

from tachograph_exporter.store.failure_groups.failing import EXECUTION, STEP, chunks
from tachograph_exporter.store.failure_groups.groups import RESOLVED
from tachograph_exporter.store.schema import (
    failure_groups,
    failure_occurrences,
    workflow_definitions,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
)

MAX_PLACES: Final = 50
"""Most workflows and steps, versions or hosts of a group that are told apart."""
_MAX_PROCESSES: Final = 10_000
_RUNS_OF_A_VERSION: Final = 200
"""A failure is new since a version if it began within so many runs of it."""

_rows = failure_occurrences.c
_groups = failure_groups.c
_executions = workflow_executions.c


class Range(NamedTuple):
    """Failures of a workspace from ``low_ns`` to before ``high_ns``, of one workflow (an id) or all."""

    workspace_id: str
    low_ns: int
    high_ns: int
    workflow_id: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The SQL conditions on an occurrence."""
        conditions = [
            _rows.workspace_id == self.workspace_id,
            _rows.time_ns >= self.low_ns,
            _rows.time_ns < self.high_ns,
        ]
        if self.workflow_id is not None:
            conditions.append(_rows.workflow_id == self.workflow_id)
        return conditions


class Counts(NamedTuple):
    """What failed of one cause in a range.

    Attributes:
        failures: how often it happened: attempts, and executions that failed by themselves outside of any step.
        attempts: attempts that failed, those included that were the last of their step.
        steps: steps that failed for good.
        executions: executions that failed because of it.
        last_ns: when it last happened.
    """

    failures: int = 0
    attempts: int = 0
    steps: int = 0
    executions: int = 0
    last_ns: int = 0


_IS_ORIGIN: Final = _rows.is_origin == 1
_FAILURES: Final = func.sum(case((_IS_ORIGIN, _rows.count), else_=0))
_ATTEMPTS: Final = func.sum(case((and_(_IS_ORIGIN, _rows.kind != EXECUTION), _rows.count), else_=0))
_FAILED_STEPS: Final = func.sum(case((and_(_IS_ORIGIN, _rows.kind == STEP), _rows.count), else_=0))
_FAILED_EXECUTIONS: Final = func.sum(case((_rows.kind == EXECUTION, _rows.count), else_=0))


def counts(connection: Connection, within: Range) -> dict[str, Counts]:
    """The groups that have failures in a range, by id."""
    statement = (
        select(
            _rows.group_id, _FAILURES, _ATTEMPTS, _FAILED_STEPS, _FAILED_EXECUTIONS, func.max(_rows.time_ns)
        )
        .where(*within.conditions())
        .group_by(_rows.group_id)
    )  # fmt: skip
    return {row[0]: Counts(*(int(value) for value in row[1:])) for row in connection.execute(statement)}


def rows_of(connection: Connection, workspace_id: str, ids: Collection[str]) -> dict[str, Row[Any]]:
    """The rows of groups by id, with when they were seen first and last (``seen_first_ns``, ``seen_last_ns``)."""
    of_group = (_rows.workspace_id == _groups.workspace_id) & (_rows.group_id == _groups.group_id)
    first = select(_rows.time_ns).where(of_group).order_by(_rows.time_ns).limit(1).scalar_subquery()
    last = select(_rows.time_ns).where(of_group).order_by(_rows.time_ns.desc()).limit(1).scalar_subquery()
    columns = [*failure_groups.columns, first.label("seen_first_ns"), last.label("seen_last_ns")]
    rows: dict[str, Row[Any]] = {}
    for chunk in chunks(ids):
        statement = select(*columns).where(_groups.workspace_id == workspace_id, _groups.group_id.in_(chunk))
        rows |= {row.group_id: row for row in connection.execute(statement)}
    return rows


def first_seen(row: Row[Any]) -> int:
    """When a group was first seen, unix ns."""
    moments: list[int | None] = [row.first_ns, row.seen_first_ns]
    return min((moment for moment in moments if moment is not None), default=int(row.created_ns))


def last_seen(row: Row[Any]) -> int | None:
    """When a group was last seen, unix ns; None: what was in it has changed."""
    moments: list[int | None] = [row.last_ns, row.seen_last_ns]
    return max((moment for moment in moments if moment is not None), default=None)


def has_come_again(row: Row[Any]) -> bool:
    """Whether there are failures since somebody resolved the group."""
    last = row.seen_last_ns
    return row.state == RESOLVED and last is not None and last > (row.state_ns or 0)


def by_time(connection: Connection, within: Range, ids: Sequence[str], buckets: int) -> dict[str, list[int]]:
    """How often groups happened in each of so many equal parts of a range."""
    width = max(1, -(-(within.high_ns - within.low_ns) // buckets))
    bucket = cast((_rows.time_ns - within.low_ns) // width, Integer)
    series = {group_id: [0] * buckets for group_id in ids}
    statement = (
        select(_rows.group_id, bucket, func.sum(_rows.count))
        .where(*within.conditions(), _IS_ORIGIN, _rows.group_id.in_(ids))
        .group_by(_rows.group_id, bucket)
    )
    for group_id, index, count in connection.execute(statement):
        series[group_id][min(index, buckets - 1)] = int(count)
    return series


class Place(NamedTuple):
    """Where a group happens; ``step`` is "" for the execution itself."""

    workflow_id: str
    workflow: str
    step: str
    failures: int


def places(connection: Connection, within: Range, ids: Sequence[str], limit: int) -> dict[str, list[Place]]:
    """The workflows and steps of groups, those first in which they happen most."""
    count = func.sum(_rows.count)
    rank = func.row_number().over(partition_by=_rows.group_id, order_by=(count.desc(), _rows.workflow_id, _rows.step))
    ranked = (
        select(_rows.group_id, _rows.workflow_id, _rows.step, count.label("failures"), rank.label("place"))
        .where(*within.conditions(), _IS_ORIGIN, _rows.group_id.in_(ids))
        .group_by(_rows.group_id, _rows.workflow_id, _rows.step)
        .subquery()
    )
    statement = (
        select(ranked, workflow_definitions.c.name)
        .outerjoin(workflow_definitions, workflow_definitions.c.id == ranked.c.workflow_id)
        .where(ranked.c.place <= limit)
        .order_by(ranked.c.group_id, ranked.c.place)
    )
    where: dict[str, list[Place]] = {group_id: [] for group_id in ids}
    for row in connection.execute(statement):
        place = Place(row.workflow_id, row.name or row.workflow_id, row.step, int(row.failures))
        where[row.group_id].append(place)
    return where


def by_version(connection: Connection, within: Range, group_id: str) -> list[tuple[str, str, int]]:
    """(workflow, version, failures), the most frequent first."""
    count = func.sum(_rows.count).label("failures")
    statement = (
        select(workflow_definitions.c.name, _rows.workflow_version, count)
        .outerjoin(workflow_definitions, workflow_definitions.c.id == _rows.workflow_id)
        .where(*within.conditions(), _IS_ORIGIN, _rows.group_id == group_id)
        .group_by(workflow_definitions.c.name, _rows.workflow_version)
        .order_by(count.desc(), workflow_definitions.c.name, _rows.workflow_version)
        .limit(MAX_PLACES)
    )
    return [(row[0] or "", row[1], int(row[2])) for row in connection.execute(statement)]


def by_host(connection: Connection, within: Range, group_id: str) -> list[tuple[str, int]]:
    """(host, failures), the most frequent first; without those of which the host is not known."""
    count = func.sum(_rows.count).label("failures")
    statement = (
        select(_executions.process, count)
        .join(workflow_executions, _executions.execution_id == _rows.execution_id)
        .where(*within.conditions(), _IS_ORIGIN, _rows.group_id == group_id)
        .group_by(_executions.process)
        .limit(_MAX_PROCESSES)
    )
    hosts: dict[str, int] = {}
    for process, failures in connection.execute(statement):
        # See `tachograph.process`: host/boot.namespace/pid/start.
        parts = (process or "").rsplit("/", 3)
        if len(parts) == 4:
            hosts[parts[0]] = hosts.get(parts[0], 0) + int(failures)
    return sorted(hosts.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_PLACES]


_OCCURRENCE: Final = (
    _rows.execution_id, _rows.step_id, _rows.attempt, _rows.kind, _rows.group_id, _rows.workflow_id,
    _rows.workflow_version, _rows.step, _rows.count.label("times"), _rows.time_ns,
    workflow_definitions.c.name.label("workflow"),
)  # fmt: skip


def occurrences(connection: Connection, within: Range, group_id: str, skip: int, limit: int) -> Sequence[Row[Any]]:
    """Where a group happened, the newest first."""
    statement = (
        select(*_OCCURRENCE)
        .outerjoin(workflow_definitions, workflow_definitions.c.id == _rows.workflow_id)
        .where(*within.conditions(), _IS_ORIGIN, _rows.group_id == group_id)
        .order_by(_rows.time_ns.desc(), _rows.execution_id, _rows.step_id, _rows.attempt)
    )
    return list(connection.execute(statement.offset(skip).limit(limit)))


def count_occurrences(connection: Connection, within: Range, group_id: str) -> int:
    """How many there are; repetitions that share a row are one."""
    statement = select(func.count()).where(*within.conditions(), _IS_ORIGIN, _rows.group_id == group_id)
    return int(connection.execute(statement).scalar_one())


def examples(connection: Connection, within: Range, ids: Sequence[str]) -> dict[str, Row[Any]]:
    """The newest occurrence of each group in a range."""
    newest: dict[str, Row[Any]] = {}
    for group_id in ids:
        for row in occurrences(connection, within, group_id, 0, 1):
            newest[group_id] = row
    return newest


class Told(NamedTuple):
    """What a failure says."""

    error_type: str | None
    error_message: str | None
    error_stack: str | None


_ERROR: Final = ("error_type", "error_message", "error_stack")


def told(connection: Connection, rows: Collection[Row[Any]]) -> Mapping[tuple[str, str, int], Told]:
    """What occurrences say, by execution, step and attempt; those of archived executions are missing."""
    texts: dict[tuple[str, str, int], Told] = {}
    keys = [(row.execution_id, row.step_id, row.attempt) for row in rows]
    steps, attempts = workflow_step_executions.c, workflow_step_attempts.c
    of_executions = [execution_id for execution_id, step_id, _ in keys if not step_id]
    of_steps = [key for key in keys if key[1]]
    if of_executions:
        columns = [_executions.execution_id, *[_executions[name] for name in _ERROR]]
        statement = select(*columns).where(_executions.execution_id.in_(of_executions))
        texts |= {(row[0], "", 0): Told(*row[1:]) for row in connection.execute(statement)}
    if of_steps:
        for table in (steps, attempts):
            columns = [table.execution_id, table.step_id, table.attempt, *[table[name] for name in _ERROR]]
            statement = select(*columns).where(tuple_(table.execution_id, table.step_id, table.attempt).in_(of_steps))
            texts |= {(row[0], row[1], row[2]): Told(*row[3:]) for row in connection.execute(statement)}
    return texts


def new_since_version(connection: Connection, row: Row[Any]) -> str | None:
    """The version of the workflow that a group came with, if other versions had run before without it.

    None: it came long after the version did, or nothing is known of earlier ones.
    """
    if row.first_ns is not None:
        return None  # Its first failures are no longer stored.
    first = connection.execute(
        select(_rows.workflow_id, _rows.workflow_version, _rows.execution_id)
        .where(_rows.workspace_id == row.workspace_id, _rows.group_id == row.group_id)
        .order_by(_rows.time_ns, _rows.execution_id)
        .limit(1)
    ).first()
    if first is None or not first.workflow_version:
        return None
    created_ns = connection.execute(
        select(_executions.created_ns).where(_executions.execution_id == first.execution_id)
    ).scalar()
    if created_ns is None:
        return None
    before = (
        select(_executions.version)
        .where(
            _executions.workspace_id == row.workspace_id,
            _executions.workflow_id == first.workflow_id,
            _executions.created_ns < created_ns,
        )
        .order_by(_executions.created_ns.desc())
        .limit(_RUNS_OF_A_VERSION)
    )
    versions = set(connection.execute(before).scalars())
    return first.workflow_version if versions - {first.workflow_version} else None


def groups_in(connection: Connection, ids: Collection[str]) -> dict[str, dict[tuple[str, int, int], str]]:
    """The groups of what failed in executions: by execution, and by step id, attempt and kind."""
    by_execution: dict[str, dict[tuple[str, int, int], str]] = {}
    columns = (_rows.execution_id, _rows.step_id, _rows.attempt, _rows.kind, _rows.group_id)
    for chunk in chunks(ids):
        for row in connection.execute(select(*columns).where(_rows.execution_id.in_(chunk))):
            by_execution.setdefault(row[0], {})[row[1], row[2], row[3]] = row[4]
    return by_execution


def group_of_executions(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """The group of what each of the executions failed with."""
    statement = select(_rows.execution_id, _rows.group_id).where(_rows.step_id == "", _rows.kind == EXECUTION)
    return {
        row[0]: row[1]
        for chunk in chunks(ids)
        for row in connection.execute(statement.where(_rows.execution_id.in_(chunk)))
    }


def in_group(workspace_id: str, group_id: str, execution_id: Any) -> ColumnElement[bool]:
    """The SQL condition that an execution has a failure of a group."""
    of_group = select(_rows.execution_id).where(_rows.workspace_id == workspace_id, _rows.group_id == group_id)
    return execution_id.in_(of_group)  # type: ignore[no-any-return]
