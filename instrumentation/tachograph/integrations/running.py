"""The tasks that run in a process: whose messages are whose, and what they use of the machine."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any

from tachograph import meter
from tachograph.integrations.places import Place
from tachograph.resources import Resources

_running: ContextVar[Place | None] = ContextVar("tachograph_running_task", default=None)


def running_task() -> Place | None:
    """The place of the task that runs here: what is sent now is sent by it."""
    return _running.get()


class RunningTask:
    """A task that runs here, from now until `leave`, in the thread or asyncio task that makes this.

    Attributes:
        place: where it is in its run.
        error: the exception that ended it, if an engine tells of it first.
        result: what it returned, likewise.
    """

    def __init__(self, place: Place, *, is_on_loop: bool = False) -> None:
        # First: if the step is not to be had, nothing of this must stay.
        self._step = place.step
        self.place = place
        self.error: BaseException | None = None
        self.result: Any = None
        self._meter = meter.start(None, is_on_loop, False)
        self._token: Token[Place | None] | None = _running.set(place)
        if self._meter is not None:
            meter.around.set(self._meter)
        self._step.collect_logs()
        if not is_on_loop:
            self._step.works_here()

    def used(self) -> Resources | None:
        """What it used of its process until now, asked for once; None: nobody knows."""
        measuring, self._meter = self._meter, None
        if measuring is None:
            return None
        meter.around.set(None)
        return measuring.stop()

    def leave(self) -> None:
        """It has ended. Calling this again does nothing."""
        self.used()
        token, self._token = self._token, None
        if token is not None:
            self._step.collect_no_logs()
            try:
                _running.reset(token)
            except ValueError:  # In another context than the one it began in.
                if _running.get() is self.place:
                    _running.set(None)
