"""What failed of executions: from the rows of a batch, or from the tables."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select

from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.store.schema import (
    ATTEMPT_ROWS,
    EXECUTION_ROWS,
    STEP_ROWS,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
)
from tachograph_exporter.store.totals import decode_folded

ATTEMPT: Final = 1
"""An attempt that failed and was followed by another."""
STEP: Final = 2
"""A step that failed for good, with its last attempt."""
EXECUTION: Final = 3
"""An execution that failed."""

CHUNK: Final = 400
_STATUSES: Final = tuple(sorted(UNSUCCESSFUL))

Key = tuple[str, str, int, int]
"""(execution id, step id, attempt, kind)"""


class Failing(NamedTuple):
    """Something that failed. ``times``: so many of the repetitions that share its row."""

    execution_id: str
    step_id: str
    attempt: int
    kind: int
    step: str
    parent_step_id: str | None
    time_ns: int
    times: int
    error_type: str | None
    error_message: str | None
    error_stack: str | None

    @property
    def key(self) -> Key:
        """What tells it apart."""
        return self.execution_id, self.step_id, self.attempt, self.kind

    @property
    def cause(self) -> str:
        """A digest of the type and message."""
        return cause_of(self.error_type, self.error_message)


def cause_of(error_type: str | None, error_message: str | None) -> str:
    """A digest of the type and message of a failure: equal where one failed because of the other."""
    text = f"{error_type or ''}\x1e{error_message or ''}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _places(columns: Sequence[str], *names: str) -> tuple[int, ...]:
    return tuple(columns.index(name) for name in names)


_STEP_FIELDS: Final = (
    "execution_id", "step_id", "attempt", "name", "parent_step_id", "status", "started_ns", "finished_ns", "folded",
    "error_type", "error_message", "error_stack",
)  # fmt: skip
_ATTEMPT_FIELDS: Final = (
    "execution_id", "step_id", "attempt", "status", "finished_ns", "error_type", "error_message", "error_stack",
)  # fmt: skip
_EXECUTION_FIELDS: Final = (
    "execution_id", "status", "created_ns", "finished_ns", "error_type", "error_message", "error_stack",
)  # fmt: skip
_STEP_PLACES: Final = _places(STEP_ROWS.columns, *_STEP_FIELDS)
_ATTEMPT_PLACES: Final = _places(ATTEMPT_ROWS.columns, *_ATTEMPT_FIELDS)
_EXECUTION_PLACES: Final = _places(EXECUTION_ROWS.columns, *_EXECUTION_FIELDS)
_STEP_STATUS: Final = STEP_ROWS.columns.index("status")
_ATTEMPT_STATUS: Final = ATTEMPT_ROWS.columns.index("status")
_EXECUTION_STATUS: Final = EXECUTION_ROWS.columns.index("status")


def failing_in(
    executions: Mapping[Any, Sequence[Any]], steps: Mapping[Any, Sequence[Any]], attempts: Mapping[Any, Sequence[Any]]
) -> list[Failing]:
    """What failed, of the rows of a batch (see `batch`)."""
    failing = [_step(*[row[i] for i in _STEP_PLACES]) for row in steps.values() if row[_STEP_STATUS] in UNSUCCESSFUL]
    for row in attempts.values():
        if row[_ATTEMPT_STATUS] in UNSUCCESSFUL:
            step = steps.get(row[:2])
            values = dict(zip(_STEP_FIELDS, [step[i] for i in _STEP_PLACES], strict=True)) if step is not None else {}
            attempt = _attempt(values, *[row[i] for i in _ATTEMPT_PLACES])
            if attempt is not None:
                failing.append(attempt)
    failing += [
        _execution(*[row[i] for i in _EXECUTION_PLACES])
        for row in executions.values()
        if row[_EXECUTION_STATUS] in UNSUCCESSFUL
    ]
    return failing


def _step(
    execution_id: str, step_id: str, attempt: int, name: str, parent: str | None, _status: str, started: int | None,
    finished: int | None, folded: str | None, kind: str | None, message: str | None, stack: str | None,
) -> Failing:  # fmt: skip
    times = 1
    if folded is not None:
        runs = decode_folded(folded)
        times = sum(of_status.count for status, of_status in runs.by_status.items() if status in UNSUCCESSFUL)
        times += sum(retried for status, retried in runs.retrying.items() if status in UNSUCCESSFUL)
    return Failing(execution_id, step_id, attempt, STEP, name, parent, finished or started or 0, max(1, times),
                   kind, message, stack)  # fmt: skip


def _attempt(
    step: Mapping[str, Any], execution_id: str, step_id: str, attempt: int, _status: str, finished: int,
    kind: str | None, message: str | None, stack: str | None,
) -> Failing | None:  # fmt: skip
    """None: the step ended with this attempt, so it is the step's own failure. ``step``: its row, if it is known."""
    if step and (step["attempt"], step["finished_ns"]) == (attempt, finished) and step["status"] in UNSUCCESSFUL:
        return None
    name, parent = step.get("name", ""), step.get("parent_step_id")
    return Failing(execution_id, step_id, attempt, ATTEMPT, name, parent, finished, 1, kind, message, stack)


def _execution(
    execution_id: str, _status: str, created: int, finished: int | None, kind: str | None, message: str | None,
    stack: str | None,
) -> Failing:  # fmt: skip
    return Failing(execution_id, "", 0, EXECUTION, "", None, finished or created, 1, kind, message, stack)


_steps = workflow_step_executions.c
_attempts = workflow_step_attempts.c
_executions = workflow_executions.c
_FAILED_STEPS: Final = select(*[_steps[name] for name in _STEP_FIELDS]).where(
    _steps.execution_id.in_(bindparam("ids", expanding=True)), _steps.status.in_(_STATUSES)
)
_FAILED_ATTEMPTS: Final = (
    select(
        *[_attempts[name] for name in _ATTEMPT_FIELDS],
        *[
            _steps[name].label(f"step_{name}")
            for name in ("attempt", "name", "parent_step_id", "status", "finished_ns")
        ],
    )
    .join(
        workflow_step_executions,
        (_steps.execution_id == _attempts.execution_id) & (_steps.step_id == _attempts.step_id),
    )
    .where(_attempts.execution_id.in_(bindparam("ids", expanding=True)), _attempts.status.in_(_STATUSES))
)
_FAILED_EXECUTIONS: Final = select(*[_executions[name] for name in _EXECUTION_FIELDS]).where(
    _executions.execution_id.in_(bindparam("ids", expanding=True)), _executions.status.in_(_STATUSES)
)


def stored_failing(connection: Connection, ids: Iterable[str]) -> list[Failing]:
    """What failed, of executions in the tables."""
    failing: list[Failing] = []
    for chunk in chunks(ids):
        parameters = {"ids": chunk}
        failing += [_step(*row) for row in connection.execute(_FAILED_STEPS, parameters)]
        for row in connection.execute(_FAILED_ATTEMPTS, parameters):
            step = {
                "attempt": row.step_attempt,
                "name": row.step_name,
                "parent_step_id": row.step_parent_step_id,
                "status": row.step_status,
                "finished_ns": row.step_finished_ns,
            }
            attempt = _attempt(step, *row[: len(_ATTEMPT_FIELDS)])
            if attempt is not None:
                failing.append(attempt)
        failing += [_execution(*row) for row in connection.execute(_FAILED_EXECUTIONS, parameters)]
    return failing


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Ids in lists that fit into one statement."""
    all_ids: Collection[str] = sorted(ids)
    ordered = list(all_ids)
    for i in range(0, len(ordered), CHUNK):
        yield ordered[i : i + CHUNK]
