"""The plugins that `tachograph.integrations.dask` registers; this file alone imports Dask."""

from __future__ import annotations

import ast
import logging
import re
import time
from collections.abc import Hashable, Iterable
from typing import Any, Final, NamedTuple

from dask.utils import key_split
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

from tachograph.identity import new_id
from tachograph.integrations.places import Memory, numbered
from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder
from tachograph.report import Run, Step, run

NAME: Final = "tachograph"
ANNOTATION: Final = "tachograph"
"""The annotation of tasks that says which run they belong to: a workflow and a run id."""
_BY_CLIENTS: Final = ("cancel-key", "client-releases-keys", "remove-client", "update-graph")
"""What the scheduler calls it that a client does not want a task any more."""
_TOPIC: Final = "tachograph"
_QUEUE_SECONDS: Final = 86_400.0
_FLUSH_SECONDS: Final = 2.0
_MAX_OPEN: Final = 100_000
_EXCEPTION: Final = re.compile(r"([A-Za-z_][\w.]*)\((.*)\)\Z", re.DOTALL)

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Dask")


class WorkerTasksPlugin(WorkerPlugin):
    """Tells the scheduler when a worker begins with a task: the scheduler only knows which worker has it."""

    name = NAME
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Remember the worker."""
        self._worker = worker

    @_harmless
    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """A task's state changes on the worker."""
        if finish in ("executing", "long-running") and start != "executing":
            self._worker.log_event(_TOPIC, [key, time.time()])


class _Task(NamedTuple):
    run: Run
    step: Step


class TasksPlugin(SchedulerPlugin):
    """Tells what happens to the tasks of a scheduler."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self._tasks: dict[Hashable, _Task] = {}
        self._layers = Memory()
        self._started = Memory()

    async def start(self, scheduler: Any) -> None:
        """Remember the scheduler, whose tasks say what they depend on."""
        self._scheduler = scheduler

    @_harmless
    def update_graph(
        self, scheduler: Any, *, keys: set[Any], tasks: Iterable[Any], annotations: dict[str, dict[Any, Any]],
        priority: dict[Any, Any], **_: Any,
    ) -> None:  # fmt: skip
        """A client sent a graph."""
        self._scheduler = scheduler
        new = [key for key in tasks if key not in self._tasks]
        if not new or len(self._tasks) + len(new) > _MAX_OPEN:
            return
        reported = self._run_of(keys or set(new), new, annotations.get(ANNOTATION) or {})
        new.sort(key=lambda key: priority.get(key, ()))
        sizes: dict[tuple[str, Hashable], int] = {}
        for key in new:
            sizes[_layer_of(key)] = sizes.get(_layer_of(key), 0) + 1
        seen: dict[tuple[str, Hashable], int] = {}
        for key in new:
            name, layer = _layer_of(key)
            number = seen[name, layer] = seen.get((name, layer), -1) + 1
            step_key = self._step_key(reported, name, layer)
            index = None if sizes[name, layer] == 1 else number
            self._tasks[key] = _Task(reported, reported.step(name, key=step_key, index=index))
        for key in new:
            state = scheduler.tasks.get(key)
            if state is not None:
                self._wait(key, state)

    def _wait(self, key: Any, state: Any) -> None:
        run, step = self._tasks[key]
        others = [self._tasks[each.key] for each in state.dependencies if each.key in self._tasks]
        # Of a run whose tasks had all ended, there may be another object.
        same = [other.step for other in others if other.run.execution_id == run.execution_id]
        step.depend_on(*same)
        step.queued()

    def _run_of(self, wanted: set[Any], new: list[Any], annotated: dict[Any, Any]) -> Run:
        """The run of a graph: that of its block, or of the tasks that it depends on, or a new one."""
        said = next((value for key in new if (value := annotated.get(key)) is not None), None)
        if isinstance(said, (list, tuple)) and len(said) == 2:
            return _report(*said)
        scheduler = self._scheduler
        for key in new:
            state = scheduler.tasks.get(key)
            for dependency in state.dependencies if state is not None else ():
                if dependency.key in self._tasks:
                    return self._tasks[dependency.key].run
        return _report(min(key_split(key) for key in wanted), new_id())

    def _step_key(self, run: Run, name: str, layer: Hashable) -> str:
        """The step of a layer: the first of a name in a run is called like it, others are numbered."""
        known: str | None = self._layers.get((run.execution_id, name, layer))
        if known is None:
            count = self._layers.count((run.execution_id, name))
            known = self._layers.put((run.execution_id, name, layer), numbered(name, count))
        return known

    @_harmless
    def log_event(self, topic: str, msg: Any) -> None:
        """A worker begins with a task."""
        if topic == _TOPIC:
            key, began = msg
            task = self._tasks.get(_hashable(key))
            if task is not None:
                task.step.started(at=float(began))

    @_harmless
    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str = "", **told: Any) -> None:
        """A task's state changes."""
        task = self._tasks.get(key)
        if task is None:
            return
        step = task.step
        began, ended = _times(told.get("startstops"))
        if finish == "memory" and start == "processing":
            step.started(at=began).finished(told.get("typename"), at=ended)
        elif finish == "erred" and start == "processing":
            step.started(at=began).failed(_error(told.get("exception_text")), at=ended)
        elif finish == "erred":
            step.skipped("upstream_failed")
        elif finish == "released" and start == "processing":
            if stimulus_id.startswith("task-erred"):
                # Which error it was, the scheduler says only of the last attempt.
                step.started().retrying("Retry: the attempt failed")
            elif stimulus_id.startswith(_BY_CLIENTS):
                step.cancelled("Cancelled: nobody wants its result any more")
            elif step.is_open:
                step.retrying("WorkerLost: its worker is gone")
        elif finish == "forgotten":
            if not step.finished_ns:
                step.cancelled("Cancelled: nobody wants its result any more")
            self._tasks.pop(key, None)

    @_harmless
    def restart(self, scheduler: Any) -> None:
        """All tasks are forgotten."""
        for task in self._tasks.values():
            task.step.cancelled("Restarted: the cluster was restarted")
        self._tasks.clear()

    async def before_close(self) -> None:
        """The scheduler ends: what has not ended never will."""
        self.restart(self._scheduler)
        get_recorder().flush(_FLUSH_SECONDS)


def _report(workflow: str, run_id: str) -> Run:
    return run(str(workflow), run_id=str(run_id), engine="dask", queue_lease=_QUEUE_SECONDS)


def _layer_of(key: Any) -> tuple[str, Hashable]:
    """A task's name, and what tells the layers of one name apart: keys of collections begin with their layer's."""
    return key_split(key), key[0] if isinstance(key, tuple) and key else ""


def _hashable(key: Any) -> Any:
    return tuple(_hashable(part) for part in key) if isinstance(key, list) else key


def _times(startstops: Any) -> tuple[float | None, float | None]:
    """When the computation of a task began and ended, by the scheduler's clock."""
    for entry in startstops or ():
        if entry.get("action") == "compute":
            return float(entry["start"]), float(entry["stop"])
    return None, None


def _error(text: Any) -> str:
    """``ValueError('no item')`` as ``ValueError: no item``."""
    match = _EXCEPTION.match(str(text or ""))
    if match is None:
        return str(text or "Error: no reason was given")
    kind, arguments = match.groups()
    try:
        values = ast.literal_eval(f"({arguments},)") if arguments else ()
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return f"{kind}: {arguments}"
    return f"{kind}: {', '.join(str(value) for value in values)}"
