"""A whole run is one workflow of Temporal: its schedule outlives every process, its steps are activities.

The executor's own `Run` decides inside the workflow, with the workflow's clock and random numbers, so that Temporal can
replay it: what it emits is recorded by an activity, which a replay does not repeat. The service starts the workflow and
may die: workers (``tachograph worker temporal://…``) go on, and record to where their configuration says.
https://docs.temporal.io/workflow-definition#deterministic-constraints
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tachograph.errors import SetupError, StepFailed, StoreUnavailable
from tachograph.event_batch import decode_event
from tachograph.events import Event, ExecutionStarted, ExecutionStatus, Heartbeat
from tachograph.identity import ExecutionRef, traceparent
from tachograph.reported_process import ReportedProcess
from tachograph.runners.work import Work, finish, lost, perform, work_of
from tachograph.stacks.passing_on import StackBox
from tachograph.stacks.wishes import long_attempts
from tachograph.workflow.context import StepContext
from tachograph.workflow.document import parse, to_document
from tachograph.workflow.handlers import Handler, HandlerRegistry
from tachograph.workflow.plan import Plan, make_plan
from tachograph.workflow.result import ExecutionResult
from tachograph.workflow.run import Host, Run
from tachograph.workflow.turns import Turns

try:
    import temporalio.exceptions
    from temporalio import activity, workflow
    from temporalio.client import Client
    from temporalio.common import RetryPolicy
    from temporalio.service import RPCError, RPCStatusCode
    from temporalio.worker import UnsandboxedWorkflowRunner, Worker
except ImportError:
    raise SetupError("runs on Temporal need it: pip install 'tachograph[temporal]'") from None

log = logging.getLogger(__name__)

QUEUE: Final = "tachograph"
WORKFLOW: Final = "tachograph"
LEASE_SECONDS: Final = 7 * 86_400
"""How long a run may be silent until it is lost: Temporal keeps it, whoever lives."""
HEARTBEAT_SECONDS: Final = 10.0
"""A worker that sends no sign of life of a step for so long is gone."""
BEAT_SECONDS: Final = 2.0
"""How often a worker gives a sign of life: to Temporal, and to where it records, whose answer may ask for stacks."""
MAX_BYTES: Final = 1_900_000
"""Bytes of a message; Temporal refuses more than 2 MB (https://docs.temporal.io/cloud/limits)."""
MAX_STEPS: Final = 4_000
"""Steps of a run; Temporal keeps at most 51,200 events of a workflow, each attempt makes a few."""
MAX_EVENTS: Final = 500
_LONG: Final = timedelta(days=365)
_TURN: Final = timedelta(seconds=60)
"""How long a worker may take for what a run decides at once; after that, another one begins it again."""
OWNER: Final = str(ReportedProcess("temporal", LEASE_SECONDS))
"""The ``process`` of these executions: none in particular."""


class Start(msgspec.Struct, frozen=True):
    """What a workflow begins with. ``span_ids``: of its steps, in their order, so that a replay has the same."""

    document: dict[str, Any]
    inputs: dict[str, Any]
    execution: ExecutionRef
    span_ids: list[str]
    max_concurrency: int | None


_encode: Final = msgspec.json.Encoder().encode
_read_result: Final = msgspec.json.Decoder(ExecutionResult).decode
_read_start: Final = msgspec.json.Decoder(Start).decode
_handlers: HandlerRegistry | None = None
_record: Callable[[Sequence[Event]], bool] | None = None
_tell: Callable[[Sequence[Event]], None] | None = None
_read_work: Final = msgspec.json.Decoder(Work).decode


class _AlwaysNow(Turns):
    """A workflow has no other turns than Temporal's: how much is done in one must not depend on the time."""

    def may_start(self, go_on: Callable[[], None]) -> bool:
        return True

    def is_over(self, go_on: Callable[[], None]) -> bool:
        return False


async def _at_once(work: Callable[[], Any]) -> Any:
    """Do what may take long in the workflow: its event loop waits for Temporal alone, and never for a thread."""
    return work()


class _Activities:
    """In a workflow: each attempt is an activity."""

    is_local = False

    async def run(self, handler: Handler, context: StepContext) -> Any:
        step = context.step
        headers = {"traceparent": traceparent(step.execution.trace_id, step.span_id)}
        body = work_of(handler, context, headers, MAX_BYTES).decode()
        try:
            answer: str = await workflow.execute_activity(
                "tachograph.step",
                body,
                start_to_close_timeout=_LONG,
                heartbeat_timeout=timedelta(seconds=HEARTBEAT_SECONDS),
                retry_policy=RetryPolicy(maximum_attempts=1),
                cancellation_type=workflow.ActivityCancellationType.TRY_CANCEL,
                result_type=str,
            )
        except temporalio.exceptions.ActivityError as error:
            if isinstance(error.cause, temporalio.exceptions.CancelledError):
                raise asyncio.CancelledError from None
            answer = lost(error.identity, f"Temporal: {error.cause or error}").decode()
        return finish(answer, context)

    async def close(self) -> None:
        pass


@workflow.defn(name=WORKFLOW, sandboxed=False)
class TachographRun:
    """One execution."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._run: Run | None = None
        self._reason: str | None = None

    @workflow.signal
    def cancel(self, reason: str) -> None:
        """Stop the run; it ends as cancelled."""
        self._reason = reason
        if self._run is not None:
            self._run.abort(ExecutionStatus.CANCELLED, reason)

    @workflow.run
    async def run(self, body: str) -> str:
        """The `ExecutionResult`, as JSON."""
        start = _read_start(body)
        assert _handlers is not None  # noqa: S101 - set by `work`
        plan = make_plan(parse(start.document), start.inputs, start.execution, _handlers, start.span_ids)

        def carrier() -> dict[str, str]:
            return {}

        host = Host(
            self._emit, _handlers, _Activities(), start.max_concurrency, carrier, workflow.random().random,
            _AlwaysNow(), _at_once,
        )  # fmt: skip
        self._run = Run(host, plan, workflow.time_ns)
        if self._reason is not None:
            self._run.abort(ExecutionStatus.CANCELLED, self._reason)
        done = asyncio.ensure_future(self._run.execute())
        try:
            while self._events or not done.done():
                await workflow.wait_condition(lambda: bool(self._events) or done.done())
                await self._record()
        finally:
            self._run.close()
        return _result(await done).decode()

    def _emit(self, event: Event) -> None:
        if isinstance(event, ExecutionStarted):
            event = msgspec.structs.replace(event, process=OWNER)
        self._events.append(event)

    async def _record(self) -> None:
        while self._events:
            events, self._events = self._events[:MAX_EVENTS], self._events[MAX_EVENTS:]
            await workflow.execute_activity(
                "tachograph.record",
                _encode(events).decode(),
                start_to_close_timeout=timedelta(seconds=60),
                retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
            )


@activity.defn(name="tachograph.step")
def step(body: str) -> str:
    """Do a step, and send signs of life meanwhile."""
    assert _handlers is not None  # noqa: S101 - set by `work`
    assert _tell is not None  # noqa: S101 - set by `work`
    tell, ended, context = _tell, threading.Event(), copy_context()
    execution = _execution_of(body)

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            context.run(activity.heartbeat)
            if execution is not None:
                long = long_attempts(execution.execution_id)
                tell([Heartbeat(execution=execution, time_ns=time.time_ns(), long=long)])

    threading.Thread(target=beat, name="tachograph-heartbeat", daemon=True).start()
    activity.heartbeat()
    try:
        box = StackBox(lambda event: tell([event]))
        return perform(body, _handlers, "temporal", _is_cancelled, MAX_BYTES, box).decode()
    finally:
        ended.set()


def _execution_of(body: str) -> ExecutionRef | None:
    try:
        return _read_work(body).step.execution
    except msgspec.MsgspecError:
        return None  # `perform` says what is wrong with it.


def _is_cancelled(error: BaseException) -> bool:
    return isinstance(error, temporalio.exceptions.CancelledError)


@activity.defn(name="tachograph.record")
def record(body: str) -> None:
    """Record what happened in a run. Returns once it is durable."""
    assert _record is not None  # noqa: S101 - set by `work`
    events = [decode_event(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
    if not _record(events):
        raise StoreUnavailable("what happened could not be recorded yet")


def _address(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc or "localhost:7233", parts.path.strip("/") or "default"


async def _connect(url: str) -> Client:
    address, namespace = _address(url)
    try:
        return await Client.connect(address, namespace=namespace)
    except RuntimeError as error:
        raise SetupError(f"no Temporal server answers at {address}: {error}") from None


class TemporalRunner:
    """Has whole runs done by Temporal's workers. See `tachograph.workflow.durable.DurableRunner`.

    ``url``: ``temporal://HOST:PORT/NAMESPACE``.
    """

    is_local = False
    owner = OWNER

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Client | None = None

    async def run(self, handler: Handler, context: StepContext) -> Any:
        """Not here: a run is done as a whole."""
        raise StepFailed("runs on Temporal are done as a whole")

    async def result(self, plan: Plan) -> ExecutionResult:
        """See `DurableRunner.result`."""
        client = await self._connected()
        handle = client.get_workflow_handle(_name(plan.execution.execution_id), result_type=str)
        return _read_result(await handle.result())

    async def cancel(self, execution_id: str, reason: str) -> bool:
        """Ask a run to stop, whoever started it; false if there is none."""
        client = await self._connected()
        try:
            await client.get_workflow_handle(_name(execution_id)).signal("cancel", reason)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def close(self) -> None:
        """See `Runner.close`."""
        self._client = None

    async def _connected(self) -> Client:
        if self._client is None:
            self._client = await _connect(self._url)
        return self._client

    async def start(self, plan: Plan, max_concurrency: int | None) -> None:
        """See `DurableRunner.start`."""
        if len(plan.nodes) > MAX_STEPS:
            raise StepFailed(f"a run on Temporal has at most {MAX_STEPS} steps, not {len(plan.nodes)}")
        start = Start(
            to_document(plan.workflow),
            dict(plan.inputs),
            plan.execution,
            [node.ref.span_id for node in plan.nodes],
            max_concurrency,
        )
        client = await self._connected()
        body = _encode(start).decode()
        if len(body) > MAX_BYTES:
            raise StepFailed(f"the definition and its inputs take {len(body)} bytes, more than Temporal's {MAX_BYTES}")
        await client.start_workflow(
            WORKFLOW, body, id=_name(plan.execution.execution_id), task_queue=QUEUE, task_timeout=_TURN
        )


def _result(result: ExecutionResult) -> bytes:
    body = _encode(result)
    return body if len(body) <= MAX_BYTES else _encode(msgspec.structs.replace(result, outputs={}))


def _name(execution_id: str) -> str:
    return f"tachograph-{execution_id}"


def work(
    url: str,
    handlers: HandlerRegistry,
    concurrency: int,
    name: str | None,
    record_events: Callable[[Sequence[Event]], bool],
    tell_events: Callable[[Sequence[Event]], None],
) -> int:
    """Be a worker, until the process is asked to stop.

    ``record_events``: records them; whether they are durable. ``tell_events``: records them, some time soon.
    """
    global _handlers, _record, _tell
    _handlers, _record, _tell = handlers, record_events, tell_events
    return asyncio.run(_work(url, concurrency, name))


async def _work(url: str, concurrency: int, name: str | None) -> int:
    import concurrent.futures
    import signal

    client = await _connect(url)
    with concurrent.futures.ThreadPoolExecutor(concurrency + 2) as threads:
        worker = Worker(
            client,
            task_queue=QUEUE,
            workflows=[TachographRun],
            activities=[step, record],
            activity_executor=threads,
            max_concurrent_activities=concurrency + 2,
            workflow_runner=UnsandboxedWorkflowRunner(),
            identity=name,
            # A run of thousands of steps, or a condition on much data, takes its time: no reason to begin again.
            debug_mode=True,
            max_heartbeat_throttle_interval=timedelta(seconds=HEARTBEAT_SECONDS / 3),
        )
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with worker:
            await stop.wait()
    return 0
