"""Metaflow: install Tachograph beside it, and name a service in ``TACHOGRAPH_URL``; or ``--with tachograph``.

A run of a flow is a run, a task is a step, with the tasks that it takes its inputs from; tasks of a ``foreach`` are
instances of one step. Metaflow finds a step decorator (``metaflow_extensions.tachograph``) by itself, whose hooks call
the functions here: the scheduler's process tells of the run and of what waits, each task's own process tells of that
task. Which step a task is, its process hears from the scheduler by its environment.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tachograph.integrations.places import numbered
from tachograph.integrations.running import RunningStep
from tachograph.quiet_log import QuietLog
from tachograph.report import Run, Step, run
from tachograph.report.safely import caller_traceparent, failure_of
from tachograph.variables import DATABASE_VARIABLE, URL_VARIABLE

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Metaflow")

TASK_VARIABLE: Final = "TACHOGRAPH_METAFLOW_TASK"
MAX_CLONED: Final = 2_000
"""Tasks that ``resume`` takes over from another run and that are told of."""
_DEPLOYED: Final = ("argo-", "sfn-", "airflow-", "mli_")
"""How the ids of runs begin that another scheduler runs: there is nobody who tells when they end."""
_BEGAN: Final = ".began"
_PARAMETERS: Final = "_parameters"
_LOCAL: Final = ["step"]
_FAILED_TASK: Final = re.compile(r"\(task-id (\S+)\) failed")
_SIMPLE: Final = (str, int, float, bool, type(None))


class _Place(NamedTuple):
    """Which step a task is, as its process hears it; `TASK_VARIABLE` as JSON."""

    run_id: str
    task_id: str
    key: str
    instance: int | str | None
    repetition: int
    traceparent: str
    queued: float
    is_split: bool
    directory: str
    """Where the task's process leaves a note that it has told how an attempt ended."""


class _Note(NamedTuple):
    """How an attempt ended, by its own process."""

    error: str | None


def _is_configured() -> bool:
    return bool(os.environ.get(URL_VARIABLE, "").strip() or os.environ.get(DATABASE_VARIABLE, "").strip())


def _report(flow_name: str, run_id: str, traceparent: str) -> Run:
    return run(flow_name, run_id=run_id, engine="metaflow", traceparent=traceparent or None)


# The scheduler's process.


class _Task:
    """A task that the scheduler of this process runs."""

    def __init__(self, step: Step, place: _Place, indices: tuple[int, ...]) -> None:
        self.step = step
        self.place = place
        self.indices = indices
        self.attempt = 0
        self.launched = 0.0
        self.is_local = True

    def note(self) -> _Note | None:
        """What its process told of the end of the last attempt; None: it did not get to that."""
        try:
            return _Note(*json.loads(_note_path(self.place, self.attempt).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def begin_late(self) -> None:
        """Its process may have died before anybody heard that the attempt began."""
        try:
            began = float(_note_path(self.place, self.attempt, _BEGAN).read_text())
        except (OSError, ValueError):
            began = self.launched
        self.step.started(attempt=self.attempt, at=began, queued_at=self.place.queued)


class _Launch:
    """A run that this process schedules."""

    def __init__(self, flow: Any, graph: Any, run_id: str) -> None:
        began = time.time()
        self.run_id = run_id
        self.traceparent = caller_traceparent() or ""
        self.run: Run = _report(flow.name, run_id, self.traceparent)
        self.directory = tempfile.mkdtemp(prefix="tachograph-metaflow-")
        self._graph = graph
        self._flow_name = flow.name
        self._tasks: dict[str, _Task] = {}
        self._steps: set[str] = set()
        self._counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._is_resumed = False
        self.run.begin(at=began)

    def add(self, step_name: str, task_id: str, split_index: str | None, input_paths: Iterable[str]) -> None:
        """A task waits for a process."""
        node = self._graph[step_name]
        above = [(name, known) for _, name, known in (path.rsplit("/", 2) for path in input_paths or ())]
        above = [(name, known) for name, known in above if name != _PARAMETERS]
        parents = [self._tasks[known] for _, known in above if known in self._tasks]
        self._steps.add(step_name)
        if any(known not in self._tasks and self._graph[name].is_inside_foreach for name, known in above):
            return  # What it follows was taken over from another run: its own process knows which instance it is.
        indices = self._indices(node, split_index, parents)
        self._counts[step_name, indices] += 1
        repetition = self._counts[step_name, indices] - 1
        place = _Place(
            self.run_id, task_id, numbered(step_name, repetition + 1), _index(indices), repetition, self.traceparent,
            time.time(), split_index is not None, self.directory,
        )  # fmt: skip
        step = self.run.step(
            step_name,
            key=place.key,
            index=place.instance,
            repetition=repetition,
            depends_on=[self._tasks[known].step if known in self._tasks else name for name, known in above],
        )
        step.queued(at=place.queued)
        self._tasks[task_id] = _Task(step, place, indices)

    def _indices(self, node: Any, split_index: str | None, parents: list[_Task]) -> tuple[int, ...]:
        """Which instance a task is, one number for each ``foreach`` around it."""
        around = parents[0].indices if parents else ()
        if split_index is not None:
            return (*around, int(split_index))
        if node.type == "join" and self._graph[node.split_parents[-1]].type == "foreach":
            return around[:-1]
        return around

    def launch(self, cli_args: Any, retry_count: int) -> None:
        """A process is started for an attempt of a task."""
        if "clone-run-id" in cli_args.command_options and not self._is_resumed:
            self._is_resumed = True
            self._tell_cloned()
        task = self._tasks.get(str(cli_args.task.task_id))
        if task is None:
            return
        if retry_count > 0:
            if task.is_local and task.note() is None:
                task.begin_late()
                task.step.retrying("ProcessDied: the process of the task ended without a word", attempt=retry_count)
            task.place = task.place._replace(queued=time.time())
        task.attempt, task.launched = retry_count + 1, time.time()
        task.is_local = list(cli_args.commands) == _LOCAL
        cli_args.env[TASK_VARIABLE] = json.dumps(task.place)

    def _tell_cloned(self) -> None:
        """Tasks that were taken over from the run that is resumed did not run in this one."""
        from metaflow import Run as Stored

        told = 0
        for stored_step in Stored(f"{self._flow_name}/{self.run_id}"):
            for task in stored_step:
                if told >= MAX_CLONED:
                    return
                if task.id in self._tasks or "origin-task-id" not in task.metadata_dict:
                    continue
                told += 1
                stack = task["_foreach_stack"].data if "_foreach_stack" in task else ()
                index = _index(tuple(frame.index for frame in stack or ()))
                above = sorted(self._graph[stored_step.id].in_funcs)
                self.run.step(stored_step.id, index=index, depends_on=above).skipped("condition")
                self._steps.add(stored_step.id)

    def end(self, exception: BaseException | None) -> None:
        """The scheduler ends: what is still open was killed, or died, and ended the run."""
        is_stopped = isinstance(exception, KeyboardInterrupt)
        died = _FAILED_TASK.search(str(exception or ""))
        error: BaseException | str | None = exception
        for task_id, task in self._tasks.items():
            note = task.note() if task.attempt else None
            if note is not None:
                error = note.error if died is not None and died[1] == task_id and note.error else error
            elif died is not None and died[1] == task_id and task.is_local:
                error = "ProcessDied: the process of the task ended without a word"
                task.begin_late()
                task.step.failed(error, attempt=task.attempt)
            elif exception is not None and task.is_local:
                if task.attempt:
                    task.begin_late()
                task.step.cancelled("Stopped: Metaflow stopped it with the run", attempt=task.attempt or None)
        for node in self._graph:
            if node.name not in self._steps:
                reason = "condition" if exception is None else "upstream_failed"
                step = self.run.step(node.name, depends_on=sorted(node.in_funcs))
                step.skipped("execution_cancelled" if is_stopped else reason)
        if exception is None:
            self.run.finished()
        elif is_stopped:
            self.run.cancelled("Interrupted: the run was interrupted")
        else:
            self.run.failed(error)
        shutil.rmtree(self.directory, ignore_errors=True)


_launch: _Launch | None = None


@_harmless
def run_starts(flow: Any, graph: Any, run_id: Any) -> None:
    """The scheduler of this process begins a run; told once for each of its steps."""
    global _launch
    if not _is_configured() or (_launch is not None and _launch.run_id == str(run_id)):
        return
    _launch = _Launch(flow, graph, str(run_id))


@_harmless
def task_created(task_datastore: Any, split_index: str | None, input_paths: Iterable[str]) -> None:
    """The scheduler has made a task."""
    if _launch is not None:
        _launch.add(task_datastore.step_name, str(task_datastore.task_id), split_index, input_paths)


@_harmless
def attempt_launched(cli_args: Any, retry_count: int) -> None:
    """The scheduler starts a process for an attempt of a task."""
    if _launch is not None:
        _launch.launch(cli_args, retry_count)


@_harmless
def run_ended(exception: BaseException | None) -> None:
    """The scheduler ends; told once for each step."""
    global _launch
    launch, _launch = _launch, None
    if launch is not None:
        launch.end(exception)


# A task's process.


class _Attempt:
    """The attempt of a task that runs in this process."""

    def __init__(
        self, flow: Any, graph: Any, place: _Place | None, run_id: str, step_name: str, number: int, inputs: Any,
        began: float,
    ) -> None:  # fmt: skip
        self.number = number
        self.place = place
        self.will_retry = False
        self.error: BaseException | None = None
        reported = _report(flow.name, run_id, place.traceparent if place is not None else "")
        if place is not None:
            self.step = reported.step(step_name, key=place.key, index=place.instance, repetition=place.repetition)
        else:
            index = _index(tuple(frame[0] for frame in flow.foreach_stack() or ()))
            above = [
                reported.step(stored.step_name, index=_index_of(stored))
                for stored in inputs or ()
                if stored.step_name != _PARAMETERS
            ]
            self.step = reported.step(step_name, index=index, depends_on=above)
        self.step.started(
            attempt=number,
            inputs=self._inputs(flow, graph),
            at=began,
            queued_at=place.queued if place is not None else None,
        )
        self._work: RunningStep | None = RunningStep(self.step)
        self._leave_note(str(began), _BEGAN)

    def _inputs(self, flow: Any, graph: Any) -> dict[str, Any] | None:
        """The parameters of a flow's first step, the item of an instance."""
        from metaflow import current

        if self.place is not None and self.place.is_split:
            return {"input": _plain(flow.input)}
        if graph[self.step.ref.name].in_funcs:
            return None
        return {name: _plain(getattr(flow, name, None)) for name in current.get("parameter_names") or ()} or None

    def end(self, error: BaseException | str | None) -> None:
        """It has ended; ``error`` is what it failed with."""
        now = time.time()
        work, self._work = self._work, None
        if work is None:
            return
        resources = work.leave()
        if error is None:
            if self.error is not None:
                self.step.log(f"caught: {type(self.error).__name__}: {self.error}", "warning")
            self.step.finished(attempt=self.number, resources=resources, at=now)
        elif self.will_retry:
            self.step.retrying(error, attempt=self.number, resources=resources, at=now)
        else:
            self.step.failed(error, attempt=self.number, resources=resources, at=now)
        self._note(error)

    def _note(self, error: BaseException | str | None) -> None:
        """Let the scheduler's process know that this has been told."""
        failure = failure_of(error) if error is not None else None
        note = _Note(f"{failure.type}: {failure.message}" if failure is not None else None)
        self._leave_note(json.dumps(note), "")

    def _leave_note(self, text: str, what: str) -> None:
        if self.place is not None:
            with contextlib.suppress(OSError):  # The scheduler may run elsewhere.
                _note_path(self.place, self.number, what).write_text(text)


_attempt: _Attempt | None = None


@_harmless
def task_starts(
    flow: Any, graph: Any, run_id: Any, step_name: str, task_id: Any, retry_count: int, inputs: Any
) -> None:
    """The function of a step is called next."""
    global _attempt
    began = time.time()  # Setting up the recorder takes a moment.
    place = _place_of(str(run_id), str(task_id))
    if not _is_configured() or (place is None and str(run_id).startswith(_DEPLOYED)):
        return
    _attempt = _Attempt(flow, graph, place, str(run_id), step_name, retry_count + 1, inputs, began)
    atexit.register(_task_left)


@_harmless
def task_raised(error: BaseException, will_retry: bool) -> None:
    """The function of a step raised an exception; ``@catch`` may handle it."""
    if _attempt is not None:
        _attempt.error, _attempt.will_retry = error, will_retry


@_harmless
def task_ended(is_ok: bool) -> None:
    """What the task made is stored."""
    if _attempt is not None:
        _attempt.end(None if is_ok else _attempt.error or "TaskFailed: Metaflow does not say why")


@_harmless
def _task_left() -> None:
    """The process ends. If the task did not, what it made could not be stored."""
    if _attempt is not None:
        _attempt.end(_attempt.error or "NotStored: Metaflow could not store what the task made")


def _place_of(run_id: str, task_id: str) -> _Place | None:
    """What the scheduler says of this process' task; None if it is about another one's, of a flow around this."""
    try:
        place = _Place(*json.loads(os.environ.get(TASK_VARIABLE, "")))
    except (ValueError, TypeError):
        return None
    return place if (place.run_id, place.task_id) == (run_id, task_id) else None


def _note_path(place: _Place, attempt: int, what: str = "") -> Path:
    return Path(place.directory) / f"{place.task_id}.{attempt}{what}"


def _index(indices: tuple[Any, ...]) -> int | str | None:
    """What an instance is called: its number, or one for each ``foreach`` around it."""
    return int(indices[0]) if len(indices) == 1 else ".".join(str(index) for index in indices) or None


def _index_of(stored: Any) -> int | str | None:
    """Which instance a task was whose results are stored."""
    return _index(tuple(frame.index for frame in stored.get("_foreach_stack", None) or ()))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in list(value.items())[:20]}
    return value if isinstance(value, _SIMPLE) else type(value).__name__
