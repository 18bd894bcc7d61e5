"""Executions that ended, as what is added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import Connection, and_, bindparam, func, select

from tachograph.critical_path import critical_path
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK, FIRST_TERMINAL_STEP_RANK
from tachograph_exporter.store.rollups.periods import bucket_of
from tachograph_exporter.store.schema import (
    workflow_executions,
    workflow_step_executions,
    workflow_step_reports,
)
from tachograph_exporter.store.steps import steps_of
from tachograph_exporter.store.totals import ExecutionItem, ReportItem, StepItem, WorkflowTotals

CHUNK: Final = 400
_executions = workflow_executions.c
_steps = workflow_step_executions.c

Key = tuple[str, str]
"""(workspace id, workflow id)"""


class Ended(NamedTuple):
    """One execution that ended, as it is counted."""

    key: Key
    execution: ExecutionItem
    steps: dict[str, tuple[StepItem, bool]]
    reports: dict[tuple[str, int], ReportItem]

    @property
    def bucket(self) -> int:
        """The five minutes it ended in."""
        return bucket_of(self.execution.finished_ns)

    def add_to(self, pack: WorkflowTotals) -> None:
        """Count it."""
        pack.add_execution(self.execution)
        for step in self.steps.values():
            pack.add_step(*step, self.execution.status)
        for report in self.reports.values():
            pack.add_report(report)


_ENDED_EXECUTIONS: Final = select(
    _executions.execution_id, _executions.workspace_id, _executions.workflow_id, _executions.status,
    _executions.started_ns, _executions.finished_ns, _executions.queued_ns, _executions.work_ns,
    _executions.critical_path_ns, _executions.critical_path,
).where(
    _executions.rank >= FIRST_TERMINAL_RANK, _executions.execution_id.in_(bindparam("ids", expanding=True))
)  # fmt: skip
_STEPS_OF: Final = select(
    _steps.execution_id, _steps.step_id, _steps.name, _steps.status, _steps.started_ns, _steps.finished_ns,
    _steps.attempt, _steps.dependency_ns, _steps.queue_ns, _steps.backoff_ns, _steps.run_ns,
).where(
    _steps.rank >= FIRST_TERMINAL_STEP_RANK, _steps.execution_id.in_(bindparam("ids", expanding=True))
)  # fmt: skip
_STEPS_IN_ONE: Final = (
    select(
        _steps.execution_id,
        func.json_group_array(
            func.json_array(
                _steps.step_id, _steps.name, _steps.status, _steps.started_ns, _steps.finished_ns, _steps.attempt,
                _steps.dependency_ns, _steps.queue_ns, _steps.backoff_ns, _steps.run_ns,
            )
        ),
    )
    .where(_steps.rank >= FIRST_TERMINAL_STEP_RANK, _steps.execution_id.in_(bindparam("ids", expanding=True)))
    .group_by(_steps.execution_id)
)  # fmt: skip
_REPORTS_OF: Final = select(
    workflow_step_reports.c.execution_id,
    workflow_step_reports.c.step_id,
    workflow_step_reports.c.sequence,
    workflow_step_reports.c.kind,
    workflow_step_reports.c.name,
    workflow_step_reports.c.unit,
    workflow_step_reports.c.value,
    workflow_step_reports.c.tokens_in,
    workflow_step_reports.c.tokens_out,
    workflow_step_executions.c.name.label("step"),
    workflow_step_executions.c.status,
).join(
    workflow_step_executions,
    and_(
        _steps.execution_id == workflow_step_reports.c.execution_id,
        _steps.step_id == workflow_step_reports.c.step_id,
    ),
).where(
    workflow_step_reports.c.execution_id.in_(bindparam("ids", expanding=True)), workflow_step_reports.c.kind != "log"
)  # fmt: skip


_decode_ids: Final = msgspec.json.Decoder(list[str]).decode
_decode_steps: Final = msgspec.json.Decoder(list[tuple[Any, ...]]).decode


class _Found(NamedTuple):
    key: Key
    execution: ExecutionItem
    on_path: frozenset[str]


def _executions_of(connection: Connection, ids: Sequence[str]) -> dict[str, _Found]:
    found = {}
    for row in connection.execute(_ENDED_EXECUTIONS, {"ids": ids}):
        execution_id, workspace, workflow, status, started, finished, queued, work, critical, path = row
        if path is not None:
            on_path = frozenset(_decode_ids(path))
        else:
            # Recorded before executions told their path.
            on_path = frozenset(step.step_id for step in critical_path(steps_of(connection, execution_id)))
        begun = started if started is not None else finished
        waited = max(0, begun - queued) if queued is not None else 0
        item = ExecutionItem(status, begun, finished, waited, work or 0, critical or 0)
        found[execution_id] = _Found((workspace, workflow), item, on_path)
    return found


def _steps_of(connection: Connection, found: Mapping[str, _Found]) -> Iterator[tuple[Any, ...]]:
    """(execution id, step id, and the fields of a `StepItem`) of each step that ended."""
    if found and connection.dialect.name == "sqlite":
        # In one row: the driver gives up the interpreter for every row, and a busy workflow does not give it back soon.
        for execution_id, steps in connection.execute(_STEPS_IN_ONE, {"ids": list(found)}):
            for step in _decode_steps(steps):
                yield (execution_id, *step)
    elif found:
        result = connection.execute(_STEPS_OF, {"ids": list(found)})
        # The driver's own tuples, one at a time: a run of ten thousand steps must not wake the garbage collector.
        yield from cast(Any, result.cursor)
        result.close()


def _reports_of(connection: Connection, found: Mapping[str, _Found]) -> Iterator[tuple[str, str, int, ReportItem]]:
    """(execution id, step id, sequence, item) of each report that is counted."""
    if not found:
        return
    for row in connection.execute(_REPORTS_OF, {"ids": list(found)}):
        status = found[row[0]].execution.status
        item = ReportItem(row[9], row[10], status, *row[3:9])
        yield row[0], row[1], row[2], item


def ended(connection: Connection, ids: Iterable[str]) -> dict[str, Ended]:
    """Those of the executions that have ended, by id, with all that is counted of them."""
    known: dict[str, Ended] = {}
    for chunk in _chunks(ids):
        found = _executions_of(connection, chunk)
        known |= {execution_id: Ended(one.key, one.execution, {}, {}) for execution_id, one in found.items()}
        for row in _steps_of(connection, found):
            known[row[0]].steps[row[1]] = (StepItem(*row[2:]), row[1] in found[row[0]].on_path)
        for execution_id, step_id, sequence, report in _reports_of(connection, found):
            known[execution_id].reports[step_id, sequence] = report
    return known


def count(connection: Connection, ids: Iterable[str], packs: Callable[[Key, int], WorkflowTotals]) -> None:
    """Add those of the executions that have ended to the packs of their five minutes (unix seconds)."""
    for chunk in _chunks(ids):
        found = _executions_of(connection, chunk)
        own = {}
        for execution_id, one in found.items():
            pack = packs(one.key, bucket_of(one.execution.finished_ns))
            pack.add_execution(one.execution)
            own[execution_id] = (pack, one.execution.status, one.on_path)
        for row in _steps_of(connection, found):
            pack, status, on_path = own[row[0]]
            pack.add_step(row[2:], row[1] in on_path, status)
        for execution_id, _, _, report in _reports_of(connection, found):
            own[execution_id][0].add_report(report)


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    wanted = list(ids)
    for i in range(0, len(wanted), CHUNK):
        yield wanted[i : i + CHUNK]


def _ids_between(connection: Connection, key: Key, low_ns: int, high_ns: int) -> list[str]:
    statement = select(_executions.execution_id).where(
        _executions.workspace_id == key[0],
        _executions.workflow_id == key[1],
        _executions.finished_ns >= low_ns,
        _executions.finished_ns < high_ns,
        _executions.rank >= FIRST_TERMINAL_RANK,
    )
    return list(connection.execute(statement).scalars())


def count_exactly(connection: Connection, key: Key, low_ns: int, high_ns: int) -> WorkflowTotals | None:
    """What ended in a range, from the executions' own rows."""
    ids = _ids_between(connection, key, low_ns, high_ns)
    if not ids:
        return None
    pack = WorkflowTotals()
    count(connection, ids, lambda _key, bucket_of: pack)
    return pack
