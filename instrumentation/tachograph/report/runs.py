"""A run that somebody else executes, as this process sees it."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from msgspec.structs import replace

from tachograph.clock import AnchoredClock
from tachograph.critical_path import critical_path_of
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Heartbeat,
    StepStatus,
)
from tachograph.identity import (
    ExecutionRef,
    Origin,
    StepRef,
    derived_span_id,
    derived_trace_id,
    instance_id,
    new_id,
    reported_execution_id,
    traceparent,
)
from tachograph.identity import step_id as make_step_id
from tachograph.identity import workflow_id as make_workflow_id
from tachograph.names import clean_name
from tachograph.recording.command_step import CommandStep, command_trace, open_step
from tachograph.recording.open_execution import FinishedStep
from tachograph.recording.recorder import LEASE_SECONDS, Recorder
from tachograph.recording.scopes import is_cancellation
from tachograph.recording.setup import default_workspace, get_recorder
from tachograph.report.safely import Error, Moment, complain, failure_of, moment_ns, name_of, safely, text_of
from tachograph.report.steps import Step
from tachograph.reported_process import MAX_SECONDS, ReportedProcess
from tachograph.summary import is_clean_exit, summarise
from tachograph.workflow.step_counts import StepCounts

MAX_RUNS: Final = 10_000
"""Runs that a process remembers."""
MAX_STEPS: Final = 20_000
"""Steps of a run that one process reports; further ones are left out, with a warning."""
_NOT_HERE: Final = ("spans", "metrics")
"""Listeners that need the whole run: they do not hear that a run started which another process will end."""

_lock = threading.RLock()
_runs: OrderedDict[str, Run] = OrderedDict()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Run:
    """A run; each method reports something that happened to it, now or ``at`` a moment, and returns the run.

    As a block it begins and ends here: `begin` and `finished`, or `failed` with the exception that leaves the block.
    Otherwise processes may report it in any order, and any of them any part. Methods never raise. `run` makes runs.

    Attributes:
        run_id: what the engine calls it.
    """

    def __init__(self, ref: ExecutionRef, run_id: str, process: ReportedProcess, *, heartbeats: bool = True) -> None:
        self.ref = ref
        self.run_id = run_id
        self._heartbeats = heartbeats
        self.counts = StepCounts()
        self.clock = AnchoredClock()
        self._process = process
        self._owner = 0
        self._started_ns: int | None = None
        self._told_start = False
        self._knows_start = False
        self._status: ExecutionStatus | None = None
        self._inputs: str | None = None
        self._steps: dict[str, Step] = {}
        self._open: dict[str, Step] = {}
        self._instances: dict[str, list[Step]] = {}
        self._watching: weakref.ref[Recorder] | None = None
        self._may_be_nested = False
        self._command_step: CommandStep | None = None

    @property
    def execution_id(self) -> str:
        """The id of the execution, derived from workspace, workflow and run id."""
        return self.ref.execution_id

    @property
    def is_ended(self) -> bool:
        """Whether this process knows that it has ended."""
        return self._status is not None

    @property
    def open_steps(self) -> list[Step]:
        """The steps of which an attempt runs in this process."""
        return list(self._open.values())

    # What happens to the run.

    @safely
    def queued(self, *, inputs: Any = None, at: Moment = None) -> None:
        """It was accepted and waits to start. ``inputs``: a summary is kept, with secrets masked."""
        with self.reporting(at) as now:
            if self._told_start or self._status is not None:
                return
            self._inputs = self._inputs or summarise(inputs)
            self._send(ExecutionQueued(execution=self.ref, time_ns=now, inputs=self._inputs, process=self._named))

    @safely
    def begin(self, *, inputs: Any = None, at: Moment = None, heartbeats: bool = True) -> None:
        """It starts, and this process sends ``heartbeats`` until it ends here, or until this process does."""
        with self.reporting(at) as now:
            if self._owner == os.getpid() or self._status is not None:
                return
            self._owner = os.getpid()
            self._inputs = self._inputs or summarise(inputs)
            self._started_ns = now if self._started_ns is None else min(now, self._started_ns)
            self._told_start = self._knows_start = True
            self._nest()
            self._send(self._start(self._started_ns))
            if heartbeats:
                self._watch()

    @safely
    def finished(self, *, at: Moment = None) -> None:
        """It ended well."""
        self._end(ExecutionStatus.COMPLETED, None, at)

    @safely
    def failed(self, error: Error = None, *, at: Moment = None) -> None:
        """It failed with ``error``, an exception or a text."""
        self._end(ExecutionStatus.FAILED, failure_of(error), at)

    @safely
    def timed_out(self, error: Error = None, *, at: Moment = None) -> None:
        """It took longer than it may."""
        self._end(ExecutionStatus.TIMEOUT, failure_of(error, "Timeout"), at)

    @safely
    def cancelled(self, error: Error = None, *, at: Moment = None) -> None:
        """Somebody stopped it."""
        self._end(ExecutionStatus.CANCELLED, failure_of(error, "Cancelled") if error is not None else None, at)

    @safely
    def lost(self, error: Error = None, *, at: Moment = None) -> None:
        """Nobody knows what became of it: its process was last heard of then. If its real end comes, that counts."""
        self._end(ExecutionStatus.LOST, failure_of(error, "Lost"), at)

    @safely
    def alive(self, *, at: Moment = None) -> None:
        """Its engine says that it goes on: for a process that sends no heartbeats of its own, see `run`."""
        with self.reporting(at) as now:
            if not self.is_ended:
                self._send(Heartbeat(execution=self.ref, time_ns=now))

    def forget(self) -> None:
        """This process will report no more of it, or begin anew: what it remembers of it is given back."""
        with _lock:
            self._unwatch()
            if _runs.get(self.ref.execution_id) is self:
                del _runs[self.ref.execution_id]

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner != os.getpid():
            return  # A forked child leaves the block; the run is its parent's.
        if error is None or is_clean_exit(error):
            self.finished()
        elif is_cancellation(error):
            self.cancelled(error)
        else:
            self.failed(error)

    # Its parts.

    def step(
        self,
        name: str,
        *,
        key: object = None,
        depends_on: Iterable[Step | str] = (),
        index: int | str | None = None,
        parent: Step | str | None = None,
        step_type: str = "task",
        repetition: int = 0,
    ) -> Step:
        """A step of the run; the same one whenever it is asked for.

        Args:
            name: what it is called, in metrics too; so no id.
            key: tells steps of one name apart (default: the name). The same in every run of the workflow, where it can
                be, so that runs can be compared.
            depends_on: steps, or their keys, that it waits for; a key of a mapped step means all its instances. Each
                process may name those that it knows of.
            index: number or key of an instance of a mapped step.
            parent: the step that it is a part of.
            step_type: such as ``task``.
            repetition: counted from 0, where an engine runs a step several times and nobody knows that beforehand; each
                has a key of its own. It is shown once there are several.
        """
        try:
            with _lock:
                clean = name_of(name, "step()")
                identifier = self.step_id(clean if key is None else key, index)
                step = self._steps.get(identifier)
                if step is None:
                    step = Step(self, self._step_ref(identifier, clean, index, parent, step_type, repetition))
                    if len(self._steps) < MAX_STEPS:
                        self._steps[identifier] = step
                        if index is not None:
                            base = self.step_id(clean if key is None else key)
                            self._instances.setdefault(base, []).append(step)
                    else:
                        complain("step", ValueError(f"one process reports {MAX_STEPS} steps of a run at most"))
                step.depend_on(*depends_on)
        except Exception as error:
            complain("step", error)
            step = Step(self, self._step_ref("-", "?", None, None, "task"))
        return step

    def step_id(self, key: object, index: int | str | None = None) -> str:
        """The id of the step with a key, and of an instance of it."""
        text = text_of(key, "a step's key")
        base = make_step_id(self.ref.workflow_id, text)
        return base if index is None else instance_id(base, clean_name(index))

    def span_id(self, step_id: str) -> str:
        """The id of the span of a step."""
        return derived_span_id(self.ref.execution_id, step_id)

    def known(self, step_id: str) -> list[Step]:
        """The step with an id, or the instances of the mapped step, as far as this process knows them."""
        step = self._steps.get(step_id)
        return [step] if step is not None else self._instances.get(step_id, [])

    def _step_ref(
        self,
        identifier: str,
        name: str,
        index: int | str | None,
        parent: Step | str | None,
        step_type: str,
        repetition: int = 0,
    ) -> StepRef:
        outer = None
        if parent is not None:
            outer = parent.ref.step_id if isinstance(parent, Step) else self.step_id(parent)
        return StepRef(
            execution=self.ref,
            step_id=identifier,
            name=name,
            span_id=self.span_id(identifier),
            parent_span_id=self.ref.span_id if outer is None else self.span_id(outer),
            step_type=clean_name(step_type)[:16],
            index=next((n for n in (index, repetition) if type(n) is int and 0 <= n < 1 << 31), 0),
            map_index=None if index is None else clean_name(index),
            parent_step_id=outer,
        )

    def nested(self, step: Step, workflow: str, *, run_id: object = None, **options: Any) -> Run:
        """A run of another workflow that is a step of this one; each names the other. Arguments are those of `run`."""
        options.setdefault("traceparent", traceparent(self.ref.trace_id, step.ref.span_id))
        inner = run(workflow, run_id=run_id, workspace=self.ref.workspace, **options)
        inner.ref = replace(inner.ref, parent_execution_id=self.ref.execution_id, parent_step_id=step.ref.step_id)
        step.refer_to(inner.execution_id)
        return inner

    # What steps need.

    @contextmanager
    def reporting(self, at: Moment) -> Iterator[int]:
        """Something is reported that happened ``at`` a moment: yields it in unix nanoseconds."""
        now = self.moment(at)
        with _lock:
            yield now

    def moment(self, at: Moment) -> int:
        """A moment in unix nanoseconds; None: now."""
        return moment_ns(at, self.clock() if at is None else 0)

    def emit(self, event: Event) -> None:
        """Record an event of one of its steps."""
        step = getattr(event, "step", None)
        if step is not None and step.step_id in self._steps:
            get_recorder()(event)

    def begin_if_needed(self, now_ns: int) -> None:
        """A step starts or ends: so the run has started, at the latest now, whoever began it."""
        if self._started_ns is None:
            self._started_ns = now_ns
        if not self._told_start:
            self._told_start = True
            recorder = get_recorder()
            recorder.publish([self._start(now_ns)], delivered_to=_NOT_HERE, are_foreign=True)

    def origin_of(self, ref: StepRef, now_ns: int) -> int:
        """When the run of a step started, or the step around it, as far as this process knows."""
        outer = self._steps.get(ref.parent_step_id or "")
        origin = outer.started_ns if outer is not None else None
        if origin is None:
            origin = self._started_ns
        return now_ns if origin is None else min(origin, now_ns)

    def met_ns(self, ref: StepRef, now_ns: int, earliest_ns: int | None = None) -> int:
        """When the last of a step's dependencies ended, as far as this process knows.

        ``earliest_ns``: when the run had begun, or was waited for, if nobody told this process of its start.
        """
        steps = [step for dependency in ref.depends_on for step in self.known(dependency)]
        ends = [step.finished_ns for step in steps if step.finished_ns is not None]
        is_unknown = not self._knows_start and not (ref.depends_on and not ends)
        since_ns = earliest_ns if earliest_ns is not None and is_unknown else now_ns
        return max([self.origin_of(ref, since_ns), *[end for end in ends if end <= now_ns]])

    def opened(self, step: Step) -> None:
        """An attempt of a step runs here."""
        self._open[step.ref.step_id] = step
        self._watch()

    def closed(self, step: Step) -> None:
        """No attempt of a step runs here any more."""
        self._open.pop(step.ref.step_id, None)
        if not self._open and self._owner != os.getpid():
            self._unwatch()

    def ended(self, step: Step, status: StepStatus, run_ns: int) -> None:
        """A step ended."""
        self.counts.add(status, 0 if step.ref.parent_step_id is not None else run_ns)
        self.closed(step)
        if self._process.queue_seconds is not None and not self._open:
            # Another process may go on with it; this one need not remember it.
            _runs.pop(self.ref.execution_id, None)

    # Its events.

    @property
    def _named(self) -> str:
        return str(self._process)

    def _start(self, time_ns: int) -> ExecutionStarted:
        return ExecutionStarted(execution=self.ref, time_ns=time_ns, inputs=self._inputs, process=self._named)

    def _send(self, event: Event) -> None:
        get_recorder()(event)

    def may_be_nested(self) -> None:
        """Nothing else is said to have started it: where it begins inside a recorded command, it is a step of that."""
        self._may_be_nested = True

    def _nest(self) -> None:
        """It begins here: inside a recorded command it is a step of that, and the two name each other."""
        if not self._may_be_nested or self._command_step is not None:
            return
        step = open_step(self.ref.workflow, self.execution_id, self._inputs, started_ns=self._started_ns)
        if step is None:
            return
        self._command_step = step
        self.ref = replace(
            self.ref,
            parent_span_id=step.ref.span_id,
            parent_execution_id=step.ref.execution.execution_id,
            parent_step_id=step.ref.step_id,
        )

    def _end(self, status: ExecutionStatus, failure: Failure | None, at: Moment) -> None:
        with self.reporting(at) as now:
            # Only a real outcome replaces ``lost``.
            if self._status is not None and (self._status is not ExecutionStatus.LOST or self._status is status):
                return
            self._status = status
            if self._started_ns is None:
                self._started_ns = now
            for step in list(self._open.values()):
                step.abandon(now)
            counts = self.counts
            self._send(
                ExecutionFinished(
                    execution=self.ref,
                    time_ns=max(now, self._started_ns),
                    status=status,
                    started_ns=self._started_ns,
                    step_count=counts.steps,
                    completed_step_count=counts.completed,
                    failed_step_count=counts.failed,
                    skipped_step_count=counts.skipped,
                    work_ns=counts.work_ns,
                    critical_path=critical_path_of(self._ended_steps()),
                    failure=failure,
                    inputs=self._inputs,
                )
            )
            self._owner = 0
            self._unwatch()
            if self._command_step is not None:
                self._command_step.close(StepStatus(status.value), failure, at_ns=max(now, self._started_ns))

    def _ended_steps(self) -> list[FinishedStep]:
        steps = []
        for step in self._steps.values():
            if step.finished_ns is not None:
                ids = [other.id for dependency in step.ref.depends_on for other in self.known(dependency)]
                steps.append(FinishedStep(replace(step.ref, depends_on=tuple(ids)), step.started_ns, step.finished_ns))
        return steps

    def _watch(self) -> None:
        if not self._heartbeats:
            return
        recorder = get_recorder()
        if self._watching is None or self._watching() is not recorder:
            self._watching = weakref.ref(recorder)
        recorder.watch(self.ref)

    def _unwatch(self) -> None:
        recorder = self._watching() if self._watching is not None else None
        if recorder is not None:
            recorder.unwatch(self.ref)


def run(
    workflow: str,
    *,
    run_id: object = None,
    engine: str = "",
    workspace: str | None = None,
    version: str = "1",
    lease: float = LEASE_SECONDS,
    queue_lease: float | None = None,
    traceparent: str | None = None,
    trace_id: str | None = None,
    heartbeats: bool = True,
) -> Run:
    """A run of a workflow that somebody else executes; the same one in every process that names it.

    Args:
        workflow: the workflow's name.
        run_id: what the engine calls the run, unique in its workflow (default: a new id).
        engine: the engine's name, such as ``celery``. Spans of the same engine in the same trace are then parts of this
            run, and make no run of their own.
        workspace: slug of the workspace (default: that of `tachograph.configure`).
        version: the workflow's version.
        lease: seconds after which it is lost if no process that has it open was heard of. Give more than the default if
            it may go on while no process has it open.
        queue_lease: given if its work waits in a queue that no process watches: how many seconds it may wait there. It
            then ends when all its steps have ended, and need not be ended.
        traceparent: W3C header of the span that started it; its trace is continued. The same in every process. Without
            it, and without ``trace_id`` and ``engine``, a run inside a recorded command (``tachograph exec``) is in the
            trace of that, and the command's step if it begins there.
        trace_id: the id of the engine's own trace of the run (32 hex digits), if its spans are children of nothing.
        heartbeats: whether this process, as long as it lives and has a part of the run open, says that the run is
            alive. False where it only passes on what the engine says elsewhere (`Run.alive`, `Run.lost`).

    Never raises: what is wrong is logged, and then nothing is recorded.
    """
    try:
        name = name_of(workflow, "run()")
        slug = clean_name(workspace) if workspace else default_workspace()
        identifier = new_id() if run_id is None else text_of(run_id, "run_id")
        execution_id = identifier if run_id is None else reported_execution_id(slug, name, identifier)
        # Hooks ask for a run several times a task.
        if (known := _runs.get(execution_id)) is not None:
            with contextlib.suppress(KeyError):  # Another thread may just forget it.
                _runs.move_to_end(execution_id)
            return known
        queue = None if queue_lease is None else round(min(max(1.0, queue_lease), MAX_SECONDS))
        process = ReportedProcess(engine, round(min(max(1.0, lease), MAX_SECONDS)), queue)
        continued, parent_span_id = _trace_of(traceparent)
        is_alone = continued is None and trace_id is None and not engine
        if is_alone:
            continued = command_trace()
        if trace_id is not None and _trace_of(f"00-{trace_id}-{'1' * 16}-01")[0] is not None:
            continued = trace_id.lower()
        with _lock:
            known = _runs.get(execution_id)
            if known is not None:
                return known
            ref = ExecutionRef(
                workspace=slug,
                workflow=name,
                workflow_id=make_workflow_id(slug, name),
                execution_id=execution_id,
                trace_id=continued or derived_trace_id(execution_id),
                span_id=derived_span_id(execution_id),
                parent_span_id=parent_span_id,
                version=clean_name(version),
                origin=Origin.REPORTED,
            )
            new = _runs[execution_id] = Run(ref, identifier, process, heartbeats=heartbeats)
            if is_alone:
                new.may_be_nested()
            while len(_runs) > MAX_RUNS:
                _runs.popitem(last=False)
            return new
    except Exception as error:
        complain("run", error)
        return _nowhere()


def _trace_of(traceparent: str | None) -> tuple[str | None, str | None]:
    """The trace and span id of a ``traceparent`` header; None if it is none."""
    parts = traceparent.strip().lower().split("-") if type(traceparent) is str else []
    if len(parts) < 4 or len(parts[1]) != 32 or len(parts[2]) != 16:
        return None, None
    if not set(parts[1] + parts[2]) <= set("0123456789abcdef") or not int(parts[1], 16) or not int(parts[2], 16):
        return None, None
    return parts[1], parts[2]


class _Nowhere(Run):
    """A run of which nothing is recorded, because something is wrong with it."""

    def emit(self, event: Event) -> None:
        """Drop it."""

    def begin_if_needed(self, now_ns: int) -> None:
        """Tell nobody."""

    def _send(self, event: Event) -> None:
        """Drop it."""

    def _watch(self) -> None:
        """Nobody."""


def _nowhere() -> Run:
    ref = ExecutionRef(
        workspace="default", workflow="?", workflow_id=make_workflow_id("default", "?"), execution_id=new_id(),
        trace_id=derived_trace_id("-"), span_id=derived_span_id("-"), origin=Origin.REPORTED,
    )  # fmt: skip
    return _Nowhere(ref, "", ReportedProcess("", round(LEASE_SECONDS)))
