"""Series in the database: deltas that commits leave, and the rows that absorb them.

A reader adds deltas in the order of their numbers to the rows. Absorbing does the same in the database, so whoever
reads afterwards, after however many restarts, shows the same values.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, select

from tachograph.clock import NS
from tachograph.quiet_log import QuietLog
from tachograph_exporter.store import locking, state
from tachograph_exporter.store.inserting import upsert
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.rollups.counting import CHUNK, Key
from tachograph_exporter.store.schema import (
    series_deltas,
    series_unsettled,
    store_state,
    workflow_definitions,
    workflow_series,
    workspaces,
)
from tachograph_exporter.store.series.counting import Counted
from tachograph_exporter.store.series.values import (
    Amount,
    Code,
    Delta,
    StepSeries,
    decode_delta,
    encode_delta,
    foreseen,
)

quiet = QuietLog(logging.getLogger(__name__))
_ADVICE: Final = "`tachograph rollups rebuild` counts them again"

_series = workflow_series.c
_deltas = series_deltas.c

ABSORBED: Final = "series_absorbed"
"""State: the number of the newest delta that was absorbed."""
EPOCH: Final = "series_epoch"
"""State: grows when series are replaced or removed rather than added to, so that readers read them all again."""
SINCE: Final = "series_since"
"""State: executions that had been archived before the series were kept, up to this moment (unix s), are not in them."""
MAX_DELTAS: Final = 1_000
"""Deltas that may wait while no service absorbs them; then a writer does."""

Births: TypeAlias = Mapping[Key, Mapping[str, Collection[Code]]]
"""Series that have been shown as zero, by workflow and step."""


class News(NamedTuple):
    """What has been stored since a reader last looked: deltas by number, and whether it must read everything again."""

    absorbed: int
    epoch: int
    deltas: Sequence[tuple[int, Key, Delta]]


def record(connection: Connection, counted: Counted, now_ns: int) -> int:
    """Store what executions add to the series, which is forgotten in ``counted``. Returns the number of deltas."""
    amounts = {key: counted.take(key) for key in sorted(counted.by_workflow)}
    return _insert(connection, {key: steps for key, steps in amounts.items() if steps}, now_ns)


def announce(connection: Connection, key: Key, steps: Iterable[str], now_ns: int) -> None:
    """Let the foreseen series of a workflow and of these steps begin to exist."""
    _insert(connection, {key: foreseen(frozenset(steps))}, now_ns)


def _insert(
    connection: Connection, amounts: Mapping[Key, Mapping[str, Mapping[Code, Amount] | msgspec.Raw]], now_ns: int
) -> int:
    """Insert deltas; the amounts of their steps may be encoded already."""
    if amounts:
        # A reader that has seen a number looks for higher ones only.
        locking.claim(connection, Claim.ORDER)
        rows = [
            {"workspace_id": key[0], "workflow_id": key[1], "delta": encode_delta(Delta(now_ns / NS, dict(steps)))}  # type: ignore[arg-type]
            for key, steps in sorted(amounts.items())
        ]
        connection.execute(insert(series_deltas), rows)
    return len(amounts)


_STATE: Final = select(store_state.c.name, store_state.c.value).where(store_state.c.name.in_((ABSORBED, EPOCH)))
_SINCE: Final = (
    select(_deltas.id, _deltas.workspace_id, _deltas.workflow_id, _deltas.delta)
    .where(_deltas.id > bindparam("after"))
    .order_by(_deltas.id)
)


def _state(connection: Connection) -> tuple[int, int]:
    values = {name: int(value) for name, value in connection.execute(_STATE)}
    return values.get(ABSORBED, 0), values.get(EPOCH, 0)


def news(connection: Connection, after: int) -> News:
    """The deltas numbered higher than ``after``. If ``absorbed`` is higher too, some are missing: read all again."""
    absorbed, epoch = _state(connection)
    return News(absorbed, epoch, list(_deltas_of(connection.execute(_SINCE, {"after": after}))))


def _deltas_of(stored: Iterable[Any]) -> Iterator[tuple[int, Key, Delta]]:
    """Deltas by number. One that is damaged is left out, so that it stops no other."""
    for number, workspace, workflow, encoded in stored:
        try:
            delta = decode_delta(encoded)
        except (msgspec.MsgspecError, ValueError) as error:
            quiet.warning(
                "delta", "delta %d of the series of workflow %s is damaged: %s; %s", number, workflow, error, _ADVICE
            )
            delta = Delta(0.0, {})
        yield number, (workspace, workflow), delta


def stored_series(connection: Connection, key: Key | None = None) -> Iterator[tuple[Key, str, StepSeries]]:
    """The rows of one workflow, or of all: (workflow, step, series), without the deltas that were not absorbed yet.

    Of all workflows, damaged rows are left out; of one workflow, they raise `ValueError`.
    """
    statement = select(_series.workspace_id, _series.workflow_id, _series.step, _series.series)
    if key is not None:
        statement = statement.where(_series.workspace_id == key[0], _series.workflow_id == key[1])
    for workspace, workflow, step, encoded in connection.execute(statement):
        try:
            series = StepSeries.decode(encoded)
        except (msgspec.MsgspecError, ValueError) as error:
            if key is not None:
                raise ValueError(f"the series of step {step!r} are damaged: {error}") from error
            quiet.warning(
                "row", "the series of step %r of workflow %s are damaged: %s; %s", step, workflow, error, _ADVICE
            )
            continue
        yield (workspace, workflow), step, series


def current_series(connection: Connection, key: Key) -> dict[str, StepSeries]:
    """The series of one workflow as they are now, by step."""
    by_step = {step: series for _, step, series in stored_series(connection, key)}
    absorbed, _ = _state(connection)
    statement = _SINCE.where(_deltas.workspace_id == key[0], _deltas.workflow_id == key[1])
    for _, _, delta in _deltas_of(connection.execute(statement, {"after": absorbed})):
        add_delta(by_step, delta)
    return by_step


def add_delta(by_step: dict[str, StepSeries], delta: Delta) -> list[tuple[str, Code]]:
    """Add a delta to the series of its workflow. Returns the step and code of each series that changed or is new."""
    changed: list[tuple[str, Code]] = []
    for step, amounts in delta.steps.items():
        series = by_step.get(step)
        if series is None:
            series = by_step[step] = StepSeries()
        changed += [(step, code) for code in series.add(amounts, delta.created)]
    return changed


_ROWS: Final = select(_series.step, _series.series).where(
    _series.workspace_id == bindparam("workspace"),
    _series.workflow_id == bindparam("workflow"),
    _series.step.in_(bindparam("steps", expanding=True)),
)


def absorb(connection: Connection, upto: int | None = None, births: Births | None = None) -> None:
    """Add deltas (up to a number) to the rows and delete them; ``births`` are born with the value they have then."""
    locking.lock(connection)
    absorbed, _ = _state(connection)
    statement = _SINCE if upto is None else _SINCE.where(_deltas.id <= upto)
    by_workflow: dict[Key, list[Delta]] = {}
    newest = absorbed
    for number, key, delta in _deltas_of(connection.execute(statement, {"after": absorbed})):
        by_workflow.setdefault(key, []).append(delta)
        newest = number
    for key in {**by_workflow, **(births or {})}:
        born = (births or {}).get(key, {})
        deltas = by_workflow.get(key, ())
        touched = {*born, *(step for delta in deltas for step in delta.steps)}
        by_step = _read(connection, key, touched)
        for delta in deltas:
            add_delta(by_step, delta)
        for step, codes in born.items():
            for code in codes:
                if (series := by_step.get(step, StepSeries()).by_code.get(code)) is not None:
                    series.born = True
        _write(connection, key, by_step)
    if newest > absorbed:
        connection.execute(delete(series_deltas).where(_deltas.id <= newest))
        state.set_state(connection, ABSORBED, str(newest))


def _read(connection: Connection, key: Key, steps: Iterable[str]) -> dict[str, StepSeries]:
    by_step: dict[str, StepSeries] = {}
    names = sorted(steps)
    for i in range(0, len(names), CHUNK):
        parameters = {"workspace": key[0], "workflow": key[1], "steps": names[i : i + CHUNK]}
        for step, encoded in connection.execute(_ROWS, parameters):
            try:
                by_step[step] = StepSeries.decode(encoded)
            except (msgspec.MsgspecError, ValueError) as error:
                quiet.warning("row", "the series of step %r are damaged: %s; %s", step, error, _ADVICE)
    return by_step


def _write(connection: Connection, key: Key, by_step: Mapping[str, StepSeries]) -> None:
    if not by_step:
        return
    rows = [
        {"workspace_id": key[0], "workflow_id": key[1], "step": step, "series": series.encode()}
        for step, series in sorted(by_step.items())
    ]
    connection.execute(upsert(connection.dialect, workflow_series), rows)


def waiting_deltas(connection: Connection) -> int:
    """How many deltas have not been absorbed."""
    return int(connection.execute(select(func.count()).select_from(series_deltas)).scalar_one())


def replace(connection: Connection, key: Key, by_step: Mapping[str, StepSeries]) -> None:
    """Replace everything stored of a workflow's series."""
    _delete(connection, key)
    _write(connection, key, by_step)
    _next_epoch(connection)


def forget(connection: Connection, key: Key) -> None:
    """Remove the series of a workflow."""
    _delete(connection, key)
    _next_epoch(connection)


def _delete(connection: Connection, key: Key) -> None:
    for table in (workflow_series, series_deltas):
        of_workflow = (table.c.workspace_id == key[0]) & (table.c.workflow_id == key[1])
        connection.execute(delete(table).where(of_workflow))


def _next_epoch(connection: Connection) -> None:
    state.set_state(connection, EPOCH, str(_state(connection)[1] + 1))


def names(connection: Connection) -> dict[Key, tuple[str, str]]:
    """Workspace and name of every workflow."""
    definitions = workflow_definitions.c
    statement = select(definitions.workspace_id, definitions.id, workspaces.c.slug, definitions.name).join(
        workspaces, workspaces.c.id == definitions.workspace_id
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(statement)}


def set_unsettled(connection: Connection, settled: Collection[str], waiting: Collection[str]) -> None:
    """Note which executions are counted now, and which are not."""
    column = series_unsettled.c.execution_id
    gone = sorted({*settled, *waiting})
    for i in range(0, len(gone), CHUNK):
        connection.execute(delete(series_unsettled).where(column.in_(gone[i : i + CHUNK])))
    if waiting:
        rows: list[dict[str, Any]] = [{"execution_id": execution_id} for execution_id in sorted(waiting)]
        connection.execute(insert(series_unsettled), rows)
