"""Ray: ``with tachograph.integrations.ray.run("nightly"):`` around what a driver does.

The block is a run, each task that its driver's job is asked for meanwhile is a step. Ray's state API (`ray.util.state`)
says what becomes of them; a thread asks it every second. What waits for what, it does not say.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tachograph.integrations.places import numbered
from tachograph.quiet_log import QuietLog
from tachograph.recording.scopes import is_cancellation
from tachograph.report import Run, Step
from tachograph.report import run as report_run
from tachograph.summary import is_clean_exit

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Ray")

INTERVAL_SECONDS: Final = 1.0
LATE_SECONDS: Final = 10.0
"""How long after the block the state API may take to tell how its tasks ended: Ray's workers tell it every second."""
_TIMES_SETTLED: Final = 12
"""How often all that is known must be over, a quarter of a second apart, until no more tasks are expected."""
MAX_TASKS: Final = 10_000
"""Attempts of tasks that the state API is asked for at once: as many as it gives."""
_TIMES_SEEN: Final = 2
"""A task that was seen to have failed so often, and no further attempt of it, has failed for good."""
_MS: Final = 1000
_DONE: Final = frozenset({"FINISHED", "FAILED"})
_CANCELLED: Final = "TASK_CANCELLED"


@contextmanager
def run(workflow: str, *, run_id: object = None, inputs: Any = None) -> Iterator[Run]:
    """Report what the driver's job does in the block as a run of a workflow; nothing of this raises into the block.

    The run ends with the block, and fails with an exception that leaves it. The state API hears of the ends of tasks a
    second later: a thread waits for that, and the end of the process for the thread, `LATE_SECONDS` at most.

    Args:
        workflow: its name.
        run_id: what the run is called, unique in its workflow (default: a new id).
        inputs: a summary of them is kept.
    """
    reported = report_run(workflow, run_id=run_id, engine="ray")
    reported.begin(inputs=inputs)
    follower = _Follower(reported)
    follower.start()
    try:
        yield reported
    except BaseException as error:
        follower.end(None if is_clean_exit(error) else error)
        raise
    else:
        follower.end(None)


class _Follower:
    """Asks the state API for the tasks of a run, in a thread, until it has ended."""

    def __init__(self, reported: Run) -> None:
        self._tasks = Tasks(reported)
        self._began_ms = time.time() * _MS
        self._run = reported
        self._error: BaseException | None = None
        self._ended: float | None = None
        self._block_ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tachograph-ray", daemon=True)

    @_harmless
    def start(self) -> None:
        """Begin to ask."""
        # Ray's own exit handler ends what is asked; handlers run in the opposite order of their registration.
        import ray  # noqa: F401

        atexit.register(self.join)
        self._thread.start()

    @_harmless
    def end(self, error: BaseException | None) -> None:
        """The block has ended."""
        self._error, self._ended = error, time.time()
        self._block_ended.set()
        if not self._thread.is_alive():
            self._finish()

    def join(self) -> None:
        """Wait until all is told."""
        self._thread.join(LATE_SECONDS)

    def _follow(self) -> None:
        deadline: float | None = None
        settled = 0
        while True:
            has_ended = self._block_ended.wait(INTERVAL_SECONDS if deadline is None else INTERVAL_SECONDS / 4)
            if has_ended and deadline is None:
                deadline = time.monotonic() + LATE_SECONDS
            is_settled = self._ask()
            # Tasks of which the state API has not heard yet are none it can tell of: ask once more than seems needed.
            settled = settled + 1 if has_ended and is_settled and self._tasks.are_known else 0
            if deadline is not None and (settled > _TIMES_SETTLED or time.monotonic() > deadline):
                break
        self._finish()

    def _ask(self) -> bool:
        """Report what has become of the tasks, and return whether all of them have ended."""
        try:
            import ray
            from ray.util.state import list_tasks

            job = ray.get_runtime_context().get_job_id()
            tasks = list_tasks(
                filters=[("job_id", "=", job)], detail=True, limit=MAX_TASKS, raise_on_missing_output=False, timeout=30
            )
            until = float("inf") if self._ended is None else self._ended * _MS
            return self._tasks.report(
                task for task in tasks if self._began_ms - 1 <= (task.creation_time_ms or 0) <= until
            )
        except Exception:
            quiet.exception("ask", "not reported: tasks of Ray")
            return False

    @_harmless
    def _finish(self) -> None:
        atexit.unregister(self.join)
        self._tasks.end()
        if self._error is None:
            self._run.finished(at=self._ended)
        elif is_cancellation(self._error):
            self._run.cancelled(self._error, at=self._ended)
        else:
            self._run.failed(self._error, at=self._ended)


class Tasks:
    """The tasks of a run, as the state API tells of their attempts, again and again."""

    def __init__(self, reported: Run) -> None:
        self._run = reported
        self._steps: dict[str, Step] = {}
        self._counts: Counter[str] = Counter()
        self._told: dict[tuple[str, int], str] = {}
        self._seen: list[Any] = []
        self._failed: dict[str, tuple[Any, int]] = {}
        """Tasks whose last attempt failed, and how often they were seen so: they may be tried again."""

    @property
    def are_known(self) -> bool:
        """Whether any have been heard of."""
        return bool(self._steps)

    def report(self, attempts: Iterable[Any], *, is_final: bool = False) -> bool:
        """Report what is new of some attempts, and return whether all of them have ended."""
        ordered = sorted(attempts, key=lambda task: (task.creation_time_ms or 0, task.task_id, task.attempt_number))
        last = {task.task_id: task.attempt_number for task in ordered}
        counts = Counter(task.task_id for task in ordered)
        # Different processes tell of the attempts of a task: a later one may be known first.
        gaps = {task_id for task_id, number in last.items() if counts[task_id] <= number} if not is_final else set()
        self._seen = ordered
        for task in ordered:
            if task.task_id in gaps:
                continue
            key = (task.task_id, task.attempt_number)
            state = "RUNNING" if task.start_time_ms and task.state not in _DONE else task.state
            if self._told.get(key) != state and (state not in _DONE or task.end_time_ms):
                self._told[key] = state
                self._report(task, is_last=last[task.task_id] == task.attempt_number)
        for task_id, (task, seen) in list(self._failed.items()):
            if last.get(task_id, 0) > task.attempt_number:
                del self._failed[task_id]
            elif seen >= _TIMES_SEEN:
                self._fail(task)
            else:
                self._failed[task_id] = (task, seen + 1)
        return not gaps and not self._failed and all(task.state in _DONE and task.end_time_ms for task in ordered)

    def end(self) -> None:
        """Nothing will be tried again, and no more be known."""
        self.report(self._seen, is_final=True)
        for task, _ in list(self._failed.values()):
            self._fail(task)

    def _fail(self, task: Any) -> None:
        del self._failed[task.task_id]
        ended = _seconds(task.end_time_ms)
        self._steps[task.task_id].failed(_error(task), attempt=task.attempt_number + 1, at=ended)

    def _step(self, task: Any) -> Step:
        if (step := self._steps.get(task.task_id)) is None:
            name = _name(task)
            number = self._counts[name]
            self._counts[name] += 1
            step = self._steps[task.task_id] = self._run.step(
                name,
                key=numbered(name, number + 1),
                repetition=number,
                parent=self._steps.get(task.parent_task_id),
            )
        return step

    def _report(self, task: Any, *, is_last: bool) -> None:
        step, attempt = self._step(task), task.attempt_number + 1
        created, started, ended = (_seconds(ms) for ms in (task.creation_time_ms, task.start_time_ms, task.end_time_ms))
        if attempt == 1 and created is not None:
            step.queued(at=created)
        if started is not None:
            step.started(attempt=attempt, at=started, queued_at=created if attempt > 1 else None)
        if task.state == "FINISHED":
            step.finished(attempt=attempt, at=ended)
        elif task.state == "FAILED":
            if task.error_type == _CANCELLED:
                step.cancelled(_error(task), attempt=attempt if started is not None else None, at=ended)
            else:
                step.retrying(_error(task), attempt=attempt, at=ended)
                if is_last:
                    self._failed[task.task_id] = (task, 0)


def _name(task: Any) -> str:
    """The function's name, or class and method, without the module."""
    name = str(task.func_or_class_name or task.name or "task")
    return name if "ACTOR" in str(task.type) else name.rpartition(".")[2]


def _seconds(ms: float | None) -> float | None:
    return ms / _MS if ms else None


def _error(task: Any) -> str:
    """What the task failed with: the last line of a trace begins with its type."""
    message = str(task.error_message or "").strip()
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if task.error_type == "TASK_EXECUTION_EXCEPTION" and lines:
        return lines[-1]
    return f"{task.error_type or 'TaskFailed'}: {lines[0] if lines else 'Ray says no reason'}"
