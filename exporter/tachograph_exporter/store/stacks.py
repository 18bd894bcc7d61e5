"""Rows of stacks: what running steps were seen doing, and who asks what they do now."""

from __future__ import annotations

import time
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.clock import MAX_NS, NS
from tachograph.events import Heartbeat, StepStacks, StepStatus
from tachograph.folded_stacks import FoldedStack, StacksKind, StackWish
from tachograph.identity import workspace_id
from tachograph_exporter.store.executions import stored_among
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.schema import (
    stack_requests,
    step_stacks,
    workflow_step_executions,
)

Key = tuple[str, str]
"""(workspace id, workflow id)"""

MAX_REQUESTS: Final = 1_000
"""Requests that are read at once, the newest."""
_REQUEST_SECONDS: Final = 60
"""How long a request counts: clocks of machines differ."""
_KEPT_SECONDS: Final = 3_600
USUAL_SECONDS: Final = 28 * 86_400
"""How far back the runs go that say how long a step usually takes."""
LATE: Final = 0.95
"""The quantile of a step's usual durations from which it is sampled."""
MIN_USUAL: Final = 5
"""Completed runs of a step from which anything is usual."""
_FRESH_SECONDS: Final = 300.0
_MAX_WORKFLOWS: Final = 1_000
_MAX_OPEN: Final = 200
_CHUNK: Final = 500

_stacks = step_stacks.c
_requests = stack_requests.c
_steps = workflow_step_executions.c
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[FoldedStack]).decode


class StoredStacks(NamedTuple):
    """The stacks of an attempt; see `tachograph.events.StepStacks`."""

    step_id: str
    attempt: int
    kind: str
    time_ns: int
    started_ns: int
    request: str
    samples: int
    interval_ns: int
    dropped: int
    cut: int
    stacks: Sequence[FoldedStack]


class OpenStep(NamedTuple):
    """A step that runs now."""

    step_id: str
    name: str
    attempt: int
    since_ns: int | None


def row_of(event: StepStacks) -> dict[str, Any]:
    """The row of an event."""
    return {
        "execution_id": event.execution.execution_id,
        "step_id": event.step.step_id,
        "attempt": event.attempt,
        "kind": event.kind.value,
        "time_ns": event.time_ns,
        "started_ns": min(max(0, event.started_ns), MAX_NS),
        "request": event.request,
        "samples": event.samples,
        "interval_ns": event.interval_ns,
        "dropped": event.dropped,
        "cut": event.cut,
        "stacks": zlib.compress(_encode(event.stacks), 1),
    }


def put(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Store stacks of executions that are stored; of each attempt and kind the newest stay."""
    rows = list(rows)
    known: set[str] = set()
    ids = sorted({row["execution_id"] for row in rows})
    for i in range(0, len(ids), _CHUNK):
        known |= stored_among(connection, ids[i : i + _CHUNK])
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(step_stacks)
    values = [column.name for column in step_stacks.columns if not column.primary_key]
    statement = insert.on_conflict_do_update(
        index_elements=[column.name for column in step_stacks.primary_key],
        set_={name: insert.excluded[name] for name in values},
        where=_stacks.time_ns <= insert.excluded.time_ns,
    )
    for row in rows:
        if row["execution_id"] in known:
            connection.execute(statement, row)


def remove(connection: Connection, ids: Sequence[str]) -> None:
    """Remove what is stored of executions that are deleted or archived."""
    for i in range(0, len(ids), _CHUNK):
        chunk = ids[i : i + _CHUNK]
        connection.execute(delete(step_stacks).where(_stacks.execution_id.in_(chunk)))
        connection.execute(delete(stack_requests).where(_requests.execution_id.in_(chunk)))


_OF_EXECUTION: Final = (
    select(*[_stacks[name] for name in StoredStacks._fields])
    .where(_stacks.execution_id == bindparam("id"))
    .order_by(_stacks.step_id, _stacks.attempt, _stacks.kind)
)


def stacks_of(connection: Connection, execution_id: str, step_ids: Collection[str] | None = None) -> list[StoredStacks]:
    """What is stored of an execution, or of some of its steps."""
    rows = connection.execute(_OF_EXECUTION, {"id": execution_id})
    chosen = (row for row in rows if step_ids is None or row.step_id in step_ids)
    return [StoredStacks(**{**row._asdict(), "stacks": _decode(zlib.decompress(row.stacks))}) for row in chosen]


_TOLD: Final = select(_stacks.step_id, _stacks.attempt, _stacks.request).where(
    _stacks.execution_id == bindparam("id"), _stacks.kind == StacksKind.NOW.value
)


def told_of(connection: Connection, execution_id: str) -> Sequence[Any]:
    """Which attempts of an execution told what they do now, and by which request."""
    return connection.execute(_TOLD, {"id": execution_id}).all()


_STEPS: Final = select(_steps.step_id, _steps.name, _steps.status, _steps.attempt).where(
    _steps.execution_id == bindparam("id"),
    _steps.step_id.in_(select(_stacks.step_id).where(_stacks.execution_id == bindparam("id"))),
)
_OPEN: Final = (
    select(_steps.step_id, _steps.name, _steps.attempt, _steps.attempt_started_ns)
    .where(
        _steps.execution_id == bindparam("id"),
        _steps.status == StepStatus.RUNNING.value,
    )
    .order_by(_steps.attempt_started_ns, _steps.step_id)
    .limit(_MAX_OPEN)
)


def stacked_steps(connection: Connection, execution_id: str) -> dict[str, Any]:
    """The steps of an execution that have stacks, by id."""
    return {row.step_id: row for row in connection.execute(_STEPS, {"id": execution_id})}


def open_steps(connection: Connection, execution_id: str) -> list[OpenStep]:
    """The steps of an execution that run now, those that began first before others; some of very many."""
    return [OpenStep(*row) for row in connection.execute(_OPEN, {"id": execution_id})]


def ask(connection: Connection, execution_id: str, request: str, now_ns: int) -> None:
    """Ask the processes that run an execution for its stacks, under an id; a newer request replaces an older one."""
    connection.execute(delete(stack_requests).where(_requests.requested_ns < now_ns - _KEPT_SECONDS * NS))
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(stack_requests)
    values = {"execution_id": execution_id, "request": request, "requested_ns": now_ns}
    connection.execute(insert.values(**values).on_conflict_do_update(index_elements=["execution_id"], set_=values))


_REQUESTS: Final = (
    select(_requests.execution_id, _requests.request)
    .where(_requests.requested_ns > bindparam("since"))
    .order_by(_requests.requested_ns.desc())
    .limit(MAX_REQUESTS)
)


class Wishes:
    """What is asked of processes when their heartbeats arrive. Remembers how long steps usually take."""

    def __init__(self) -> None:
        self._usual: dict[Key, tuple[float, Mapping[str, float]]] = {}

    def of(
        self, connection: Connection, heartbeats: Mapping[str, Heartbeat], same_as: Mapping[str, str]
    ) -> list[StackWish]:
        """What is asked of the executions with these heartbeats. ``same_as``: other ids of workflows here."""
        now_ns = time.time_ns()
        rows = connection.execute(_REQUESTS, {"since": now_ns - _REQUEST_SECONDS * NS})
        requests = {row.execution_id: row.request for row in rows if row.execution_id in heartbeats}
        wishes: list[StackWish] = []
        for execution_id, heartbeat in heartbeats.items():
            late: tuple[str, ...] = ()
            if heartbeat.long:
                ref = heartbeat.execution
                key = (workspace_id(ref.workspace), same_as.get(ref.workflow_id, ref.workflow_id))
                usual = self._usual_of(connection, key, now_ns)
                late = tuple(a.step_id for a in heartbeat.long if a.running_ns > usual.get(a.name, MAX_NS))
            if late or execution_id in requests:
                wishes.append(StackWish(execution_id, requests.get(execution_id, ""), late))
        return wishes

    def _usual_of(self, connection: Connection, key: Key, now_ns: int) -> Mapping[str, float]:
        """From which time on (nanoseconds) a step takes longer than usual, by name."""
        until, usual = self._usual.get(key, (0.0, {}))
        now = time.monotonic()
        if now >= until:
            usual = _late_after(connection, key, now_ns)
            if len(self._usual) >= _MAX_WORKFLOWS:
                self._usual.clear()
            self._usual[key] = (now + _FRESH_SECONDS, usual)
        return usual


def _late_after(connection: Connection, key: Key, now_ns: int) -> dict[str, float]:
    low_ns = max(0, now_ns - USUAL_SECONDS * NS)
    # Whole days: these are the fewest rows.
    totals = read.read(connection, key, low_ns - low_ns % (86_400 * NS))
    late: dict[str, float] = {}
    for name, step in totals.steps.items():
        completed = step.by_status.get("completed")
        if completed is not None and completed.count >= MIN_USUAL:
            seconds = completed.histogram().quantile(LATE)
            if seconds is not None:
                late[name] = seconds * NS
    return late
