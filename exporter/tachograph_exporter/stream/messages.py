"""The stream's messages: one for each event, encoded once for all followers.

A message is a JSON object with ``event_type timestamp workspace_id workflow_id workflow_execution_id workflow_step_id
data message sequence``. ``sequence`` increases; a client that was away resumes after the last one it received. Messages
carry no inputs and outputs: the timeline has them.

Some facts stand twice, under the names that older clients read, too: ``event`` is ``event_type``; ``data`` repeats the
ids and the time, and has ``duration`` ``error`` ``completed_steps`` ``failed_steps`` ``skipped_steps``.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepCost,
    StepFinished,
    StepLines,
    StepLogged,
    StepMeasured,
    StepRetrying,
    StepsFolded,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import StepRef, workspace_id
from tachograph_exporter.times import format_duration, rfc3339

STATE_TYPES: Final = (
    "workflow_started", "workflow_resumed", "workflow_completed", "workflow_failed", "workflow_cancelled",
    "step_started", "step_completed", "step_failed", "step_skipped", "step_retrying", "steps_folded",
)  # fmt: skip
"""Status changes of executions and steps: what a follower receives by default."""
DETAIL_TYPES: Final = ("workflow_queued", "step_measured", "step_cost", "step_logged", "step_lines")
"""What a follower receives only when it asks for it."""
EVENT_TYPES: Final = STATE_TYPES + DETAIL_TYPES
_MAX_LINES: Final = 20
"""Lines of a message, the last ones; all of them are read elsewhere."""
_MAX_CHARACTERS: Final = 500
CONNECTED: Final = "connected"
HEARTBEAT: Final = "heartbeat"
CONTROL_TYPES: Final = (CONNECTED, HEARTBEAT, "coalesced", "reload")
"""Messages about the stream itself; sent whatever types a follower asks for."""


class StreamMessage(msgspec.Struct, kw_only=True):
    """One message. Ids that do not apply are null; ``data`` depends on ``event_type``.

    ``type`` is there in a heartbeat only. ``task_id run_id agent_id`` are those of older clients, always null.
    """

    event_type: str
    event: str = ""
    type: str | msgspec.UnsetType = msgspec.UNSET
    timestamp: str
    workspace_id: str | None = None
    workflow_id: str | None = None
    workflow_execution_id: str | None = None
    workflow_step_id: str | None = None
    task_id: None = None
    run_id: None = None
    agent_id: None = None
    data: dict[str, Any] = {}
    message: str = ""
    sequence: int = 0


_encode: Final = msgspec.json.Encoder().encode


class Message:
    """An encoded message and the ids it is filtered by. Its frames are built once, when first needed."""

    __slots__ = (
        "_frame", "_sse", "body", "event_type", "execution_id", "sequence", "step_id", "workflow_id", "workspace_id",
    )  # fmt: skip

    def __init__(self, message: StreamMessage) -> None:
        self.event_type = message.event_type
        self.sequence = message.sequence
        self.workspace_id = message.workspace_id or ""
        self.workflow_id = message.workflow_id or ""
        self.execution_id = message.workflow_execution_id or ""
        self.step_id = message.workflow_step_id or ""
        self.body = _encode(message)
        self._frame: bytes | None = None
        self._sse: bytes | None = None

    @property
    def frame(self) -> bytes:
        """A WebSocket text frame from a server: unmasked, uncompressed (RFC 6455, section 5.2)."""
        if self._frame is None:
            size = len(self.body)
            if size < 126:
                head = bytes((0x81, size))
            elif size < 1 << 16:
                head = b"\x81\x7e" + size.to_bytes(2, "big")
            else:
                head = b"\x81\x7f" + size.to_bytes(8, "big")
            self._frame = head + self.body
        return self._frame

    @property
    def sse(self) -> bytes:
        """A server-sent event (WHATWG HTML, section 9.2). A heartbeat, too, updates the client's last event id."""
        if self._sse is None:
            self._sse = b"id: %d\nevent: %s\ndata: %s\n\n" % (self.sequence, self.event_type.encode(), self.body)
        return self._sse


def control_message(event_type: str, time_ns: int, sequence: int, text: str = "", **data: Any) -> Message:
    """A message about the stream itself."""
    return Message(
        StreamMessage(
            event_type=event_type,
            event=event_type,
            type=HEARTBEAT if event_type == HEARTBEAT else msgspec.UNSET,
            timestamp=rfc3339(time_ns),
            sequence=sequence,
            message=text,
            data=data,
        )
    )


def build_message(event: Event, sequence: int) -> Message | None:
    """The message for an event, or None for an event that is not streamed."""
    describe = _DESCRIBERS.get(type(event))
    if describe is None:
        return None
    execution = event.execution
    step = getattr(event, "step", None)
    if step is not None and step.folded_as is not None and type(event) is not StepsFolded:
        return None
    event_type, text, data = describe(event)
    timestamp = rfc3339(event.time_ns)
    ids = {"execution_id": execution.execution_id, "workflow_id": execution.workflow_id}
    if step is not None:
        ids["step_id"] = step.step_id
    message = StreamMessage(
        event_type=event_type,
        event=event_type,
        timestamp=timestamp,
        workspace_id=workspace_id(execution.workspace),
        workflow_id=execution.workflow_id,
        workflow_execution_id=execution.execution_id,
        workflow_step_id=step.step_id if step is not None else None,
        data={"workflow_name": execution.workflow, **ids, "timestamp": timestamp, **data},
        message=text,
        sequence=sequence,
    )
    return Message(message)


_Description = tuple[str, str, dict[str, Any]]
"""A message's ``event_type``, ``message`` and ``data``."""


def _queued(event: ExecutionQueued) -> _Description:
    execution = event.execution
    data = {"status": ExecutionStatus.PENDING, "workflow_version": execution.version, "trace_id": execution.trace_id,
            "project_id": execution.project, "created_at": rfc3339(event.time_ns)}  # fmt: skip
    return "workflow_queued", f"{execution.workflow} is waiting to start", data


def _started(event: ExecutionStarted) -> _Description:
    execution = event.execution
    data = {"status": ExecutionStatus.RUNNING, "workflow_version": execution.version, "trace_id": execution.trace_id,
            "project_id": execution.project, "started_at": rfc3339(event.time_ns),
            "step_count": event.step_count}  # fmt: skip
    if event.is_resumed:
        # What its end had said holds no longer.
        data |= dict.fromkeys(("completed_at", "duration_seconds", "critical_path_seconds", "work_seconds"))
        data |= _error_data(None)
        return "workflow_resumed", f"{execution.workflow} goes on: it had not ended", data
    return "workflow_started", f"{execution.workflow} started", data


_EXECUTION_TYPES: Final = {
    ExecutionStatus.COMPLETED: "workflow_completed",
    ExecutionStatus.CANCELLED: "workflow_cancelled",
}


def _finished(event: ExecutionFinished) -> _Description:
    execution = event.execution
    data = {
        "status": event.status,
        "workflow_version": execution.version,
        "trace_id": execution.trace_id,
        "project_id": execution.project,
        "started_at": rfc3339(event.started_ns),
        "completed_at": rfc3339(event.time_ns),
        "duration_seconds": event.duration_ns / NS,
        "duration": event.duration_ns / NS,
        "step_count": event.step_count,
        "completed_step_count": event.completed_step_count,
        "failed_step_count": event.failed_step_count,
        "skipped_step_count": event.skipped_step_count,
        "completed_steps": event.completed_step_count,
        "failed_steps": event.failed_step_count,
        "skipped_steps": event.skipped_step_count,
        "critical_path_seconds": sum(part.duration_ns for part in event.critical_path) / NS,
        "work_seconds": event.work_ns / NS,
        **_error_data(event.failure),
    }
    text = f"{execution.workflow} {event.status} after {format_duration(event.duration_ns)}"
    return _EXECUTION_TYPES.get(event.status, "workflow_failed"), text, data


def _error_data(failure: Failure | None) -> dict[str, Any]:
    if failure is None:
        return {"error_type": None, "error_message": None, "error": None}
    return {"error_type": failure.type, "error_message": failure.message, "error": failure.message}


def _step_data(step: StepRef) -> dict[str, Any]:
    return {
        "step_name": step.name,
        "map_index": step.map_index,
        "step_type": step.step_type,
        "step_order": step.step_order,
        "depends_on": step.depends_on,
        "depends_on_count": step.dependency_count or len(step.depends_on),
        "parent_step_id": step.parent_step_id,
        "child_execution_id": step.child_execution_id,
        "span_id": step.span_id,
    }


def _step_started(event: StepStarted) -> _Description:
    data = {
        **_step_data(event.step),
        "status": StepStatus.RUNNING,
        "attempt": event.attempt,
        "started_at": rfc3339(event.time_ns),
        "dependency_seconds": event.dependency_ns / NS,
        "unaccounted_seconds": event.unaccounted_ns / NS,
        "scheduled_seconds": event.scheduled_ns / NS,
        "queue_seconds": event.queue_ns / NS,
        "backoff_seconds": event.backoff_ns / NS,
    }
    attempt = f" (attempt {event.attempt})" if event.attempt > 1 else ""
    return "step_started", f"{event.step.name} started{attempt}", data


def _step_retrying(event: StepRetrying) -> _Description:
    data = {
        **_step_data(event.step),
        "status": StepStatus.RETRYING,
        "attempt": event.attempt,
        "retry_count": event.attempt - 1,
        "attempt_status": event.status,
        "attempt_started_at": rfc3339(event.started_ns),
        "attempt_completed_at": rfc3339(event.time_ns),
        "queue_seconds": event.queue_ns / NS,
        "backoff_seconds": event.backoff_ns / NS,
        "delay_seconds": event.delay_ns / NS,
        **_error_data(event.failure),
    }
    text = f"{event.step.name} {event.status} and will be retried in {format_duration(event.delay_ns)}"
    return "step_retrying", text, data


def _step_finished(event: StepFinished) -> _Description:
    is_completed = event.status is StepStatus.COMPLETED
    data = {
        **_step_data(event.step),
        "status": event.status,
        "attempt": event.attempt,
        "retry_count": event.attempt - 1,
        "started_at": rfc3339(event.started_ns),
        "completed_at": rfc3339(event.time_ns),
        "attempt_started_at": rfc3339(event.attempt_started_ns),
        "duration_seconds": event.duration_ns / NS,
        "duration": event.duration_ns / NS,
        "run_seconds": event.run_ns / NS,
        "wait": {
            "dependency": event.dependency_ns / NS, "queue": event.queue_ns / NS, "backoff": event.backoff_ns / NS,
            "unaccounted": event.unaccounted_ns / NS, "scheduled": event.scheduled_ns / NS,
        },
        "queue_seconds": event.last_queue_ns / NS,
        "backoff_seconds": event.last_backoff_ns / NS,
        **_error_data(event.failure),
    }  # fmt: skip
    text = f"{event.step.name} {event.status} after {format_duration(event.duration_ns)}"
    return "step_completed" if is_completed else "step_failed", text, data


def _step_skipped(event: StepSkipped) -> _Description:
    data = {**_step_data(event.step), "status": StepStatus.SKIPPED, "skip_reason": event.reason,
            "completed_at": rfc3339(event.time_ns)}  # fmt: skip
    return "step_skipped", f"{event.step.name} was skipped: {str(event.reason).replace('_', ' ')}", data


def _steps_folded(event: StepsFolded) -> _Description:
    folded = event.folded
    data = {
        **_step_data(event.step),
        "status": folded.status,
        "count": folded.count,
        "by_status": {status: runs.count for status, runs in folded.by_status.items()},
        "running": folded.running,
        "started_at": rfc3339(folded.started_ns),
        "completed_at": rfc3339(folded.ended_ns) if folded.ended_ns and not folded.running else None,
        "run_seconds": folded.run_ns / NS,
    }
    return "steps_folded", f"{event.step.name} ×{folded.count:,} more", data


def _step_measured(event: StepMeasured) -> _Description:
    data = {"step_name": event.step.name, "name": event.name, "value": event.value, "unit": event.unit}
    return "step_measured", f"{event.step.name}: {event.name} {event.value:g} {event.unit}".rstrip(), data


def _step_cost(event: StepCost) -> _Description:
    data = {"step_name": event.step.name, "usd": event.usd or None, "tokens_in": event.tokens_in,
            "tokens_out": event.tokens_out, "model": event.model}  # fmt: skip
    spent = f"${event.usd:.4g}" if event.usd else f"{event.tokens_in + event.tokens_out} tokens"
    return "step_cost", f"{event.step.name} spent {spent}", data


def _step_logged(event: StepLogged) -> _Description:
    data = {"step_name": event.step.name, "level": event.level, "message": event.message}
    return "step_logged", f"{event.step.name}: {event.message}", data


def _step_lines(event: StepLines) -> _Description:
    shown = event.lines[-_MAX_LINES:]
    lines = [
        {"at": rfc3339(line.time_ns), "severity": line.severity, "logger": line.logger,
         "message": line.message[:_MAX_CHARACTERS]}
        for line in shown
    ]  # fmt: skip
    data = {"step_name": event.step.name, "attempt": event.attempt, "count": len(event.lines), "lines": lines}
    last = shown[-1].message[:_MAX_CHARACTERS] if shown else ""
    return "step_lines", f"{event.step.name}: {last}", data


_DESCRIBERS: Final[dict[type[Event], Any]] = {
    ExecutionQueued: _queued,
    ExecutionStarted: _started,
    ExecutionFinished: _finished,
    StepStarted: _step_started,
    StepRetrying: _step_retrying,
    StepFinished: _step_finished,
    StepSkipped: _step_skipped,
    StepsFolded: _steps_folded,
    StepMeasured: _step_measured,
    StepCost: _step_cost,
    StepLogged: _step_logged,
    StepLines: _step_lines,
}
