"""What a real Temporal server has of workflows in its histories, and what it says of activities that are under way."""

from __future__ import annotations

import asyncio
import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.conftest import Api
from tests.ingest.truth import differences
from tests.integrations.test_prefect import results, shown

from tachograph.integrations.temporal import WorkflowRun
from tachograph.report import runs

common = pytest.importorskip("temporalio.api.common.v1", reason="needs temporalio")
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure, TimeoutFailureInfo  # noqa: E402
from temporalio.api.workflow.v1 import PendingActivityInfo  # noqa: E402
from temporalio.client import WorkflowHistory  # noqa: E402

RECORDING = json.loads((Path(__file__).parent / "recordings" / "temporal_histories.json").read_text())
T0 = 1_796_000_000


@functools.cache
def history(run_id: str) -> tuple[str, list[Any]]:
    """(workflow id, events) of a recorded run."""
    told = RECORDING["runs"][run_id]
    return told["workflow_id"], list(WorkflowHistory.from_json(told["workflow_id"], told["history"]).events)


class Server:
    """Tells of recorded runs, each as far as it was asked for."""

    def __init__(self) -> None:
        self.known: dict[str, WorkflowRun] = {}

    def hear(self, run_id: str, upto: int | None = None) -> WorkflowRun:
        workflow_id, events = history(run_id)
        run = self.known.setdefault(run_id, WorkflowRun(workflow_id, run_id, self.known.get))
        run.hear(events[:upto])
        return run


@pytest.mark.parametrize("how", ["at once", "piece by piece, with restarts"])
@pytest.mark.parametrize("scene", list(RECORDING["truths"]))
async def test_histories_are_what_happened(api: Api, scene: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    runs._runs.clear()
    truth = RECORDING["truths"][scene]
    ids = [execution["run_id"] for execution in truth["executions"]]
    server, chance = Server(), random.Random(7)
    if how != "at once":
        for part in range(4):
            if part == 2:
                # Another process, which reads everything again.
                runs._runs.clear()
                server = Server()
            for execution in truth["executions"]:
                # The bridge reads a parent before its child.
                if "parent" not in execution:
                    server.hear(execution["run_id"], chance.randrange(1, 30))
    for run_id in ids:
        assert server.hear(run_id).is_ended
    if scene == "worker_killed":
        # Its history has no times of its first attempt; they follow from its policy.
        (attempt, _) = next(step for step in truth["executions"][0]["steps"] if step["name"] == "hang")["tries"]
        assert attempt == {"attempt": 1, "status": "timeout"}
    assert differences(truth, await shown(api), tolerance_seconds=0.05) == []
    assert not [record for record in caplog.records if "not reported" in record.getMessage()]


async def test_what_a_history_says_beside_steps(api: Api) -> None:
    runs._runs.clear()
    server = Server()
    nightly, child = (execution["run_id"] for execution in RECORDING["truths"]["nightly"]["executions"])
    (refused,) = (execution["run_id"] for execution in RECORDING["truths"]["refused"]["executions"])
    for run_id in (nightly, child, refused):
        server.hear(run_id)
    by_name = {timeline["workflow_name"]: timeline for timeline in await shown(api)}
    timeline = by_name["Nightly"]
    assert timeline["input_summary"] == {"workflow_id": "nightly-1", "arguments": []}
    # The trace that its client began, and so its spans are part of it.
    assert timeline["trace_id"] == by_name["Child"]["trace_id"]
    steps = {step["step_name"]: step for step in timeline["step_timeline"]}
    assert {name: step["step_type"] for name, step in steps.items() if step["step_type"] != "task"} == {
        "timer": "timer", "approve": "signal", "Child": "workflow", "store": "local",
    }  # fmt: skip
    assert steps["fetch"]["output_summary"] in (0, 1, 2)
    assert steps["charge"]["wait"]["backoff"] == pytest.approx(0.3, abs=0.05)
    first, second = steps["charge"]["attempts"]
    assert (first["error_message"], second["error_message"]) == ("card declined", None)
    # Nothing works while a timer runs.
    assert steps["timer"]["run_seconds"] == pytest.approx(0.0, abs=0.001)
    assert steps["timer"]["wait_seconds"] > 0.39
    assert by_name["Refused"]["error_message"] == "no such customer"


def at(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round((T0 + seconds) * 1e9))
    return stamp


def pending(
    attempt: int, state: Any, *, started: float, ended: float | None = None, pause: float = 0.0, failure: Any = None
) -> Any:
    info = PendingActivityInfo(
        activity_id="1", state=state, attempt=attempt, last_started_time=at(started), last_failure=failure
    )
    if ended is not None:
        info.last_attempt_complete_time.CopyFrom(at(ended))
    info.current_retry_interval.FromMilliseconds(round(pause * 1000))
    return info


SCHEDULED, STARTED = 1, 2
DECLINED = Failure(message="card declined", application_failure_info=ApplicationFailureInfo(type="Declined"))
SLOW = Failure(message="activity StartToClose timeout", timeout_failure_info=TimeoutFailureInfo())


def activity_history(attempts: int, *, ended: float) -> list[Any]:
    """Of a workflow with an activity that is tried again after 1, 2, 4, … s."""
    events: list[dict[str, Any]] = [
        {"workflowExecutionStartedEventAttributes": {"workflowType": {"name": "Shop"}}},
        {"workflowTaskStartedEventAttributes": {"scheduledEventId": "1"}},
        {"workflowTaskCompletedEventAttributes": {"scheduledEventId": "1"}},
        {"activityTaskScheduledEventAttributes": {
            "activityId": "1", "activityType": {"name": "charge"},
            "retryPolicy": {"initialInterval": "1s", "backoffCoefficient": 2.0, "maximumInterval": "4s"}}},
        {"activityTaskStartedEventAttributes": {"scheduledEventId": "4", "attempt": attempts, "lastFailure": {
            "message": "card declined", "applicationFailureInfo": {"type": "Declined"}}}},
        {"activityTaskCompletedEventAttributes": {"scheduledEventId": "4", "startedEventId": "5"}},
    ]  # fmt: skip
    times = [0.0, 0.0, 0.0, 0.0, ended - 0.5, ended]
    told: list[dict[str, Any]] = [
        {"eventId": str(i), "eventTime": at(time).ToJsonString(), "eventType": "EVENT_TYPE_UNSPECIFIED", **event}
        for i, (event, time) in enumerate(zip(events, times, strict=True), 1)
    ]
    return list(WorkflowHistory.from_json("shop-1", {"events": told}).events)


async def attempts_of(api: Api) -> list[tuple[int, str, float, float | None, str | None]]:
    (timeline,) = await shown(api)
    (step,) = timeline["step_timeline"]

    def seconds(text: str | None) -> float | None:
        if text is None:
            return None
        stamp = Timestamp()
        stamp.FromJsonString(text)
        return round(stamp.ToNanoseconds() / 1e9 - T0, 3)

    return [
        (a["attempt"], a["status"], seconds(a["started_at"]) or 0.0, seconds(a["completed_at"]), a["error_message"])
        for a in step["attempts"]
    ]


async def test_attempts_that_are_seen_while_they_run(api: Api) -> None:
    runs._runs.clear()
    events = activity_history(4, ended=20.5)
    run = WorkflowRun("shop-1", "r1", lambda run_id: None)
    run.hear(events[:4])
    run.look([pending(1, STARTED, started=0.5)])
    assert await attempts_of(api) == [(1, "running", 0.5, None, None)]
    # It has failed, and waits.
    run.look([pending(2, SCHEDULED, started=0.5, ended=2.0, pause=1.0, failure=DECLINED)])
    assert await attempts_of(api) == [(1, "failed", 0.5, 2.0, "card declined")]
    run.look([pending(2, STARTED, started=3.0, ended=2.0, failure=DECLINED)])
    run.look([pending(2, STARTED, started=3.0, ended=2.0, failure=DECLINED)])
    assert (await attempts_of(api))[1] == (2, "running", 3.0, None, None)
    # The third was never seen to run, only that it had ended.
    run.look([pending(4, SCHEDULED, started=9.0, ended=12.0, pause=4.0, failure=SLOW)])
    run.hear(events)
    run.look([pending(4, STARTED, started=20.0)])
    assert await attempts_of(api) == [
        (1, "failed", 0.5, 2.0, "card declined"),
        (2, "failed", 3.0, 7.0, "Temporal keeps the last error only"),
        (3, "timeout", 9.0, 12.0, "activity StartToClose timeout"),
        (4, "completed", 20.0, 20.5, None),
    ]


async def test_attempts_that_nobody_saw_follow_from_the_policy(api: Api) -> None:
    runs._runs.clear()
    run = WorkflowRun("shop-1", "r1", lambda run_id: None)
    # Pauses of 1, 2 and 4 s; so 3 s in 3 attempts.
    run.hear(activity_history(4, ended=10.5))
    assert await attempts_of(api) == [
        (1, "failed", 0.0, 1.0, "Temporal keeps the last error only"),
        (2, "failed", 2.0, 3.0, "Temporal keeps the last error only"),
        (3, "failed", 5.0, 6.0, "card declined"),
        (4, "completed", 10.0, 10.5, None),
    ]


async def test_an_activity_that_was_tried_very_often(api: Api) -> None:
    runs._runs.clear()
    run = WorkflowRun("shop-1", "r1", lambda run_id: None)
    run.hear(activity_history(5_000, ended=20_000.5))
    attempts = await attempts_of(api)
    assert (len(attempts), attempts[-1][:2]) == (101, (5_000, "completed"))
    (timeline,) = await shown(api)
    assert timeline["step_timeline"][0]["retry_count"] == 4_999


async def test_an_open_run_and_its_steps_are_seen(api: Api) -> None:
    runs._runs.clear()
    server = Server()
    (waiting,) = (execution["run_id"] for execution in RECORDING["truths"]["cancelled"]["executions"])
    _, events = history(waiting)
    server.hear(
        waiting, next(i for i, event in enumerate(events) if event.HasField("timer_started_event_attributes")) + 1
    )
    (timeline,) = await shown(api)
    assert (timeline["status"], results(timeline)) == ("running", {"fetch": ("completed", 1), "timer": ("pending", 0)})


async def test_nonsense_is_left_out(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    runs._runs.clear()
    # Without its start, nobody knows what it is.
    run = WorkflowRun("shop-1", "r1", lambda run_id: None)
    run.hear(activity_history(1, ended=1.0)[1:])
    run.look([pending(1, STARTED, started=0.5)])
    assert await shown(api) == []
    run = WorkflowRun("shop-1", "r2", lambda run_id: None)
    events = activity_history(1, ended=1.0)
    events[3].activity_task_scheduled_event_attributes.activity_type.name = ""
    events[5].activity_task_completed_event_attributes.scheduled_event_id = 99
    payload = common.Payload(metadata={"encoding": b"json/plain"}, data=b"{")
    events[0].workflow_execution_started_event_attributes.input.payloads.append(payload)
    secret = common.Payload(metadata={"encoding": b"json/plain"}, data=b'{"password": "hunter2"}')
    events[0].workflow_execution_started_event_attributes.input.payloads.append(secret)
    await asyncio.to_thread(run.hear, events)
    (timeline,) = await shown(api)
    assert timeline["input_summary"]["arguments"] == ["1 bytes, json/plain", {"password": "[masked]"}]
