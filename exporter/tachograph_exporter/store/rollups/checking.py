"""Counting one rollup row again, to see whether it holds what its executions add up to."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, func, select

from tachograph.clock import NS
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups.counting import Key, count_exactly, ended_executions
from tachograph_exporter.store.rollups.expected import ROWS_BETWEEN
from tachograph_exporter.store.rollups.periods import FIVE_MINUTES, HOUR, bucket_of, first_five_minutes, floor
from tachograph_exporter.store.rollups.rows import head_of
from tachograph_exporter.store.schema import workflow_executions
from tachograph_exporter.store.state import watermark_of
from tachograph_exporter.store.totals import WorkflowTotals

MAX_STEPS: Final = 100_000
"""Most steps (and executions) that are counted again."""

_LAST_NS: Final = (1 << 63) - 1
_executions = workflow_executions.c


class CountedRow(NamedTuple):
    """The smallest rollup row over the end of an execution.

    Attributes:
        period, start_s: which row.
        stored: what it holds; None: it does not exist.
        counted: what the executions that ended in it add up to.
        own: the part of it that is the execution's.
        fault: why ``stored`` or ``counted`` cannot be told; empty if they can.
        critical_path: ids of the execution's steps that are counted as on its critical path.
    """

    period: str
    start_s: int
    stored: WorkflowTotals | None
    counted: WorkflowTotals
    own: WorkflowTotals
    critical_path: frozenset[str]
    steps: int
    fault: str = ""


def count_row(connection: Connection, key: Key, execution_id: str, finished_ns: int) -> CountedRow | str:
    """The row over the end of an execution of a workflow, counted again; or why that cannot be done."""
    bucket = bucket_of(finished_ns)
    head = head_of(connection, key)
    if bucket < watermark_of(connection):
        return "executions of its day may be archived, so they cannot be counted again"
    period, start, length = "5m", bucket, FIVE_MINUTES
    if head is not None and bucket < first_five_minutes(head.start_s):
        period, start, length = "1h", floor(bucket, HOUR), HOUR
    # No column holds a later time than the last one.
    low, high = start * NS, min((start + length) * NS, _LAST_NS)
    executions, steps = connection.execute(
        select(func.count(), func.sum(_executions.step_count)).where(
            _executions.workspace_id == key[0],
            _executions.workflow_id == key[1],
            _executions.finished_ns >= low,
            _executions.finished_ns < high,
            _executions.rank >= FIRST_TERMINAL_RANK,
        )
    ).one()
    if executions + (steps or 0) > MAX_STEPS:
        return f"{executions} executions ended in the same period: too many to count again"
    parameters = {"workspace": key[0], "workflow": key[1], "period": period, "low": start, "high": start + 1}
    row = connection.execute(ROWS_BETWEEN, parameters).first()
    none, empty = WorkflowTotals(), frozenset[str]()
    try:
        stored = WorkflowTotals.decode(row[1], row[2]) if row is not None else None
    except (msgspec.MsgspecError, ValueError) as error:
        return CountedRow(period, start, None, none, none, empty, 0, f"cannot be decoded: {error}")
    own = WorkflowTotals()
    try:
        ended = ended_executions(connection, [execution_id])[execution_id]
        ended.add_to(own)
        counted = count_exactly(connection, key, low, high) or none
    except (KeyError, TypeError, ValueError) as error:
        # A row that nothing here writes, such as a step that ended at no time.
        return CountedRow(period, start, stored, none, none, empty, 0, f"its executions cannot be counted: {error!r}")
    critical_path = frozenset(step_id for step_id, (_, is_critical) in ended.steps.items() if is_critical)
    return CountedRow(period, start, stored, counted, own, critical_path, len(ended.steps))
