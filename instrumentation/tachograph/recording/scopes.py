"""An execution or a step of ordinary Python code, from where it is entered to where it is left.

`functions` wraps these around functions; they are blocks by themselves. Whatever goes wrong in the recording is logged
and costs the code nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self, cast

from opentelemetry import context as otel_context
from opentelemetry.propagate import extract
from opentelemetry.trace import get_current_span

from tachograph.clock import AnchoredClock, Clock
from tachograph.critical_path import path_of
from tachograph.events import (
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Listener,
    StepFinished,
    StepRetrying,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, StepRef, new_execution_ref, new_span_id
from tachograph.identity import step_id as make_step_id
from tachograph.identity import workflow_id as make_workflow_id
from tachograph.inferred_dependencies import InferredDependencies
from tachograph.process import identity
from tachograph.recording.recorder import Recorder
from tachograph.recording.setup import default_workspace, get_recorder
from tachograph.recording.thread_context import hand_over
from tachograph.spans.propagation import caller
from tachograph.summary import failure as describe
from tachograph.summary import summarise
from tachograph.workflow.reporter import Reporter, current_reporter
from tachograph.workflow.step_counts import StepCounts

log = logging.getLogger(__name__)


class _Timed:
    """A finished step, as the analysis wants it."""

    __slots__ = ("depends_on", "finished_ns", "name", "parent_step_id", "started_ns", "step_id")

    def __init__(self, ref: StepRef, started_ns: int, finished_ns: int) -> None:
        self.step_id = ref.step_id
        self.name = ref.name
        self.depends_on = ref.depends_on
        self.parent_step_id = ref.parent_step_id
        self.started_ns: int | None = started_ns
        self.finished_ns: int | None = finished_ns


class _OpenExecution:
    """A workflow's run while it is open in this process."""

    def __init__(self, ref: ExecutionRef, recorder: Recorder, clock: Clock, inputs: str | None) -> None:
        self.ref = ref
        self.process = os.getpid()
        self.recorder = recorder
        self.clock = clock
        self.inputs = inputs
        self.counts = StepCounts()
        self.spans: dict[str, str] = {}
        self.order = InferredDependencies()
        self.repetitions: Counter[str] = Counter()
        self.finished: list[_Timed] = []
        self.started_ns = clock()
        recorder(ExecutionStarted(execution=ref, time_ns=self.started_ns, inputs=inputs, process=identity()))

    def finish(self, status: ExecutionStatus, why: Failure | None) -> None:
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
                critical_path=path_of(self.finished),
                failure=why,
                inputs=self.inputs,
            )
        )


_current: ContextVar[_OpenExecution | None] = ContextVar("tachograph_execution", default=None)


def _is_open() -> bool:
    return current_reporter.get() is not None or _current.get() is not None


def current_execution() -> ExecutionRef | None:
    """The execution that the calling code belongs to, or None outside any."""
    if (reporter := current_reporter.get()) is not None:
        return reporter.step.execution
    return run.ref if (run := _current.get()) is not None else None


def _cancelled(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit)


class _Scope:
    """Enters and leaves; whatever goes wrong in the recording itself is logged and costs the code nothing."""

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
    """One execution of a workflow, as a block. ``execution`` is its identity while it is open."""

    def __init__(self, name: str, *, workspace: str | None, version: str, inputs: Mapping[str, Any] | None) -> None:
        self.name = name
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
        opened = self._open
        if opened is None:
            return
        span_token, token, reporter_token = self._tokens
        try:
            if error is None:
                opened.finish(ExecutionStatus.COMPLETED, None)
            else:
                status = ExecutionStatus.CANCELLED if _cancelled(error) else ExecutionStatus.FAILED
                opened.finish(status, describe(error))
        finally:
            _reset(current_reporter, reporter_token)
            _reset(_current, token)
            otel_context.detach(span_token)


class StepScope(_Scope):
    """One step, as a block; `measure`, `cost` and `log` report from inside it."""

    def __init__(self, name: str, *, step_type: str = "task", inputs: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.result: Any = None
        self._step_type = step_type
        self._inputs = inputs
        self._own: ExecutionScope | None = None
        self._reporter: Reporter | None = None
        self._tokens: tuple[Token[Any], ...] = ()
        self._attempt = 0
        self._run_ns = 0
        self._backoff_ns = 0
        self._attempt_ended_ns = 0

    def _enter(self) -> None:
        outer = current_reporter.get()
        if outer is None and _current.get() is None:
            self._own = ExecutionScope(self.name, workspace=None, version="1", inputs=self._inputs)
            self._own.__enter__()
        run = _current.get()
        span_token = otel_context.attach(otel_context.get_current())
        self._summary = summarise(self._inputs)
        self._run = run
        # A step inside another goes where that one goes, whoever runs it.
        self._emit: Listener = outer.emit if outer is not None else cast(_OpenExecution, run).recorder
        clock = outer.clock if outer is not None else cast(_OpenExecution, run).clock
        now = self._started_ns = clock()
        ref = self._ref(outer, run, now)
        counts = outer.counts if outer is not None else cast(_OpenExecution, run).counts
        self._since_ns = outer.started_ns if outer is not None else cast(_OpenExecution, run).started_ns
        self._reporter = Reporter(ref, self._emit, clock, counts)
        self._tokens = (span_token, current_reporter.set(self._reporter))
        self._begin_attempt(now)

    def _ref(self, outer: Reporter | None, run: _OpenExecution | None, now: int) -> StepRef:
        if outer is not None:
            # Inside another step, of the executor or of ours: told apart by the steps it lies in.
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
        opened = cast(_OpenExecution, run)
        # Forked children count on their own, each from where it left its parent.
        process = os.getpid()
        name = self.name if process == opened.process else f"{self.name}@{process}"
        with opened.counts.lock:
            index = opened.repetitions[self.name]
            opened.repetitions[self.name] += 1
            step_id = make_step_id(opened.ref.workflow_id, name, index)
            span_id = opened.spans[step_id] = new_span_id()
            step_order = len(opened.spans)
            depends_on = opened.order.started(step_id, now)
        return StepRef(
            execution=opened.ref,
            step_id=step_id,
            name=self.name,
            span_id=span_id,
            parent_span_id=opened.ref.span_id,
            step_type=self._step_type,
            step_order=step_order,
            index=index,
            depends_on=depends_on,
            links=tuple(opened.spans[found] for found in depends_on),
        )

    def _begin_attempt(self, now: int) -> None:
        reporter = cast(Reporter, self._reporter)
        self._attempt += 1
        self._attempt_started_ns = reporter.started_ns = now
        reporter.attempt = self._attempt
        self._last_backoff_ns = now - self._attempt_ended_ns if self._attempt > 1 else 0
        self._backoff_ns += self._last_backoff_ns
        self._emit(
            StepStarted(
                step=reporter.step,
                time_ns=now,
                attempt=self._attempt,
                dependency_ns=now - self._since_ns if self._attempt == 1 else 0,
                backoff_ns=self._last_backoff_ns,
                inputs=self._summary,
            )
        )

    def retrying(self, error: BaseException, delay_seconds: float) -> None:
        """Record that the attempt failed and another follows after a delay."""
        reporter = self._reporter
        if reporter is None:
            return
        now = self._attempt_ended_ns = reporter.clock()
        self._run_ns += now - self._attempt_started_ns
        self._emit(
            StepRetrying(
                step=reporter.step,
                time_ns=now,
                attempt=self._attempt,
                status=StepStatus.FAILED,
                started_ns=self._attempt_started_ns,
                delay_ns=round(delay_seconds * 1e9),
                failure=describe(error),
                dependency_ns=self._started_ns - self._since_ns if self._attempt == 1 else 0,
                backoff_ns=self._last_backoff_ns,
            )
        )

    def try_again(self) -> None:
        """Record that the next attempt begins."""
        if self._reporter is not None:
            self._begin_attempt(self._reporter.clock())

    def _exit(self, error: BaseException | None) -> None:
        reporter = self._reporter
        if reporter is None:
            return
        now = reporter.clock()
        status, why = StepStatus.COMPLETED, None
        if error is not None:
            status = StepStatus.CANCELLED if _cancelled(error) else StepStatus.FAILED
            why = describe(error)
        self._run_ns += now - self._attempt_started_ns
        ref = reporter.step
        try:
            self._emit(
                StepFinished(
                    step=ref,
                    time_ns=now,
                    status=status,
                    attempt=self._attempt,
                    started_ns=self._started_ns,
                    attempt_started_ns=self._attempt_started_ns,
                    dependency_ns=self._started_ns - self._since_ns,
                    backoff_ns=self._backoff_ns,
                    run_ns=self._run_ns,
                    last_backoff_ns=self._last_backoff_ns,
                    failure=why,
                    inputs=self._summary,
                    output=summarise(self.result) if error is None else None,
                )
            )
            is_inner = ref.parent_step_id is not None
            reporter.counts.add(status, 0 if is_inner else self._run_ns)
            if self._run is not None and not is_inner:
                with reporter.counts.lock:
                    self._run.order.finished(ref.step_id, now)
                self._run.finished.append(_Timed(ref, self._started_ns, now))
        finally:
            _reset(current_reporter, self._tokens[1])
            otel_context.detach(self._tokens[0])
            if self._own is not None:
                self._own.__exit__(type(error) if error else None, error, None)

    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Report a value of the step's own, for instance ``measure("rows", 1200, "row")``."""
        if self._reporter is not None:
            self._reporter.measure(name, value, unit)

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money (US dollars) and tokens spent since the last such report."""
        if self._reporter is not None:
            self._reporter.cost(usd, tokens_in, tokens_out, model)

    def log(self, message: str, level: str = "info") -> None:
        """Keep a line (debug, info, warning, error) beside the step's times."""
        if self._reporter is not None:
            self._reporter.log(message, level)


def _reset(variable: ContextVar[Any], token: Token[Any]) -> None:
    try:
        variable.reset(token)
    except ValueError:
        # Left in another context than it was entered in (a generator finished elsewhere): nothing to restore there.
        variable.set(None)


def _context_of_caller() -> otel_context.Context:
    """The current context; where it has no span, the one a parent process passed on as ``TRACEPARENT``."""
    current = otel_context.get_current()
    if get_current_span().get_span_context().is_valid or "TRACEPARENT" not in os.environ:
        return current
    names = ("traceparent", "tracestate", "baggage")
    return extract({name: os.environ[name.upper()] for name in names if name.upper() in os.environ}, current)
