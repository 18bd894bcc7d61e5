"""Temporal: ``tachograph bridge temporal ADDRESS``.

What is here reports a workflow execution from its history, and from what the server says of the activities that are
under way, which the history does not have. An activity, a child workflow, a timer, a signal, an update and a Nexus
operation are steps; a child workflow is a run of its own, too. What comes again changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from tachograph.integrations.places import numbered
from tachograph.integrations.temporal_activities import Activity
from tachograph.integrations.temporal_values import (
    error_of,
    seconds_of,
    text_of,
    trace_of,
    value_of,
    values_of,
)
from tachograph.quiet_log import QuietLog
from tachograph.report import Run, Step, run

quiet = QuietLog(logging.getLogger(__name__))

LEASE_SECONDS: Final = 86_400.0
"""How long a run may be silent while the bridge is away."""
MAX_STEPS: Final = 20_000
"""Steps of a run that are told of."""
MAX_SIGNALS: Final = 1_000
"""Signals of a run that are told of: a workflow may get many."""
_LOCAL: Final = ("core_local_activity", "LocalActivity")


class WorkflowRun:
    """A workflow execution, and what of its history was told.

    Args:
        workflow_id: which is its name for its users.
        run_id: its id.
        find: returns a workflow execution with a run id, if it is known; asked for the parent of this one.

    Attributes:
        last_event_id: how far its history was told.
        is_ended: whether it was told to its end.
        parent: the run id of the workflow that started this one, or None.
    """

    def __init__(self, workflow_id: str, run_id: str, find: Callable[[str], WorkflowRun | None]) -> None:
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.last_event_id = 0
        self.is_ended = False
        self._find = find
        self._reported: Run | None = None
        self._steps: dict[int, Step] = {}
        self._activities: dict[int, Activity] = {}
        self._by_activity_id: dict[str, Activity] = {}
        self._updates: dict[str, Step] = {}
        self._counts: dict[str, int] = {}
        self._signals = 0
        # What has ended, and has led to nothing yet; and what did by the workflow task that is at work.
        self._ended: dict[str, Step] = {}
        self._causes: list[Step] = []
        self._commanded = False

    @property
    def reported(self) -> Run | None:
        """The run, once its start was heard."""
        return self._reported

    @property
    def _told(self) -> Run:
        if self._reported is None:
            raise LookupError("its start was not heard")
        return self._reported

    def step_of(self, event_id: int) -> Step | None:
        """The step that an event of the history began."""
        return self._steps.get(event_id)

    def hear(self, events: Iterable[Any]) -> None:
        """Tell of events of the history (``HistoryEvent``), in order. Those that were told are passed over."""
        for event in events:
            if event.event_id <= self.last_event_id:
                continue
            self.last_event_id = event.event_id
            kind = event.WhichOneof("attributes")
            tell = getattr(self, f"_{kind.removesuffix('_event_attributes')}", None) if kind is not None else None
            if tell is None:
                continue
            try:
                if self._reported is not None or kind == "workflow_execution_started_event_attributes":
                    tell(event, getattr(event, kind), seconds_of(event.event_time))
            except Exception:
                quiet.exception(kind, "not reported: an event of Temporal: %s", kind)

    def look(self, pending_activities: Iterable[Any]) -> None:
        """Tell of activities that are under way (``PendingActivityInfo``), which the history has only later."""
        for pending in pending_activities:
            activity = self._by_activity_id.get(pending.activity_id)
            if activity is None:
                continue
            try:
                activity.look(pending)
            except Exception:
                quiet.exception("pending", "not reported: an activity of Temporal that is under way")
        if self._reported is not None:
            self._reported.alive()

    # The run.

    def _workflow_execution_started(self, event: Any, told: Any, at: float) -> None:
        workflow = told.workflow_type.name
        options: dict[str, Any] = {
            "run_id": self.run_id, "engine": "temporal", "lease": LEASE_SECONDS, "trace_id": trace_of(told.header),
            "heartbeats": False,
        }  # fmt: skip
        step = None
        if told.HasField("parent_workflow_execution"):
            parent = self._find(told.parent_workflow_execution.run_id)
            step = parent.step_of(told.parent_initiated_event_id) if parent is not None else None
        outer = step.run if step is not None else None
        if step is not None and isinstance(outer, Run):
            self._reported = outer.nested(step, workflow, **options)
        else:
            self._reported = run(workflow, **options)
        inputs = {"workflow_id": self.workflow_id, "arguments": values_of(told.input.payloads)}
        due = at + seconds_of(told.first_workflow_task_backoff)
        self._reported.queued(inputs=inputs, at=due)

    def _workflow_task_started(self, event: Any, told: Any, at: float) -> None:
        self._told.begin(at=at, heartbeats=False)

    def _workflow_task_completed(self, event: Any, told: Any, at: float) -> None:
        # What the workflow does now, it does because of what has ended since it did something last.
        self._causes = list(self._ended.values())
        self._commanded = False

    def _close(self, at: float) -> Run:
        self.is_ended = True
        for step in self._steps.values():
            if step.finished_ns is None:
                step.cancelled("Cancelled: its workflow ended", at=at)
        return self._told

    def _workflow_execution_completed(self, event: Any, told: Any, at: float) -> None:
        self._close(at).finished(at=at)

    def _workflow_execution_continued_as_new(self, event: Any, told: Any, at: float) -> None:
        self._close(at).finished(at=at)

    def _workflow_execution_failed(self, event: Any, told: Any, at: float) -> None:
        self._close(at).failed(error_of(told.failure), at=at)

    def _workflow_execution_timed_out(self, event: Any, told: Any, at: float) -> None:
        self._close(at).timed_out("Timeout: the workflow's time was up", at=at)

    def _workflow_execution_canceled(self, event: Any, told: Any, at: float) -> None:
        self._close(at).cancelled(at=at)

    def _workflow_execution_terminated(self, event: Any, told: Any, at: float) -> None:
        self._close(at).cancelled(f"Terminated: {told.reason or 'no reason was given'}", at=at)

    # Activities.

    def _activity_task_scheduled(self, event: Any, told: Any, at: float) -> None:
        step = self._command(event, told.activity_type.name, "task")
        if step is not None:
            activity = Activity(step.queued(at=at), at, told.retry_policy)
            self._activities[event.event_id] = self._by_activity_id[told.activity_id] = activity

    def _activity_task_started(self, event: Any, told: Any, at: float) -> None:
        activity = self._activities.get(told.scheduled_event_id)
        if activity is not None:
            activity.start(max(1, told.attempt), at, told.last_failure)

    def _activity_task_completed(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.scheduled_event_id)
        if step is not None:
            results = values_of(told.result.payloads)
            step.finished(results[0] if len(results) == 1 else results or None, at=at)

    def _activity_task_failed(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.scheduled_event_id)
        if step is not None:
            step.failed(error_of(told.failure), at=at)

    def _activity_task_timed_out(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.scheduled_event_id)
        if step is not None:
            step.timed_out(error_of(told.failure), at=at)

    def _activity_task_canceled(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.scheduled_event_id)
        if step is not None:
            step.cancelled(at=at)

    def _marker_recorded(self, event: Any, told: Any, at: float) -> None:
        if told.marker_name not in _LOCAL:
            return
        details: dict[str, Any] = {}
        for payloads in told.details.values():
            for payload in payloads.payloads:
                value = value_of(payload)
                if isinstance(value, dict) and ("activity_type" in value or "ActivityType" in value):
                    details = value
        name = str(details.get("activity_type") or details.get("ActivityType") or "local activity")
        step = self._command(event, name, "local")
        if step is None:
            return
        begins, ends = _moment(details.get("original_schedule_time")), _moment(details.get("complete_time"))
        attempt = details.get("attempt")
        step.started(attempt=attempt if type(attempt) is int and attempt > 0 else None, at=begins or at)
        if told.HasField("failure"):
            step.failed(error_of(told.failure), at=ends or at)
        else:
            step.finished(at=ends or at)
        self._end(event.event_id)

    # Timers, signals, updates.

    def _timer_started(self, event: Any, told: Any, at: float) -> None:
        # A timer is not work, but a wait.
        name = text_of(event.user_metadata.summary) or "timer"
        step = self._command(event, name, "timer")
        if step is not None:
            step.queued(at=at)

    def _timer_fired(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.started_event_id)
        if step is not None:
            step.started(at=at).finished(at=at)

    def _timer_canceled(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.started_event_id)
        if step is not None:
            step.cancelled(at=at)

    def _workflow_execution_signaled(self, event: Any, told: Any, at: float) -> None:
        self._signals += 1
        if self._signals > MAX_SIGNALS:
            quiet.warning("signals", "not reported: more than %d signals of a workflow", MAX_SIGNALS)
            return
        step = self._step(event.event_id, told.signal_name, "signal")
        if step is not None:
            step.started(at=at, inputs=values_of(told.input.payloads) or None).finished(at=at)
            self._end(event.event_id)

    def _workflow_execution_update_accepted(self, event: Any, told: Any, at: float) -> None:
        request = told.accepted_request
        step = self._step(event.event_id, request.input.name or "update", "update")
        if step is not None:
            step.started(at=at, inputs=values_of(request.input.args.payloads) or None)
            self._updates[request.meta.update_id] = step

    def _workflow_execution_update_completed(self, event: Any, told: Any, at: float) -> None:
        step = self._updates.get(told.meta.update_id)
        if step is None:
            return
        if told.outcome.HasField("failure"):
            step.failed(error_of(told.outcome.failure), at=at)
        else:
            step.finished(at=at)

    # Child workflows and Nexus operations.

    def _start_child_workflow_execution_initiated(self, event: Any, told: Any, at: float) -> None:
        step = self._command(event, told.workflow_type.name, "workflow")
        if step is not None:
            step.queued(at=at)

    def _start_child_workflow_execution_failed(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.initiated_event_id)
        if step is not None:
            step.failed("StartChildWorkflowFailed: a workflow with its id runs already", at=at)

    def _child_workflow_execution_started(self, event: Any, told: Any, at: float) -> None:
        step = self._steps.get(told.initiated_event_id)
        if step is not None and self._reported is not None:
            self._reported.nested(
                step, told.workflow_type.name, run_id=told.workflow_execution.run_id, engine="temporal",
                lease=LEASE_SECONDS, trace_id=trace_of(told.header), heartbeats=False,
            )  # fmt: skip
            step.started(at=at)

    def _child_workflow_execution_completed(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.initiated_event_id)
        if step is not None:
            step.finished(at=at)

    def _child_workflow_execution_failed(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.initiated_event_id)
        if step is not None:
            step.failed(error_of(told.failure), at=at)

    def _child_workflow_execution_timed_out(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.initiated_event_id)
        if step is not None:
            step.timed_out("Timeout: the workflow's time was up", at=at)

    def _child_workflow_execution_canceled(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.initiated_event_id)
        if step is not None:
            step.cancelled(at=at)

    _child_workflow_execution_terminated = _child_workflow_execution_canceled

    def _nexus_operation_scheduled(self, event: Any, told: Any, at: float) -> None:
        step = self._command(event, f"{told.service}.{told.operation}", "nexus")
        if step is not None:
            step.queued(at=at)

    def _nexus_operation_started(self, event: Any, told: Any, at: float) -> None:
        step = self._steps.get(told.scheduled_event_id)
        if step is not None:
            step.started(at=at)

    def _nexus_operation_completed(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.scheduled_event_id)
        if step is not None:
            step.finished(at=at)

    def _nexus_operation_failed(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.scheduled_event_id)
        if step is not None:
            step.failed(error_of(told.failure), at=at)

    def _nexus_operation_timed_out(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.scheduled_event_id)
        if step is not None:
            step.timed_out(error_of(told.failure), at=at)

    def _nexus_operation_canceled(self, event: Any, told: Any, at: float) -> None:
        step = self._end(told.scheduled_event_id)
        if step is not None:
            step.cancelled(at=at)

    # Steps.

    def _command(self, event: Any, name: str, step_type: str) -> Step | None:
        """A step that the workflow began: it waited for what has ended since the workflow began something last."""
        step = self._step(event.event_id, name, step_type)
        if step is not None:
            step.depend_on(*self._causes)
        if not self._commanded:
            self._commanded = True
            for cause in self._causes:
                self._ended.pop(cause.id, None)
        return step

    def _step(self, event_id: int, name: str, step_type: str) -> Step | None:
        if self._reported is None or len(self._steps) >= MAX_STEPS:
            quiet.warning("steps", "not reported: more than %d steps of a workflow", MAX_STEPS)
            return None
        number = self._counts[name] = self._counts.get(name, 0) + 1
        step = self._reported.step(name, key=numbered(name, number), repetition=number - 1, step_type=step_type)
        self._steps[event_id] = step
        return step

    def _end(self, event_id: int) -> Step | None:
        """The step that an event began has ended; what the workflow does next may be because of it."""
        step = self._steps.get(event_id)
        if step is not None:
            self._ended[step.id] = step
        return step

    def forget(self) -> None:
        """Give back what is remembered of the run."""
        if self._reported is not None:
            self._reported.forget()


def _moment(value: Any) -> float | None:
    """Unix seconds of a moment in a marker: ``{"seconds": 1, "nanos": 2}``, or a text."""
    if isinstance(value, dict) and type(value.get("seconds")) is int:
        nanos = value.get("nanos")
        return float(value["seconds"]) + (nanos / 1e9 if type(nanos) is int else 0.0)
    if isinstance(value, str):
        from datetime import datetime

        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            return None
    return None
