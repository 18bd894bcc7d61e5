"""Runs sync functions off the event loop, in daemon threads.

Unlike in `concurrent.futures`, a function that cannot be stopped (its step timed out) occupies no slot of a pool and
does not delay the interpreter's exit. Idle threads are reused. The executor limits how many run at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_IDLE_SECONDS = 30.0


class _Job:
    __slots__ = ("call", "context", "error", "future", "loop", "result")

    def __init__(self, call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.context = contextvars.copy_context()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.context.run(self.call)
        except BaseException as error:
            self.error = error
        try:
            self.loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            return  # The loop is closed: the process is exiting.

    def _settle(self) -> None:
        # The future only says that the call has ended: some exceptions (StopIteration) cannot be put into one.
        if not self.future.done():  # The caller timed out or was cancelled.
            self.future.set_result(None)


class DaemonThreads:
    """Runs functions in daemon threads; idle threads are reused."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._process = os.getpid()

    async def run(self, call: Callable[[], T]) -> T:
        """Call the function in a thread, in a copy of the current context; return or raise what it does.

        When the caller is cancelled, the function runs on and its result is discarded. A `StopIteration` becomes a
        `RuntimeError`, as everywhere in a coroutine.
        """
        if self._process != os.getpid():
            self._reset()  # The threads stayed in the parent of this fork.
        job = _Job(call, asyncio.get_running_loop())
        with self._lock:
            start = self._idle == 0
            if not start:
                self._idle -= 1
        if start:
            # Before the job is queued: without a thread (the system's limit is reached) it must not run later.
            threading.Thread(target=self._work, args=(self._jobs,), name="tachograph-step", daemon=True).start()
        self._jobs.put(job)
        await job.future
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # The traceback refers to this frame: leave no circle.
        result: T = job.result
        return result

    def _work(self, jobs: queue.SimpleQueue[_Job]) -> None:
        while True:
            try:
                job = jobs.get(timeout=_IDLE_SECONDS)
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
