"""Runs sync functions off the event loop, in daemon threads.

Unlike in `concurrent.futures`, a function that cannot be stopped (its step timed out) occupies no slot of a pool and
does not delay the interpreter's exit. Idle threads are reused. The executor limits how many run at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_IDLE_SECONDS = 30.0


class _Job:
    __slots__ = ("call", "context", "future", "loop")

    def __init__(self, call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.context = contextvars.copy_context()

    def run(self) -> None:
        try:
            result = self.context.run(self.call)
        except BaseException as error:
            self._deliver(None, error)
        else:
            self._deliver(result, None)

    def _deliver(self, result: Any, error: BaseException | None) -> None:
        def settle() -> None:
            if self.future.done():
                return  # The caller timed out or was cancelled.
            if isinstance(error, StopIteration):
                self.future.set_exception(RuntimeError("the handler raised StopIteration"))
            elif error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(result)

        try:
            self.loop.call_soon_threadsafe(settle)
        except RuntimeError:
            return  # The loop is closed: the process is exiting.


class DaemonThreads:
    """Runs functions in daemon threads; idle threads are reused."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Call the function in a thread, in a copy of the current context; return or raise what it does.

        When the caller is cancelled, the function runs on and its result is discarded.
        """
        job = _Job(call, asyncio.get_running_loop())
        with self._lock:
            start = self._idle == 0
            if not start:
                self._idle -= 1
        self._jobs.put(job)
        if start:
            threading.Thread(target=self._work, name="tachograph-step", daemon=True).start()
        result: T = await job.future
        return result

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    # A job for this thread may have arrived since the timeout.
                    if self._idle == 0:
                        continue
                    self._idle -= 1
                return
            job.run()
            del job
            with self._lock:
                self._idle += 1
