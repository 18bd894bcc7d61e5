"""A flow run of Prefect as a run, and its task runs as steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from tachograph.integrations.places import numbered
from tachograph.integrations.prefect_events import TERMINAL, PrefectEvent, Resource, error_of
from tachograph.report import Run, Step, run

LEASE_SECONDS: Final = 86_400.0
"""How long a flow run may be silent while the bridge is away: it may be paused, or wait for a worker."""
LEAST_SILENCE_SECONDS: Final = 120.0
MISSED_HEARTBEATS: Final = 4
"""A flow run that sent heartbeats is lost when so many of them are missing, and `LEAST_SILENCE_SECONDS` have passed."""


class FlowRun:
    """A flow run, and which steps its task runs are.

    Attributes:
        flow: the name of the flow.
        trace_id: of its spans, or None.
        parent: the flow run that called it, and the task run that stands for it there; None: it was called by none.
        restarts: how often it had been started when it was started again after its end, once for each time.
        places: by the id of each task run its name and number, how many restarts there were, and the task run that
            called it.
        began: when a task run started that had been tried before, with the number of the attempt.
        is_open: whether it has started and not ended.
        ended_at: unix seconds.
        inputs: the parameters, if the server was asked for them.
    """

    def __init__(self, run_id: str, flow: str, trace_id: str | None, parent: Sequence[str] | None) -> None:
        self.run_id = run_id
        self.flow = flow
        self.trace_id = trace_id
        self.parent = parent
        self.restarts: list[int] = []
        self.places: dict[str, tuple[str, int, int, str | None]] = {}
        self.counts: dict[tuple[str, int], int] = {}
        self.began: dict[str, tuple[int, datetime]] = {}
        self.waiting: dict[str, list[str]] = {}
        self.queued_at: datetime | None = None
        self.inputs: Any = None
        self.is_asked = False
        self.is_open = False
        self.is_missing = False
        self.ended_at: float | None = None
        self.heard_at: float | None = None
        self.beats: tuple[int, float, float] = (0, 0.0, 0.0)
        self._inner: dict[int, Run] = {}

    def learn(self, details: Mapping[str, Any] | None) -> None:
        """Take over what the API says of it."""
        self.is_asked = True
        self.inputs = (details or {}).get("parameters") or None

    def restart(self, run_count: int) -> int:
        """How many restarts there were before a start with this number."""
        return sum(run_count > started for started in self.restarts)

    def identifier(self, restart: int) -> str:
        return self.run_id if not restart else f"{self.run_id}+{self.restarts[restart - 1]}"

    def reported(self, restart: int) -> Run:
        known = self._inner.get(restart)
        return known if known is not None else run(
            self.flow, run_id=self.identifier(restart), engine="prefect", lease=LEASE_SECONDS, trace_id=self.trace_id,
            heartbeats=False,
        )  # fmt: skip

    def is_nested(self, restart: int, inner: Run) -> None:
        self._inner[restart] = inner

    def place(self, task_run_id: str, task: str, restart: int, outer: str | None) -> None:
        self.put(task_run_id, task, self.counts.get((task, restart), 0), restart, outer)

    def put(self, task_run_id: str, task: str, number: int, restart: int, outer: str | None) -> None:
        self.places[task_run_id] = (task, number, restart, outer)
        self.counts[task, restart] = max(self.counts.get((task, restart), 0), number + 1)

    def step(self, task_run_id: str) -> Step | None:
        place = self.places.get(task_run_id)
        if place is None:
            return None
        task, number, restart, outer = place
        above = self.places.get(outer) if outer is not None else None
        return self.reported(restart).step(
            task,
            key=numbered(task, number + 1),
            repetition=number,
            parent=numbered(above[0], above[1] + 1) if above is not None else None,
        )

    def beat(self, at: float) -> None:
        """A heartbeat was heard."""
        count, last, interval = self.beats
        if at > last:
            self.beats = (count + 1, at, max(interval, at - last) if count else 0.0)

    def is_silent(self, now: float) -> bool:
        """Whether heartbeats that came before have stopped."""
        count, last, interval = self.beats
        if not count:
            return False
        # Of a single one nobody knows how often they come; Prefect's default is 30 s.
        limit = max(LEAST_SILENCE_SECONDS, MISSED_HEARTBEATS * interval)
        return now - max(last, self.heard_at or 0.0) > limit

    def forget(self) -> None:
        for restart in range(len(self.restarts) + 1):
            self.reported(restart).forget()


def tell_step(step: Step, event: PrefectEvent, began_at: datetime | None = None) -> None:
    """Report the new state of a task run. ``began_at``: when its attempt started, where that is known."""
    state, at = event.resource, event.occurred
    attempt = max(1, event.run_count)
    error = error_of(state.state_name, state.state_message)
    if began_at is not None and state.state_type != "RUNNING" and not step.is_open:
        # An earlier process heard of the start.
        step.started(attempt=attempt, at=began_at)
    if state.state_type == "RUNNING":
        step.started(attempt=attempt, at=at)
    elif state.state_name == "AwaitingRetry":
        due = event.due
        delay = max(0.0, (due - at).total_seconds()) if due is not None else 0.0
        step.retrying(error_of("Failed", state.state_message), delay, attempt=attempt, at=at)
    elif state.state_name == "NotReady":
        step.skipped("upstream_failed", at=at)
    elif state.state_type in TERMINAL:
        end_step(step, state, error, attempt if event.run_count else None, at)
    elif not event.run_count:
        step.queued(at=at)


def end_step(step: Step, state: Resource, error: str, attempt: int | None, at: datetime) -> None:
    """Report the last state of a task run, or of a flow run that is a step."""
    if state.state_type == "COMPLETED":
        step.finished(attempt=attempt, at=at)
    elif state.state_type == "CANCELLED":
        step.cancelled(error if state.state_message else None, attempt=attempt, at=at)
    elif state.state_name == "TimedOut":
        step.timed_out(error, attempt=attempt, at=at)
    else:
        step.failed(error, attempt=attempt, at=at)


def end_run(reported: Run, state: Resource, error: str, at: datetime) -> None:
    """Report the last state of a flow run."""
    if state.state_type == "COMPLETED":
        reported.finished(at=at)
    elif state.state_type == "CANCELLED":
        reported.cancelled(error if state.state_message else None, at=at)
    elif state.state_name == "TimedOut":
        reported.timed_out(error, at=at)
    else:
        reported.failed(error, at=at)
