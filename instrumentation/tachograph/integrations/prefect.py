"""Prefect 3: ``tachograph bridge prefect URL``.

Prefect's server tells of every change of state as an event. What is here reports them: a flow run is a run, a task run
is a step, and so is a flow that another one calls, which is a run of its own, too. What comes again, or late, changes
nothing; so whoever reads the events may read some of them twice.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from tachograph.integrations.prefect_events import (
    TERMINAL,
    PrefectEvent,
    Resource,
    TaskRun,
    base_name,
    error_of,
    event_of,
    task_run_of,
)
from tachograph.integrations.prefect_flow_run import LEASE_SECONDS, FlowRun, end_run, end_step, tell_step
from tachograph.quiet_log import QuietLog
from tachograph.report import Run, Step

quiet = QuietLog(logging.getLogger(__name__))

MAX_OPEN: Final = 20_000
"""Flow runs that are followed at a time."""
MAX_TASK_RUNS: Final = 20_000
"""Task runs of a flow run that are told of."""
KEPT_SECONDS: Final = 1_800.0
"""How long what is known of a flow run is kept after its end: events may come late, or be read again."""
LATE_SECONDS: Final = 10.0
"""An event that has not come so long after what it tells of is missing."""
_TRACEPARENT: Final = "__OTEL_TRACEPARENT"
"""The label of a flow run that says which trace it is in, if Prefect makes spans."""

Fact = list[Any]
"""What must be known after a restart: a ``flow``, ``task``, ``end`` or ``again``, what was ``queued`` or ``began``."""


class Server(Protocol):
    """What Prefect's API is asked. None: it does not know such a run. Raises if it cannot be asked."""

    async def flow_run(self, run_id: str) -> Mapping[str, Any] | None: ...
    async def task_run(self, run_id: str) -> Mapping[str, Any] | None: ...
    async def flow(self, flow_id: str) -> Mapping[str, Any] | None: ...


class FlowRuns:
    """Reports the flow runs of a Prefect server from its events, one after the other.

    Args:
        server: its API.
        note: called with each fact that `recall` needs after a restart.
    """

    def __init__(self, server: Server, note: Callable[[Fact], None] = lambda fact: None) -> None:
        self._server = server
        self._note = note
        self._runs: dict[str, FlowRun] = {}
        # When flow runs were submitted that have not started.
        self._queued: OrderedDict[str, datetime] = OrderedDict()

    def recall(self, facts: Sequence[Fact]) -> None:
        """Take over what an earlier process noted."""
        for fact in facts:
            match fact:
                case ["flow", str(run_id), str(flow), trace_id, parent]:
                    new = self._runs.setdefault(run_id, FlowRun(run_id, flow, trace_id, parent))
                    new.is_open, new.queued_at = True, self._queued.pop(run_id, None)
                case ["queued", str(run_id), queued_at]:
                    if (moment := _moment(queued_at)) is not None:
                        self._queued[run_id] = moment
                case [str(kind), str(run_id), *rest] if (known := self._runs.get(run_id)) is not None:
                    _recall(known, kind, rest)
        for known in self._runs.values():
            self._enter(known)

    def facts(self) -> Iterator[Fact]:
        """All that `recall` needs."""
        queued = {run_id: known.queued_at for run_id, known in self._runs.items() if known.queued_at is not None}
        yield from (
            ["queued", run_id, moment.isoformat()] for run_id, moment in [*self._queued.items(), *queued.items()]
        )
        for known in self._runs.values():
            yield ["flow", known.run_id, known.flow, known.trace_id, known.parent]
            yield from (["again", known.run_id, count] for count in known.restarts)
            yield from (["task", known.run_id, task_run, *place] for task_run, place in known.places.items())
            yield from (
                ["began", known.run_id, task_run, attempt, began_at.isoformat()]
                for task_run, (attempt, began_at) in known.began.items()
            )
            if known.ended_at is not None:
                yield ["end", known.run_id, known.ended_at]

    async def hear(self, value: Any) -> datetime | None:
        """Report what an event says; returns when it occurred, or None if it is none that is known.

        Raises only what the server's API does.
        """
        try:
            event = event_of(value)
        except msgspec.ValidationError as error:
            quiet.warning("event", "not reported: an event of Prefect that cannot be read: %s", error)
            return None
        if event.is_of_flow_run:
            await self._hear_flow_run(event)
        elif event.payload.task_run is not None:
            await self._hear_task_run(event, event.payload.task_run)
        return event.occurred

    # Flow runs.

    async def _hear_flow_run(self, event: PrefectEvent) -> None:
        run_id, state = event.resource.run_id, event.resource.state_type
        known = self._runs.get(run_id)
        if event.is_heartbeat:
            if known is not None and known.is_open:
                known.beat(event.occurred.timestamp())
                known.reported(len(known.restarts)).alive(at=event.occurred)
            return
        if not state:
            return  # Somebody's own event.
        if known is None:
            if state == "SCHEDULED" and not event.begins_again:
                return  # It is scheduled. Until it is submitted, nobody knows more than its schedule.
            if state == "PENDING" and not event.run_count and not event.begins_again:
                # Which trace it is in is known once it runs.
                self._queue(run_id, event.occurred)
                return
            known = await self._flow_run(run_id, event.beside("flow"), event.beside("task-run"))
            if known is None:
                return
        known.heard_at = event.occurred.timestamp()
        if event.begins_again and event.run_count and event.run_count not in known.restarts:
            known.restarts.append(event.run_count)
            known.is_open, known.ended_at = True, None
            known.beats = (0, 0.0, 0.0)
            self._note(["again", run_id, event.run_count])
        restart = known.restart(event.run_count)
        if state == "RUNNING":
            if not known.is_asked:
                known.learn(await self._server.flow_run(run_id))
            self._start(known, restart, event)
        elif state in TERMINAL:
            self._end(known, restart, event.resource, event.occurred)

    def _queue(self, run_id: str, at: datetime) -> None:
        if run_id in self._queued:
            return  # Its process starts.
        self._queued[run_id] = at
        self._note(["queued", run_id, at.isoformat()])
        if len(self._queued) > MAX_OPEN:
            self._queued.popitem(last=False)

    def _start(self, known: FlowRun, restart: int, event: PrefectEvent) -> None:
        reported = known.reported(restart)
        if known.queued_at is not None and not restart:
            reported.queued(at=known.queued_at)
        reported.begin(at=event.occurred, inputs=known.inputs, heartbeats=False)
        step = self._step_around(known)
        if step is not None:
            step.started(at=event.occurred)

    def _end(self, known: FlowRun, restart: int, state: Resource, at: datetime) -> None:
        reported = known.reported(restart)
        if known.queued_at is not None and not restart:
            reported.queued(at=known.queued_at)
        error = error_of(state.state_name, state.state_message)
        step = self._step_around(known)
        end_run(reported, state, error, at)
        if step is not None:
            end_step(step, state, error, None, at)
        # It may be heard again once the run was started anew.
        if known.ended_at is None and restart == len(known.restarts):
            known.is_open, known.ended_at = False, at.timestamp()
            self._note(["end", known.run_id, known.ended_at])

    def _step_around(self, known: FlowRun) -> Step | None:
        """The step of the flow run that called this one, if any."""
        outer = self._runs.get(known.parent[0]) if known.parent is not None else None
        return outer.step(known.parent[1]) if outer is not None and known.parent is not None else None

    async def _flow_run(
        self, run_id: str, flow: Resource | None = None, stand_in: Resource | None = None
    ) -> FlowRun | None:
        """What is known of a flow run; the API is asked the first time. ``stand_in``: its task run in another run."""
        known = self._runs.get(run_id)
        if known is not None:
            return known
        details = await self._server.flow_run(run_id) or {}
        name = flow.name if flow is not None else ""
        if not name:
            name = str((await self._server.flow(str(details.get("flow_id"))) or {}).get("name") or "")
        if not name:
            quiet.warning("flow", "not reported: the flow run %s: Prefect does not know its flow", run_id)
            return None
        task_run_id = stand_in.run_id if stand_in is not None else str(details.get("parent_task_run_id") or "")
        outer, around = (await self._around(task_run_id)) if task_run_id else (None, None)
        parent = (outer.run_id, task_run_id) if outer is not None else None
        known = self._runs[run_id] = FlowRun(run_id, name, _trace_of(details), parent)
        known.is_open, known.queued_at = True, self._queued.pop(run_id, None)
        known.learn(details)
        self._note(["flow", run_id, name, known.trace_id, parent])
        if outer is not None and around is not None:
            if task_run_id not in outer.places:
                self._placed(outer, task_run_id, base_name(around.name) or name, len(outer.restarts))
            step = outer.step(task_run_id)
            if step is not None:
                self._connect(outer, task_run_id, step, around)
            self._enter(known)
        if len(self._runs) > MAX_OPEN:
            self._drop(next(iter(self._runs)))
        return known

    async def _around(self, task_run_id: str) -> tuple[FlowRun | None, TaskRun | None]:
        """The flow run with a task run that stands for another flow run, and that task run."""
        details = await self._server.task_run(task_run_id)
        if details is None:
            return None, None
        task_run = task_run_of(details)
        return (await self._flow_run(task_run.flow_run_id) if task_run.flow_run_id else None), task_run

    def _enter(self, known: FlowRun) -> None:
        """Let a flow run be a step of the one that called it, if any."""
        step = self._step_around(known)
        outer = step.run if step is not None else None
        if step is not None and isinstance(outer, Run):
            inner = outer.nested(
                step, known.flow, run_id=known.run_id, engine="prefect", lease=LEASE_SECONDS, trace_id=known.trace_id,
                heartbeats=False,
            )  # fmt: skip
            known.is_nested(0, inner)

    # Task runs.

    async def _hear_task_run(self, event: PrefectEvent, task_run: TaskRun) -> None:
        around = event.beside("flow-run")
        task_run_id = event.resource.run_id
        if around is not None:
            known = await self._flow_run(around.run_id, event.beside("flow"))
        else:
            known = self._alone(task_run_id, task_run, event)
        if known is None:
            return
        known.heard_at = event.occurred.timestamp()
        if task_run_id not in known.places:
            if len(known.places) >= MAX_TASK_RUNS:
                quiet.warning("tasks", "not reported: more than %d task runs of a flow run", MAX_TASK_RUNS)
                return
            # Of a task run that has not started yet, the flow run's own number is not known.
            restart = known.restart(task_run.flow_run_run_count) if task_run.flow_run_run_count else len(known.restarts)
            self._placed(known, task_run_id, task_run.task, restart, task_run.outer)
        step = known.step(task_run_id)
        if step is not None:
            self._connect(known, task_run_id, step, task_run)
            tell_step(step, event, self._began_at(known, event, task_run))
            if around is None and event.resource.state_type in TERMINAL:
                self._end(known, 0, event.resource, event.occurred)

    def _began_at(self, known: FlowRun, event: PrefectEvent, task_run: TaskRun) -> datetime | None:
        """When the attempt started that an event is about: Prefect says it of the first one only."""
        task_run_id = event.resource.run_id
        if event.run_count <= 1:
            return task_run.start_time if event.run_count else None
        if event.resource.state_type == "RUNNING":
            known.began[task_run_id] = (event.run_count, event.occurred)
            self._note(["began", known.run_id, task_run_id, event.run_count, event.occurred.isoformat()])
        attempt, began_at = known.began.get(task_run_id, (0, None))
        return began_at if attempt == event.run_count else None

    def _alone(self, task_run_id: str, task_run: TaskRun, event: PrefectEvent) -> FlowRun:
        """A task run outside of any flow is a run of its own."""
        known = self._runs.get(task_run_id)
        if known is None:
            known = self._runs[task_run_id] = FlowRun(task_run_id, task_run.task, None, None)
            known.is_open = True
            self._note(["flow", task_run_id, known.flow, None, None])
        reported = known.reported(0)
        if event.resource.state_type == "RUNNING":
            reported.begin(at=event.occurred, heartbeats=False)
        elif event.resource.state_type == "PENDING":
            reported.queued(at=event.occurred)
        return known

    def _placed(self, known: FlowRun, task_run_id: str, task: str, restart: int, outer: str | None = None) -> None:
        known.place(task_run_id, task, restart, outer)
        self._note(["task", known.run_id, task_run_id, *known.places[task_run_id]])
        step = known.step(task_run_id)
        for waiting in known.waiting.pop(task_run_id, ()):
            later = known.step(waiting)
            if later is not None and step is not None:
                later.depend_on(step)

    def _connect(self, known: FlowRun, task_run_id: str, step: Step, task_run: TaskRun) -> None:
        """Let the step depend on those whose results it was given."""
        for other in task_run.inputs():
            before = known.step(other)
            if before is not None:
                step.depend_on(before)
            elif other != task_run_id:
                waiting = known.waiting.setdefault(other, [])
                if task_run_id not in waiting and len(known.waiting) <= MAX_TASK_RUNS:
                    waiting.append(task_run_id)

    # What is open.

    def open_flow_runs(self) -> list[str]:
        """The ids of the flow runs that have not ended, as far as their events say."""
        return [run_id for run_id, known in self._runs.items() if known.is_open]

    def look(self, states: Mapping[str, Mapping[str, Any]], now: float) -> float | None:
        """Compare what is open with what the server says of it at ``now``, unix seconds.

        ``states``: by id of the flow run, what the API says of it. One that has ended, and whose end came in no event,
        ends when this is asked again, unless its events come meanwhile; one whose heartbeats have stopped is lost; the
        others are alive. What ended long ago is forgotten. Returns since when events are missing, or None.
        """
        missing = []
        for run_id, details in states.items():
            known = self._runs.get(run_id)
            if known is None or not known.is_open:
                continue
            reported, state = known.reported(len(known.restarts)), details.get("state") or {}
            kind, since = str(state.get("type") or ""), _moment(state.get("timestamp"))
            if kind in TERMINAL and since is not None:
                if not known.is_missing and now - since.timestamp() > LATE_SECONDS:
                    known.is_missing = True
                    missing.append(min(known.heard_at or now, since.timestamp()) - LATE_SECONDS)
                elif known.is_missing:
                    told = Resource(
                        id=run_id,
                        state_type=kind,
                        state_name=str(state.get("name") or ""),
                        state_message=str(state.get("message") or ""),
                    )
                    self._end(known, len(known.restarts), told, since)
            elif kind == "RUNNING" and known.is_silent(now):
                reported.lost("Lost: its process sends no heartbeats any more", at=known.beats[1])
            else:
                reported.alive()
        for run_id in [run_id for run_id, known in self._runs.items() if (known.ended_at or now) < now - KEPT_SECONDS]:
            self._drop(run_id)
        return min(missing, default=None)

    def _drop(self, run_id: str) -> None:
        known = self._runs.pop(run_id, None)
        if known is not None:
            known.forget()


def _recall(known: FlowRun, kind: str, fact: Sequence[Any]) -> None:
    match kind, *fact:
        case ["task", str(task_run_id), str(task), int(number), int(restart), outer]:
            known.put(task_run_id, task, number, restart, outer)
        case ["again", int(run_count)]:
            known.restarts.append(run_count)
            known.is_open, known.ended_at = True, None
        case ["began", str(task_run_id), int(attempt), began_at]:
            if (moment := _moment(began_at)) is not None:
                known.began[task_run_id] = (attempt, moment)
        case ["end", int() | float() as ended_at]:
            known.is_open, known.ended_at = False, ended_at


def _trace_of(details: Mapping[str, Any]) -> str | None:
    labels = details.get("labels")
    parts = str(labels.get(_TRACEPARENT) or "").split("-") if isinstance(labels, Mapping) else []
    return parts[1] if len(parts) >= 4 else None


def _moment(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
