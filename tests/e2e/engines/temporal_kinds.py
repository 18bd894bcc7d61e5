"""Temporal workflows as users write them, traced only by the SDK's own interceptor or plugin.

python temporal_kinds.py ADDRESS [SCENE …]        plays scenes, with a worker of its own
python temporal_kinds.py ADDRESS --worker         the worker that gets killed

The truth is from the workflows' histories on the server; what waits for what is from the program.
"""

import asyncio
import contextlib
import os
import signal
import sys
from datetime import timedelta

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from telling import execution, spawn, step, stop_at_sigterm, tell
from temporalio import activity, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WithStartWorkflowOperation, WorkflowFailureError
from temporalio.common import RetryPolicy, WorkflowIDConflictPolicy
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError
from temporalio.service import RPCError
from temporalio.worker import Worker

LIMIT = timedelta(seconds=20)
ONCE = RetryPolicy(maximum_attempts=1)
QUICKLY = RetryPolicy(initial_interval=timedelta(milliseconds=300), backoff_coefficient=1.0, maximum_attempts=3)


@activity.defn
async def fetch(number: int) -> int:
    await asyncio.sleep(0.1)
    return number


@activity.defn
async def charge(number: int) -> int:
    await asyncio.sleep(0.05)
    if activity.info().attempt < 2:
        raise ApplicationError("card declined")
    return number


@activity.defn
async def refuse(number: int) -> None:
    raise ApplicationError("no such customer")


@activity.defn
async def hang(number: int) -> None:
    if activity.info().attempt == 1:
        for _ in range(300):
            activity.heartbeat()
            await asyncio.sleep(0.2)
    await asyncio.sleep(0.1)


@activity.defn
async def store(number: int) -> None:
    await asyncio.sleep(0.05)


@workflow.defn
class Nightly:
    """Fetch three at once, charge with a retry, a timer, a signal, a child, a local activity."""

    def __init__(self) -> None:
        self.approved = False

    @workflow.signal
    def approve(self) -> None:
        self.approved = True

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(fetch, 0, start_to_close_timeout=LIMIT)
        await asyncio.gather(*(workflow.execute_activity(fetch, i, start_to_close_timeout=LIMIT) for i in range(1, 3)))
        await workflow.execute_activity(charge, 1, start_to_close_timeout=LIMIT, retry_policy=QUICKLY)
        await asyncio.sleep(0.4)
        await workflow.wait_condition(lambda: self.approved)
        await workflow.execute_child_workflow(Child.run, 1, id=f"{workflow.info().workflow_id}-child")
        await workflow.execute_local_activity(store, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Child:
    @workflow.run
    async def run(self, number: int) -> None:
        await workflow.execute_activity(store, number, start_to_close_timeout=LIMIT)


@workflow.defn
class Refused:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(fetch, 1, start_to_close_timeout=LIMIT)
        await workflow.execute_activity(refuse, 1, start_to_close_timeout=LIMIT, retry_policy=ONCE)
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Waiting:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(fetch, 1, start_to_close_timeout=LIMIT)
        await asyncio.sleep(3600)


@workflow.defn
class Looping:
    @workflow.run
    async def run(self, left: int) -> None:
        await workflow.execute_activity(fetch, left, start_to_close_timeout=LIMIT)
        if left:
            workflow.continue_as_new(left - 1)


@workflow.defn
class Slow:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(fetch, 1, start_to_close_timeout=LIMIT)
        await workflow.execute_activity(
            hang, 1, start_to_close_timeout=timedelta(minutes=2),
            heartbeat_timeout=timedelta(seconds=5), retry_policy=QUICKLY,
        )  # fmt: skip


@activity.defn
async def linger(number: int) -> None:
    """The first attempt takes longer than it may."""
    await asyncio.sleep(2.5 if activity.info().attempt == 1 else 0.1)


@workflow.defn
class Family:
    """Two children beside each other, each with a child of its own, and an activity after both."""

    @workflow.run
    async def run(self) -> None:
        own = workflow.info().workflow_id
        await workflow.execute_activity(fetch, 1, start_to_close_timeout=LIMIT)
        await asyncio.gather(
            *(workflow.execute_child_workflow(Middle.run, i, id=f"{own}-middle-{i}") for i in range(2))
        )
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Middle:
    @workflow.run
    async def run(self, number: int) -> None:
        own = workflow.info().workflow_id
        await workflow.execute_activity(fetch, number, start_to_close_timeout=LIMIT)
        await workflow.execute_child_workflow(Child.run, number, id=f"{own}-child")


@workflow.defn
class Careless:
    """Its child fails: the first time it goes on without it, the second time it fails itself."""

    @workflow.run
    async def run(self, is_caught: bool) -> None:
        try:
            await workflow.execute_child_workflow(Refused.run, id=f"{workflow.info().workflow_id}-child")
        except ChildWorkflowError:
            if not is_caught:
                raise
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Stubborn:
    """An activity that takes too long once, and one that fails for good."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(linger, 1, start_to_close_timeout=timedelta(seconds=1), retry_policy=QUICKLY)
        await workflow.execute_activity(refuse, 1, start_to_close_timeout=LIMIT, retry_policy=QUICKLY)


@workflow.defn
class Leaving:
    """Starts a child that outlives it, and cancels another one."""

    @workflow.run
    async def run(self) -> None:
        own = workflow.info().workflow_id
        await workflow.start_child_workflow(
            Late.run, id=f"{own}-late", parent_close_policy=workflow.ParentClosePolicy.ABANDON
        )
        waiting = await workflow.start_child_workflow(Waiting.run, id=f"{own}-waiting")
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)
        await asyncio.sleep(1)
        waiting.cancel()
        with contextlib.suppress(ChildWorkflowError):
            await waiting


@workflow.defn
class Late:
    @workflow.run
    async def run(self) -> None:
        await asyncio.sleep(1.5)
        await workflow.execute_activity(store, 2, start_to_close_timeout=LIMIT)


@workflow.defn
class Local:
    """A local activity that is tried again."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_local_activity(charge, 1, start_to_close_timeout=LIMIT, retry_policy=QUICKLY)
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Asked:
    """Answers a query, and ends after an update."""

    def __init__(self) -> None:
        self.answer = 0

    @workflow.query
    def state(self) -> int:
        return self.answer

    @workflow.update
    async def change(self, number: int) -> int:
        await workflow.execute_activity(store, number, start_to_close_timeout=LIMIT)
        self.answer = number
        return number

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: self.answer > 0)


@activity.defn
async def silent(number: int) -> None:
    """The first attempt says nothing for longer than it may."""
    await asyncio.sleep(2.5 if activity.info().attempt == 1 else 0.1)


@workflow.defn
class Parent:
    """Its child continues as new."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(fetch, 1, start_to_close_timeout=LIMIT)
        await workflow.execute_child_workflow(Looping.run, 1, id=f"{workflow.info().workflow_id}-child")
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Guardian:
    """It is cancelled while its child waits."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)
        await workflow.execute_child_workflow(Waiting.run, id=f"{workflow.info().workflow_id}-child")


@workflow.defn
class Quiet:
    """An activity whose first attempt sends no heartbeat, and one that nobody takes."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(
            silent, 1, start_to_close_timeout=LIMIT, heartbeat_timeout=timedelta(seconds=1), retry_policy=QUICKLY
        )
        with contextlib.suppress(ActivityError):
            await workflow.execute_activity(
                fetch, 1, task_queue="nobody", schedule_to_start_timeout=timedelta(seconds=1),
                schedule_to_close_timeout=LIMIT,
            )  # fmt: skip
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Persistent:
    """Fails the first time, and is run again by the server."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(fetch, 1, start_to_close_timeout=LIMIT)
        if workflow.info().attempt == 1:
            raise ApplicationError("not yet")
        await workflow.execute_activity(store, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Mailbox:
    """Is started by a signal or an update, which runs an activity beside its own."""

    def __init__(self) -> None:
        self.letters = 0

    @workflow.signal
    async def post(self, number: int) -> None:
        await workflow.execute_activity(store, number, start_to_close_timeout=LIMIT)
        self.letters += 1

    @workflow.update
    async def deliver(self, number: int) -> int:
        await workflow.execute_activity(store, number, start_to_close_timeout=LIMIT)
        self.letters += 1
        return self.letters

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: self.letters > 0)
        await workflow.execute_activity(fetch, 1, start_to_close_timeout=LIMIT)


@workflow.defn
class Closing:
    """Ends while its child waits, which the server terminates then."""

    @workflow.run
    async def run(self) -> None:
        await workflow.start_child_workflow(
            Waiting.run, id=f"{workflow.info().workflow_id}-child",
            parent_close_policy=workflow.ParentClosePolicy.TERMINATE,
        )  # fmt: skip
        await workflow.execute_activity(charge, 1, start_to_close_timeout=LIMIT, retry_policy=QUICKLY)


@workflow.defn
class Gathered:
    """Of two activities at once one fails, and the other one is cancelled for it."""

    @workflow.run
    async def run(self) -> None:
        other = asyncio.create_task(
            workflow.execute_activity(
                hang,
                1,
                start_to_close_timeout=timedelta(minutes=2),
                heartbeat_timeout=timedelta(seconds=5),
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            )
        )
        try:
            await asyncio.sleep(1)
            await workflow.execute_activity(refuse, 1, start_to_close_timeout=LIMIT, retry_policy=ONCE)
        finally:
            other.cancel()
            with contextlib.suppress(ActivityError, asyncio.CancelledError):
                await other


WORKFLOWS = [
    Parent, Guardian, Quiet, Persistent, Mailbox, Closing, Gathered,
    Asked, Nightly, Child, Refused, Waiting, Looping, Slow, Family, Middle, Careless, Stubborn, Leaving, Late, Local,
]  # fmt: skip
ACTIVITIES = [fetch, charge, refuse, hang, store, linger, silent]
PLUGIN = os.environ.get("TEMPORAL_PLUGIN") == "1"
BRIDGE = os.environ.get("BRIDGE")
"""The command of Tachograph that follows the server: it knows what histories have, and spans do not."""
PREFIX = "temporal_plugin" if PLUGIN else "temporal_bridge" if BRIDGE else "temporal"


async def connect(address):
    if PLUGIN:
        from temporalio.contrib.opentelemetry import OpenTelemetryPlugin, create_tracer_provider

        provider = create_tracer_provider()
    else:
        provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    if PLUGIN:
        return await Client.connect(address, plugins=[OpenTelemetryPlugin(add_temporal_spans=True)])
    from temporalio.contrib.opentelemetry import TracingInterceptor

    return await Client.connect(address, interceptors=[TracingInterceptor()])


def spans_sent():
    # The plugin's provider has no such method of its own.
    getattr(trace.get_tracer_provider(), "force_flush", lambda: None)()


STATUSES = {
    "COMPLETED": "completed", "FAILED": "failed", "CANCELED": "cancelled", "TERMINATED": "cancelled",
    "TIMED_OUT": "timeout", "CONTINUED_AS_NEW": "completed", "RUNNING": "running",
}  # fmt: skip


def time_of(event):
    return event.event_time.ToJsonString()


async def history(client, workflow_id, run_id=None):
    """A run as the server's history has it: times, and what each activity did."""
    handle = client.get_workflow_handle(workflow_id, run_id=run_id)
    description = await handle.describe()
    activities, others, started, ended = {}, {}, None, None
    async for event in handle.fetch_history_events():
        kind = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
        if kind == "WORKFLOW_TASK_STARTED":
            started = started or time_of(event)
        elif kind.startswith("WORKFLOW_EXECUTION_") and kind.rpartition("_")[2] in (
            "COMPLETED", "FAILED", "CANCELED", "TERMINATED", "OUT", "NEW",
        ):  # fmt: skip
            ended = time_of(event)
        elif BRIDGE and kind in ("TIMER_STARTED", "WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"):
            others[event.event_id] = {"started_at": time_of(event)}
        elif BRIDGE and kind in ("TIMER_FIRED", "TIMER_CANCELED"):
            details = getattr(event, f"{kind.lower()}_event_attributes")
            others[details.started_event_id]["ended_at"] = time_of(event)
        elif kind == "ACTIVITY_TASK_SCHEDULED":
            details = event.activity_task_scheduled_event_attributes
            activities[event.event_id] = {"name": details.activity_type.name, "queued_at": time_of(event)}
        elif kind == "ACTIVITY_TASK_STARTED":
            details = event.activity_task_started_event_attributes
            activities[details.scheduled_event_id].update(started_at=time_of(event), attempts=details.attempt)
        elif kind.startswith("ACTIVITY_TASK_") and kind != "ACTIVITY_TASK_CANCEL_REQUESTED":
            status = kind.removeprefix("ACTIVITY_TASK_")
            details = getattr(event, f"{kind.lower()}_event_attributes")
            told = activities[details.scheduled_event_id]
            told.update(ended_at=time_of(event), engine_status=status, status=STATUSES[status])
            if status == "FAILED":
                failure = details.failure
                kind_of_error = failure.application_failure_info.type or "ApplicationError"
                told["error"] = f"{kind_of_error}: {failure.message}"
    status = description.status.name
    run = {
        "status": STATUSES[status], "run_id": description.run_id, "workflow_id": workflow_id,
        "engine_status": status, "started_at": started, "ended_at": ended,
    }  # fmt: skip
    if BRIDGE:
        run["others"] = list(others.values())
    return run, list(activities.values())


def steps_of(activities, waits, *, only=None):
    """The steps of a run. ``waits``: what each activity waits for, in the order they were scheduled."""
    counts, steps = {}, []
    names = [told["name"] for told in activities]
    for told, depends_on in zip(activities, waits, strict=True):
        name = told["name"]
        index = counts.get(name, 0) if names.count(name) > 1 else None
        counts[name] = counts.get(name, 0) + 1
        # The history has the start of the last attempt only.
        times = {} if told.get("attempts", 0) > 1 else {"started_at": told.get("started_at")}
        steps.append(
            step(name, told.get("status", "running"), told.get("attempts", 0), depends_on, index=index,
                 ended_at=told.get("ended_at"), engine_status=told.get("engine_status"), error=told.get("error"),
                 **times)
        )  # fmt: skip
    return steps


def timer(told, status, depends_on):
    """A timer as a step: it is waited for, and then nothing is left to do."""
    if status != "completed":
        return step("timer", status, 0, depends_on)
    return step("timer", status, 1, depends_on, started_at=told["ended_at"], ended_at=told["ended_at"])


def event_step(name, told, depends_on):
    return step(name, "completed", 1, depends_on, started_at=told["started_at"])


def run_of(name, run, steps, **more):
    run.pop("others", None)
    return execution(name, run.pop("status"), steps, **run, **more)


class Stage:
    """The client, the id of the next workflow, and a worker within this process."""

    def __init__(self, client, address):
        self.client, self.address, self.count = client, address, 0
        self.workers = []

    def start_bridge(self):
        command = [BRIDGE, "bridge", "temporal", self.address, "--state", "bridge.jsonl"]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        self.bridge = spawn(command, "bridge.log", env=plain)

    def kill_bridge(self):
        os.killpg(self.bridge.pid, signal.SIGKILL)
        self.bridge.wait()

    def id(self, name):
        self.count += 1
        return f"{name}-{self.count}"

    async def start(self, run, *arguments, task_queue="kinds", **options):
        name = run.__qualname__.partition(".")[0].lower()
        return await self.client.start_workflow(run, args=arguments, id=self.id(name), task_queue=task_queue, **options)

    async def until_done(self, handle, activity_name):
        """Wait until a workflow's activity has completed."""
        while True:
            _, activities = await history(self.client, handle.id)
            if any(a["name"] == activity_name and a.get("status") == "completed" for a in activities):
                return
            await asyncio.sleep(0.05)


async def ended(handle):
    with contextlib.suppress(WorkflowFailureError):
        await handle.result()


async def nightly(stage):
    handle = await stage.start(Nightly.run)
    await stage.until_done(handle, "charge")
    await asyncio.sleep(0.6)
    await handle.signal(Nightly.approve)
    await ended(handle)
    return await nightly_truth(stage, handle)


async def nightly_truth(stage, handle):
    run, activities = await history(stage.client, handle.id)
    steps = steps_of(activities, [[], ["fetch#0"], ["fetch#0"], ["fetch#1", "fetch#2"]])
    # A local activity is a marker of its workflow's history.
    steps.append(step("store", "completed", 1, []))
    del steps[-1]["depends_on"]
    child, inner = await history(stage.client, f"{handle.id}-child")
    steps.append({**step("Child", "completed", 1), "optional": True, "child_run": child["run_id"]})
    if BRIDGE:
        steps[-2]["depends_on"] = ["Child"]
        steps[-1] |= {"depends_on": ["timer", "approve"], "child_run": "executions/1", "optional": False}
        slept, approved = run["others"]
        steps += [timer(slept, "completed", ["charge"]), event_step("approve", approved, [])]
    executions = [
        run_of("Nightly", run, steps),
        {**run_of("Child", child, steps_of(inner, [[]])), "parent": "executions/0"},
    ]
    return executions, []


async def run_told(stage, handle_id, name, waits, **more):
    run, activities = await history(stage.client, handle_id)
    return run_of(name, run, steps_of(activities, waits), **more)


async def family(stage):
    handle = await stage.start(Family.run)
    await ended(handle)
    outer = await run_told(stage, handle.id, "Family", [[], ["Middle#0", "Middle#1"]])
    outer["steps"][1:1] = [
        step("Middle", "completed", 1, ["fetch"], index=i, child_run=f"executions/{1 + 2 * i}") for i in range(2)
    ]
    executions = [outer]
    for i in range(2):
        middle = await run_told(stage, f"{handle.id}-middle-{i}", "Middle", [[]], parent="executions/0")
        child = f"executions/{2 + 2 * i}"
        middle["steps"].append(step("Child", "completed", 1, ["fetch"], child_run=child))
        executions.append(middle)
        executions.append(
            await run_told(stage, f"{handle.id}-middle-{i}-child", "Child", [[]], parent=f"executions/{1 + 2 * i}")
        )
    return executions, []


async def child_failed(stage):
    executions = []
    for is_caught in (True, False):
        handle = await stage.start(Careless.run, is_caught)
        await ended(handle)
        number = len(executions)
        error = None if is_caught else "ApplicationError: no such customer"
        outer = await run_told(stage, handle.id, "Careless", [["Refused"]] if is_caught else [], error=error)
        outer["steps"].insert(0, step("Refused", "failed", 1, [], child_run=f"executions/{number + 1}"))
        inner = await run_told(
            stage, f"{handle.id}-child", "Refused", [[], ["fetch"]], parent=f"executions/{number}",
            error="ApplicationError: no such customer",
        )  # fmt: skip
        executions += [outer, inner]
    return executions, []


async def stubborn(stage):
    handle = await stage.start(Stubborn.run)
    await ended(handle)
    error = "ApplicationError: no such customer"
    return [await run_told(stage, handle.id, "Stubborn", [[], ["linger"]], error=error)], []


async def leaving(stage):
    handle = await stage.start(Leaving.run)
    await ended(handle)
    late = stage.client.get_workflow_handle(f"{handle.id}-late")
    await ended(late)
    outer = await run_told(stage, handle.id, "Leaving", [[]])
    executions = [
        outer,
        await run_told(stage, late.id, "Late", [[]], parent="executions/0"),
        await run_told(stage, f"{handle.id}-waiting", "Waiting", [[]], parent="executions/0"),
    ]
    outer["steps"] += [
        step("Late", "completed", 1, child_run="executions/1"),
        step("Waiting", "cancelled", 1, child_run="executions/2"),
    ]
    unknowable = [{"execution": 0, "step": "Late", "field": "status"}]
    if PLUGIN:
        # The plugin's span of a cancelled run ends as that of a good one does.
        executions[2]["status_or"] = outer["steps"][-1]["status_or"] = ["completed"]
    else:
        unknowable += [{"execution": 2, "field": field} for field in ("status", "ended_at")]
        unknowable += [{"execution": 0, "step": "Waiting", "field": field} for field in ("status", "ended_at")]
    return executions, unknowable


async def child_continued(stage):
    handle = await stage.start(Parent.run)
    await ended(handle)
    outer = await run_told(stage, handle.id, "Parent", [[], ["Looping#0", "Looping#1"]])
    executions, run_id = [outer], await first_run(stage.client, handle.id)
    while run_id:
        run, activities = await history(stage.client, f"{handle.id}-child", run_id)
        executions.append(run_of("Looping", run, steps_of(activities, [[]]), parent="executions/0"))
        run_id = await next_run(stage.client, f"{handle.id}-child", run_id)
    # For the server they are one child; each of its runs is told as a step.
    outer["steps"][1:1] = [
        step("Looping", "completed", 1, index=i, child_run=f"executions/{1 + i}") for i in range(len(executions) - 1)
    ]
    return executions, []


async def first_run(client, workflow_id):
    """The id of the first run of the child of a workflow."""
    async for event in client.get_workflow_handle(workflow_id).fetch_history_events():
        details = event.child_workflow_execution_started_event_attributes
        if details.workflow_execution.run_id:
            return details.workflow_execution.run_id
    return None


async def family_cancelled(stage):
    handle = await stage.start(Guardian.run)
    child = f"{handle.id}-child"
    while True:
        with contextlib.suppress(RPCError):
            await stage.until_done(stage.client.get_workflow_handle(child), "fetch")
            break
        await asyncio.sleep(0.05)
    await handle.cancel()
    await ended(handle)
    outer = await run_told(stage, handle.id, "Guardian", [[]])
    outer["steps"].append(step("Waiting", "cancelled", 1, ["store"], child_run="executions/1"))
    inner = await run_told(stage, child, "Waiting", [[]], parent="executions/0")
    executions = [outer, inner]
    if PLUGIN:
        for told in (*executions, outer["steps"][-1]):
            told["status_or"] = ["completed", "failed"]
        return executions, [{"field": "error"}]
    unknowable = [{"execution": i, "field": field} for i in range(2) for field in ("status", "ended_at", "error")]
    unknowable += [{"execution": 0, "step": "Waiting", "field": field} for field in ("status", "ended_at")]
    return executions, unknowable


async def quiet(stage):
    handle = await stage.start(Quiet.run)
    await ended(handle)
    told = await run_told(stage, handle.id, "Quiet", [[], ["silent"], ["silent", "fetch"]])
    # That its time was up is in the history only.
    told["steps"][1]["status_or"] = ["lost"]
    unknowable = [{"step": "fetch", "field": field} for field in ("attempts", "ended_at", "error")]
    return [told], [*unknowable, {"edge": "fetch->store"}]


async def run_again(stage):
    handle = await stage.start(
        Persistent.run, retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=300), maximum_attempts=2)
    )
    first = handle.first_execution_run_id
    await ended(handle)
    executions, run_id, waits = [], first, [[[]], [[], ["fetch"]]]
    while run_id:
        run, activities = await history(stage.client, handle.id, run_id)
        error = "ApplicationError: not yet" if run["status"] == "failed" else None
        executions.append(run_of("Persistent", run, steps_of(activities, waits.pop(0)), error=error))
        run_id = await next_run(stage.client, handle.id, run_id)
    return executions, []


async def started_by_others(stage):
    """One that a signal starts, and one that an update starts."""
    executions = []
    handle = await stage.start(Mailbox.run, start_signal="post", start_signal_args=[1])
    await ended(handle)
    executions.append(await run_told(stage, handle.id, "Mailbox", [[], ["store"]]))
    operation = WithStartWorkflowOperation(
        Mailbox.run, id=stage.id("mailbox"), task_queue="kinds", id_conflict_policy=WorkflowIDConflictPolicy.FAIL
    )
    await stage.client.execute_update_with_start_workflow(Mailbox.deliver, 1, start_workflow_operation=operation)
    handle = await operation.workflow_handle()
    await ended(handle)
    executions.append(await run_told(stage, handle.id, "Mailbox", [[], ["store"]]))
    return executions, []


async def closing(stage):
    handle = await stage.start(Closing.run)
    await ended(handle)
    child = stage.client.get_workflow_handle(f"{handle.id}-child")
    await ended(child)
    outer = await run_told(stage, handle.id, "Closing", [[]])
    inner = await run_told(stage, child.id, "Waiting", [[]], parent="executions/0")
    outer["steps"].append(step("Waiting", inner["status"], 1, child_run="executions/1"))
    unknowable = [{"execution": 1, "field": field} for field in ("status", "ended_at")]
    unknowable += [{"execution": 0, "step": "Waiting", "field": field} for field in ("status", "ended_at")]
    return [outer, inner], unknowable


async def gathered(stage):
    handle = await stage.start(Gathered.run)
    await ended(handle)
    told = await run_told(stage, handle.id, "Gathered", [[], []], error="ApplicationError: no such customer")
    # The span of an activity that was cancelled ends as that of a good one does.
    told["steps"][0]["status_or"] = ["completed"]
    return [told], []


async def local(stage):
    handle = await stage.start(Local.run)
    await ended(handle)
    told = await run_told(stage, handle.id, "Local", [["charge"]])
    # A local activity is a marker of its workflow's history.
    told["steps"].insert(0, step("charge", "completed", 2, []))
    # The time within a workflow goes on by how long the last try took: not by when it was asked for, nor by a backoff.
    return [told], [{"edge": "charge->store"}]


async def refused(stage):
    handle = await stage.start(Refused.run)
    await ended(handle)
    return [
        await run_told(stage, handle.id, "Refused", [[], ["fetch"]], error="ApplicationError: no such customer")
    ], []


async def asked(stage):
    handle = await stage.start(Asked.run)
    await handle.query(Asked.state)
    await handle.execute_update(Asked.change, 1)
    await ended(handle)
    run, activities = await history(stage.client, handle.id)
    steps = steps_of(activities, [[]])
    if BRIDGE:
        steps.append(event_step("change", run["others"][0], []))
    return [run_of("Asked", run, steps)], []


async def cancelled(stage):
    handle = await stage.start(Waiting.run)
    await stage.until_done(handle, "fetch")
    await handle.cancel()
    await ended(handle)
    run, activities = await history(stage.client, handle.id)
    if PLUGIN:
        # The plugin's span of a cancelled run ends as that of a good one does.
        return [run_of("Waiting", run, steps_of(activities, [[]]), status_or=["completed"])], []
    return [run_of("Waiting", run, waiting_steps(run, activities))], end_unknown()


async def terminated(stage):
    handle = await stage.start(Waiting.run)
    await stage.until_done(handle, "fetch")
    await handle.terminate("enough")
    await ended(handle)
    run, activities = await history(stage.client, handle.id)
    return [run_of("Waiting", run, waiting_steps(run, activities))], end_unknown()


async def timed_out(stage):
    handle = await stage.start(Waiting.run, execution_timeout=timedelta(seconds=2))
    await ended(handle)
    run, activities = await history(stage.client, handle.id)
    return [run_of("Waiting", run, waiting_steps(run, activities))], end_unknown()


def waiting_steps(run, activities):
    steps = steps_of(activities, [[]])
    if BRIDGE:
        # It may be stopped before it has begun to wait.
        steps += [timer(told, "cancelled", ["fetch"]) for told in run["others"]]
    return steps


def end_unknown():
    """The server ends these runs, or the workflow's own code without a span."""
    if BRIDGE:
        return []
    return [{"execution": 0, "field": "status"}, {"execution": 0, "field": "ended_at"}]


async def continued(stage):
    handle = await stage.start(Looping.run, 2)
    await ended(handle)
    executions, run_id = [], handle.first_execution_run_id
    while run_id:
        run, activities = await history(stage.client, handle.id, run_id)
        executions.append(run_of("Looping", run, steps_of(activities, [[]])))
        run_id = await next_run(stage.client, handle.id, run_id)
    return executions, []


async def next_run(client, workflow_id, run_id):
    async for event in client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history_events():
        continued = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
        if next_id := continued or event.workflow_execution_failed_event_attributes.new_execution_run_id:
            return next_id
    return None


async def worker_killed(stage):
    command = [sys.executable, __file__, stage.address, "--worker"]
    worker = spawn(command, "worker.log")
    try:
        handle = await stage.start(Slow.run, task_queue="killed", task_timeout=timedelta(seconds=2))
        await stage.until_done(handle, "fetch")
        while not (await started(handle)):  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.05)
        run, activities = await history(stage.client, handle.id)
        steps = steps_of(activities, [[], ["fetch"]])
        steps[1]["status_or"] = ["pending"]
        # What a step waited for is shown once it has started.
        del steps[1]["depends_on"]
        unknowable = [] if BRIDGE else [{"step": "hang", "field": field} for field in ("attempts", "started_at")]
        if BRIDGE:
            steps[1] |= {"status": "running", "attempts": 1}
        # The spans so far must be with the reader before the worker is killed.
        await asyncio.to_thread(
            tell, f"{PREFIX}_worker_at_work", [run_of("Slow", run, steps)], unknowable=unknowable, goes_on=True
        )
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    stage.workers.append(spawn(command, "worker.log"))
    await ended(handle)
    run, activities = await history(stage.client, handle.id)
    if BRIDGE:
        steps = steps_of(activities, [[], ["fetch"]])
        steps[1]["tries"] = [{"attempt": 1, "status": "timeout"}, {"attempt": 2, "status": "completed"}]
        return [run_of("Slow", run, steps)], []
    # The span of the first attempt of `hang` died with the worker.
    return [run_of("Slow", run, steps_of(activities, [[], ["fetch"]]))], [{"step": "hang", "field": "attempts"}]


async def started(handle):
    description = await handle.describe()
    pending = description.raw_description.pending_activities
    # PENDING_ACTIVITY_STATE_STARTED
    return any(activity.activity_type.name == "hang" and activity.state == 2 for activity in pending)


UNKNOWN = {
    "nightly": ["the timer: no span"],
    "cancelled": ["that the run was cancelled: no span says so"],
    "terminated": ["that the run was terminated: no span says so"],
    "timed_out": ["that the run's time was up: no span says so"],
    "local": ["what waits for a local activity that is tried again: within a workflow, spans have the workflow's time"],
    "leaving": ["that the child was cancelled: no span says so"],
    "quiet": ["that nobody took an activity in time: it was asked for, and no more is heard of it"],
    "gathered": ["that an activity was cancelled: its span ends as that of a good one does"],
    "family_cancelled": ["that the runs were cancelled: no span says so"],
    "closing": ["that the child was terminated: no span says so"],
    "worker_killed": ["the first attempt of `hang`: its span died with the worker"],
}
"""What spans cannot tell of a scene, in words."""


async def bridge_killed(stage):
    """The bridge dies in the middle of a run, and starts again when that has ended."""
    handle = await stage.start(Nightly.run)
    await stage.until_done(handle, "charge")
    stage.kill_bridge()
    await asyncio.sleep(0.6)
    await handle.signal(Nightly.approve)
    await ended(handle)
    stage.start_bridge()
    return await nightly_truth(stage, handle)


SCENES = [nightly, asked, refused, cancelled, terminated, timed_out, continued, worker_killed]
BY_SPANS = [
    family, child_failed, stubborn, leaving, local, child_continued, family_cancelled, quiet, run_again,
    started_by_others, closing, gathered,
]  # fmt: skip
SCENES[-1:-1] = [] if BRIDGE else BY_SPANS
if BRIDGE:
    SCENES.insert(1, bridge_killed)


async def main(address, names):
    client = await connect(address)
    if names == ["--worker"]:
        soon = timedelta(seconds=1)  # a task that only the killed worker may take is given to another one
        async with Worker(
            client, task_queue="killed", workflows=WORKFLOWS, activities=ACTIVITIES,
            sticky_queue_schedule_to_start_timeout=soon,
        ):  # fmt: skip
            await asyncio.Event().wait()
    stage = Stage(client, address)
    if BRIDGE:
        stage.start_bridge()
    try:
        await play(client, stage, names)
    finally:
        if BRIDGE:
            stage.kill_bridge()


async def play(client, stage, names):
    async with Worker(client, task_queue="kinds", workflows=WORKFLOWS, activities=ACTIVITIES):
        for scene in SCENES:
            if not names or scene.__name__ in names:
                executions, unknowable = await scene(stage)
                spans_sent()
                told = {"index_from": "order", "edges_from": "order", "unknowable": unknowable,
                        "unknown": UNKNOWN.get(scene.__name__, []),
                        "truth_from": "the histories on the server; edges from the program"}  # fmt: skip
                await asyncio.to_thread(tell, f"{PREFIX}_{scene.__name__}", executions, **told)
                while stage.workers:
                    worker = stage.workers.pop()
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait()


if __name__ == "__main__":
    if "--worker" not in sys.argv:
        stop_at_sigterm()
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
