"""The same series, counted from the executions."""

from __future__ import annotations

from sqlalchemy import Connection, select

from tachograph.clock import NS
from tachograph.distribution import Distribution
from tachograph_exporter.store import locking
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups.counting import Key, count
from tachograph_exporter.store.schema import workflow_definitions, workflow_executions
from tachograph_exporter.store.series.counting import SeriesCounter
from tachograph_exporter.store.series.rows import absorb, current_series, replace
from tachograph_exporter.store.series.values import LATEST, Series, StepSeries, Value, empty
from tachograph_exporter.store.state import watermark_of
from tachograph_exporter.store.totals import WorkflowTotals

_executions = workflow_executions.c


def recounted(connection: Connection, key: Key) -> dict[str, dict[str, Value]] | None:
    """What the series of a workflow should be, by step and code; None where that cannot be told any more.

    It cannot once executions have been archived or deleted: the series keep counting those.
    """
    return None if watermark_of(connection) else recounted_from_rows(connection, key)


def recounted_from_rows(connection: Connection, key: Key) -> dict[str, dict[str, Value]]:
    """What the executions that still have rows add up to, by step and code."""
    ids = connection.execute(
        select(_executions.execution_id).where(
            _executions.workspace_id == key[0],
            _executions.workflow_id == key[1],
            _executions.rank >= FIRST_TERMINAL_RANK,
        )
    ).scalars()
    counter = SeriesCounter(connection)
    count(connection, ids, lambda _key, _bucket: WorkflowTotals(), counter)
    return counter.counted.values(key)


def differing(current: dict[str, StepSeries], due: dict[str, dict[str, Value]]) -> list[tuple[str, str, Value, Value]]:
    """(step, code, value, value due) of the series that are not what they should be."""
    wrong = []
    for step in sorted(current.keys() | due.keys()):
        by_code, due_by_code = current.get(step, StepSeries()).by_code, due.get(step, {})
        for code in sorted(by_code.keys() | due_by_code.keys()):
            series = by_code.get(code)
            value = empty(code) if series is None else series.value if series.true is None else series.true
            due_value = due_by_code.get(code, empty(code))
            # The latest may have been archived since.
            is_right = value >= due_value if code in LATEST else _are_equal(value, due_value)  # type: ignore[operator]
            if not is_right:
                wrong.append((step, code, value, due_value))
    return wrong


def _are_equal(value: Value, other: Value) -> bool:
    if isinstance(value, Distribution) and isinstance(other, Distribution):
        return distribution_parts(value) == distribution_parts(other)
    return value == other


def distribution_parts(values: Distribution) -> tuple[object, ...]:
    """What makes two distributions equal. A series that was corrected may have coarser buckets than its values need."""
    return values.count, values.total, values.native.zero_count, values.classic


def recount_one(
    connection: Connection, key: Key, *, write: bool = True, born: bool = False, is_first: bool = False
) -> int:
    """Count the series of a workflow again. Returns how many were wrong.

    They are corrected without any becoming smaller before Prometheus' eyes. ``born``: new ones are shown at once.
    ``is_first``: there are none yet, so they begin with whatever executions have not been archived.
    """
    locking.lock(connection)
    due = recounted_from_rows(connection, key) if is_first else recounted(connection, key)
    if due is None:
        return 0
    if write:
        absorb(connection)
    try:
        current = current_series(connection, key)
    except ValueError:
        # Damaged: what was shown of them is not known, so they begin with what they should be.
        current, born = {}, True
    wrong = differing(current, due)
    if write and wrong:
        created = connection.execute(
            select(workflow_definitions.c.created_ns).where(workflow_definitions.c.id == key[1])
        ).scalar()
        since = (created or 0) / NS
        for step, code, value, due_value in wrong:
            by_code = current.setdefault(step, StepSeries()).by_code
            series = by_code.get(code)
            if series is None:
                series = by_code[code] = Series(code, since)
            if code in LATEST:
                series.value = due_value
            elif isinstance(due_value, Distribution):
                assert isinstance(value, Distribution)  # noqa: S101
                amount = due_value.copy()
                amount.add(value, -1)
                series.add(amount)
            else:
                series.add(due_value - value)  # type: ignore[operator]
            series.born |= born
        for step_series in current.values():
            for code in list(step_series.complete(list(step_series.by_code), since)):
                step_series.by_code[code].born = born
        replace(connection, key, current)
    return len(wrong)
