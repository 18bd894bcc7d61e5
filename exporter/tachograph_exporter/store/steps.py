"""The steps of one execution, as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
from sqlalchemy import Connection, bindparam, select

from tachograph_exporter.store.schema import workflow_step_executions


class StoredStep(msgspec.Struct, gc=False):
    """A step's row. Fields are columns, in the order they are read; ``depends_on`` is decoded."""

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


STEP_COLUMNS: Final = [workflow_step_executions.c[name] for name in StoredStep.__struct_fields__]
_decode_ids: Final = msgspec.json.Decoder(list[str]).decode
STEPS: Final = select(*STEP_COLUMNS).where(workflow_step_executions.c.execution_id == bindparam("id"))


def steps_of(connection: Connection, execution_id: str) -> list[StoredStep]:
    """The steps of one execution, in the order of the definition, then by when they were due."""
    result = connection.execute(STEPS, {"id": execution_id})
    # The driver's own tuples: a timeline of ten thousand steps is read in half the time.
    steps = [StoredStep(*row) for row in cast(Any, result.cursor).fetchall()]
    result.close()
    for step in steps:
        text = cast(str, step.depends_on)
        step.depends_on = () if text == "[]" else _decode_ids(text)
    steps.sort(key=position)
    return steps


def position(step: StoredStep) -> tuple[int, int, str]:
    """Where a step stands in a timeline: by the definition, then by when it was due."""
    return (step.step_order, step.started_ns or step.ready_ns or step.finished_ns or 0, step.step_id)
