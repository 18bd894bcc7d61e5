"""Whether the series of a workflow are what its executions add up to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select

from tachograph.distribution import Distribution
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.rollups.counting import Key, count
from tachograph_exporter.store.running import Running, running
from tachograph_exporter.store.schema import series_unsettled, store_state, workflow_executions
from tachograph_exporter.store.series.counting import SeriesCounter
from tachograph_exporter.store.series.recount import differing, recounted
from tachograph_exporter.store.series.rows import SINCE, current_series
from tachograph_exporter.store.series.values import (
    CRITICAL,
    DURATION,
    EXECUTION,
    RETRIES,
    SEPARATOR,
    SKIPPED,
    Code,
    StepSeries,
    Value,
)
from tachograph_exporter.store.state import watermark_of
from tachograph_exporter.store.totals import WorkflowTotals

MAX_STEPS: Final = 50_000
"""Most steps (and executions) of a workflow that are counted again."""

_executions = workflow_executions.c
_BEGAN_LATE: Final = select(store_state.c.name).where(store_state.c.name == SINCE)


class WrongSeries(NamedTuple):
    """A series that is not what it should be. ``source``: what says so."""

    step: str
    code: Code
    stored: Value
    due: Value
    source: str


class CheckedSeries(NamedTuple):
    """The series of a workflow.

    Attributes:
        current: as they are stored, by step.
        wrong: those that are not what executions or rollups say.
        steps: how many steps of the execution are counted in them; None: it is not counted yet, or its rows are gone.
        running: what runs of the workflow.
        reason: what could not be checked, and why; empty: nothing.
    """

    current: dict[str, StepSeries]
    wrong: list[WrongSeries]
    steps: int | None
    running: Running
    reason: str


def check_series(connection: Connection, key: Key, execution_id: str) -> CheckedSeries:
    """The series of the workflow of an execution, checked: counted again where that does not take long."""
    current = current_series(connection, key)
    runs = running(connection).get(key, Running(0, 0, 0))
    counter = SeriesCounter(connection)
    count(connection, [execution_id], lambda _key, _bucket: WorkflowTotals(), counter)
    steps: int | None = None
    if own := counter.counted.values(key):
        steps = sum(map(_steps_in, own.values()))
    reason = "its spans may still change" if counter.skipped else ""
    if not (why := _cannot_be_recounted(connection, key)):
        due = recounted(connection, key)
        wrong = [WrongSeries(*entry, "executions") for entry in differing(current, due or {})]
        return CheckedSeries(current, wrong, steps, runs, reason)
    if connection.execute(_BEGAN_LATE).first() is not None:
        reason = (
            reason or "executions had been archived before these metrics were kept: nothing says what they should be"
        )
        return CheckedSeries(current, [], steps, runs, reason)
    wrong = list(_unlike_rollups(connection, key, current))
    return CheckedSeries(current, wrong, steps, runs, reason or f"compared with the rollups only: {why}")


def _steps_in(amounts: dict[Code, Value]) -> int:
    total = 0
    for code, value in amounts.items():
        name = code.partition(SEPARATOR)[0]
        if name == DURATION and isinstance(value, Distribution):
            total += value.count
        elif name == SKIPPED and isinstance(value, int):
            total += value
    return total


def _cannot_be_recounted(connection: Connection, key: Key) -> str:
    if watermark_of(connection):
        return "older executions may be archived"
    executions, steps = connection.execute(
        select(func.count(), func.sum(_executions.step_count)).where(
            _executions.workspace_id == key[0],
            _executions.workflow_id == key[1],
            _executions.rank >= FIRST_TERMINAL_RANK,
        )
    ).one()
    if executions + (steps or 0) > MAX_STEPS:
        return f"{executions} executions are too many to count again"
    return ""


def _unlike_rollups(connection: Connection, key: Key, current: dict[str, StepSeries]) -> Iterator[WrongSeries]:
    if connection.execute(select(series_unsettled.c.execution_id).limit(1)).first() is not None:
        return  # Some executions are in the rollups and not in the series yet.
    totals = read.read(connection, key)
    for status, of_status in totals.executions.items():
        yield from _unlike("", f"{EXECUTION}{SEPARATOR}{status}", of_status.count, of_status.sum_ns, current)
    for step, of_step in totals.steps.items():
        retries = critical_ns = 0
        for status, of_status in of_step.by_status.items():
            retries += of_status.retries
            critical_ns += of_status.critical_ns
            if status != "skipped":
                code = f"{DURATION}{SEPARATOR}{status}"
                yield from _unlike(step, code, of_status.count, of_status.sum_ns, current)
        yield from _unlike(step, CRITICAL, None, critical_ns, current)
        yield from _unlike(step, RETRIES, None, retries, current)


def _unlike(
    step: str, code: Code, times: int | None, total: int, current: dict[str, StepSeries]
) -> Iterator[WrongSeries]:
    series = current.get(step, StepSeries()).by_code.get(code)
    stored: Value = 0
    if series is not None:
        stored = series.value if series.true is None else series.true
    if times is None:
        is_right = stored == total
        due: Value = total
    else:
        due = Distribution(total)
        due.native.count = times
        is_right = isinstance(stored, Distribution) and (stored.count, stored.total) == (times, total)
        if not isinstance(stored, Distribution):
            stored = Distribution()
    if not is_right:
        yield WrongSeries(step, code, stored, due, "rollups")
