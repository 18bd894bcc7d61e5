"""An execution that an engine schedules: here it is only started, waited for and cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from tachograph.clock import Clock
from tachograph.events import ExecutionFinished, ExecutionStarted, ExecutionStatus, Failure, Listener
from tachograph.summary import failure as describe
from tachograph.workflow.plan import Plan
from tachograph.workflow.result import ExecutionResult
from tachograph.workflow.runner import Runner

log = logging.getLogger(__name__)


class DurableRunner(Runner, Protocol):
    """A `Runner` that schedules whole executions, which outlive this process.

    ``owner``: the process of their events.
    """

    owner: str

    async def start(self, plan: Plan, max_concurrency: int | None) -> None:
        """Start an execution. Raises what went wrong; it does not run then."""
        ...

    async def result(self, plan: Plan) -> ExecutionResult:
        """Wait for the end of an execution that was started. It is recorded where it runs."""
        ...

    async def cancel(self, execution_id: str, reason: str) -> bool:
        """Ask an execution to stop, whoever started it. False if there is none that runs."""
        ...


class DurableRun:
    """One execution; to the executor it is what `tachograph.workflow.run.Run` is."""

    def __init__(
        self, runner: DurableRunner, plan: Plan, clock: Clock, emit: Listener, max_concurrency: int | None
    ) -> None:
        self._runner = runner
        self._plan = plan
        self._emit = emit
        self._max_concurrency = max_concurrency
        loop = asyncio.get_running_loop()
        self._left: asyncio.Future[None] = loop.create_future()
        self._reason: str | None = None
        self._has_started = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.aborted: asyncio.Future[None] = loop.create_future()
        self.workflow = plan.workflow
        self.inputs_summary = plan.inputs_summary
        self.ref = plan.execution
        self.clock = clock

    async def execute(self) -> ExecutionResult:
        """Start it and wait for its end. When this task is cancelled, the execution is, and is not waited for."""
        if self._reason is not None:
            return self._end(ExecutionStatus.CANCELLED, Failure("Cancelled", self._reason))
        try:
            await self._runner.start(self._plan, self._max_concurrency)
        except Exception as error:
            log.exception("a run of %s could not be started", self.workflow.name)
            return self._end(ExecutionStatus.FAILED, describe(error, stack=False))
        self._has_started = True
        if (reason := self._asked_to_stop()) is not None:
            await self._runner.cancel(self.ref.execution_id, reason)
        waiting: asyncio.Task[ExecutionResult] = self._keep(self._runner.result(self._plan))
        try:
            await asyncio.wait((waiting, self._left), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not self._left.done():
                await self._runner.cancel(self.ref.execution_id, "its task was cancelled")
            raise
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        raise asyncio.CancelledError  # It goes on without this process.

    def _asked_to_stop(self) -> str | None:
        return self._reason

    def cancel(self, reason: str) -> None:
        """Ask it to stop."""
        self.abort(ExecutionStatus.CANCELLED, reason)

    def abort(self, status: ExecutionStatus, reason: str) -> None:
        """Ask it to stop; where the process ends, only leave it."""
        if self._left.done():
            return
        self._reason = reason
        if not self.aborted.done():
            self.aborted.set_result(None)
        if self._has_started:
            self._keep(self._runner.cancel(self.ref.execution_id, reason))

    def hold(self, reason: str) -> None:
        """This process ends: the execution goes on."""
        if not self._left.done():
            self._left.set_result(None)

    def close(self) -> None:
        """Called when its task is over."""

    def _keep(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self, status: ExecutionStatus, failure: Failure) -> ExecutionResult:
        """It ends without having run."""
        now, count = self.clock(), len(self._plan.nodes)
        owner = self._runner.owner
        self._emit(ExecutionStarted(execution=self.ref, time_ns=now, step_count=count, inputs=self.inputs_summary,
                                    process=owner))  # fmt: skip
        self._emit(ExecutionFinished(execution=self.ref, time_ns=now, status=status, started_ns=now, step_count=0,
                                     failure=failure, inputs=self.inputs_summary))  # fmt: skip
        return ExecutionResult(execution=self.ref, status=status, started_ns=now, finished_ns=now, steps={},
                               outputs={}, failure=failure)  # fmt: skip
