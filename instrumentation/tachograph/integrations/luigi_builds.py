"""What a worker of Luigi was asked for: its tasks as steps of a run, and how their attempts ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from tachograph.identity import new_id
from tachograph.integrations.running import RunningStep
from tachograph.report import Run, Step, run
from tachograph.resources import Resources

MAX_TASKS: Final = 20_000


class Failed(NamedTuple):
    """How the last attempt of a task ended. Whether it was the last one shows when the worker has ended."""

    error: BaseException | str
    at: float
    is_timeout: bool = False


class Build:
    """What a worker was asked for, from the first task until it has run all it can."""

    def __init__(self, first: Any) -> None:
        self.run: Run = run(first.task_family, run_id=new_id(), engine="luigi")
        self.is_sound = True
        self.was_retried = False
        self.complete: list[Any] = []
        self.missing: list[Any] = []
        self.broken: list[tuple[Any, BaseException]] = []
        self.attempts: Counter[str] = Counter()
        self.made: dict[str, float] = {}
        """When the process of a task was made, by the task's id."""
        self.failed: dict[str, Failed] = {}
        self.work: RunningStep | None = None
        self._tasks: dict[str, Any] = {}
        self._above: dict[str, dict[str, None]] = {}
        self._steps: dict[str, Step] = {}
        self._counts: Counter[str] = Counter()
        self._suspended: set[str] = set()
        self._is_planned = False
        self.run.begin()

    def know(self, task: Any, above: Iterable[str] = ()) -> None:
        """A task of the build, and ids of what it requires."""
        if task.task_id not in self._tasks and len(self._tasks) < MAX_TASKS:
            self._tasks[task.task_id] = task
        self._above.setdefault(task.task_id, {}).update(dict.fromkeys(above))

    def plan(self) -> None:
        """All that was asked for is known: families of several tasks are mapped steps."""
        families = Counter(task.task_family for task in self._tasks.values())
        for task_id in list(self._tasks):
            self._step(task_id, is_mapped=self._is_planned or families[self._tasks[task_id].task_family] > 1)
        self._is_planned = True
        for task_id, above in self._above.items():
            if (step := self._steps.get(task_id)) is not None:
                step.depend_on(*[self._steps[other] for other in above if other in self._steps])
                step.planned()
        while self.complete:
            if (step := self._steps.get(self.complete.pop().task_id)) is not None:
                step.skipped("condition")
        while self.broken:
            task, error = self.broken.pop()
            if (step := self._steps.get(task.task_id)) is not None:
                step.failed(error)

    def _step(self, task_id: str, is_mapped: bool) -> None:
        if task_id in self._steps:
            return
        task = self._tasks[task_id]
        index = self._counts[task.task_family] if is_mapped else None
        self._counts[task.task_family] += 1
        self._steps[task_id] = self.run.step(task.task_family, index=index)

    def step(self, task: Any) -> Step | None:
        """The step of a task; None if there are too many of them."""
        if task.task_id not in self._steps:
            self.know(task)
            self.plan()
        return self._steps.get(task.task_id)

    def attempt(self, task: Any) -> int:
        """The number of the attempt that runs or has just ended."""
        return max(1, self.attempts[task.task_id])

    def count(self, task_id: str) -> None:
        """An attempt begins; unless it goes on with one that has waited for what it asked for meanwhile."""
        if task_id in self._suspended:
            self._suspended.discard(task_id)
        else:
            self.made[task_id] = time.time()
            self.attempts[task_id] += 1
            if self.failed.pop(task_id, None) is not None:
                self.was_retried = True

    def suspend(self, task_id: str, asked_for: Iterable[str]) -> None:
        """A task asked for others while it ran; it begins anew once they are done."""
        self._suspended.add(task_id)
        self._above.setdefault(task_id, {}).update(dict.fromkeys(asked_for))
        self.plan()

    def leave(self) -> Resources | None:
        """The step that runs in this process has ended; what it used."""
        work, self.work = self.work, None
        if work is None:
            return None
        return work.leave()

    def end(self, error: BaseException | str | None) -> None:
        """The worker has run all it could, or was stopped."""
        for task_id, failed in self.failed.items():
            if (step := self._steps.get(task_id)) is not None:
                end = step.timed_out if failed.is_timeout else step.failed
                end(failed.error, attempt=max(1, self.attempts[task_id]), at=failed.at)
        if error is None:
            self.run.finished()
        elif isinstance(error, KeyboardInterrupt):
            why = "Interrupted: the worker was interrupted"
            for step in self.run.open_steps:
                step.cancelled(why)
            self.run.cancelled(why)
        else:
            self.run.failed(error)

    def error(self, succeeded: bool) -> BaseException | str | None:
        """Why it did not do what it was asked for; None if it did."""
        if self.failed:
            return next(iter(self.failed.values())).error
        # A worker calls it no success if a task succeeded only when it was tried again.
        if (succeeded or self.was_retried) and self.is_sound and not self.missing:
            return None
        if self.missing:
            return f"MissingDependency: the data of {self.missing[0].task_family} does not exist, and no task makes it"
        return "not all tasks could be scheduled"
