"""Luigi: ``tachograph.integrations.luigi.instrument()``, in the module that has the tasks.

What a worker is asked for at once (``luigi.build``, the ``luigi`` command) is a run, called like its first task. A task
is a step, with what it requires; tasks of one family are instances of one step. Events of Luigi's tasks tell what
happens to them, in the process that runs them. They tell of no worker: `instrument` overrides public methods of
workers, of their tasks' processes, and of the scheduler, in place.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from tachograph.integrations.luigi_builds import Build, Failed
from tachograph.integrations.overriding import Overriding
from tachograph.integrations.running import RunningStep
from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Luigi")

_FLUSH_SECONDS: Final = 2.0
_TOLD_SECONDS: Final = 1.0
"""A process that has run for so long has told that its task began."""
_methods: Final = Overriding()
_builds: Final[weakref.WeakKeyDictionary[Any, Build]] = weakref.WeakKeyDictionary()


def instrument() -> None:
    """Report what workers of this process run: call it once, where the tasks are defined.

    Where things are recorded is said by `tachograph.configure` or the environment (``TACHOGRAPH_URL``). Never raises,
    and never into Luigi.
    """
    try:
        if not _methods.is_on:
            _override()
            for event, handler in _handlers().items():
                _task_class().event_handler(event)(handler)
    except Exception:
        quiet.exception("instrument", "Luigi is not instrumented")
        uninstrument()


def uninstrument() -> None:
    """Take everything back that `instrument` did. Never raises."""
    try:
        was_on = _methods.is_on
        _methods.restore()
        if was_on:
            for event, handler in _handlers().items():
                _task_class().remove_event_handler(event, handler)
    except Exception:
        quiet.exception("uninstrument", "Luigi is not uninstrumented")
    _builds.clear()


def _task_class() -> Any:
    import luigi

    return luigi.Task


def _override() -> None:
    from luigi.rpc import RemoteScheduler
    from luigi.scheduler import Scheduler
    from luigi.worker import TaskProcess, Worker

    _methods.override(Worker, "add", before=_before_add, after=_after_add)
    _methods.override(Worker, "run", before=_before_run, after=_after_run)
    _methods.override(Worker, "__exit__", before=_worker_left)
    _methods.override(TaskProcess, "__init__", after=_attempt_made)
    _methods.override(TaskProcess, "run", after=_attempt_left)
    for scheduler in (Scheduler, RemoteScheduler):
        _methods.override(scheduler, "add_task", before=_task_told)


def _handlers() -> dict[str, Callable[..., None]]:
    from luigi import Event

    return {
        Event.DEPENDENCY_DISCOVERED: _dependency_discovered,
        Event.DEPENDENCY_PRESENT: _dependency_present,
        Event.DEPENDENCY_MISSING: _dependency_missing,
        Event.BROKEN_TASK: _broken_task,
        Event.START: _task_starts,
        Event.SUCCESS: _task_succeeded,
        Event.FAILURE: _task_failed,
        Event.PROCESS_FAILURE: _process_died,
        Event.TIMEOUT: _task_timed_out,
    }


_current: ContextVar[Build | None] = ContextVar("tachograph_luigi_build", default=None)


# What a worker is asked for.


def _before_add(worker: Any, task: Any, *_: Any, **__: Any) -> Any:
    build = _builds.get(worker)
    if build is None:
        build = _builds[worker] = Build(task)
    build.know(task)
    return _current.set(build)


def _after_add(token: Any, result: Any, worker: Any, *_: Any, **__: Any) -> None:
    build = _current.get()
    if token is not None:
        _current.reset(token)
    if build is not None and result is not True:
        build.is_sound = False


def _before_run(worker: Any) -> Any:
    build = _builds.get(worker)
    if build is None:
        return None
    build.plan()
    return _current.set(build)


def _after_run(token: Any, result: Any, worker: Any) -> None:
    if token is not None:
        _current.reset(token)
    build = _builds.pop(worker, None)
    if build is not None:
        build.end(result if isinstance(result, BaseException) else build.error(bool(result)))


def _worker_left(worker: Any, kind: Any, error: Any, *_: Any) -> None:
    build = _builds.pop(worker, None)
    if build is not None:
        build.end(error or "it was never run")


@_harmless
def _dependency_discovered(task: Any, dependency: Any) -> None:
    build = _current.get()
    if build is not None:
        build.know(dependency)
        build.know(task, [dependency.task_id])


@_harmless
def _dependency_present(task: Any) -> None:
    build = _current.get()
    if build is not None:
        build.know(task)
        build.complete.append(task)


@_harmless
def _dependency_missing(task: Any) -> None:
    build = _current.get()
    if build is not None:
        build.know(task)
        build.missing.append(task)


@_harmless
def _broken_task(task: Any, error: BaseException) -> None:
    build = _current.get()
    if build is not None:
        build.know(task)
        build.broken.append((task, error))


def _task_told(
    scheduler: Any, *_: Any, task_id: Any = None, status: Any = None, expl: Any = None, new_deps: Any = None, **__: Any
) -> None:
    """A worker tells its scheduler how an attempt ended: in the worker's own process, wherever the task ran."""
    build = _current.get()
    if build is None or not build.attempts[task_id]:
        return
    if status == "FAILED":
        # Where the task ran in this process, more is known already.
        build.failed.setdefault(task_id, Failed(_last_line(expl), time.time()))
    if status == "PENDING" and new_deps:
        build.suspend(task_id, new_deps)


def _last_line(expl: Any) -> str:
    """What went wrong, by the last line of a trace, which is JSON on its way to the scheduler."""
    try:
        text = json.loads(expl)
    except (TypeError, ValueError):
        text = expl
    lines = [line for line in str(text or "").strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it failed, and Luigi says no reason"


# Where tasks run.


def _attempt_made(_: None, raised: Any, process: Any, task: Any, *args: Any, **__: Any) -> None:
    build = _current.get()
    if build is not None and not isinstance(raised, BaseException):
        build.count(task.task_id)


def _attempt_left(_: None, raised: Any, process: Any) -> None:
    build = _current.get()
    if build is None:
        return
    build.leave()
    if process.use_multiprocessing and multiprocessing.parent_process() is not None:
        # Processes of tasks end without exit handlers.
        get_recorder().hand_over(_FLUSH_SECONDS)


@_harmless
def _task_starts(task: Any) -> None:
    build = _current.get()
    step = build.step(task) if build is not None else None
    if build is not None and step is not None:
        step.started(attempt=build.attempt(task), inputs=task.to_str_params(only_significant=True, only_public=True))
        build.work = RunningStep(step)


@_harmless
def _task_succeeded(task: Any) -> None:
    build = _current.get()
    step = build.step(task) if build is not None else None
    if build is not None and step is not None:
        step.finished(attempt=build.attempt(task), resources=build.leave())


@_harmless
def _task_failed(task: Any, error: BaseException) -> None:
    _retry(task, error)


@_harmless
def _process_died(task: Any, message: str) -> None:
    """In the worker's process: that of the task died."""
    _begin_late(task)
    _retry(task, f"ProcessDied: {message}")


@_harmless
def _task_timed_out(task: Any, message: str) -> None:
    """In the worker's process, which has killed that of the task."""
    _retry(task, f"Timeout: {message}", is_timeout=True)


def _begin_late(task: Any) -> None:
    """Its process may not have had the time to tell that it began."""
    build = _current.get()
    step = build.step(task) if build is not None else None
    if build is not None and step is not None:
        made = build.made.get(task.task_id, 0.0)
        if time.time() - made < _TOLD_SECONDS:
            step.started(attempt=build.attempt(task), at=made)


def _retry(task: Any, error: BaseException | str, *, is_timeout: bool = False) -> None:
    """An attempt failed: the scheduler gives out the task again after a while, if the worker still runs then."""
    import luigi.scheduler as engine

    build = _current.get()
    step = build.step(task) if build is not None else None
    if build is None or step is None:
        return
    now, resources = time.time(), build.leave()
    settings: Any = engine.scheduler
    step.retrying(
        error, settings().retry_delay, timed_out=is_timeout, attempt=build.attempt(task), resources=resources, at=now
    )
    build.failed[task.task_id] = Failed(error, now, is_timeout)
