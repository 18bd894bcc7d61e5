"""An execution that is open in this process, and which one the calling code belongs to.

Code belongs to the innermost step or workflow around it, as context variables say. A context may outlive what it names:
a thread that was started inside a run and serves others after it. So only what is still open counts.
"""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar, Token
from typing import Any, Final, TypeAlias
from weakref import WeakValueDictionary

import msgspec

from tachograph import folding, recorded_command
from tachograph.clock import Clock
from tachograph.critical_path import critical_path_of
from tachograph.events import (
    Event,
    ExecutionEvent,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Folded,
    Heartbeat,
    Listener,
    StepFinished,
    StepLines,
    StepReady,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.expectation import Expectation
from tachograph.folding import Fold, Repetitions
from tachograph.identity import ExecutionRef, Origin, StepRef, new_span_id, step_id
from tachograph.inferred_dependencies import InferredDependencies
from tachograph.meter import Meter
from tachograph.process import identity
from tachograph.unmeasured import Unmeasured
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.reporter import Reporter, current_reporter
from tachograph.workflow.step_counts import StepCounts

ABANDONED: Final = Failure("Abandoned", "still running when its run ended")
"""Why a step is lost that outlives the run it belongs to."""


class FinishedStep:
    """What the critical path reads of a finished step."""

    __slots__ = ("depends_on", "finished_ns", "folded", "name", "parent_step_id", "started_ns", "step_id")

    def __init__(self, ref: StepRef, started_ns: int | None, finished_ns: int, folded: Folded | None = None) -> None:
        self.step_id = ref.step_id
        self.name = ref.name
        self.depends_on = ref.depends_on
        self.parent_step_id = ref.parent_step_id
        self.started_ns = started_ns
        self.finished_ns: int | None = finished_ns
        self.folded = folded


class OpenExecution:
    """The state of one execution of plain Python code while it is open. Safe to use from any thread.

    Args:
        ref: identifies the execution.
        emit: records its events.
        clock: its clock.
        inputs: summary of its inputs.
        started_ns: given for an execution that another process started, whose start and end are recorded there.
        expects: what its code expects of the workflow.
    """

    def __init__(
        self,
        ref: ExecutionRef,
        emit: Listener,
        clock: Clock,
        inputs: str | None,
        *,
        started_ns: int | None = None,
        expects: Expectation | None = None,
    ) -> None:
        self.ref = ref
        self.emit = emit
        self.clock = clock
        self.inputs = inputs
        self.is_open = True
        self.meter: Meter | Unmeasured | None = None
        """Of the step around it, if it runs inside one."""
        self.counts = StepCounts()
        self.order = InferredDependencies()
        self._process = os.getpid() if started_ns is None else None
        self._spans: dict[str, str] = {}
        self._step_count = 0
        self.repetitions = Repetitions()
        self._finished: list[FinishedStep] = []
        self.started_ns = clock() if started_ns is None else started_ns
        if started_ns is None:
            _open[ref.execution_id] = self
            emit(
                ExecutionStarted(
                    execution=ref, time_ns=self.started_ns, inputs=inputs, process=identity(), expects=expects
                )
            )

    def new_step(
        self, name: str, step_type: str, child_execution_id: str | None, time_ns: int
    ) -> tuple[StepRef, int, Fold | None]:
        """(a step called ``name`` that starts now, when it could have started: its last dependency's end, its fold)."""
        ref = self.ref
        # Processes count on their own, so each has ids of its own.
        key = name if os.getpid() == self._process else f"{name}@{process_token()}"
        with self.counts.lock:
            index = self.repetitions.index(key, self.counts.rows)
            if index is None:
                return self._folded_step(name, key[len(name) :], step_type, child_execution_id, time_ns)
            identifier = step_id(ref.workflow_id, key, index)
            spans = self._spans
            span_id = spans[identifier] = new_span_id()
            self._step_count = order = self._step_count + 1
            depends_on, dependency_count = self.order.started(identifier, time_ns)
            links = tuple([spans[dependency] for dependency in depends_on])
            ready_ns = self.order.last_end_ns or self.started_ns
        step = StepRef(
            execution=ref,
            step_id=identifier,
            name=name,
            span_id=span_id,
            parent_span_id=ref.span_id,
            step_type=step_type,
            step_order=order,
            index=index,
            depends_on=depends_on,
            dependency_count=dependency_count,
            links=links,
            child_execution_id=child_execution_id,
        )
        return step, ready_ns, None

    def _folded_step(
        self, name: str, token: str, step_type: str, child_execution_id: str | None, time_ns: int
    ) -> tuple[StepRef, int, Fold]:
        """`new_step` past the bound: it is part of a fold. The caller holds the lock."""
        ref, spans, order = self.ref, self._spans, self.order
        folded_as = self.repetitions.fold_name(name, token)
        key = folded_as + token
        span_id = new_span_id()
        fold = self.repetitions.folds.get(key)
        last, ready_ns = order.last, order.last_end_ns or self.started_ns
        if fold is None:
            index = self.repetitions.numbers.get(key, 0)
            identifier = step_id(ref.workflow_id, key, index)
            self._step_count += 1
            depends_on, dependency_count = order.started(identifier, time_ns)
            links = tuple([spans[dependency] for dependency in depends_on])
            spans[identifier] = span_id
            first = StepRef(
                execution=ref,
                step_id=identifier,
                name=folded_as,
                span_id=span_id,
                parent_span_id=ref.span_id,
                step_type=step_type,
                step_order=self._step_count,
                index=index,
                depends_on=depends_on,
                dependency_count=dependency_count,
                links=links,
                folded_as=folded_as,
            )
            fold = self.repetitions.folds[key] = folding.open_fold(first, self.emit)
        else:
            first = fold.ref
            fold.waited_for(last)
            links = (spans[last],) if last else ()
        step = msgspec.structs.replace(
            first, name=name, span_id=span_id, step_type=step_type, links=links, child_execution_id=child_execution_id
        )
        return step, ready_ns, fold

    def step_finished(self, ref: StepRef, started_ns: int | None, time_ns: int) -> None:
        """Note that a step of this execution ended, so that later ones depend on it."""
        with self.counts.lock:
            if ref.folded_as is not None:
                self.order.finished_again(ref.step_id, time_ns if started_ns is None else started_ns, time_ns)
                self._spans[ref.step_id] = ref.span_id
                return
            self.order.finished(ref.step_id, time_ns)
            self._finished.append(FinishedStep(ref, started_ns, time_ns))

    def frontier(self) -> list[tuple[int, str, str]]:
        """(end, step id, span id) of the steps that a step starting now would depend on."""
        with self.counts.lock:
            return [(time_ns, step_id, self._spans[step_id]) for time_ns, step_id in self.order.frontier()]

    def continue_from(self, frontier: list[tuple[int, str, str]]) -> None:
        """Start from another process's `frontier`."""
        self._spans |= {step_id: span_id for _, step_id, span_id in frontier}
        self.order.continue_from((time_ns, step_id) for time_ns, step_id, _ in frontier)

    def finish(self, status: ExecutionStatus, failure: Failure | None) -> None:
        """Record the end. Steps that are still open (in a thread, in another process) end with it, as lost."""
        now = self.clock()
        self.is_open = False
        _open.pop(self.ref.execution_id, None)
        counts = self.counts
        for abandon in list(counts.open_steps.values()):
            abandon(now)
        finished: list[FinishedStep] = self._finished
        for fold in folding.folds_of(self.ref.execution_id):
            folded = fold.folded()
            if folded.ended_ns:
                finished.append(FinishedStep(fold.ref, folded.started_ns, folded.ended_ns, folded))
        self.emit(
            ExecutionFinished(
                execution=self.ref,
                time_ns=now,
                status=status,
                started_ns=self.started_ns,
                step_count=counts.steps,
                completed_step_count=counts.completed,
                failed_step_count=counts.failed,
                skipped_step_count=counts.skipped,
                work_ns=counts.work_ns,
                critical_path=critical_path_of(finished),
                failure=failure,
                inputs=self.inputs,
            )
        )

    def relayed(self, event: Event) -> bool:
        """Take note of an event that a child process recorded; False when it comes too late to be recorded."""
        if isinstance(event, StepStarted) and event.attempt == 1 and event.step.parent_step_id is None:
            step = event.step
            with self.counts.lock:
                if step.folded_as is None or step.step_id not in self._spans:
                    self._spans[step.step_id] = step.span_id
                    self._step_count += 1
                    self.order.started(step.step_id, event.time_ns)
                elif (fold := folding.find(step)) is not None:
                    fold.waited_for(self.order.last)
        is_recorded = _relayed(self.counts, event, self.emit)
        if is_recorded and isinstance(event, StepFinished) and event.step.parent_step_id is None:
            self.step_finished(event.step, event.started_ns, event.time_ns)
        return is_recorded


Progress: TypeAlias = OpenExecution | StepCounts

_open: WeakValueDictionary[str, Progress] = WeakValueDictionary()
_children: dict[str, None] = {}
_MAX_CHILDREN: Final = 10_000
_current: ContextVar[OpenExecution | None] = ContextVar("tachograph_execution", default=None)

Tokens: TypeAlias = tuple[Token[Any], ...]


def current() -> tuple[Reporter | None, OpenExecution | None]:
    """(the innermost open step, the open execution of plain Python code) that the calling code belongs to."""
    reporter, run = current_reporter.get(), _current.get()
    if reporter is not None and not reporter.is_open:
        reporter = None
    if run is not None and not run.is_open:
        run = None
    return reporter, run


def is_open() -> bool:
    """Whether the calling code belongs to an open step or execution."""
    reporter, run = current()
    return reporter is not None or run is not None


def is_stale() -> bool:
    """Whether the calling context is left over from what has ended."""
    return not is_open() and (current_reporter.get() is not None or _current.get() is not None)


def current_execution() -> ExecutionRef | None:
    """The execution that the calling code belongs to, or None."""
    reporter, run = current()
    if reporter is not None:
        return reporter.step.execution
    return run.ref if run is not None else None


def enter(run: OpenExecution | None, reporter: Reporter | None) -> Tokens:
    """Make the calling context belong to an execution and a step; `restore` undoes it."""
    return _current.set(run), current_reporter.set(reporter)


def enter_step(reporter: Reporter) -> Tokens:
    """Make the calling context belong to a step of the execution it already belongs to; `restore` undoes it."""
    return (current_reporter.set(reporter),)


def leave() -> Tokens:
    """Make the calling context belong to nothing; `restore` undoes it."""
    return enter(None, None)


def restore(tokens: Tokens) -> None:
    """Undo `enter` or `leave`. In another context than theirs (a generator closed elsewhere) nothing is restored."""
    for token in tokens:
        try:
            token.var.reset(token)
        except ValueError:
            token.var.set(None)


def watch(reporter: Reporter) -> None:
    """Count what child processes record inside a step of the executor."""
    execution_id = reporter.step.execution.execution_id
    if execution_id not in _open:
        _open[execution_id] = reporter.counts


def relayed(event: Event, emit: Listener) -> bool:
    """Take note of an event from a child process; False when its execution has ended here, so it comes too late."""
    execution_id = event.execution.execution_id
    if event.execution.origin is Origin.REPORTED:
        return True  # The process that reports it knows more of it than this one.
    progress = _open.get(execution_id)
    if isinstance(progress, OpenExecution):
        return progress.relayed(event)
    if progress is not None:
        return _relayed(progress, event, emit)
    if isinstance(event, ExecutionStarted):
        # An execution of the child's own.
        _children[execution_id] = None
        if len(_children) > _MAX_CHILDREN:
            del _children[next(iter(_children))]
    if execution_id in _children:
        _fold(event, emit)
        return True
    return isinstance(event, Heartbeat) or recorded_command.is_around(os.environ, execution_id)


def _relayed(counts: StepCounts, event: Event, emit: Listener) -> bool:
    is_recorded = _is_recorded(counts, event, emit)
    if is_recorded:
        _fold(event, emit)
    return is_recorded


def _fold(event: Event, emit: Listener) -> None:
    """Add what a child process recorded to the fold that it is part of."""
    if not isinstance(event, ExecutionEvent | StepLines):
        if event.step.folded_as is not None:
            folding.relayed(event, emit)
        elif isinstance(event, StepFinished):
            folding.finish_inside(event.step)


def _is_recorded(counts: StepCounts, event: Event, emit: Listener) -> bool:
    if isinstance(event, StepStarted):
        counts.open_steps[event.step.span_id] = lambda now: _abandon(counts, event, now, emit)
    elif isinstance(event, StepRetrying):
        retrying = event
        if event.step.span_id in counts.open_steps:
            counts.open_steps[event.step.span_id] = lambda now: _abandon(counts, retrying, now, emit)
    elif isinstance(event, StepFinished):
        if counts.open_steps.pop(event.step.span_id, None) is None:
            return False
        counts.add(event.status, 0 if event.step.parent_step_id is not None else event.run_ns)
    elif not isinstance(event, StepReady | StepSkipped | StepLines):
        return event.step.span_id in counts.open_steps if hasattr(event, "step") else True
    return True


def _abandon(counts: StepCounts, event: StepStarted | StepRetrying, now_ns: int, emit: Listener) -> None:
    """Close a child process's step, last known from ``event``, at the end of its execution."""
    if counts.open_steps.pop(event.step.span_id, None) is None:
        return
    is_running = isinstance(event, StepStarted)
    started_ns = event.time_ns if isinstance(event, StepStarted) else event.started_ns
    attempts = StepAttempts.resumed(
        event.step,
        attempt=event.attempt,
        started_ns=started_ns,
        attempt_started_ns=started_ns,
        since_ns=event.time_ns,
        is_running=is_running,
        dependency_ns=event.dependency_ns,
        queue_ns=event.queue_ns,
        backoff_ns=event.backoff_ns,
    )
    finished = attempts.finished(now_ns, StepStatus.LOST, ABANDONED)
    _fold(finished, emit)
    emit(finished)
    counts.add(StepStatus.LOST, 0 if event.step.parent_step_id is not None else attempts.run_ns)


def _after_fork() -> None:
    # Another thread may have held a lock at the moment of the fork; in the child nobody would ever release it.
    reporter, run = current_reporter.get(), _current.get()
    counts = [progress.counts if isinstance(progress, OpenExecution) else progress for progress in _open.values()]
    counts += [owner.counts for owner in (reporter, run) if owner is not None]
    for each in counts:
        each.lock = threading.Lock()
    folding.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_token: tuple[int, str] | None = None


def process_token() -> str:
    """Tells this process's step ids from those of its siblings; never the same, also where pids are reused."""
    global _token
    pid = os.getpid()
    if _token is None or _token[0] != pid:
        _token = (pid, new_span_id())
    return _token[1]
