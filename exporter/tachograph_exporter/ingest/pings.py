"""Pings: runs of which somebody only says that they start, end, or what they have to say.

A run has one step of the same name, as a command's has (see docs/cron.md). What a ping belongs to is looked up in the
transaction that stores it, so several services may share a database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Row

from tachograph.critical_path import critical_path_of
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepLogged,
    StepStatus,
)
from tachograph.identity import ExecutionRef, StepRef, new_execution_ref, new_span_id, step_id, workflow_id
from tachograph.names import clean_name, encodable
from tachograph.recording.open_execution import FinishedStep
from tachograph.redaction import mask_text
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.store import definitions, locking, pings
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.recovery import PING_PROCESS
from tachograph_exporter.store.steps import StoredStep, steps_of
from tachograph_exporter.store.writer import StoreWriter

MAX_LINES: Final = 200
"""Lines that are kept of a ping's body, the last ones."""
STEP_TYPE: Final = "ping"
_LOST: Final = Failure("Lost", "another run started before this one ended")


class Action(StrEnum):
    """What a ping says."""

    START = "start"
    SUCCESS = "success"
    FAIL = "fail"
    LOG = "log"


class NoRun(Exception):
    """There is no open run to which a log could belong."""


class PingReceiver:
    """Stores what pings say.

    Args:
        writer: stores it.
        publish: receives the events, once they are committed.
    """

    def __init__(self, writer: StoreWriter, publish: Callable[[Sequence[Event]], None]) -> None:
        self._writer = writer
        self._publish = publish

    def take(self, workspace_id: str, workspace: str, workflow: str, run: str | None, action: Action, text: str) -> str:
        """Store a ping; returns the id of the execution that it belongs to. Blocks: call it in a thread.

        Raises `StoreUnavailable`, and `NoRun` for a log without an open run.
        """
        name = clean_name(workflow)
        process = PING_PROCESS if run is None else f"{PING_PROCESS}/{run}"

        def work(connection: Connection) -> tuple[str, Batch | None, list[Event]]:
            # The newest run of a process is looked up, and may be begun, by one at a time.
            locking.lock(connection)
            row = definitions.definition(connection, workspace_id, name=name)
            identifier = str(row.id) if row is not None else workflow_id(workspace, name)
            newest = pings.newest_run(connection, workspace_id, identifier, process)
            ping = _Ping(connection, workspace, name, identifier, process, newest)
            events = ping.events(action, text)
            batch = self._writer.put(connection, events) if events else None
            return ping.execution_id, batch, events

        execution_id, batch, events = self._writer.database.run(work)
        if batch is not None:
            self._writer.stored(batch)
            self._publish(events)
        return execution_id


class _Ping:
    """A ping, and the newest run of its workflow and process."""

    def __init__(
        self, connection: Connection, workspace: str, name: str, workflow: str, process: str, newest: Row[Any] | None
    ) -> None:
        self._connection = connection
        self._workspace, self._name, self._workflow_id, self._process = workspace, name, workflow, process
        self._newest = newest
        self._is_open = newest is not None and newest.finished_ns is None
        self._now = time.time_ns()
        self.execution_id = str(newest.execution_id) if newest is not None else ""

    def events(self, action: Action, text: str) -> list[Event]:
        """What happened, as events."""
        has_id = self._process != PING_PROCESS
        if action is Action.LOG:
            if not self._is_open:
                raise NoRun
            _, step, _ = self._stored()
            return list(self._logs(step, text))
        if action is Action.START:
            if self._is_open and has_id:
                return []  # It was sent again.
            lost = self._end(StepStatus.LOST, ExecutionStatus.LOST, _LOST, "") if self._is_open else []
            return [*lost, *self._start()]
        if not self._is_open:
            if has_id and self._newest is not None and self._newest.status != ExecutionStatus.LOST:
                return []  # It was sent again.
            if self._newest is None or not has_id:
                started = self._start()
                return [*started, *self._end_of(started, action, text)]
        status = StepStatus.COMPLETED if action is Action.SUCCESS else StepStatus.FAILED
        outcome = ExecutionStatus.COMPLETED if action is Action.SUCCESS else ExecutionStatus.FAILED
        return self._end(status, outcome, _failure(action, text), text)

    def _start(self) -> list[Event]:
        ref = new_execution_ref(workspace=self._workspace, workflow=self._name, workflow_id=self._workflow_id)
        self.execution_id = ref.execution_id
        step = StepRef(
            execution=ref,
            step_id=step_id(self._workflow_id, self._name),
            name=self._name,
            span_id=new_span_id(),
            parent_span_id=ref.span_id,
            step_type=STEP_TYPE,
            step_order=1,
        )
        started = StepAttempts(step, self._now).started(self._now)
        return [ExecutionStarted(execution=ref, time_ns=self._now, step_count=1, process=self._process), started]

    def _stored(self) -> tuple[ExecutionRef, StepRef, StoredStep]:
        """The references of the run that is stored, and its step's row."""
        row = self._newest
        assert row is not None  # noqa: S101
        ref = ExecutionRef(
            workspace=self._workspace,
            workflow=row.workflow,
            workflow_id=row.workflow_id,
            execution_id=row.execution_id,
            trace_id=row.trace_id,
            span_id=row.span_id,
            version=row.version,
            project=row.project,
        )
        stored = steps_of(self._connection, row.execution_id)[0]
        step = StepRef(
            execution=ref,
            step_id=stored.step_id,
            name=stored.name,
            span_id=stored.span_id,
            parent_span_id=stored.parent_span_id,
            step_type=stored.step_type,
            step_order=stored.step_order,
        )
        return ref, step, stored

    def _end(self, status: StepStatus, outcome: ExecutionStatus, failure: Failure | None, text: str) -> list[Event]:
        ref, step, stored = self._stored()
        started_ns = stored.started_ns or self._now
        return self._ended(ref, step, started_ns, status, outcome, failure, text)

    def _end_of(self, started: Sequence[Event], action: Action, text: str) -> list[Event]:
        """The end of a run of which nobody said that it started."""
        first, second = started
        status = StepStatus.COMPLETED if action is Action.SUCCESS else StepStatus.FAILED
        outcome = ExecutionStatus.COMPLETED if action is Action.SUCCESS else ExecutionStatus.FAILED
        step: StepRef = second.step  # type: ignore[union-attr]
        return self._ended(first.execution, step, self._now, status, outcome, _failure(action, text), text)

    def _ended(
        self,
        ref: ExecutionRef,
        step: StepRef,
        started_ns: int,
        status: StepStatus,
        outcome: ExecutionStatus,
        failure: Failure | None,
        text: str,
    ) -> list[Event]:
        now = max(self._now, started_ns)
        attempts = StepAttempts(step, started_ns)
        attempts.started(started_ns)
        finished = attempts.finished(now, status, failure)
        return [
            *self._logs(step, text),
            finished,
            ExecutionFinished(
                execution=ref,
                time_ns=now,
                status=outcome,
                started_ns=started_ns,
                step_count=1,
                completed_step_count=int(status is StepStatus.COMPLETED),
                failed_step_count=int(status is StepStatus.FAILED),
                work_ns=finished.run_ns,
                critical_path=critical_path_of([FinishedStep(step, started_ns, now)]),
                failure=failure,
            ),
        ]

    def _logs(self, step: StepRef, text: str) -> list[Event]:
        lines = [line for line in text.splitlines() if line.strip()][-MAX_LINES:]
        if not lines:
            return []
        first = pings.last_report(self._connection, step.execution.execution_id) + 1
        return [
            StepLogged(step=step, time_ns=self._now, sequence=first + i, message=mask_text(encodable(line, 10_000)))
            for i, line in enumerate(lines)
        ]


def _failure(action: Action, text: str) -> Failure | None:
    if action is not Action.FAIL:
        return None
    lines = [line for line in text.splitlines() if line.strip()]
    return Failure("Reported", mask_text(encodable(lines[-1], 500)) if lines else "a ping said that it failed")
