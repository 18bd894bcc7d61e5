"""The tasks that run in a process: whose messages are whose, and what they use of the machine."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any

from tachograph import meter
from tachograph.integrations.places import Place
from tachograph.report import Step
from tachograph.resources import Resources

_running: ContextVar[Place | None] = ContextVar("tachograph_running_task", default=None)


def running_task() -> Place | None:
    """The place of the task that runs here: what is sent now is sent by it."""
    return _running.get()


class RunningStep:
    """The work of a step that runs here, from now until `leave`, in the thread or asyncio task that makes this.

    What it logs are lines of the step; what it uses is measured; its stacks can be asked for.
    """

    def __init__(self, step: Step, *, is_on_loop: bool = False) -> None:
        self._step = step
        self._is_entered = True
        self._meter = meter.start(None, is_on_loop, False)
        try:
            if self._meter is not None:
                meter.around.set(self._meter)
            step.collect_logs()
            if not is_on_loop:
                step.works_here()
        except BaseException:
            RunningStep.leave(self)
            raise

    def used(self) -> Resources | None:
        """What it used of its process until now, asked for once; None: nobody knows."""
        measuring, self._meter = self._meter, None
        if measuring is None:
            return None
        meter.around.set(None)
        return measuring.stop()

    def leave(self) -> Resources | None:
        """It has ended; what it used, unless that was asked for before. Calling this again does nothing."""
        try:
            return self.used()
        finally:
            if self._is_entered:
                self._is_entered = False
                self._step.collect_no_logs()


class RunningTask(RunningStep):
    """A queued task that runs here: what is sent meanwhile is sent by it.

    Attributes:
        place: where it is in its run.
        error: the exception that ended it, if an engine tells of it first.
        result: what it returned, likewise.
    """

    def __init__(self, place: Place, *, is_on_loop: bool = False) -> None:
        # First: if the step is not to be had, nothing of this must stay.
        step = place.step
        self.place = place
        self.error: BaseException | None = None
        self.result: Any = None
        self._token: Token[Place | None] | None = _running.set(place)
        try:
            super().__init__(step, is_on_loop=is_on_loop)
        except BaseException:
            self._forget()
            raise

    def leave(self) -> Resources | None:
        """It has ended; what it used, unless that was asked for before. Calling this again does nothing."""
        try:
            return super().leave()
        finally:
            self._forget()

    def _forget(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            try:
                _running.reset(token)
            except ValueError:  # In another context than the one it began in.
                if _running.get() is self.place:
                    _running.set(None)
