"""What a real Prefect server said of three flow runs, event by event; and what else its events may say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Api
from tests.ingest.truth import differences

from tachograph.integrations.prefect import Fact, FlowRuns
from tachograph.integrations.prefect_events import error_of, task_run_of
from tachograph.report import runs

RECORDINGS = Path(__file__).parent / "recordings"
EVENTS = [json.loads(line) for line in (RECORDINGS / "prefect3_events.jsonl").read_text().splitlines()]
TRUTH = json.loads((RECORDINGS / "prefect3_events.truth.json").read_text())
NIGHTLY, CHILD = (execution["run_id"] for execution in TRUTH["executions"][:2])
STAND_IN = "cf00b811-1013-4ec1-b30a-c812420198fe"
TRACE = "4d75ea50e40ea5912252ad75b753e81b"
START = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)


class Server:
    """A Prefect server as its API answers; what it does not know is 404."""

    def __init__(self, **flow_runs: Mapping[str, Any]) -> None:
        self.flow_runs = flow_runs
        self.asked = 0

    async def flow_run(self, run_id: str) -> Mapping[str, Any] | None:
        self.asked += 1
        if run_id == NIGHTLY:
            labels = {"__OTEL_TRACEPARENT": f"00-{TRACE}-00f067aa0ba902b7-01"}
            return {"id": run_id, "labels": labels, "parameters": {"day": "today", "password": "hunter2"}}
        if run_id == CHILD:
            return {"id": run_id, "labels": {}, "parameters": {}, "parent_task_run_id": STAND_IN}
        return self.flow_runs.get(run_id)

    async def task_run(self, run_id: str) -> Mapping[str, Any] | None:
        if run_id != STAND_IN:
            return None
        return {"id": run_id, "name": "child-0", "flow_run_id": NIGHTLY, "task_inputs": {"number": []}}

    async def flow(self, flow_id: str) -> Mapping[str, Any] | None:
        return None


async def shown(api: Api) -> list[dict[str, Any]]:
    assert await asyncio.to_thread(api.service.recorder.flush, 60)
    page = await api.get("/api/workflows/executions")
    return [await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline") for item in page["items"]]


@pytest.mark.parametrize("how", ["once", "twice", "with a restart after every event"])
async def test_a_recorded_stream_is_what_prefect_says(api: Api, how: str, caplog: pytest.LogCaptureFixture) -> None:
    runs._runs.clear()
    facts: list[Fact] = []
    flows = FlowRuns(Server(), facts.append)
    for event in EVENTS:
        await flows.hear(event)
        if how == "twice":
            await flows.hear(event)
        if how.startswith("with"):
            runs._runs.clear()
            flows = FlowRuns(Server(), facts.append)
            flows.recall(json.loads(json.dumps(facts)))
    timelines = await shown(api)
    assert differences(TRUTH, timelines, tolerance_seconds=0.05) == []
    by_name = {timeline["workflow_name"]: timeline for timeline in timelines}
    nightly, failed = by_name["nightly"], by_name["nightly_fail"]
    assert (nightly["trace_id"], by_name["child"]["trace_id"]) == (TRACE, TRACE)
    assert nightly["queued_seconds"] == pytest.approx(0.0275, abs=0.001)
    assert nightly["input_summary"] == {"day": "today", "password": "[masked]"}
    work = [step for step in nightly["step_timeline"] if step["step_name"] == "work"]
    assert sorted(step["step_index"] for step in work) == [0, 1, 2, 3, 4]
    flaky = next(step for step in nightly["step_timeline"] if step["step_name"] == "flaky")
    assert [attempt["status"] for attempt in flaky["attempts"]] == ["failed", "completed"]
    assert flaky["wait"]["backoff"] == pytest.approx(1.0, abs=0.01)
    assert [part["step_name"] for part in nightly["critical_path"]][-3:] == ["merge", "flaky", "load"]
    assert (failed["error_type"], failed["error_message"]) == ("RuntimeError", "kaboom")
    assert [step["skip_reason"] for step in failed["step_timeline"] if step["skip_reason"]] == ["upstream_failed"]
    assert flows.open_flow_runs() == []
    assert not [record for record in caplog.records if "not reported" in record.getMessage()]
    # What an earlier process noted is enough, and so is what is left of it.
    again = FlowRuns(Server())
    again.recall(facts)
    left = FlowRuns(Server())
    left.recall(list(again.facts()))
    assert list(left.facts()) == list(again.facts())


class Stream:
    """Makes events of one flow run, as Prefect 3.9 does."""

    def __init__(
        self, flows: FlowRuns, flow: str = "etl", run_id: str = "0f000000-0000-4000-8000-000000000001"
    ) -> None:
        self.flows, self.flow, self.run_id = flows, flow, run_id
        self.now = START
        self.count = 0
        self.told: list[Any] = []

    async def tell(
        self, resource: dict[str, Any], state: str, *, after: float = 1.0, name: str | None = None,
        before: str = "RUNNING", count: int = 1, message: str = "", related: tuple[dict[str, Any], ...] = (),
        **payload: Any,
    ) -> None:  # fmt: skip
        self.now += timedelta(seconds=after)
        self.count += 1
        kind = resource["prefect.resource.id"].split(".")[1]
        event = {
            "id": f"e{self.count}",
            "event": f"prefect.{kind}.{name or state.title()}",
            "occurred": self.now.isoformat(),
            "resource": {
                **resource, "prefect.state-type": state, "prefect.state-name": name or state.title(),
                "prefect.state-message": message, "prefect.run-count": str(count),
            },
            "related": [*related, {"prefect.resource.id": "prefect.flow.f1", "prefect.resource.role": "flow",
                                   "prefect.resource.name": self.flow}],
            "payload": {"intended": {"from": before, "to": state}, **payload},
        }  # fmt: skip
        self.told.append(event)
        await self.flows.hear(event)

    async def run(self, state: str, **more: Any) -> None:
        await self.tell({"prefect.resource.id": f"prefect.flow-run.{self.run_id}"}, state, **more)

    async def task(
        self, task: str, state: str, *, number: int = 1, of_run: int = 1, inputs: Any = None, key: str = "",
        alone: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        identifier = f"{task}-{number}"
        related = {"prefect.resource.id": f"prefect.flow-run.{self.run_id}", "prefect.resource.role": "flow-run"}
        task_run = {
            "name": f"{task}-abc", "task_key": key or f"{task}-d9318baf", "dynamic_key": "abcdef01-2345",
            "task_inputs": inputs or {}, "flow_run_run_count": of_run,
        }  # fmt: skip
        await self.tell(
            {"prefect.resource.id": f"prefect.task-run.{identifier}"}, state, related=() if alone else (related,),
            task_run=task_run, **more,
        )  # fmt: skip


def results(timeline: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {
        step["step_name"] + ("" if step["step_index"] is None else f"#{step['step_index']}"): (
            step["status"],
            len(step["attempts"]),
        )
        for step in timeline["step_timeline"]
    }


@pytest.mark.parametrize(
    ("state", "name", "message", "status", "error"),
    [
        ("COMPLETED", "Completed", "", "completed", (None, None)),
        ("CANCELLED", "Cancelled", "", "cancelled", (None, None)),
        ("CRASHED", "Crashed", "Flow run infrastructure exited with code 137.", "failed",
         ("Crashed", "Flow run infrastructure exited with code 137.")),
        ("FAILED", "TimedOut", "Flow run exceeded timeout of 2.0 second(s)", "timeout",
         ("TimedOut", "Flow run exceeded timeout of 2.0 second(s)")),
        ("FAILED", "Failed", "Flow run encountered an exception: shop.PriceError: no price: 3", "failed",
         ("shop.PriceError", "no price: 3")),
    ],
    ids=["completed", "cancelled", "crashed", "timed out", "failed"],
)  # fmt: skip
async def test_how_a_flow_run_ends(
    api: Api, state: str, name: str, message: str, status: str, error: tuple[str | None, str | None]
) -> None:
    runs._runs.clear()
    told = Stream(FlowRuns(Server()))
    await told.run("RUNNING")
    await told.task("work", "RUNNING")
    await told.task(
        "work", state, name=name, message=message.replace("Flow", "Task").replace("exception:", "exception")
    )
    await told.run(state, name=name, message=message)
    (timeline,) = await shown(api)
    (step,) = timeline["step_timeline"]
    assert (timeline["status"], timeline["error_type"], timeline["error_message"]) == (status, *error)
    assert (step["status"], step["error_type"]) == (status, error[0])


async def test_a_flow_run_that_is_tried_again(api: Api) -> None:
    """By its own retries it is one run; started again after its end, it is another one."""
    runs._runs.clear()
    facts: list[Fact] = []
    told = Stream(FlowRuns(Server(), facts.append))
    await told.run("PENDING", count=0, before="SCHEDULED")
    await told.run("PENDING", count=0, name="InfrastructurePending", before="PENDING", after=2.0)
    await told.run("RUNNING")
    await told.task("extract", "COMPLETED")
    await told.run("SCHEDULED", name="AwaitingRetry")
    await told.run("RUNNING", name="Retrying", count=2)
    await told.task("extract", "RUNNING", number=2, of_run=2)
    await told.task("extract", "COMPLETED", number=2, of_run=2)
    await told.run("FAILED", count=2)
    (timeline,) = await shown(api)
    assert (timeline["status"], timeline["total_duration_seconds"]) == ("failed", 6.0)
    assert timeline["queued_seconds"] == 3.0
    assert results(timeline) == {"extract#0": ("completed", 1), "extract#1": ("completed", 1)}
    await told.run("SCHEDULED", name="AwaitingRetry", before="FAILED", count=2)
    # The bridge starts anew.
    runs._runs.clear()
    told.flows = FlowRuns(Server(), facts.append)
    told.flows.recall(facts)
    await told.run("PENDING", count=2, before="SCHEDULED")
    await told.run("RUNNING", count=3)
    await told.task("extract", "RUNNING", number=3, of_run=3)
    # It reads some of what was heard before.
    for event in told.told[5:]:
        await told.flows.hear(event)
    assert told.flows.open_flow_runs() == [told.run_id]
    await told.tell({"prefect.resource.id": "prefect.flow-run.other"}, "", name="celebrated")
    await told.task("extract", "COMPLETED", number=3, of_run=3)
    await told.run("COMPLETED", count=3)
    second, first = await shown(api)
    assert (first["status"], second["status"]) == ("failed", "completed")
    assert results(second) == {"extract": ("completed", 1)}
    assert second["total_duration_seconds"] == 4.0


async def test_tasks_within_tasks_and_tasks_without_a_flow(api: Api) -> None:
    runs._runs.clear()
    told = Stream(FlowRuns(Server()))
    await told.run("RUNNING")
    await told.task("outer", "RUNNING")
    parents = {"__parents__": [{"input_type": "task_run", "id": "outer-1"}]}
    await told.task("inner", "RUNNING", inputs=parents)
    await told.task("inner", "COMPLETED", inputs=parents)
    # It is told of before what it depends on.
    await told.task("later", "PENDING", inputs={"x": [{"input_type": "task_run", "id": "first-1"}]}, count=0)
    await told.task("first", "RUNNING")
    await told.task("first", "COMPLETED")
    await told.task("later", "RUNNING", inputs={"x": [{"input_type": "constant", "type": "int"}]})
    await told.task("later", "COMPLETED")
    await told.task("outer", "COMPLETED")
    await told.run("COMPLETED")
    await told.task("send", "PENDING", alone=True, count=0)
    await told.task("send", "RUNNING", alone=True)
    await told.task("send", "FAILED", alone=True, message="Task run encountered an exception ValueError: no mail")
    send, etl = await shown(api)
    assert (send["workflow_name"], send["status"], send["error_message"]) == ("send", "failed", "no mail")
    assert results(send) == {"send": ("failed", 1)}
    ids = {step["step_name"]: step["step_id"] for step in etl["step_timeline"]}
    steps = {step["step_name"]: step for step in etl["step_timeline"]}
    assert steps["inner"]["parent_step_id"] == ids["outer"]
    assert steps["inner"]["depends_on"] == []
    assert steps["later"]["depends_on"] == [ids["first"]]


async def test_what_no_event_tells(api: Api) -> None:
    """A killed process is lost; an end whose event never came is the server's; what goes on is alive."""
    runs._runs.clear()
    flows = FlowRuns(Server())
    killed, silent, going = (Stream(flows, name, f"0f000000-0000-4000-8000-00000000000{i}") for i, name in
                             enumerate(("killed", "silent", "going")))  # fmt: skip
    for told in (killed, silent, going):
        await told.run("RUNNING")
        await told.task(f"work-{told.flow}", "RUNNING")
    for _ in range(3):
        for told in (killed, going):
            await told.tell({"prefect.resource.id": f"prefect.flow-run.{told.run_id}"}, "", name="heartbeat", after=30)
    states = {told.run_id: {"state": {"type": "RUNNING"}} for told in (killed, going)}
    ended_at = START + timedelta(seconds=40)
    states[silent.run_id] = {"state": {"type": "CRASHED", "name": "Crashed", "timestamp": ended_at.isoformat()}}
    now = killed.now.timestamp()
    assert flows.look(states, now + 100) == ended_at.timestamp() - 48  # since the last that was heard of it
    assert {timeline["status"] for timeline in await shown(api)} == {"running"}
    await going.tell({"prefect.resource.id": f"prefect.flow-run.{going.run_id}"}, "", name="heartbeat", after=30)
    assert flows.look(states, now + 130) is None
    by_name = {timeline["workflow_name"]: timeline for timeline in await shown(api)}
    assert {name: timeline["status"] for name, timeline in by_name.items()} == {
        "killed": "lost", "silent": "failed", "going": "running",
    }  # fmt: skip
    assert by_name["silent"]["total_duration_seconds"] == 39.0
    assert by_name["killed"]["total_duration_seconds"] == 91.0
    # Prefect finds it out later.
    await killed.run("CRASHED", after=200)
    by_name = {timeline["workflow_name"]: timeline for timeline in await shown(api)}
    assert by_name["killed"]["status"] == "failed"
    assert flows.open_flow_runs() == [going.run_id]
    # What ended long ago is given back.
    flows.look({}, now + 100_000)
    assert {known.run_id for known in flows._runs.values()} == {going.run_id}
    assert len(runs._runs) == 1


async def test_nonsense_is_left_out(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    runs._runs.clear()
    flows = FlowRuns(Server())
    running = next(event for event in EVENTS if event["event"] == "prefect.task-run.Running")
    nonsense: list[Any] = [None, 1, "x", [], {}, {**running, "occurred": "soon"}, {**running, "resource": {}}]
    nonsense += [{**running, "payload": {"task_run": 1}}, {**running, "related": [None]}]
    for value in nonsense:
        assert await flows.hear(value) is None
    # Of a flow run without a name nobody can say which workflow it is.
    nameless = {**running, "related": [running["related"][0] | {"prefect.resource.id": "prefect.flow-run.nobody"}]}
    await flows.hear(nameless)
    await flows.hear({**running, "payload": {}})
    flows.recall([[], ["flow"], ["flow", 1, 2, 3, 4], ["task", "x", "y", "z", 1, 1, None], ["end", "x", 1.0], ["?"]])
    assert await shown(api) == []
    assert flows.open_flow_runs() == []


@pytest.mark.parametrize(
    ("task_run", "task"),
    [
        ({"name": "extract-7ba", "task_key": "extract-d9318baf", "dynamic_key": "7ba4cb48-1b8b"}, "extract"),
        ({"name": "Load data-7ba", "task_key": "load-d9318baf", "dynamic_key": "7ba4cb48-1b8b"}, "Load data"),
        ({"name": "extract-3", "task_key": "main.<locals>.extract-d9318baf", "dynamic_key": "3"}, "extract"),
        ({"name": "of 2026-11-25", "task_key": "main.<locals>.load-d9318baf", "dynamic_key": "7ba4"}, "load"),
        ({"name": "child-0"}, "child"),
    ],
)
def test_the_name_of_a_task(task_run: dict[str, Any], task: str) -> None:
    assert task_run_of(task_run).task == task


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Task run encountered an exception RuntimeError: kaboom", "RuntimeError: kaboom"),
        ("Flow run encountered an exception: ValueError", "ValueError: no message"),
        ("Flow run encountered an exception: KeyError: 'exception: no'", "KeyError: 'exception: no'"),
        ("", "Failed: Prefect says no reason"),
        ("1/2 states failed.", "Failed: 1/2 states failed."),
    ],
)
def test_errors(message: str, error: str) -> None:
    assert error_of("Failed", message) == error
