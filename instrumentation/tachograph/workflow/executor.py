"""The executor: runs definitions in one process, on asyncio, and sends events to its listener.

A step starts as soon as its own dependencies allow and a slot is free; there are no level barriers. Scheduling a step
costs O(its dependencies). All times of an execution come from one clock. The executor knows nothing of telemetry. It
calls the listener in the step's task before the handler runs, so the handler sees context variables that the listener
sets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from tachograph.clock import AnchoredClock, Clock
from tachograph.errors import ExecutorClosed
from tachograph.events import Event, ExecutionQueued, ExecutionStatus, Listener
from tachograph.identity import ExecutionRef, new_execution_ref, random01
from tachograph.identity import workflow_id as make_workflow_id
from tachograph.process import identity
from tachograph.workflow.definition import Workflow
from tachograph.workflow.durable import DurableRun, DurableRunner
from tachograph.workflow.handlers import HandlerRegistry, registry
from tachograph.workflow.plan import Plan, make_plan
from tachograph.workflow.result import ExecutionResult
from tachograph.workflow.run import Host, Run
from tachograph.workflow.runner import LocalRunner, Runner
from tachograph.workflow.turns import Turns

log = logging.getLogger(__name__)

DEFAULT_CONCURRENCY: Final = 100
"""Steps of one execution that run at once, unless the definition or the executor sets another limit."""


class Accepted:
    """An execution that has been accepted and not started: it counts as open. Start or withdraw it, once."""

    def __init__(
        self,
        queued: ExecutionQueued,
        start: Callable[[], asyncio.Task[ExecutionResult]],
        withdraw: Callable[[], object],
    ) -> None:
        self.queued = queued
        """The event that tells of it; nobody has received it yet."""
        self.start = start
        """Start it when a slot is free."""
        self._withdraw = withdraw

    def withdraw(self) -> None:
        """Forget it: nobody was told of it, and it never runs."""
        self._withdraw()


class Executor:
    """Runs workflows.

    Args:
        listener: receives every event, in order for each execution. It must not block; what it raises is logged once
            and otherwise ignored.
        handlers: the handlers that definitions may name (default: the process's registry).
        runner: does the work of an attempt (default: in this process).
        max_concurrency: steps of one execution that run at once, unless its definition sets a limit. None: no limit.
        max_executions: executions that run at once; further submitted ones wait as ``pending``. None: no limit.
        carrier: returns the headers that propagate the current span; handlers get them from their context.
        clock: creates the clock of an execution.
        random01: draws the jitter of a backoff, in [0, 1).
    """

    def __init__(
        self,
        listener: Listener,
        *,
        handlers: HandlerRegistry = registry,
        runner: Runner | None = None,
        max_concurrency: int | None = DEFAULT_CONCURRENCY,
        max_executions: int | None = None,
        carrier: Callable[[], Mapping[str, str]] = dict,
        clock: Callable[[], Clock] = AnchoredClock,
        random01: Callable[[], float] = random01,
    ) -> None:
        self.handlers = handlers
        self._host = Host(self.emit, handlers, runner or LocalRunner(), max_concurrency, carrier, random01, Turns())
        self._listener = listener
        self._clock = clock
        self._durable = cast("DurableRunner", runner) if hasattr(runner, "owner") else None
        self._runs: dict[str, Run | DurableRun] = {}
        self._tasks: dict[str, asyncio.Task[ExecutionResult]] = {}
        self._slots = asyncio.Semaphore(max_executions) if max_executions else None
        self._closed = False
        self._warned = False

    def emit(self, event: Event) -> None:
        """Call the listener. What it raises is logged and does not affect the run."""
        try:
            self._listener(event)
        except KeyboardInterrupt as interrupt:
            # The user stops the program; but what the event tells of must be booked first.
            asyncio.get_running_loop().call_soon(_throw, interrupt)
        except BaseException:
            if not self._warned:
                self._warned = True
                log.exception(
                    "the executor's listener failed on %s; its further errors are not logged", type(event).__name__
                )

    @property
    def open_executions(self) -> int:
        """How many executions are running or waiting to run."""
        return len(self._runs)

    async def run(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any] | None = None,
        *,
        workspace: str = "default",
        execution: ExecutionRef | None = None,
    ) -> ExecutionResult:
        """Run to the end. A failing step does not raise; the result says so.

        Raises `InvalidWorkflow` or `InvalidInputs` (naming every fault) or `ExecutorClosed` before anything is
        recorded. When the caller is cancelled, the execution is first cancelled and recorded as such.
        """
        self._check_open()
        run = self._open(self.plan(workflow, inputs, workspace=workspace, execution=execution))
        task = self._start(run, queued=False)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as error:
                cancelled = error
                run.cancel("the caller was cancelled")
        if cancelled is not None:
            raise cancelled
        return task.result()

    def submit(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any] | None = None,
        *,
        workspace: str = "default",
        execution: ExecutionRef | None = None,
    ) -> tuple[ExecutionRef, asyncio.Task[ExecutionResult]]:
        """Accept an execution and return at once; it starts when a slot is free. Raises what `run` raises.

        Cancelling the task cancels the execution, also while it waits; then the task is cancelled.
        """
        accepted = self.accept(workflow, inputs, workspace=workspace, execution=execution)
        self.emit(accepted.queued)
        return accepted.queued.execution, accepted.start()

    def accept(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any] | None = None,
        *,
        workspace: str = "default",
        execution: ExecutionRef | None = None,
    ) -> Accepted:
        """Accept an execution without starting it, so that its `ExecutionQueued` can be stored first.

        The caller stores and emits the event, then starts the execution or withdraws it. Raises what `run` raises.
        """
        self._check_open()
        return self.accept_plan(self.plan(workflow, inputs, workspace=workspace, execution=execution))

    def plan(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any] | None = None,
        *,
        workspace: str = "default",
        execution: ExecutionRef | None = None,
    ) -> Plan:
        """Work out an execution for `accept_plan`. Of thousands of steps, in a thread: that takes a while.

        Raises `InvalidWorkflow` or `InvalidInputs`, naming every fault.
        """
        ref = execution or new_execution_ref(
            workspace=workspace,
            workflow=workflow.name,
            workflow_id=make_workflow_id(workspace, workflow.name),
            version=workflow.version,
        )
        return make_plan(workflow, inputs or {}, ref, self.handlers)

    def accept_plan(self, plan: Plan) -> Accepted:
        """Accept an execution as `accept` does. Raises `ExecutorClosed`."""
        run = self._open(plan)
        owner = self._durable.owner if self._durable is not None else identity()
        queued = ExecutionQueued(execution=run.ref, time_ns=run.clock(), inputs=run.inputs_summary, process=owner)
        return Accepted(
            queued,
            start=lambda: self._start(run, queued=True),
            withdraw=lambda: self._runs.pop(run.ref.execution_id, None),
        )

    def cancel(self, execution_id: str, reason: str = "cancelled on request") -> bool:
        """Cancel a running or waiting execution. False if this executor has no such execution (any more)."""
        run = self._runs.get(execution_id)
        if run is None:
            return False
        run.abort(ExecutionStatus.CANCELLED, reason)
        return True

    async def cancel_elsewhere(self, execution_id: str, reason: str = "cancelled on request") -> bool:
        """Cancel an execution that another process started and a durable runner has. False if there is none."""
        return self._durable is not None and await self._durable.cancel(execution_id, reason)

    async def drain(self, grace_seconds: float) -> None:
        """Accept no more executions, let running steps finish within the grace period, then cancel the rest.

        No new step starts meanwhile: an execution ends when its running steps have ended. In the end the runner is
        closed.
        """
        self._closed = True
        for run in list(self._runs.values()):
            run.hold("the executor shut down")
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for run in list(self._runs.values()):
            run.abort(ExecutionStatus.CANCELLED, f"the executor shut down; not finished within {grace_seconds:g} s")
        if tasks := list(self._tasks.values()):
            await asyncio.wait(tasks, timeout=5)
        await self._host.runner.close()

    def _open(self, plan: Plan) -> Run | DurableRun:
        self._check_open()
        run: Run | DurableRun
        if self._durable is not None:
            run = DurableRun(self._durable, plan, self._clock(), self.emit, self._host.max_concurrency)
        else:
            run = Run(self._host, plan, self._clock())
        self._runs[plan.execution.execution_id] = run
        return run

    def _check_open(self) -> None:
        if self._closed:
            raise ExecutorClosed("the executor is shutting down")

    def _start(self, run: Run | DurableRun, *, queued: bool) -> asyncio.Task[ExecutionResult]:
        execution_id = run.ref.execution_id

        async def execute() -> ExecutionResult:
            if not queued or self._slots is None:
                return await run.execute()
            waiting = asyncio.ensure_future(self._slots.acquire())
            cancelled: asyncio.CancelledError | None = None
            try:
                await asyncio.wait((waiting, run.aborted), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as error:
                cancelled = error
            has_slot = waiting.done() and not waiting.cancelled()
            waiting.cancel()
            if cancelled is not None or not has_slot:
                run.cancel("its task was cancelled")  # Ends at once, unless it has been cancelled before.
            try:
                result = await run.execute()
            finally:
                if has_slot:
                    self._slots.release()
            if cancelled is not None:
                raise cancelled
            return result

        # In a task of its own, so that context variables set by the listener stay inside.
        task = asyncio.get_running_loop().create_task(execute(), name=f"tachograph {run.workflow.name}")
        self._tasks[execution_id] = task

        def forget(_task: asyncio.Task[ExecutionResult]) -> None:
            self._runs.pop(execution_id, None)
            self._tasks.pop(execution_id, None)
            run.close()

        task.add_done_callback(forget)
        return task


def _throw(error: BaseException) -> None:
    raise error
