"""Counting ended executions: from their rows to totals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Connection, and_, bindparam, case, func, select
from sqlalchemy import cast as cast_to

from tachograph.critical_path import critical_path
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK, FIRST_TERMINAL_STEP_RANK
from tachograph_exporter.store.plain_steps import PlainSteps
from tachograph_exporter.store.rollups.fresh import AS_STORED, NOTHING_FRESH, Fresh
from tachograph_exporter.store.rollups.grouping import StepLayout, grouped, plain_steps
from tachograph_exporter.store.rollups.periods import bucket_of
from tachograph_exporter.store.schema import (
    store_state,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_reports,
)
from tachograph_exporter.store.state import RESOURCES_SINCE
from tachograph_exporter.store.steps import steps_of
from tachograph_exporter.store.totals import CountedExecution, CountedReport, CountedStep, PackedTotals, WorkflowTotals

CHUNK: Final = 400
MAX_STEPS: Final = 2_000
"""Steps that are read and counted at once."""
_executions = workflow_executions.c
_steps = workflow_step_executions.c

Key = tuple[str, str]
"""(workspace id, workflow id)"""


def counted_resources(columns: Any) -> ColumnElement[str | None]:
    """What a step or an attempt used, if it ended since that is counted: a correction must count as before."""
    since = select(cast_to(store_state.c.value, BigInteger)).where(store_state.c.name == RESOURCES_SINCE)
    return case((columns.finished_ns >= func.coalesce(since.scalar_subquery(), 0), columns.resources))


class EndedExecution(NamedTuple):
    """An ended execution with everything that is counted of it."""

    key: Key
    execution: CountedExecution
    steps: dict[str, tuple[CountedStep, bool]]
    reports: dict[tuple[str, int], CountedReport]

    @property
    def bucket(self) -> int:
        """The start of the five minutes it ended in, unix seconds."""
        return bucket_of(self.execution.finished_ns)

    def add_to(self, totals: WorkflowTotals) -> None:
        """Count the execution, its steps and their reports."""
        totals.add_execution(self.execution)
        for step in self.steps.values():
            totals.add_step(*step, self.execution.status)
        for report in self.reports.values():
            totals.add_report(report)


_ENDED_EXECUTIONS: Final = select(
    _executions.execution_id, _executions.workspace_id, _executions.workflow_id, _executions.status,
    _executions.started_ns, _executions.finished_ns, _executions.queued_ns, _executions.work_ns,
    _executions.critical_path_ns, _executions.critical_path, _executions.trace_id, _executions.span_id,
).where(
    _executions.rank >= FIRST_TERMINAL_RANK, _executions.execution_id.in_(bindparam("ids", expanding=True))
)  # fmt: skip
_STEPS_OF: Final = select(
    _steps.execution_id, _steps.step_id, _steps.name, _steps.status, _steps.started_ns, _steps.finished_ns,
    _steps.attempt, _steps.dependency_ns, _steps.queue_ns, _steps.backoff_ns, _steps.run_ns, _steps.unaccounted_ns,
    _steps.scheduled_ns, _steps.folded, counted_resources(_steps), _steps.span_id, _steps.skip_reason,
).where(
    _steps.rank >= FIRST_TERMINAL_STEP_RANK, _steps.execution_id.in_(bindparam("ids", expanding=True))
)  # fmt: skip
_PAGE_OF_STEPS: Final = (
    _STEPS_OF.order_by(_steps.execution_id, _steps.step_id)
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
    .subquery()
)
_STEPS_AS_JSON: Final = select(func.json_group_array(func.json_array(*_PAGE_OF_STEPS.c)))
_attempts = workflow_step_attempts.c
_EARLIER_OF: Final = (
    select(_attempts.execution_id, _attempts.step_id, _attempts.attempt, counted_resources(_attempts))
    .where(_attempts.resources.is_not(None), _attempts.execution_id.in_(bindparam("ids", expanding=True)))
    .order_by(_attempts.execution_id, _attempts.step_id, _attempts.attempt)
)
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


class ExecutionRow(NamedTuple):
    """An ended execution's row. ``critical_path``: ids of its steps. ``has_started``: it is known when."""

    key: Key
    execution: CountedExecution
    critical_path: frozenset[str]
    trace_id: str
    span_id: str
    has_started: bool


CountedStepRow: TypeAlias = tuple[Any, ...]
"""Execution id, step id, the fields of a `CountedStep`, span id and skip reason of a step that ended."""
_COUNTED: Final = slice(2, 2 + len(CountedStep._fields))
_EARLIER: Final = 2 + CountedStep._fields.index("earlier")
_ATTEMPT: Final = 2 + CountedStep._fields.index("attempt")
_AS_READ: Final = StepLayout.of(("execution_id", "step_id", *CountedStep._fields, "span_id", "skip_reason"))


class Observer(Protocol):
    """Sees the rows that are counted, in chunks: executions, then their steps and reports."""

    def executions(
        self, connection: Connection, rows: Mapping[str, ExecutionRow], *, has_attempts: bool = True
    ) -> None:
        """Executions that ended, by id. ``has_attempts``: whether attempts of their steps may have rows."""

    def step(self, row: CountedStepRow) -> None:
        """A step of one of them."""

    def is_plain(self, execution_id: str, step_id: str) -> bool:
        """Whether a step of one of them is counted, and its attempts have no rows."""

    def plain_steps(self, key: Key, steps: PlainSteps, executions: Mapping[str, ExecutionRow]) -> None:
        """Such steps of some of ``executions``, all of one workflow."""

    def report(self, execution_id: str, report: CountedReport) -> None:
        """A report of a step of one of them."""

    def pack(self) -> None:
        """Some thousand steps were told of: what is kept of them may take less memory now."""


def _executions_of(connection: Connection, ids: Sequence[str]) -> dict[str, ExecutionRow]:
    return _read(connection, connection.execute(_ENDED_EXECUTIONS, {"ids": ids}))


def _read(connection: Connection, stored: Iterable[Any]) -> dict[str, ExecutionRow]:
    rows = {}
    for row in stored:
        execution_id, workspace, workflow, status, started, finished, queued, work, critical, path, trace, span = row
        if path is not None:
            step_ids = frozenset(_decode_ids(path))
        else:
            # Recorded by a version that did not store the path.
            step_ids = frozenset(step.step_id for step in critical_path(steps_of(connection, execution_id)))
        has_started = started is not None
        if started is None:
            started = finished
        queue = max(0, started - queued) if queued is not None else 0
        execution = CountedExecution(status, started, finished, queue, work or 0, critical or 0)
        rows[execution_id] = ExecutionRow((workspace, workflow), execution, step_ids, trace, span, has_started)
    return rows


def _steps_of(connection: Connection, execution_ids: Collection[str]) -> Iterator[CountedStepRow]:
    if not execution_ids:
        return
    # Most steps have one attempt, which has no row.
    earlier: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for execution_id, step_id, attempt, resources in connection.execute(_EARLIER_OF, {"ids": list(execution_ids)}):
        if resources is not None:
            earlier.setdefault((execution_id, step_id), []).append((attempt, resources))
    for row in _step_rows(connection, execution_ids):
        uses: Sequence[tuple[int, str]] = earlier.get((row[0], row[1]), ()) if earlier else ()
        if uses and row[_EARLIER - 1] is not None:
            # The last attempt may have a row of its own, too.
            uses = [entry for entry in uses if entry[0] != row[_ATTEMPT]]
        yield (*row[:_EARLIER], tuple([use for _, use in uses]) if uses else (), *row[_EARLIER:])


def _step_rows(connection: Connection, execution_ids: Collection[str]) -> Iterator[CountedStepRow]:
    """The same, without the field ``earlier``."""
    if connection.dialect.name == "sqlite":
        # As one row: the driver releases the GIL for every row, and a busy workflow is slow to give it back.
        parameters, offset = {"ids": list(execution_ids), "limit": MAX_STEPS}, 0
        while True:
            text = connection.execute(_STEPS_AS_JSON, {**parameters, "offset": offset}).scalar_one()
            steps = _decode_steps(text)
            yield from steps
            if len(steps) < MAX_STEPS:
                break
            offset += MAX_STEPS
    else:
        result = connection.execute(_STEPS_OF, {"ids": list(execution_ids)})
        # The driver's own tuples, one at a time: a run of ten thousand steps must not trigger garbage collections.
        yield from cast(Any, result.cursor)
        result.close()


def _reports_of(
    connection: Connection, executions: Mapping[str, ExecutionRow]
) -> Iterator[tuple[str, str, int, CountedReport]]:
    """(execution id, step id, sequence, report) of each report that is counted."""
    if not executions:
        return
    for row in connection.execute(_REPORTS_OF, {"ids": list(executions)}):
        status = executions[row[0]].execution.status
        yield row[0], row[1], row[2], CountedReport(row[9], row[10], status, *row[3:9])


def ended_executions(
    connection: Connection, ids: Iterable[str], observer: Observer | None = None
) -> dict[str, EndedExecution]:
    """Those of the executions that have ended, by id, with everything that is counted of them."""
    ended_by_id: dict[str, EndedExecution] = {}
    for chunk in _chunks(ids):
        executions = _executions_of(connection, chunk)
        ended_by_id |= {
            execution_id: EndedExecution(row.key, row.execution, {}, {}) for execution_id, row in executions.items()
        }
        if observer is not None:
            observer.executions(connection, executions)
        for step in _steps_of(connection, executions):
            on_critical_path = step[1] in executions[step[0]].critical_path
            ended_by_id[step[0]].steps[step[1]] = (CountedStep(*step[_COUNTED]), on_critical_path)
            if observer is not None:
                observer.step(step)
        for execution_id, step_id, sequence, report in _reports_of(connection, executions):
            ended_by_id[execution_id].reports[step_id, sequence] = report
            if observer is not None:
                observer.report(execution_id, report)
    return ended_by_id


def count(
    connection: Connection,
    ids: Iterable[str],
    totals_of: Callable[[Key, int], WorkflowTotals],
    observer: Observer | None = None,
    fresh: Fresh = NOTHING_FRESH,
) -> None:
    """Count those of the executions that have ended.

    ``totals_of`` returns the totals to add to, by workflow and start (unix seconds) of the five minutes it ended in.
    ``fresh``: those of them that need not be read.
    """
    if fresh.executions:
        executions = _read(connection, fresh.executions.values())
        counted = _count_executions(executions, totals_of)
        if observer is not None:
            observer.executions(connection, executions, has_attempts=False)
        _count_steps(((*row[:_EARLIER], (), *row[_EARLIER:]) for row in fresh.steps), counted, observer)
        _count_plain(fresh.plain, AS_STORED, executions, counted, observer, fresh.resources_since_ns)
    for chunk in _chunks(execution_id for execution_id in ids if execution_id not in fresh.executions):
        executions = _executions_of(connection, chunk)
        counted = _count_executions(executions, totals_of)
        if observer is not None:
            observer.executions(connection, executions)
        steps = _steps_of(connection, executions)
        # A run of very many steps need not be in memory as a whole.
        while part := list(islice(steps, MAX_STEPS)):
            groups, rest = grouped(part, _AS_READ, _plain_for(observer))
            _count_steps(rest, counted, observer)
            _count_plain(groups, _AS_READ, executions, counted, observer)
            for totals, _, _ in counted.values():
                if isinstance(totals, PackedTotals):
                    totals.pack()
            if observer is not None:
                observer.pack()
        for execution_id, _, _, report in _reports_of(connection, executions):
            counted[execution_id][0].add_report(report)
            if observer is not None:
                observer.report(execution_id, report)


def _plain_for(observer: Observer | None) -> Callable[[CountedStepRow], bool]:
    """Whether a step has no rows of attempts that are counted apart."""
    if observer is None:
        return lambda row: not row[_EARLIER]
    is_plain = observer.is_plain
    return lambda row: not row[_EARLIER] and is_plain(row[0], row[1])


def _count_plain(
    groups: Sequence[Sequence[tuple[Any, ...]]],
    layout: StepLayout,
    executions: Mapping[str, ExecutionRow],
    counted: _Counted,
    observer: Observer | None,
    resources_since_ns: int = 0,
) -> None:
    if not groups:
        return
    by_place = {id(totals): (executions[key].key, totals) for key, (totals, _, _) in counted.items()}
    places = {execution_id: id(totals) for execution_id, (totals, _, _) in counted.items()}
    critical_paths = {execution_id: row.critical_path for execution_id, row in executions.items()}
    for place, steps in plain_steps(groups, layout, places, critical_paths, resources_since_ns):
        key, totals = by_place[place]
        totals.add_plain_steps(steps)
        if observer is not None:
            observer.plain_steps(key, steps, executions)


_Counted: TypeAlias = dict[str, tuple[WorkflowTotals, str, frozenset[str]]]


def _count_executions(
    executions: Mapping[str, ExecutionRow], totals_of: Callable[[Key, int], WorkflowTotals]
) -> _Counted:
    counted: _Counted = {}
    for execution_id, row in executions.items():
        totals = totals_of(row.key, bucket_of(row.execution.finished_ns))
        totals.add_execution(row.execution)
        counted[execution_id] = (totals, row.execution.status, row.critical_path)
    return counted


def _count_steps(steps: Iterable[CountedStepRow], counted: _Counted, observer: Observer | None) -> None:
    for step in steps:
        totals, status, critical_path_ids = counted[step[0]]
        totals.add_step(step[_COUNTED], step[1] in critical_path_ids, status)
        if observer is not None:
            observer.step(step)


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    all_ids = list(ids)
    for i in range(0, len(all_ids), CHUNK):
        yield all_ids[i : i + CHUNK]


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
    """The totals of what ended in a range, counted from the executions' own rows; None if nothing did."""
    ids = _ids_between(connection, key, low_ns, high_ns)
    if not ids:
        return None
    totals = WorkflowTotals()
    count(connection, ids, lambda _key, _bucket: totals)
    return totals
