"""Reading the totals of any range of time from the rollups."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from tachograph.clock import NS
from tachograph_exporter.store.rollups.counting import Key, count_exactly
from tachograph_exporter.store.rollups.periods import DAY, FIVE_MINUTES, HOUR, floor
from tachograph_exporter.store.rollups.ranges import RowRange, split_range
from tachograph_exporter.store.rollups.rows import Head, head_of
from tachograph_exporter.store.schema import (
    rollup_heads,
    workflow_rollups,
)
from tachograph_exporter.store.totals import WorkflowTotals

_heads = rollup_heads.c
_rollups = workflow_rollups.c


def _in_ranges(row_ranges: Sequence[RowRange]) -> ColumnElement[bool]:
    return or_(
        *(
            and_(_rollups.period == rows.period, _rollups.start_s >= rows.low_s, _rollups.start_s < rows.high_s)
            for rows in row_ranges
        )
    )


def _rows(connection: Connection, key: Key, row_ranges: Sequence[RowRange], *columns: Any) -> Sequence[Any]:
    if not row_ranges:
        return ()
    statement = select(*columns).where(
        _rollups.workspace_id == key[0], _rollups.workflow_id == key[1], _in_ranges(row_ranges)
    )
    return cast("Sequence[Any]", connection.execute(statement).all())


class SumCache:
    """Sums of rollup rows, valid until one of those rows changes.

    A dashboard asks for the same weeks again and again; only the newest hour differs each time.
    """

    LIMIT: Final = 500

    def __init__(self) -> None:
        self._sums: OrderedDict[tuple[Key, RowRange], tuple[int, WorkflowTotals]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, row_range: RowRange, revision: int) -> WorkflowTotals | None:
        """The cached sum of a range of rows at this revision (`Head.closed`), or None. It must not be changed."""
        with self._lock:
            entry = self._sums.get((key, row_range))
            if entry is None or entry[0] != revision:
                return None
            self._sums.move_to_end((key, row_range))
            return entry[1]

    def put(self, key: Key, row_range: RowRange, revision: int, totals: WorkflowTotals) -> None:
        """Cache the sum of a range of rows."""
        with self._lock:
            self._sums[key, row_range] = (revision, totals)
            while len(self._sums) > self.LIMIT:
                self._sums.popitem(last=False)


def read(
    connection: Connection, key: Key, from_ns: int | None = None, to_ns: int | None = None, *, steps: bool = True
) -> WorkflowTotals:
    """Totals of everything of a workflow that ended in a range (unix nanoseconds, the end exclusive)."""
    return read_from(connection, key, head_of(connection, key), from_ns, to_ns, steps=steps)


def read_from(
    connection: Connection,
    key: Key,
    head: Head | None,
    from_ns: int | None,
    to_ns: int | None,
    *,
    steps: bool = True,
    kept: SumCache | None = None,
) -> WorkflowTotals:
    """`read` with the head already at hand, and optionally a cache of sums."""
    parts = split_range(head.start_s if head is not None else None, from_ns, to_ns)
    cache = kept if head is not None and steps else None
    revision = head.closed if head is not None else 0
    total = WorkflowTotals()
    sums: dict[RowRange, WorkflowTotals] = {}
    for row_range in parts.row_ranges:
        cached = cache.get(key, row_range, revision) if cache is not None else None
        if cached is not None:
            total.add(cached)
        else:
            sums[row_range] = WorkflowTotals()
    columns = (_rollups.period, _rollups.start_s, _rollups.executions, *((_rollups.steps,) if steps else ()))
    for period, start, executions, *encoded_steps in _rows(connection, key, list(sums), *columns):
        row_range = next(rows for rows in sums if rows.period == period and rows.low_s <= start < rows.high_s)
        sums[row_range].add(WorkflowTotals.decode(executions, encoded_steps[0] if encoded_steps else None))
    for row_range, totals in sums.items():
        total.add(totals)
        if cache is not None and row_range.period != "5m":
            cache.put(key, row_range, revision, totals)
    for low, high in parts.edges:
        exact = count_exactly(connection, key, low, high)
        if exact is not None:
            total.add(exact)
    return total


def series(
    connection: Connection,
    key: Key,
    low_s: int,
    high_s: int,
    unit: int,
) -> dict[int, WorkflowTotals]:
    """Totals of each ``unit`` (five minutes, an hour, a day) of a range of whole units, by its start."""
    head = head_of(connection, key)
    coarsest = {FIVE_MINUTES: "5m", HOUR: "1h", DAY: "1d"}[unit]
    parts = split_range(head.start_s if head is not None else None, low_s * NS, high_s * NS, coarsest=coarsest)
    buckets: dict[int, WorkflowTotals] = {}
    for start, executions, steps in _rows(
        connection, key, parts.row_ranges, _rollups.start_s, _rollups.executions, _rollups.steps
    ):
        totals, bucket = WorkflowTotals.decode(executions, steps), floor(start, unit)
        if bucket in buckets:
            buckets[bucket].add(totals)
        else:
            buckets[bucket] = totals
    return buckets


def totals(connection: Connection, workspace: str) -> dict[str, WorkflowTotals]:
    """Totals of everything that ever ended in a workspace, by workflow id; executions only."""
    return totals_of(connection, workspace, heads(connection, workspace))


def heads(connection: Connection, workspace: str, limit: int | None = None) -> dict[str, int]:
    """The heads (unix seconds) of a workspace's workflows, or of the last active ones, by workflow id."""
    statement = select(_heads.workflow_id, _heads.head_s).where(_heads.workspace_id == workspace)
    if limit is not None:
        statement = statement.order_by(_heads.head_s.desc()).limit(limit)
    return {row.workflow_id: row.head_s for row in connection.execute(statement)}


def totals_of(
    connection: Connection,
    workspace: str,
    heads: Mapping[str, int],
    from_ns: int | None = None,
    to_ns: int | None = None,
) -> dict[str, WorkflowTotals]:
    """Totals of what ended in a range, of the workflows with these heads; executions only.

    Reads whole rollup rows alone: a range begins and ends with a whole five minutes, or hour if it is long ago.
    """
    workflows: dict[tuple[RowRange, ...], list[str]] = {}
    for workflow, head in heads.items():
        row_ranges = split_range(head, from_ns, to_ns).row_ranges
        if row_ranges:
            workflows.setdefault(row_ranges, []).append(workflow)
    conditions = [
        and_(_rollups.workflow_id.in_(ids[i : i + 500]), _in_ranges(row_ranges))
        for row_ranges, ids in workflows.items()
        for i in range(0, len(ids), 500)
    ]
    totals_by_workflow: dict[str, WorkflowTotals] = {}
    for i in range(0, len(conditions), 50):
        statement = select(_rollups.workflow_id, _rollups.executions).where(
            _rollups.workspace_id == workspace, or_(*conditions[i : i + 50])
        )
        for workflow, executions in connection.execute(statement):
            totals_by_workflow.setdefault(workflow, WorkflowTotals()).add(WorkflowTotals.decode(executions, None))
    return totals_by_workflow
