"""One execution from start to end: decides what runs when, and emits the events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, Final, cast

import msgspec

from tachograph.clock import NS, Clock
from tachograph.critical_path import critical_path_of
from tachograph.errors import ConditionError, DoNotRetry
from tachograph.events import (
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Listener,
    PathStep,
    SkipReason,
    StepSkipped,
    StepStatus,
)
from tachograph.process import identity
from tachograph.redaction import mask_text
from tachograph.resources import Resources
from tachograph.summary import failure as describe
from tachograph.summary import is_clean_exit, summarise
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.conditions import compile_condition
from tachograph.workflow.context import StepContext
from tachograph.workflow.definition import Backoff
from tachograph.workflow.graph import Graph
from tachograph.workflow.handlers import HandlerRegistry
from tachograph.workflow.node import OUTCOMES, Node
from tachograph.workflow.plan import Plan
from tachograph.workflow.references import has_reference, resolve
from tachograph.workflow.reporter import Reporter, current_reporter
from tachograph.workflow.result import ExecutionResult
from tachograph.workflow.runner import FailedElsewhere, Runner
from tachograph.workflow.settled import Outputs, SettledSteps
from tachograph.workflow.step_counts import StepCounts
from tachograph.workflow.triggers import Decision, Outcome, decide
from tachograph.workflow.turns import Turns
from tachograph.workflow.worker_threads import DaemonThreads

log = logging.getLogger(__name__)

_DEFAULT_BACKOFF: Final = Backoff()
_threads: Final = DaemonThreads()
_FEW: Final = 16
"""Steps that are passed on without a look at the time."""
_LARGE: Final = 1_000
"""Of an execution with more steps, the critical path is computed off the event loop."""


class Host(msgspec.Struct, frozen=True):
    """What the executor provides to each of its runs."""

    emit: Listener
    handlers: HandlerRegistry
    runner: Runner
    max_concurrency: int | None
    carrier: Callable[[], Mapping[str, str]]
    random01: Callable[[], float]
    turns: Turns
    aside: Callable[[Callable[[], Any]], Awaitable[Any]] = _threads.run
    """Does what may take long off the event loop."""


class Run:
    """One execution: schedules its steps, runs their attempts and emits the events.

    Whatever a handler raises settles its step, and an execution that has begun ends: what nobody foresaw fails the step
    in whose task it happened (see `_settle`).
    """

    def __init__(self, host: Host, plan: Plan, clock: Clock) -> None:
        self._host = host
        self.workflow = plan.workflow
        self.inputs = plan.inputs
        self.inputs_summary = plan.inputs_summary
        self.ref = plan.execution
        self.clock = clock
        self.emit = host.emit
        self.aborted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._abort: tuple[ExecutionStatus, str] | None = None
        self._hold_reason: str | None = None
        self._limit = plan.workflow.max_concurrency or host.max_concurrency
        self._running = 0
        self._ready: deque[Node] = deque()
        self._to_consider: deque[Node] = deque()
        self._to_skip: deque[tuple[Node, SkipReason]] = deque()
        self._settled: deque[tuple[Node, Outcome]] = deque()
        self._passing_on: deque[tuple[Node, Outcome, Iterator[int]]] = deque()
        self._is_settling = self._is_pumping = self._is_deferred = False
        self._started_ns = 0
        self._has_finished = False
        self._timer: asyncio.TimerHandle | None = None
        self._graph = plan.graph
        self._nodes = plan.nodes
        self._unsettled = len(self._nodes)
        self.counts = StepCounts()
        self.settled = SettledSteps(self._nodes, self._graph.positions)
        self.outputs = Outputs(self._nodes, self._graph)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def execute(self) -> ExecutionResult:
        """Run to the end. When this task is cancelled, the execution is; once it has ended, the task is cancelled."""
        self._begin()
        cancelled = await self._wait_for(self._done)
        finished_ns = self.clock()
        path: Sequence[PathStep] | None = None
        if len(self._nodes) > _LARGE:
            computing = self._loop.create_task(self._critical_path())
            cancelled = await self._wait_for(computing) or cancelled
            # Without a thread it is computed here.
            path = computing.result() if not computing.cancelled() and computing.exception() is None else None
        result = self._finish(finished_ns, path)
        if cancelled is not None:
            raise cancelled
        return result

    async def _critical_path(self) -> Sequence[PathStep]:
        path: Sequence[PathStep] = await self._host.aside(partial(critical_path_of, self._nodes))
        return path

    async def _wait_for(self, future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
        """Wait until it is done. When this task is cancelled meanwhile, the execution is; returns the error."""
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait((future,))
            except asyncio.CancelledError as error:
                cancelled = error
                self.cancel("its task was cancelled")
        return cancelled

    def _begin(self) -> None:
        self._started_ns = self.clock()
        self.emit(
            ExecutionStarted(
                execution=self.ref,
                time_ns=self._started_ns,
                step_count=len(self._nodes),
                inputs=self.inputs_summary,
                process=identity(),
                expects=self.workflow.expectation,
            )
        )
        self._loop = asyncio.get_running_loop()
        # Steps start from the run's context, not from the context of the step that freed the slot.
        self._base = copy_context()
        if self._abort is not None:
            self._stop_all()
            return
        if self.workflow.timeout_seconds is not None:
            reason = f"the execution took longer than {self.workflow.timeout_seconds:g} s"
            self._timer = self._loop.call_later(
                self.workflow.timeout_seconds, self.abort, ExecutionStatus.TIMEOUT, reason
            )
        self._to_consider.extend(n for n in self._nodes if not n.upstream.total and n.is_fallback_of is None)
        self._advance()

    def cancel(self, reason: str) -> None:
        """End as cancelled. Called again, it cancels once more the handlers that went on in spite of it."""
        if self._abort is None:
            self.abort(ExecutionStatus.CANCELLED, reason)
            return
        for node in self._nodes:
            if node.status is StepStatus.RUNNING and node.task is not None:
                node.task.cancel()

    def close(self) -> None:
        """Called when the task of the execution is over. One that has not ended (it never got its turn) ends now."""
        if not self._has_finished:
            self.abort(ExecutionStatus.CANCELLED, "its task was cancelled")
            if not self._started_ns:
                self._begin()
            for node in self._nodes:
                if node.status is StepStatus.RUNNING:
                    self._end(node, self.clock(), StepStatus.CANCELLED, self._stopped())
            self._advance(to_the_end=True)
            self._finish(self.clock())
        # A run and its task refer to each other until garbage is collected; its steps need not stay so long. A handler
        # that goes on in its thread still has them.
        self._graph = Graph(())
        self._nodes = []
        self.settled = SettledSteps(self._nodes, {})
        self.outputs = Outputs(self._nodes, self._graph)

    def hold(self, reason: str) -> None:
        """Start no more steps. The execution ends as cancelled once its running steps have ended."""
        if self._hold_reason is None and self._abort is None:
            self._hold_reason = reason
            if self._running == 0:
                self.abort(ExecutionStatus.CANCELLED, reason)

    def abort(self, status: ExecutionStatus, reason: str) -> None:
        """Cancel running steps, skip those that have not started, and end with ``status``."""
        if self._abort is not None or self._done.done():
            return
        self._abort = (status, mask_text(reason))
        if not self.aborted.done():
            self.aborted.set_result(None)
        if self._started_ns:
            self._stop_all()

    def _stopped(self) -> Failure:
        return Failure("Cancelled", self._abort[1] if self._abort is not None else "cancelled")

    def _stop_all(self) -> None:
        assert self._abort is not None  # noqa: S101
        is_timeout = self._abort[0] is ExecutionStatus.TIMEOUT
        skip_reason = SkipReason.EXECUTION_TIMEOUT if is_timeout else SkipReason.EXECUTION_CANCELLED
        self._ready.clear()
        for node in self._nodes:
            if node.status is StepStatus.PENDING:
                if node.task is not None and not node.has_slot:
                    node.task.cancel()  # Its condition is still being evaluated.
                self._to_skip.append((node, skip_reason))
            elif node.status is StepStatus.RETRYING:
                if node.retry_timer is not None:
                    node.retry_timer.cancel()
                self._end(node, self.clock(), StepStatus.CANCELLED, self._stopped())
            elif node.status is StepStatus.RUNNING and node.task is not None:
                if node.context is not None:
                    node.context.stop()
                node.task.cancel()
        self._advance()

    def _finish(self, finished_ns: int, path: Sequence[PathStep] | None = None) -> ExecutionResult:
        """``path``: the critical path, if it has been computed."""
        self._has_finished = True
        if self._timer is not None:
            self._timer.cancel()
        self.counts.close_open_steps(finished_ns)
        status, failure = self._outcome()
        self.emit(
            ExecutionFinished(
                execution=self.ref,
                time_ns=finished_ns,
                status=status,
                started_ns=self._started_ns,
                step_count=self.counts.steps,
                completed_step_count=self.counts.completed,
                failed_step_count=self.counts.failed,
                skipped_step_count=self.counts.skipped,
                work_ns=self.counts.work_ns,
                critical_path=critical_path_of(self._nodes) if path is None else tuple(path),
                failure=failure,
                inputs=self.inputs_summary,
            )
        )
        return ExecutionResult(
            execution=self.ref,
            status=status,
            started_ns=self._started_ns,
            finished_ns=finished_ns,
            steps={node.step.name: node.status for node in self._nodes},
            outputs={n.step.name: n.output for n in self._nodes if n.status is StepStatus.COMPLETED},
            failure=failure,
        )

    def _outcome(self) -> tuple[ExecutionStatus, Failure | None]:
        if self._abort is not None:
            status, reason = self._abort
            return status, Failure(status.value.capitalize(), reason)
        first: Node | None = None
        for node in self._nodes:
            is_rescued = node.stand_in.status is StepStatus.COMPLETED
            if not node.has_failed or is_rescued:
                continue
            if first is None or (node.finished_ns or 0) < (first.finished_ns or 0):
                first = node
        if first is None:
            return ExecutionStatus.COMPLETED, None
        failure = first.failure or Failure("Unknown", first.status)
        return ExecutionStatus.FAILED, Failure(failure.type, f'step "{first.name}": {failure.message}')

    def _consider(self, node: Node) -> None:
        """Decide whether the step runs, waits or is skipped. Called whenever a step before it settles."""
        if node.is_decided or self._abort is not None:
            return
        primary = node.is_fallback_of
        if primary is not None:
            if not primary.status.is_terminal:
                return
            if not primary.has_failed:
                self._skip(node, SkipReason.FALLBACK_NOT_NEEDED)
                return
        decision = decide(node.step.trigger_rule, node.upstream)
        if decision is Decision.WAIT:
            return
        if isinstance(decision, SkipReason):
            self._skip(node, decision)
            return
        if node.step.condition_expression is None:
            self._make_ready(node)
            return
        try:
            condition = compile_condition(node.step.condition_expression)
            # CEL copies its input, so it gets only the steps that the condition reads.
            steps = {name: self.settled[name] for name in condition.steps if name in self.settled}
            evaluate = partial(condition, self._scope(steps))
            if condition.is_costly(*evaluate.args):
                node.is_decided = True
                node.task = self._loop.create_task(self._decide_later(node, evaluate), context=self._base.copy())
                return
            holds = evaluate()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A condition asks whether an output is set, for instance, and the output's own code answers.
            self._fail_before_start(node, error)
            return
        self._follow_condition(node, holds)

    async def _decide_later(self, node: Node, evaluate: Callable[[], bool]) -> None:
        """Evaluate a condition that may take long, off the event loop; an abort meanwhile skips the step."""
        try:
            holds = await self._host.aside(evaluate)
        except asyncio.CancelledError:
            return
        except Exception as error:
            if node.status is StepStatus.PENDING and self._abort is None:
                self._fail_before_start(node, error)
        else:
            if node.status is StepStatus.PENDING and self._abort is None:
                self._follow_condition(node, holds)
        node.task = None
        self._advance()

    def _follow_condition(self, node: Node, holds: bool) -> None:
        if holds:
            self._make_ready(node)
        else:
            self._skip(node, SkipReason.CONDITION)

    def _make_ready(self, node: Node) -> None:
        node.is_decided = True
        attempts = node.attempts = StepAttempts(node.ref, self._started_ns)
        self.emit(attempts.ready(self.clock()))
        self._ready.append(node)

    def _scope(self, steps: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.inputs, "inputs": self.inputs, "steps": steps}

    def _skip(self, node: Node, reason: SkipReason) -> None:
        node.is_decided = True
        node.status = StepStatus.SKIPPED
        self.emit(StepSkipped(step=node.ref, time_ns=self.clock(), reason=reason))
        self.counts.add(StepStatus.SKIPPED)
        self._settled.append((node, Outcome.FAILED if reason is SkipReason.UPSTREAM_FAILED else Outcome.SKIPPED))

    def _fail_before_start(self, node: Node, error: BaseException) -> None:
        # The attempt is recorded though nothing ran: a failed step always has a start, an end and an error.
        node.is_decided = True
        attempts = node.attempts = StepAttempts(node.ref, self._started_ns)
        now = self.clock()
        node.status = StepStatus.RUNNING
        self.emit(attempts.started(now))
        self._end(node, now, StepStatus.FAILED, describe(error, stack=not issubclass(type(error), ConditionError)))

    def _advance(self, *, to_the_end: bool = False) -> None:
        """Pass every settled outcome on to the steps after it, then start what is ready. Never recurses.

        What does not fit into this turn of the event loop follows in later ones, unless ``to_the_end``.
        """
        if self._is_settling:
            return
        if not self._is_deferred or to_the_end:
            self._is_settling = True
            try:
                self._work_off(to_the_end)
            finally:
                self._is_settling = False
        self._pump()
        if self._hold_reason is not None and self._running == 0 and self._unsettled and self._abort is None:
            self.abort(ExecutionStatus.CANCELLED, self._hold_reason)
        elif self._unsettled == 0 and not self._done.done():
            self._done.set_result(None)

    def _go_on(self) -> None:
        """In a later turn."""
        self._is_deferred = False
        try:
            self._base.copy().run(self._advance)
        except Exception as error:
            log.exception("the steps after a settled one could not be considered")
            self.abort(ExecutionStatus.FAILED, describe(error).message)

    def _work_off(self, to_the_end: bool) -> None:
        """Consider and skip what is waiting for that, and what is waiting then, until nothing is left."""
        nodes, passing_on, count = self._nodes, self._passing_on, 0
        while True:
            if passing_on:
                node, outcome, positions = passing_on[0]
                for position in positions:
                    after = nodes[position]
                    if not after.stands_in_for(node):
                        after.upstream.settle(outcome)
                        self._consider(after)
                    count += 1
                    if count == _FEW:
                        break
                else:
                    passing_on.popleft()
            elif self._settled:
                self._settle_one(*self._settled.popleft())
            elif self._to_skip:
                self._skip(*self._to_skip.popleft())
                count += 1
            elif self._to_consider:
                self._consider(self._to_consider.popleft())
                count += 1
            else:
                return
            if count >= _FEW and not to_the_end:
                if self._host.turns.is_over(self._go_on):
                    self._is_deferred = True
                    return
                count = 0

    def _settle_one(self, node: Node, outcome: Outcome) -> None:
        self._unsettled -= 1
        if node.fallback is not None:
            self._consider(node.fallback)
            if node.has_failed:
                return  # Steps after it get its outcome together with the fallback's.
        downstream = self._graph.downstream
        self._passing_on.append((node, outcome, iter(downstream[node.position])))
        primary = node.is_fallback_of
        while primary is not None and primary.has_failed:
            rescued = Outcome.SUCCESS if outcome is Outcome.SUCCESS else Outcome.FAILED
            self._passing_on.append((primary, rescued, iter(downstream[primary.position])))
            primary = primary.is_fallback_of

    def _pump(self) -> None:
        if self._hold_reason is not None or self._is_pumping:
            return
        self._is_pumping = True  # A task may run at once, in an event loop with eager tasks.
        try:
            while self._ready and (self._limit is None or self._running < self._limit):
                if not self._host.turns.may_start(self._pump):
                    break
                node = self._ready.popleft()
                self._running += 1
                node.has_slot = True
                # The task changes the status when it starts; until then an abort still skips the step.
                self._loop.create_task(self._attempt(node), context=self._base.copy())
        finally:
            self._is_pumping = False

    def _release(self, node: Node) -> None:
        """Free the slot of the attempt that runs; only once."""
        if node.has_slot:
            node.has_slot = False
            node.task = None
            self._running -= 1

    async def _attempt(self, node: Node) -> None:
        node.task = task = asyncio.current_task()
        try:
            await self._try(node)
        except KeyboardInterrupt as interrupt:
            # The user stops the program: the event loop raises it where the program waits for the loop.
            self._settle(node, task, interrupt)
            if task is not None:
                task.add_done_callback(asyncio.Task.exception)  # Or it is logged as never retrieved.
            raise
        except GeneratorExit:
            raise  # The event loop is gone, and this task is thrown away.
        except BaseException as error:
            log.exception("step %r was not settled by its own attempt", node.name)
            self._settle(node, task, error)

    def _settle(self, node: Node, task: asyncio.Task[Any] | None, error: BaseException) -> None:
        """The last resort: what nobody foresaw fails the step in whose task it happened."""
        if node.task is task:  # Otherwise it was settled, and what came after it failed.
            if node.status is StepStatus.RUNNING:
                status = self._status_after(error)
                status = StepStatus.FAILED if status is StepStatus.COMPLETED else status
                self._end(node, self.clock(), status, describe(error))
            self._release(node)
        self._advance()

    async def _try(self, node: Node) -> None:
        attempts = node.attempts
        if self._abort is not None or attempts is None:
            # The run was stopped between this task's creation and its start.
            self._release(node)
            self._advance()
            return
        started_ns = self.clock()
        node.context = None
        node.status = StepStatus.RUNNING
        reporter = node.reporter
        if reporter is None:
            reporter = node.reporter = Reporter(attempts, self.emit, self.clock, self.counts)
        current_reporter.set(reporter)
        error: BaseException | None = None
        has_expired = False
        config: Mapping[str, Any] = node.step.config
        inputs: str | None = None
        try:
            config = resolve(config, self._scope(self.settled)) if has_reference(config) else config
            inputs = summarise({k: v for k, v in config.items() if k != "handler"})
        except ConditionError as unresolved:
            error = DoNotRetry(str(unresolved))
        except BaseException as raised:
            error = raised  # By the output of another step, when it was made part of a text.
        self.emit(attempts.started(started_ns, inputs))
        if error is None:
            context = node.context = StepContext(
                node.ref,
                attempt=attempts.attempt,
                inputs=self.inputs,
                outputs=self.outputs,
                config=config,
                reporter=reporter,
                carrier=self._host.carrier,
            )
            try:
                if node.step.timeout_seconds is None:
                    node.output = await self._host.runner.run(node.handler, context)
                else:
                    async with asyncio.timeout(node.step.timeout_seconds) as limit:
                        node.output = await self._host.runner.run(node.handler, context)
            except TimeoutError as expired:
                error = expired
                if node.step.timeout_seconds is not None and limit.expired():
                    error = TimeoutError(f"took longer than {node.step.timeout_seconds:g} s")
                    has_expired = True
            except GeneratorExit as raised:
                if not self._is_alive():
                    raise  # The event loop is gone, and this task is thrown away.
                error = raised
            except BaseException as raised:
                error = raised
        self._after_attempt(node, attempts, StepStatus.TIMEOUT if has_expired else self._status_after(error), error)
        if error is not None and issubclass(type(error), KeyboardInterrupt):
            raise error

    def _is_alive(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _status_after(self, error: BaseException | None) -> StepStatus:
        """How a step ends whose handler raised ``error``. By its class alone: an exception's own code is not run."""
        if error is None or is_clean_exit(error):
            return StepStatus.COMPLETED
        if issubclass(type(error), KeyboardInterrupt):
            return StepStatus.CANCELLED
        if issubclass(type(error), asyncio.CancelledError):
            # By the run; or by whoever cancels all tasks, as `asyncio.run` does at its end. Otherwise the handler
            # awaited something that had been cancelled, and that is a failure.
            task = asyncio.current_task()
            if self._abort is not None or (task is not None and task.cancelling()):
                return StepStatus.CANCELLED
        return StepStatus.FAILED

    def _after_attempt(
        self, node: Node, attempts: StepAttempts, status: StepStatus, error: BaseException | None
    ) -> None:
        if node.status is not StepStatus.RUNNING:
            self._release(node)  # Closed meanwhile, see `close`.
            return
        now = self.clock()
        if error is not None and status in (StepStatus.TIMEOUT, StepStatus.CANCELLED) and node.context is not None:
            node.context.stop()
            if self._host.runner.is_local and not node.handler.is_async and node.reporter is not None:
                node.reporter.log(
                    "the handler runs in a thread, which cannot be stopped from outside; it may still be running",
                    "warning",
                )
        failure: Failure | None = None
        if status is StepStatus.COMPLETED:
            if error is not None:
                node.output = None
        elif status is StepStatus.CANCELLED:
            failure = self._stopped()
            if self._abort is None:
                # The program is stopping, not this run; but a run with an interrupted step is cancelled.
                is_interrupt = issubclass(type(error), KeyboardInterrupt)
                failure = Failure("Cancelled", "KeyboardInterrupt" if is_interrupt else "its task was cancelled")
        elif error is not None:
            failure = _failure_elsewhere(error) or describe(error, stack=status is not StepStatus.TIMEOUT)
        retries = node.step.max_retries if node.step.max_retries is not None else self.workflow.max_retries
        is_stopping = self._abort is not None or self._hold_reason is not None
        may_retry = status in (StepStatus.FAILED, StepStatus.TIMEOUT) and not issubclass(type(error), DoNotRetry)
        if may_retry and failure is not None and attempts.attempt <= retries and not is_stopping:
            self._retry(node, attempts, now, status, failure)
        else:
            self._end(node, now, status, failure)
        self._release(node)
        if status is StepStatus.CANCELLED and failure is not None and self._abort is None:
            self.abort(ExecutionStatus.CANCELLED, failure.message)
        self._advance()

    def _retry(self, node: Node, attempts: StepAttempts, now: int, status: StepStatus, failure: Failure) -> None:
        backoff = node.step.retry_backoff or _DEFAULT_BACKOFF
        delay = backoff.delay_seconds(attempts.attempt, self._host.random01())
        node.status = StepStatus.RETRYING
        self.emit(attempts.retrying(now, status, round(delay * NS), failure, _used(node)))
        node.retry_timer = self._loop.call_later(delay, self._retry_is_due, node, attempts)

    def _retry_is_due(self, node: Node, attempts: StepAttempts) -> None:
        if self._abort is not None:
            return
        node.retry_timer = None
        attempts.backed_off(self.clock())
        self._ready.append(node)
        self._advance()

    def _end(self, node: Node, now: int, status: StepStatus, failure: Failure | None) -> None:
        attempts = node.attempts
        assert attempts is not None  # noqa: S101 - only a step that started can end
        output = None
        if status is StepStatus.COMPLETED:
            output = summarise(node.output)
        else:
            node.output = None
        node.status = status
        node.finished_ns = now
        node.failure = failure
        if node.reporter is not None:
            node.reporter.is_open = False
        self.emit(attempts.finished(now, status, failure, output, resources=_used(node)))
        node.put_down()
        self.counts.add(status, attempts.run_ns)
        self._settled.append((node, OUTCOMES[status]))


def _failure_elsewhere(error: BaseException) -> Failure | None:
    """How the work failed where it was done, if a runner says so. By its class alone, see `_status_after`."""
    return cast("FailedElsewhere", error).failure if issubclass(type(error), FailedElsewhere) else None


def _used(node: Node) -> Resources | None:
    """What the attempt that ends used of the machine."""
    return node.context.resources if node.context is not None else None
