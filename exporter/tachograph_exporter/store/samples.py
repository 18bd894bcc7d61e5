"""Reading a sample of a workflow's executions, and what went on beside one of them. Every statement is bounded.

Only the columns that runs are compared by are read: an answer to *why* looks at hundreds of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import Connection, Select, func, select, tuple_

from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.store.failure_groups.occurrences import groups_of
from tachograph_exporter.store.schema import (
    span_resources,
    spans,
    traces,
    workflow_executions,
    workflow_step_executions,
)

MAX_RUNS: Final = 500
"""Executions of a sample."""
MAX_STEPS: Final = 6_000
"""Steps that are read of a sample."""
MAX_BESIDE: Final = 2_000
"""Executions of a workspace that are looked at to see what ran at some time."""
MAX_SPANS: Final = 4_000
"""Spans that are read of one trace."""
DAY_NS: Final = 86_400 * 1_000_000_000

_executions = workflow_executions.c
_steps = workflow_step_executions.c
_spans = spans.c
_traces = traces.c


class SampledStep(NamedTuple):
    """A step of a sampled execution. Fields are columns; ``depends_on`` is JSON."""

    execution_id: str
    step_id: str
    status: str
    attempt: int
    started_ns: int | None
    attempt_started_ns: int | None
    finished_ns: int | None
    queue_ns: int | None
    depends_on: str
    child_execution_id: str | None
    folded_count: int | None


class SampledRun(msgspec.Struct, gc=False):
    """An execution of a sample. Fields are columns; ``steps`` are those that were read, by id.

    ``failure_group``: the group of failures of one that failed; None if it is not known, or not told from others.
    """

    execution_id: str
    status: str
    version: str
    project: str
    process: str | None
    inputs: str | None
    queued_ns: int | None
    started_ns: int
    finished_ns: int
    error_type: str | None
    error_message: str | None
    trace_id: str
    span_id: str
    number: int | None
    steps: dict[str, SampledStep] = {}
    failure_group: str | None = None


class StepDetail(NamedTuple):
    """What a step of a sampled execution returned and used; both are JSON."""

    resources: str | None
    output: str | None
    span_id: str


class Beside(NamedTuple):
    """An execution that ran at some time. ``finished_ns`` is None while it is open."""

    execution_id: str
    workflow_id: str
    workflow: str
    process: str | None
    started_ns: int
    finished_ns: int | None


class SpanTime(NamedTuple):
    """When a span ran."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    start_ns: int
    end_ns: int


RUN_COLUMNS: Final = [name for name in SampledRun.__struct_fields__ if name not in ("steps", "failure_group")]
_RUN_COLUMNS: Final = [_executions[name] for name in RUN_COLUMNS]
_STEP_COLUMNS: Final = [_steps[name] for name in SampledStep._fields]


def _ended(workspace: str, workflow_id: str) -> Select[Any]:
    return select(*_RUN_COLUMNS).where(
        _executions.workspace_id == workspace,
        _executions.workflow_id == workflow_id,
        _executions.started_ns.is_not(None),
    )


def ended_around(
    connection: Connection, workspace: str, workflow_id: str, at_ns: int, low_ns: int, before: int, after: int
) -> list[SampledRun]:
    """Executions of a workflow by their end: the last ``before`` of those that ended from ``low_ns`` to ``at_ns`` (unix
    nanoseconds, both included), and the first ``after`` of those that ended later. The oldest first.
    """
    earlier = _ended(workspace, workflow_id).where(_executions.finished_ns <= at_ns, _executions.finished_ns >= low_ns)
    later = _ended(workspace, workflow_id).where(_executions.finished_ns > at_ns)
    rows = connection.execute(earlier.order_by(_executions.finished_ns.desc()).limit(before)).all()[::-1]
    if after > 0:
        rows = [*rows, *connection.execute(later.order_by(_executions.finished_ns).limit(after))]
    return [SampledRun(*row) for row in rows]


def read_failure_groups(connection: Connection, runs: Sequence[SampledRun]) -> None:
    """Read which groups of failures those executions are in that failed, into the executions."""
    failed = {run.execution_id: run for run in runs if run.status in UNSUCCESSFUL}
    for execution_id, group_id in groups_of(connection, failed).items():
        failed[execution_id].failure_group = group_id


def read_steps(connection: Connection, runs: Sequence[SampledRun], step_ids: Sequence[str]) -> None:
    """Read those of the steps that the executions have, into the executions."""
    if not step_ids:
        return
    by_id = {run.execution_id: run for run in runs}
    for run in runs:
        run.steps = {}
    statement = select(*_STEP_COLUMNS).where(_steps.execution_id.in_(list(by_id)), _steps.step_id.in_(step_ids))
    for row in connection.execute(statement):
        by_id[row[0]].steps[row[1]] = SampledStep(*row)


def steps_that_ran(connection: Connection, execution_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """The id of a step of each name that started, by name, by execution; of executions with few steps, else none."""
    statement = (
        select(_steps.execution_id, _steps.name, func.min(_steps.step_id))
        .where(_steps.execution_id.in_(execution_ids), _steps.started_ns.is_not(None), _steps.repetition == 0)
        .group_by(_steps.execution_id, _steps.name)
        .limit(MAX_STEPS)
    )
    result: dict[str, dict[str, str]] = {execution_id: {} for execution_id in execution_ids}
    rows = connection.execute(statement).all()
    if len(rows) == MAX_STEPS:
        return {}
    for execution_id, name, step_id in rows:
        result[execution_id][name] = step_id
    return result


def started_steps(
    connection: Connection, execution_ids: Sequence[str], step_ids: Sequence[str]
) -> set[tuple[str, str]]:
    """Which of these steps started in which of these executions: (id of the execution, id of the step)."""
    statement = select(_steps.execution_id, _steps.step_id).where(
        _steps.execution_id.in_(execution_ids), _steps.step_id.in_(step_ids), _steps.started_ns.is_not(None)
    )
    return {(row[0], row[1]) for row in connection.execute(statement)}


def step_details(
    connection: Connection, execution_ids: Sequence[str], step_ids: Sequence[str]
) -> dict[tuple[str, str], StepDetail]:
    """What these steps of these executions returned and used, by the ids of execution and step."""
    statement = select(_steps.execution_id, _steps.step_id, _steps.resources, _steps.output, _steps.span_id).where(
        _steps.execution_id.in_(execution_ids), _steps.step_id.in_(step_ids)
    )
    return {(row[0], row[1]): StepDetail(row[2], row[3], row[4]) for row in connection.execute(statement)}


_BESIDE_COLUMNS: Final = (
    _executions.execution_id, _executions.workflow_id, _executions.workflow, _executions.process,
    _executions.started_ns, _executions.finished_ns,
)  # fmt: skip


def running_between(connection: Connection, workspace: str, low_ns: int, high_ns: int) -> list[Beside]:
    """Executions of a workspace that ran at some time between two moments (unix nanoseconds), the newest first.

    Among the last `MAX_BESIDE` that were created until then, and within a day.
    """
    statement = (
        select(*_BESIDE_COLUMNS)
        .where(
            _executions.workspace_id == workspace,
            _executions.started_ns.is_not(None),
            _executions.created_ns <= high_ns,
            _executions.created_ns >= low_ns - DAY_NS,
        )
        .order_by(_executions.created_ns.desc())
        .limit(MAX_BESIDE)
    )
    return [
        beside
        for beside in (Beside(*row) for row in connection.execute(statement))
        if beside.started_ns < high_ns and (beside.finished_ns is None or beside.finished_ns > low_ns)
    ]


def ended_between(connection: Connection, workspace: str, workflow_id: str, low_ns: int, high_ns: int) -> list[Beside]:
    """The last `MAX_BESIDE` executions of a workflow that ended between two moments (unix nanoseconds)."""
    statement = (
        select(*_BESIDE_COLUMNS)
        .where(
            _executions.workspace_id == workspace,
            _executions.workflow_id == workflow_id,
            _executions.finished_ns >= low_ns,
            _executions.finished_ns <= high_ns,
            _executions.started_ns.is_not(None),
        )
        .order_by(_executions.finished_ns.desc())
        .limit(MAX_BESIDE)
    )
    return [Beside(*row) for row in connection.execute(statement)]


def span_times(connection: Connection, workspace: str, trace_ids: Sequence[str]) -> dict[str, list[SpanTime]]:
    """The spans of those of the traces that have at most `MAX_SPANS` stored spans, by trace id."""
    statement = select(_traces.trace_id).where(
        _traces.workspace_id == workspace, _traces.trace_id.in_(trace_ids), _traces.span_count <= MAX_SPANS
    )
    stored = list(connection.execute(statement).scalars())
    by_trace: dict[str, list[SpanTime]] = {}
    if not stored:
        return by_trace
    columns = (_spans.trace_id, _spans.span_id, _spans.parent_span_id, _spans.name, _spans.start_ns, _spans.end_ns)
    rows = connection.execute(select(*columns).where(_spans.workspace_id == workspace, _spans.trace_id.in_(stored)))
    for row in rows:
        by_trace.setdefault(row[0], []).append(SpanTime(*row))
    return by_trace


def span_payloads(
    connection: Connection, workspace: str, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[bytes, bytes, str]]:
    """(payload, resource, resource id) of those of the spans that are stored, by the ids of trace and span."""
    if not keys:
        return {}
    statement = (
        select(_spans.trace_id, _spans.span_id, _spans.payload, span_resources.c.payload, _spans.resource_id)
        .join(span_resources, span_resources.c.id == _spans.resource_id)
        .where(_spans.workspace_id == workspace, tuple_(_spans.trace_id, _spans.span_id).in_(keys))
    )
    return {(row[0], row[1]): (row[2], row[3], row[4]) for row in connection.execute(statement)}


def newest_end(connection: Connection, workspace: str, workflow_id: str) -> int | None:
    """When an execution of a workflow ended last, in unix nanoseconds; None: never."""
    statement = select(func.max(_executions.finished_ns)).where(
        _executions.workspace_id == workspace, _executions.workflow_id == workflow_id
    )
    return cast("int | None", connection.execute(statement).scalar())
