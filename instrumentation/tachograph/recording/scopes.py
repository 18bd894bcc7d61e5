"""Executions and steps of plain Python code, as context managers. `decorators` wraps functions in them.

An error in the recording itself is logged and never reaches the recorded code.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

from opentelemetry import context as otel_context
from opentelemetry.propagate import extract
from opentelemetry.trace import get_current_span

from tachograph.clock import NS, AnchoredClock, Clock
from tachograph.critical_path import critical_path_of
from tachograph.events import (
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Listener,
    StepStatus,
)
from tachograph.identity import ExecutionRef, StepRef, new_execution_ref, new_span_id
from tachograph.identity import step_id as make_step_id
from tachograph.identity import workflow_id as make_workflow_id
from tachograph.inferred_dependencies import InferredDependencies
from tachograph.names import clean_name
from tachograph.process import identity
from tachograph.recording.recorder import Recorder
from tachograph.recording.setup import default_workspace, get_recorder
from tachograph.recording.thread_context import hand_over
from tachograph.spans.propagation import caller
from tachograph.summary import failure as describe
from tachograph.summary import is_clean_exit, summarise
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.reporter import Reporter, current_reporter
from tachograph.workflow.step_counts import StepCounts

log = logging.getLogger(__name__)


class _FinishedStep:
    """What the critical path reads of a finished step."""

    __slots__ = ("depends_on", "finished_ns", "name", "parent_step_id", "started_ns", "step_id")

    def __init__(self, ref: StepRef, started_ns: int | None, finished_ns: int) -> None:
        self.step_id = ref.step_id
        self.name = ref.name
        self.depends_on = ref.depends_on
        self.parent_step_id = ref.parent_step_id
        self.started_ns = started_ns
        self.finished_ns: int | None = finished_ns


class _OpenExecution:
    """An execution that is open in this process."""

    def __init__(self, ref: ExecutionRef, recorder: Recorder, clock: Clock, inputs: str | None) -> None:
        self.ref = ref
        self.process = os.getpid()
        self.recorder = recorder
        self.clock = clock
        self.inputs = inputs
        self.counts = StepCounts()
        self.spans: dict[str, str] = {}
        self.order = InferredDependencies()
        self.repetitions: defaultdict[str, int] = defaultdict(int)
        self.finished: list[_FinishedStep] = []
        self.started_ns = clock()
        recorder(ExecutionStarted(execution=ref, time_ns=self.started_ns, inputs=inputs, process=identity()))

    def finish(self, status: ExecutionStatus, failure: Failure | None) -> None:
        counts = self.counts
        self.recorder(
            ExecutionFinished(
                execution=self.ref,
                time_ns=self.clock(),
                status=status,
                started_ns=self.started_ns,
                step_count=counts.steps,
                completed_step_count=counts.completed,
                failed_step_count=counts.failed,
                skipped_step_count=counts.skipped,
                work_ns=counts.work_ns,
                critical_path=critical_path_of(self.finished),
                failure=failure,
                inputs=self.inputs,
            )
        )


_current: ContextVar[_OpenExecution | None] = ContextVar("tachograph_execution", default=None)


def _is_open() -> bool:
    return current_reporter.get() is not None or _current.get() is not None


def current_execution() -> ExecutionRef | None:
    """The execution that the calling code runs in, or None."""
    if (reporter := current_reporter.get()) is not None:
        return reporter.step.execution
    return run.ref if (run := _current.get()) is not None else None


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit)


class _Scope:
    """A context manager, sync and async, whose own errors are logged and never raised."""

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


class ExecutionScope(_Scope):
    """One execution of a workflow, as a block. ``execution`` identifies it once the block is entered."""

    def __init__(self, name: str, *, workspace: str | None, version: str, inputs: Mapping[str, Any] | None) -> None:
        self.name = clean_name(name)
        self.execution: ExecutionRef | None = None
        self._workspace = workspace
        self._version = version
        self._inputs = inputs
        self._open: _OpenExecution | None = None
        self._tokens: tuple[Token[Any], ...] = ()
        self.result: Any = None

    def _enter(self) -> None:
        recorder = get_recorder()
        hand_over(_is_open)
        workspace = self._workspace or default_workspace()
        span_token = otel_context.attach(_context_of_caller())
        self.execution = new_execution_ref(
            workspace=workspace,
            workflow=self.name,
            workflow_id=make_workflow_id(workspace, self.name),
            parent=caller(),
            version=self._version,
        )
        self._open = _OpenExecution(self.execution, recorder, AnchoredClock(), summarise(self._inputs))
        self._tokens = (span_token, _current.set(self._open), current_reporter.set(None))

    def _exit(self, error: BaseException | None) -> None:
        execution = self._open
        if execution is None:
            return
        span_token, token, reporter_token = self._tokens
        try:
            if error is None or is_clean_exit(error):
                execution.finish(ExecutionStatus.COMPLETED, None)
            else:
                status = ExecutionStatus.CANCELLED if _is_cancellation(error) else ExecutionStatus.FAILED
                execution.finish(status, describe(error))
        finally:
            _reset(current_reporter, reporter_token)
            _reset(_current, token)
            otel_context.detach(span_token)


class StepScope(_Scope):
    """One step, as a block; `measure`, `cost` and `log` report from inside it."""

    def __init__(self, name: str, *, step_type: str = "task", inputs: Mapping[str, Any] | None = None) -> None:
        self.name = clean_name(name)
        self.result: Any = None
        self._step_type = step_type
        self._inputs = inputs
        self._execution_scope: ExecutionScope | None = None
        self._reporter: Reporter | None = None
        self._tokens: tuple[Token[Any], ...] = ()

    def _enter(self) -> None:
        outer = current_reporter.get()
        if outer is None and _current.get() is None:
            self._execution_scope = ExecutionScope(self.name, workspace=None, version="1", inputs=self._inputs)
            self._execution_scope.__enter__()
        run = _current.get()
        span_token = otel_context.attach(otel_context.get_current())
        self._summary = None if self._inputs is None else summarise(self._inputs)
        self._run = run
        self._emit: Listener
        if outer is not None:
            # A step inside another one is recorded where the outer one is, whoever runs that.
            self._emit, clock, counts = outer.emit, outer.clock, outer.counts
            origin_ns = outer.attempts.attempt_started_ns
        else:
            assert run is not None  # noqa: S101 - opened above
            self._emit, clock, counts = run.recorder, run.clock, run.counts
            origin_ns = run.started_ns
        now = clock()
        attempts = self._attempts = StepAttempts(self._ref(outer, run, now), origin_ns)
        self._reporter = Reporter(attempts, self._emit, clock, counts)
        self._tokens = (span_token, current_reporter.set(self._reporter))
        self._emit(attempts.started(now, self._summary))

    def _ref(self, outer: Reporter | None, run: _OpenExecution | None, now: int) -> StepRef:
        if outer is not None:
            # Inside another step (the executor's or one of ours): the path of outer steps makes the id unique.
            execution = outer.step.execution
            path = f"{outer.step.step_id}/{self.name}"
            with outer.counts.lock:
                index = outer.repetitions[self.name]
                outer.repetitions[self.name] += 1
            return StepRef(
                execution=execution,
                step_id=make_step_id(execution.workflow_id, path, index),
                name=self.name,
                span_id=new_span_id(),
                parent_span_id=outer.step.span_id,
                step_type=self._step_type,
                step_order=outer.step.step_order,
                index=index,
                parent_step_id=outer.step.step_id,
            )
        assert run is not None  # noqa: S101 - a step is inside a step or an execution
        # A forked child counts repetitions on its own, from the counts it inherited.
        process = os.getpid()
        name = self.name if process == run.process else f"{self.name}@{process}"
        with run.counts.lock:
            index = run.repetitions[self.name]
            run.repetitions[self.name] += 1
            step_id = make_step_id(run.ref.workflow_id, name, index)
            span_id = run.spans[step_id] = new_span_id()
            step_order = len(run.spans)
            depends_on, dependency_count = run.order.started(step_id, now)
        return StepRef(
            execution=run.ref,
            step_id=step_id,
            name=self.name,
            span_id=span_id,
            parent_span_id=run.ref.span_id,
            step_type=self._step_type,
            step_order=step_order,
            index=index,
            depends_on=depends_on,
            dependency_count=dependency_count,
            links=tuple([run.spans[dependency] for dependency in depends_on]),
        )

    def retrying(self, error: BaseException, delay_seconds: float) -> None:
        """Record that the attempt failed and that another one follows after a delay."""
        if self._reporter is not None:
            now, delay_ns = self._reporter.clock(), round(delay_seconds * NS)
            self._emit(self._attempts.retrying(now, StepStatus.FAILED, delay_ns, describe(error)))

    def try_again(self) -> None:
        """Record that the next attempt starts."""
        if self._reporter is not None:
            self._emit(self._attempts.started(self._reporter.clock(), self._summary))

    def _exit(self, error: BaseException | None) -> None:
        reporter = self._reporter
        if reporter is None:
            return
        now = reporter.clock()
        status, failure, output = StepStatus.COMPLETED, None, None
        if error is not None and not is_clean_exit(error):
            status = StepStatus.CANCELLED if _is_cancellation(error) else StepStatus.FAILED
            failure = describe(error)
        attempts, ref = self._attempts, reporter.step
        try:
            if error is None and self.result is not None:
                output = summarise(self.result)
            self._emit(attempts.finished(now, status, failure, output))
            is_inner = ref.parent_step_id is not None
            reporter.counts.add(status, 0 if is_inner else attempts.run_ns)
            if self._run is not None and not is_inner:
                with reporter.counts.lock:
                    self._run.order.finished(ref.step_id, now)
                self._run.finished.append(_FinishedStep(ref, attempts.started_ns, now))
        finally:
            _reset(current_reporter, self._tokens[1])
            otel_context.detach(self._tokens[0])
            if self._execution_scope is not None:
                self._execution_scope.__exit__(type(error) if error else None, error, None)

    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Report a custom value, for instance ``measure("rows", 1200, "row")``."""
        if self._reporter is not None:
            self._reporter.measure(name, value, unit)

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money (US dollars) and tokens spent since the previous report."""
        if self._reporter is not None:
            self._reporter.cost(usd, tokens_in, tokens_out, model)

    def log(self, message: str, level: str = "info") -> None:
        """Record a log line of the step (level debug, info, warning or error)."""
        if self._reporter is not None:
            self._reporter.log(message, level)


def _reset(variable: ContextVar[Any], token: Token[Any]) -> None:
    try:
        variable.reset(token)
    except ValueError:
        # Exited in another context than it was entered in (a generator closed elsewhere): nothing to restore.
        variable.set(None)


def _context_of_caller() -> otel_context.Context:
    """The current context or, if it has no span, the one a parent process passed on in ``TRACEPARENT``."""
    current = otel_context.get_current()
    if get_current_span().get_span_context().is_valid or "TRACEPARENT" not in os.environ:
        return current
    names = ("traceparent", "tracestate", "baggage")
    return extract({name: os.environ[name.upper()] for name in names if name.upper() in os.environ}, current)
