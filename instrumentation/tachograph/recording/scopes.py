"""Executions and steps of plain Python code, as blocks. `decorators` wraps functions in them.

An error in the recording itself is logged and never reaches the recorded code.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from opentelemetry import context as otel_context

from tachograph import folding, meter, running_attempts, unmeasured
from tachograph.clock import NS, AnchoredClock
from tachograph.events import ExecutionStatus, Failure, Listener, StepStatus, WorkflowExpected
from tachograph.expectation import Expectation, StepExpectation
from tachograph.folding import Fold, Repetitions
from tachograph.identity import ExecutionRef, StepRef, new_execution_ref, new_id, new_span_id
from tachograph.identity import step_id as make_step_id
from tachograph.identity import workflow_id as make_workflow_id
from tachograph.meter import Meter
from tachograph.recording import command_step, open_execution, other_processes
from tachograph.recording.command_step import CommandStep
from tachograph.recording.open_execution import ABANDONED, OpenExecution
from tachograph.recording.setup import default_workspace, get_recorder
from tachograph.resources import Resources
from tachograph.spans.propagation import caller
from tachograph.summary import failure as describe
from tachograph.summary import is_clean_exit, summarise
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.reporter import Reporter

log = logging.getLogger(__name__)
_running_loop = asyncio._get_running_loop


def is_cancellation(error: BaseException) -> bool:
    """Whether an exception says that code was stopped from outside."""
    return isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit)


def _outcome(error: BaseException | None, result: Any) -> tuple[StepStatus, Failure | None, str | None]:
    """How a step ended that was left like this, why it failed, and a summary of its result."""
    if error is None:
        return StepStatus.COMPLETED, None, summarise(result)
    if is_clean_exit(error):
        return StepStatus.COMPLETED, None, None
    return StepStatus.CANCELLED if is_cancellation(error) else StepStatus.FAILED, describe(error), None


class Scope:
    """What is recorded between `__enter__` and `__exit__`; `suspend` and `resume` for code that runs in pieces.

    Its own errors are logged and never raised.
    """

    # What most scopes have until they are entered, or for good: a step is recorded often.
    result: Any = None
    _tokens: open_execution.Tokens | None = None
    _otel_token: Any = None
    _otel_context: otel_context.Context | None = None
    is_plain = False
    """Whether all of it runs in one go, as a plain function does: no other task runs on its thread meanwhile."""

    def __enter__(self) -> Self:
        try:
            self._enter()
        except Exception:
            log.exception("not recorded: %s could not be opened", type(self).__name__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        try:
            self._exit(error)
        except Exception:
            log.exception("not recorded: %s could not be closed", type(self).__name__)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, tb)

    def _enter(self) -> None:
        raise AssertionError

    def _exit(self, error: BaseException | None) -> None:
        raise AssertionError

    def suspend(self) -> None:
        """The code pauses (it yields, or returns a coroutine): the calling context no longer belongs to this scope."""
        if self._tokens is not None:
            self._otel_context = otel_context.get_current()
            self._deactivate()

    def resume(self) -> None:
        """The code goes on, maybe in another context."""
        raise AssertionError

    def _activate(self, run: OpenExecution | None, reporter: Reporter | None, context: otel_context.Context) -> None:
        self._otel_token = otel_context.attach(context)
        self._tokens = open_execution.enter(run, reporter)

    def _deactivate(self) -> None:
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            return
        open_execution.restore(tokens)
        token = self._otel_token
        try:
            # `detach` logs an error for a token of another context: of a generator that is closed elsewhere.
            token.var.reset(token)
        except ValueError:
            token.var.set(otel_context.Context())
        except AttributeError:
            otel_context.detach(token)  # A context of another kind (OTEL_PYTHON_CONTEXT).


class ExecutionScope(Scope):
    """One execution of a workflow, as a block. ``execution`` identifies it once the block is entered.

    Inside another execution it is also a step of that one, of type ``workflow``, and the two name each other; likewise
    in a process that runs inside a recorded command. Names are text that can be encoded (see `names.clean_name`).
    """

    execution: ExecutionRef | None = None
    _run: OpenExecution | None = None
    _step: StepScope | None = None
    _command_step: CommandStep | None = None

    def __init__(
        self,
        name: str,
        *,
        workspace: str | None,
        version: str,
        inputs: Mapping[str, Any] | None,
        expects: Expectation | None = None,
    ) -> None:
        self.name = name
        self._expects = expects
        self._workspace = workspace
        self._version = version
        self._inputs = inputs

    def _enter(self) -> None:
        recorder = get_recorder()
        other_processes.install()
        workspace = self._workspace or default_workspace()
        execution_id = new_id()
        parent: StepRef | None = None
        if open_execution.is_open():
            step = StepScope(self.name, step_type="workflow", inputs=self._inputs, child_execution_id=execution_id)
            step.__enter__()
            if step.reporter is not None:
                self._step, parent = step, step.reporter.step
        elif (outer := command_step.open_step(self.name, execution_id, summarise(self._inputs))) is not None:
            self._command_step, parent = outer, outer.ref
        if self._command_step is not None:
            context = self._command_step.context
        else:
            context = otel_context.Context() if open_execution.is_stale() else command_step.context_of_caller()
        token = otel_context.attach(context)
        try:
            ref = new_execution_ref(
                workspace=workspace,
                workflow=self.name,
                workflow_id=make_workflow_id(workspace, self.name),
                execution_id=execution_id,
                parent=caller(),
                version=self._version,
                parent_execution_id=parent.execution.execution_id if parent is not None else None,
                parent_step_id=parent.step_id if parent is not None else None,
            )
        finally:
            otel_context.detach(token)
        self._activate(None, None, context)
        self.execution = ref
        # Its start makes its span the current one of this context.
        self._run = run = OpenExecution(ref, recorder, AnchoredClock(), summarise(self._inputs), expects=self._expects)
        if self._step is not None and self._step.reporter is not None:
            run.meter = self._step.reporter.meter
        open_execution.enter(run, None)
        if self._command_step is not None:
            self._command_step.measure(is_on_loop=not self.is_plain and _running_loop() is not None)
            run.meter = self._command_step.meter

    def resume(self) -> None:
        """See `Scope.resume`."""
        if self._step is not None:
            self._step.resume()
        if self._command_step is not None and self._command_step.meter is not None:
            self._command_step.meter.resume(is_on_loop=_running_loop() is not None)
        if self._run is not None:
            self._activate(self._run, None, self._otel_context or otel_context.get_current())

    def suspend(self) -> None:
        """See `Scope.suspend`."""
        if self._command_step is not None and self._command_step.meter is not None:
            self._command_step.meter.pause()
        super().suspend()
        if self._step is not None:
            self._step.suspend()

    def _exit(self, error: BaseException | None) -> None:
        run = self._run
        try:
            if run is None:
                return
            if error is None or is_clean_exit(error):
                run.finish(ExecutionStatus.COMPLETED, None)
            else:
                status = ExecutionStatus.CANCELLED if is_cancellation(error) else ExecutionStatus.FAILED
                run.finish(status, describe(error))
        finally:
            self._deactivate()
            if self._step is not None:
                self._step.result = self.result
                self._step.__exit__(type(error) if error is not None else None, error, None)
            if self._command_step is not None:
                self._command_step.close(*_outcome(error, self.result))


class StepScope(Scope):
    """One step, as a block; `measure`, `cost` and `log` report from inside it."""

    reporter: Reporter | None = None
    _execution_scope: ExecutionScope | None = None

    def __init__(
        self,
        name: str,
        *,
        step_type: str = "task",
        inputs: Mapping[str, Any] | None = None,
        child_execution_id: str | None = None,
        expects: StepExpectation | None = None,
    ) -> None:
        self.name = name
        self._expects = expects
        self._step_type = step_type
        self._inputs = inputs
        self._child_execution_id = child_execution_id

    def _enter(self) -> None:
        outer, run = open_execution.current()
        if outer is None and run is None:
            self._execution_scope = ExecutionScope(self.name, workspace=None, version="1", inputs=self._inputs)
            self._execution_scope.__enter__()
            run = self._execution_scope._run
            if run is None:
                return
        self._summary = summarise(self._inputs)
        self._run = run
        self._outer: Reporter | OpenExecution | None = outer if outer is not None else run
        self._emit: Listener
        if outer is not None:
            # A step inside another one is recorded where the outer one is, whoever runs that.
            self._emit, clock, counts = outer.emit, outer.clock, outer.counts
            now = clock()
            (ref, fold), origin_ns = self._inner_ref(outer), outer.attempts.attempt_started_ns
            ready_ns = origin_ns
        else:
            assert run is not None  # noqa: S101
            self._emit, clock, counts = run.emit, run.clock, run.counts
            now = clock()
            ref, ready_ns, fold = run.new_step(self.name, self._step_type, self._child_execution_id, now)
            origin_ns = run.started_ns
        if fold is not None:
            self._emit = fold
        self._attempts = attempts = StepAttempts(ref, origin_ns)
        self.reporter = reporter = Reporter(attempts, self._emit, clock, counts)
        if fold is not None:
            reporter.repetitions = fold.inner
        self._otel_token = otel_context.attach(otel_context.get_current())
        self._tokens = open_execution.enter_step(reporter)
        counts.open_steps[ref.span_id] = self._abandon
        if self._expects is not None:
            self._tell_expected(ref, self._expects)
        # Until it was called, the program was doing something else.
        self._emit(attempts.started(now, self._summary, ready_ns=ready_ns))
        self._measure(reporter)

    def _tell_expected(self, ref: StepRef, expects: StepExpectation) -> None:
        """Say what code expects of the step, when it first starts in an execution."""
        if not get_recorder().is_news(ref.execution.execution_id, ref.name):
            return
        assert self._outer is not None  # noqa: S101
        said = Expectation(steps={ref.name: expects})
        self._outer.emit(WorkflowExpected(execution=ref.execution, time_ns=time.time_ns(), source="code", expects=said))

    def _measure(self, reporter: Reporter) -> None:
        """An attempt starts to use the machine: last of all, so that recording its start is not its work."""
        outer = self._outer
        is_on_loop = not self.is_plain and _running_loop() is not None
        around = (outer.meter if outer is not None else None) or meter.around.get()
        running_attempts.begin(reporter, is_on_loop=is_on_loop)
        reporter.meter = unmeasured.start_step(around, is_on_loop, (reporter.step.execution.workflow_id, self.name))

    def _used(self, reporter: Reporter, now_ns: int) -> Resources | None:
        """What the attempt used that ends now."""
        used = reporter.meter.stop(self._attempts.attempt_started_ns, now_ns) if reporter.meter is not None else None
        running_attempts.end(reporter)
        return used

    def _inner_ref(self, outer: Reporter) -> tuple[StepRef, Fold | None]:
        # The path of outer steps makes the id unique, and in another process that process does.
        execution, name = outer.step.execution, self.name
        token = "" if outer.process == os.getpid() else f"@{open_execution.process_token()}"
        key, fold, folded_as = name + token, None, None
        span_id = new_span_id()
        with outer.counts.lock:
            repetitions = outer.repetitions
            if repetitions is None:
                repetitions = outer.repetitions = Repetitions()
            index = repetitions.index(key, outer.counts.rows)
            if index is None:
                folded_as = repetitions.fold_name(name, token)
                key = folded_as + token
                fold, index = repetitions.folds.get(key), repetitions.numbers.get(key, 0)
            ref = StepRef(
                execution=execution,
                step_id=make_step_id(execution.workflow_id, f"{outer.step.step_id}/{key}", index),
                name=name,
                span_id=span_id,
                parent_span_id=outer.step.span_id,
                step_type=self._step_type,
                step_order=outer.step.step_order,
                index=index,
                parent_step_id=outer.step.step_id,
                child_execution_id=self._child_execution_id,
                folded_as=folded_as,
            )
            if folded_as is not None and fold is None:
                first = msgspec.structs.replace(ref, name=folded_as, child_execution_id=None)
                fold = repetitions.folds[key] = folding.open_fold(first, outer.emit)
        return ref, fold

    def resume(self) -> None:
        """See `Scope.resume`."""
        if self._execution_scope is not None:
            self._execution_scope.resume()
        if self.reporter is not None:
            self._activate(self._run, self.reporter, self._otel_context or otel_context.get_current())
            is_on_loop = _running_loop() is not None
            if self.reporter.is_open:
                running_attempts.begin(self.reporter, is_on_loop=is_on_loop)
            if isinstance(self.reporter.meter, Meter):
                self.reporter.meter.resume(is_on_loop=is_on_loop)

    def suspend(self) -> None:
        """See `Scope.suspend`."""
        if self.reporter is not None:
            running_attempts.pause(self.reporter)
            if isinstance(self.reporter.meter, Meter):
                self.reporter.meter.pause()
            else:
                self.reporter.meter = None  # It would count what runs on its thread meanwhile.
        super().suspend()
        if self._execution_scope is not None:
            self._execution_scope.suspend()

    def retrying(self, error: BaseException, delay_seconds: float) -> None:
        """Record that the attempt failed and that another one follows after a delay."""
        reporter = self.reporter
        if reporter is not None and reporter.is_open:
            now, delay_ns = reporter.clock(), round(delay_seconds * NS)
            used = self._used(reporter, now)
            self._emit(self._attempts.retrying(now, StepStatus.FAILED, delay_ns, describe(error), used))

    def try_again(self) -> None:
        """Record that the next attempt starts."""
        if self.reporter is not None and self.reporter.is_open:
            self._emit(self._attempts.started(self.reporter.clock(), self._summary))
            self._measure(self.reporter)

    def _exit(self, error: BaseException | None) -> None:
        reporter = self.reporter
        try:
            if reporter is not None:
                now = reporter.clock()
                used = self._used(reporter, now)
                status, failure, output = _outcome(error, self.result)
                self._close(reporter, now, status, failure, output, used)
        finally:
            self._deactivate()
            if self._execution_scope is not None:
                self._execution_scope.__exit__(type(error) if error is not None else None, error, None)

    def _abandon(self, now_ns: int) -> None:
        """The execution ends while the step is still open."""
        if self.reporter is not None:
            self._close(self.reporter, now_ns, StepStatus.LOST, ABANDONED, None, self._used(self.reporter, now_ns))

    def _close(
        self,
        reporter: Reporter,
        now_ns: int,
        status: StepStatus,
        failure: Failure | None,
        output: str | None,
        used: Resources | None,
    ) -> None:
        ref, attempts = reporter.step, self._attempts
        # Its own end and that of its execution may come at once, in two threads: the first one counts.
        if reporter.counts.open_steps.pop(ref.span_id, None) is None:
            return
        reporter.is_open = False
        self._emit(attempts.finished(now_ns, status, failure, output, resources=used))
        if reporter.repetitions is not None and ref.folded_as is None:
            folding.finish_inside(ref)
        is_inner = ref.parent_step_id is not None
        reporter.counts.add(status, 0 if is_inner else attempts.run_ns)
        if self._run is not None and not is_inner:
            self._run.step_finished(ref, attempts.started_ns, now_ns)

    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Report a custom value, for instance ``measure("rows", 1200, "row")``."""
        if self.reporter is not None:
            self.reporter.measure(name, value, unit)

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money (US dollars) and tokens spent since the previous report."""
        if self.reporter is not None:
            self.reporter.cost(usd, tokens_in, tokens_out, model)

    def log(self, message: str, level: str = "info") -> None:
        """Record a log line of the step (level debug, info, warning or error)."""
        if self.reporter is not None:
            self.reporter.log(message, level)
