"""Runners do the work of steps.

The executor decides *when* a step runs, a runner *where*. `LocalRunner` runs it in this process. For runs that outgrow
one machine, `tachograph.runners` hands the work to the workers of an existing distributed engine.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from types import CoroutineType
from typing import Any, Protocol

from tachograph.errors import DoNotRetry, StepFailed
from tachograph.events import Failure
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import Handler
from tachograph.workflow.worker_threads import DaemonThreads


class FailedElsewhere(StepFailed):
    """Raised by a `Runner`: the work failed where it was done; ``failure`` says how, as it was seen there."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.type}: {failure.message}")
        self.failure = failure


class FailedElsewhereForGood(FailedElsewhere, DoNotRetry):
    """The same, and another attempt would fail, too."""


class Runner(Protocol):
    """Does the work of one attempt.

    ``is_local``: sync handlers run in threads of this process, where nobody can stop them.
    """

    is_local: bool

    async def run(self, handler: Handler, context: StepContext) -> Any:
        """The step's output. Raises what the work raises. Cancellation must stop the work if it can be stopped."""
        ...

    async def close(self) -> None:
        """Give back what it holds: no more work comes. Called in the event loop that `run` was called in."""
        ...


class LocalRunner:
    """Runs async handlers on the event loop and sync ones in daemon threads."""

    is_local = True

    def __init__(self) -> None:
        self._threads = DaemonThreads()

    async def run(self, handler: Handler, context: StepContext) -> Any:
        """See `Runner.run`. A sync handler cannot be stopped; it should check `StepContext.is_stopping`."""
        if handler.is_async:
            return await _awaited(handler.function(context), context)
        result = await self._threads.run(partial(_called, handler, context))
        if type(result) is CoroutineType:
            # A function that only passes an async one on (a wrapper, a lambda) returns a coroutine.
            return await _awaited(result, context)
        return result

    async def close(self) -> None:
        """See `Runner.close`."""


async def _awaited(work: Awaitable[Any], context: StepContext) -> Any:
    context.start_measuring(is_on_loop=True)
    try:
        return await work
    finally:
        context.stop_measuring()


def _called(handler: Handler, context: StepContext) -> Any:
    context.start_measuring()
    try:
        return handler.function(context)
    finally:
        context.stop_measuring()
