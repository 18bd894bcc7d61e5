"""The executor: runs a definition in one process, on asyncio, and tells its listener what happens.

Small and honest: a step starts as soon as its own dependencies allow and a slot is free (no level barriers), costs
O(its dependencies) to schedule, and every moment it reports comes from one clock per execution. It knows nothing of
telemetry. The listener is called in the task of the step an event is about, before its handler runs, so context
variables that the listener sets are what the handler sees.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from tachograph.clock import AnchoredClock, Clock
from tachograph.errors import ExecutorClosed, InvalidWorkflow
from tachograph.events import Event, ExecutionQueued, ExecutionStatus, Listener
from tachograph.identity import ExecutionRef, new_execution_ref
from tachograph.identity import workflow_id as make_workflow_id
from tachograph.process import identity
from tachograph.workflow.definition import Workflow
from tachograph.workflow.handlers import HandlerRegistry, registry
from tachograph.workflow.inputs import bind
from tachograph.workflow.result import ExecutionResult
from tachograph.workflow.run import Host, Run
from tachograph.workflow.runner import LocalRunner, Runner
from tachograph.workflow.validation import validate

log = logging.getLogger(__name__)

DEFAULT_CONCURRENCY: Final = 100
"""Steps of one execution that run at once when neither the definition nor the executor says otherwise."""


class Executor:
    """Runs workflows.

    Args:
        listener: told of every event, in order for each execution. It must not block; what it raises is logged once
            and otherwise ignored.
        handlers: the work that documents may name (default: the process's registry).
        runner: does the work of an attempt (default: in this process).
        max_concurrency: steps of one execution that run at once, when its definition does not say; None: no limit.
        max_executions: executions that run at once; submitted ones beyond it wait as ``pending``. None: no limit.
        carrier: headers that carry the current span to others; handlers get them from their context.
        clock: makes the clock of an execution. random01: draws the jitter.
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
        random01: Callable[[], float] = random.random,
    ) -> None:
        self.handlers = handlers
        self._host = Host(self.emit, handlers, runner or LocalRunner(), max_concurrency, carrier, random01)
        self._listener = listener
        self._clock = clock
        self._runs: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[ExecutionResult]] = {}
        self._slots = asyncio.Semaphore(max_executions) if max_executions else None
        self._closed = False
        self._warned = False

    def emit(self, event: Event) -> None:
        """Tell the listener; whatever it raises costs the run nothing."""
        try:
            self._listener(event)
        except Exception:
            if not self._warned:
                self._warned = True
                log.exception(
                    "the executor's listener raised on %s; further errors are not logged", type(event).__name__
                )

    @property
    def open_executions(self) -> int:
        """How many executions are running or wait to."""
        return len(self._runs)

    async def run(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any] | None = None,
        *,
        workspace: str = "default",
        execution: ExecutionRef | None = None,
    ) -> ExecutionResult:
        """Run to the end. Never raises for a failing step: the result says so.

        Raises `InvalidWorkflow` or `InvalidInputs` (every fault named) before anything is recorded, and
        `ExecutorClosed`. When the caller is cancelled, the execution is cancelled and recorded as such first.
        """
        run = self._open(workflow, inputs, workspace, execution)
        task = self._start(run, queued=False)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            run.abort(ExecutionStatus.CANCELLED, "the caller was cancelled")
            await asyncio.wait({task})
            raise

    def submit(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any] | None = None,
        *,
        workspace: str = "default",
        execution: ExecutionRef | None = None,
    ) -> tuple[ExecutionRef, asyncio.Task[ExecutionResult]]:
        """Accept an execution and return at once; it starts when there is room. Raises as `run` does."""
        run = self._open(workflow, inputs, workspace, execution)
        self.emit(
            ExecutionQueued(execution=run.ref, time_ns=run.clock(), inputs=run.inputs_summary, process=identity())
        )
        return run.ref, self._start(run, queued=True)

    def cancel(self, execution_id: str, reason: str = "cancelled on request") -> bool:
        """Cancel a running or waiting execution. False when it is not (or no longer) this executor's."""
        run = self._runs.get(execution_id)
        if run is None:
            return False
        run.abort(ExecutionStatus.CANCELLED, reason)
        return True

    async def drain(self, grace_seconds: float) -> None:
        """Take no more work, let running steps finish within the grace period, cancel what is left after it.

        No new step starts meanwhile, so an execution ends when its running steps have.
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

    def _open(
        self, workflow: Workflow, inputs: Mapping[str, Any] | None, workspace: str, execution: ExecutionRef | None
    ) -> Run:
        if self._closed:
            raise ExecutorClosed("the executor is shutting down")
        if errors := validate(workflow, self.handlers).errors:
            raise InvalidWorkflow(errors, name=workflow.name)
        values = bind(workflow, inputs or {})
        ref = execution or new_execution_ref(
            workspace=workspace,
            workflow=workflow.name,
            workflow_id=make_workflow_id(workspace, workflow.name),
            version=workflow.version,
        )
        run = Run(self._host, workflow, values, ref, self._clock())
        self._runs[ref.execution_id] = run
        return run

    def _start(self, run: Run, *, queued: bool) -> asyncio.Task[ExecutionResult]:
        execution_id = run.ref.execution_id

        async def execute() -> ExecutionResult:
            if not queued or self._slots is None:
                return await run.execute()
            waiting = asyncio.ensure_future(self._slots.acquire())
            either: set[asyncio.Future[Any]] = {waiting, run.aborted}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                return await run.execute()  # Cancelled before there was room: ends at once.
            try:
                return await run.execute()
            finally:
                self._slots.release()

        # A task of its own: what the listener sets in the context stays inside it.
        task = asyncio.get_running_loop().create_task(execute(), name=f"tachograph {run.workflow.name}")
        self._tasks[execution_id] = task

        def forget(_task: asyncio.Task[ExecutionResult]) -> None:
            self._runs.pop(execution_id, None)
            self._tasks.pop(execution_id, None)

        task.add_done_callback(forget)
        return task
