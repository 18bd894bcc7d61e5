"""Reading the steps of one execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import Connection, Row, bindparam, func, select

from tachograph.events import Folded
from tachograph.identity import instance_id
from tachograph_exporter.store.schema import workflow_step_executions
from tachograph_exporter.store.totals import decode_folded


class StoredStep(msgspec.Struct, gc=False):
    """A step's row. Fields are columns, in the order they are read; ``depends_on`` and ``folded`` are decoded.

    ``folded``: what the repetitions add up to that share the row.
    """

    step_id: str
    name: str
    step_type: str
    step_order: int
    repetition: int
    parent_step_id: str | None
    span_id: str
    parent_span_id: str
    depends_on: Sequence[str]
    status: str
    attempt: int
    ready_ns: int | None
    started_ns: int | None
    attempt_started_ns: int | None
    finished_ns: int | None
    dependency_ns: int | None
    queue_ns: int | None
    backoff_ns: int | None
    run_ns: int | None
    error_type: str | None
    error_message: str | None
    error_stack: str | None
    skip_reason: str | None
    inputs: str | None
    output: str | None
    child_execution_id: str | None = None
    dependency_count: int = 0
    unaccounted_ns: int | None = None
    folded: Folded | None = None
    map_index: str | None = None
    resources: str | None = None
    scheduled_ns: int | None = None
    asked_ns: int | None = None


STEP_COLUMNS: Final = [workflow_step_executions.c[name] for name in StoredStep.__struct_fields__]
_decode_ids: Final = msgspec.json.Decoder(list[str]).decode
STEPS: Final = select(*STEP_COLUMNS).where(workflow_step_executions.c.execution_id == bindparam("id"))


def steps_of(connection: Connection, execution_id: str) -> list[StoredStep]:
    """The steps of one execution, in timeline order (see `position`)."""
    result = connection.execute(STEPS, {"id": execution_id})
    # The driver's own tuples: this halves the time to read a timeline of ten thousand steps.
    steps = [_decoded(StoredStep(*row)) for row in cast(Any, result.cursor).fetchall()]
    result.close()
    _resolve_instances(steps)
    steps.sort(key=position)
    return steps


def steps_of_many(connection: Connection, execution_ids: Sequence[str]) -> dict[str, list[StoredStep]]:
    """The steps of some executions, by the execution's id, each in timeline order."""
    column = workflow_step_executions.c.execution_id
    result = connection.execute(select(column, *STEP_COLUMNS).where(column.in_(execution_ids)))
    steps: dict[str, list[StoredStep]] = {}
    for row in result:
        steps.setdefault(row[0], []).append(_decoded(StoredStep(*row[1:])))
    for of_one in steps.values():
        _resolve_instances(of_one)
        of_one.sort(key=position)
    return steps


def _decoded(step: StoredStep) -> StoredStep:
    encoded = cast(str, step.depends_on)
    step.depends_on = () if encoded == "[]" else _decode_ids(encoded)
    if step.folded is not None:
        step.folded = decode_folded(cast(str, step.folded))
    return step


def _resolve_instances(steps: Sequence[StoredStep]) -> None:
    """Let a step that depends on a mapped step depend on each instance of it.

    Who reports the dependency need not know how many there are, or will be.
    """
    mapped = [step for step in steps if step.map_index is not None]
    if not mapped:
        return
    known = {step.step_id for step in steps}
    instances: dict[str, list[str]] = {}
    for step in steps:
        if known.issuperset(step.depends_on):
            continue
        ids: list[str] = []
        for dependency in step.depends_on:
            if dependency in known:
                ids.append(dependency)
                continue
            if dependency not in instances:
                instances[dependency] = [
                    other.step_id for other in mapped if instance_id(dependency, other.map_index or "") == other.step_id
                ]
            ids += instances[dependency]
        step.depends_on = tuple(dict.fromkeys(ids))


def by_step(rows: Iterable[Row[Any]]) -> dict[str, list[Row[Any]]]:
    """Attempts or reports by the id of their step, in their order."""
    grouped: dict[str, list[Row[Any]]] = {}
    for row in rows:
        grouped.setdefault(row.step_id, []).append(row)
    return grouped


def position(step: StoredStep) -> tuple[int, int, str]:
    """A step's sort key in a timeline: its order in the definition, then when it started or became ready."""
    return (step.step_order, step.started_ns or step.ready_ns or step.finished_ns or 0, step.step_id)


def status_counts(steps: Sequence[StoredStep]) -> Counter[str]:
    """How many steps have which status; every repetition counts."""
    counts = Counter([step.status for step in steps if step.folded is None])
    for step in steps:
        if step.folded is not None:
            counts += folded_counts(step.folded)
    return counts


class Progress(NamedTuple):
    """How far an execution is. ``counts``: as `status_counts` says; ``running``: names of steps, in timeline order."""

    counts: Counter[str]
    running: list[str]


_steps: Final = workflow_step_executions.c
_BY_STATUS: Final = (
    select(_steps.status, func.count())
    .where(_steps.execution_id == bindparam("id"), _steps.folded.is_(None))
    .group_by(_steps.status)
)
_FOLDED: Final = select(_steps.folded).where(_steps.execution_id == bindparam("id"), _steps.folded.is_not(None))
_RUNNING: Final = select(
    _steps.name,
    _steps.step_order,
    func.coalesce(_steps.started_ns, _steps.ready_ns, _steps.finished_ns, 0),
    _steps.step_id,
).where(_steps.execution_id == bindparam("id"), _steps.status.in_(("running", "retrying")))


def progress_of(connection: Connection, execution_id: str) -> Progress:
    """How far an execution is, without reading its steps: for one of very many."""
    parameters = {"id": execution_id}
    counts = Counter({row[0]: row[1] for row in connection.execute(_BY_STATUS, parameters)})
    for folded in connection.execute(_FOLDED, parameters).scalars():
        counts += folded_counts(decode_folded(folded))
    running = sorted((tuple(row[1:]), row[0]) for row in connection.execute(_RUNNING, parameters))
    return Progress(counts, [name for _, name in running])


def folded_counts(folded: Folded) -> Counter[str]:
    """How many of the repetitions that share a row have which status."""
    counts = Counter({status: runs.count for status, runs in folded.by_status.items()})
    counts["running"] += folded.running
    return counts
