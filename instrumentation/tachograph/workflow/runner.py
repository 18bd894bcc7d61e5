"""Where a step's work is done: a seam one method wide.

The executor decides *when* a step runs; a runner does it. `LocalRunner` does it in this process. Runs that outgrow one
machine belong to an existing distributed engine, reached by another runner, not to a home-made one.
"""

from __future__ import annotations

from typing import Any, Protocol

from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import Handler
from tachograph.workflow.worker_threads import DaemonThreads


class Runner(Protocol):
    """Does the work of one attempt."""

    async def run(self, handler: Handler, context: StepContext) -> Any:
        """The step's output. Raises what the work raises; being cancelled must stop the work if it can be stopped."""
        ...


class LocalRunner:
    """Async handlers on the event loop, plain ones in daemon threads."""

    def __init__(self) -> None:
        self._threads = DaemonThreads()

    async def run(self, handler: Handler, context: StepContext) -> Any:
        """See `Runner.run`. A plain function cannot be stopped from outside; `StepContext.is_stopping` asks it to."""
        if handler.is_async:
            return await handler.function(context)
        return await self._threads.run(lambda: handler.function(context))
