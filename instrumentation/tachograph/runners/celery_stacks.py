"""Stacks of steps that Celery's workers do: what is asked and what is told are keys of the result backend.

Celery's own commands reach only the main process of a worker, and its children do the work. So a process that does a
step looks once a second whether it is asked. Nothing is written unless somebody asks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tachograph.folded_stacks import StackWish
from tachograph.quiet_log import QuietLog
from tachograph.runners.work import relay_stacks, stacks_message
from tachograph.stacks.passing_on import AttemptElsewhere, StackBox, done_elsewhere
from tachograph.stacks.wishes import fulfil
from tachograph.workflow.context import StepContext

quiet = QuietLog(logging.getLogger(__name__))

LOOK_SECONDS: Final = 1.0
"""How often a worker looks whether it is asked."""
FIRST_POLL_SECONDS: Final = 0.2
MAX_POLL_SECONDS: Final = 5.0
"""How often the runner looks for what was told: at first as often as this, and more rarely while nothing comes."""
_ANSWER_SECONDS: Final = 60.0
"""How long the runner looks for the answer of a worker that does not sample."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(StackWish).decode


def _asked_key(task_id: str) -> str:
    return f"tachograph-asked-{task_id}"


def _told_key(task_id: str) -> str:
    return f"tachograph-told-{task_id}"


class _Asked:
    """A task whose worker is asked."""

    def __init__(self, context: StepContext) -> None:
        self.context = context
        self.attempt: AttemptElsewhere | None = None
        self.unsent: bytes | None = None
        self.seen: Any = None
        self.until = 0.0
        self.pause = FIRST_POLL_SECONDS
        self.next = 0.0


class AskedTasks:
    """In the runner: brings workers what is asked, in one thread that runs while any answer is expected."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._asked: dict[str, _Asked] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def asking(self, task_id: str, context: StepContext) -> Iterator[None]:
        """A worker does the task while the code inside waits for it, and may be asked for its stacks."""
        asked = _Asked(context)
        with done_elsewhere(context.reporter, lambda wish: self._ask(task_id, asked, wish)) as asked.attempt:
            try:
                yield
            finally:
                with self._lock:
                    self._asked.pop(task_id, None)

    def _ask(self, task_id: str, asked: _Asked, wish: StackWish) -> None:
        with self._lock:
            asked.unsent = _encode(wish)
            asked.until = time.monotonic() + _ANSWER_SECONDS
            asked.pause, asked.next = FIRST_POLL_SECONDS, 0.0
            self._asked[task_id] = asked
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="tachograph-asking", daemon=True)
                thread.start()
                self._thread = thread

    def _serve(self) -> None:
        while True:
            now = time.monotonic()
            with self._lock:
                for task_id, asked in list(self._asked.items()):
                    if now > asked.until and not (asked.attempt is not None and asked.attempt.is_sampled):
                        del self._asked[task_id]
                if not self._asked:
                    self._thread = None
                    return
                tasks = [(task_id, asked) for task_id, asked in self._asked.items() if now >= asked.next]
            for task_id, asked in tasks:
                try:
                    self._serve_one(task_id, asked)
                except Exception as error:
                    quiet.exception(type(error), "a worker could not be asked for its stacks; trying again")
                    asked.next = now + MAX_POLL_SECONDS
            time.sleep(FIRST_POLL_SECONDS)

    def _send_again(self, asked: _Asked, wish: bytes) -> None:
        with self._lock:
            asked.unsent = asked.unsent or wish

    def _serve_one(self, task_id: str, asked: _Asked) -> None:
        with self._lock:
            wish, asked.unsent = asked.unsent, None
        if wish is not None:
            try:
                self._backend.set(_asked_key(task_id), wish)
            except Exception:
                self._send_again(asked, wish)
                raise
        told = self._backend.get(_told_key(task_id))
        if told is not None and told != asked.seen:
            asked.seen = told
            relay_stacks(told, asked.context)
            asked.pause = FIRST_POLL_SECONDS
        asked.next = time.monotonic() + asked.pause
        asked.pause = min(asked.pause * 1.2, MAX_POLL_SECONDS)


class _Looking:
    """In a worker: looks whether somebody asks, in one thread that looks while a step is done."""

    def __init__(self) -> None:
        self._boxes: dict[str, tuple[Any, StackBox]] = {}
        self._seen: dict[str, Any] = {}
        self._is_busy = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, task_id: str, backend: Any, box: StackBox) -> None:
        """A step begins."""
        self._boxes[task_id] = (backend, box)
        self._is_busy.set()
        if self._thread is None or not self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # No thread can be started now; the next step tries again.
                thread = threading.Thread(target=self._look, name="tachograph-asked", daemon=True)
                thread.start()
                self._thread = thread

    def remove(self, task_id: str) -> None:
        """It has ended. What was said of it is removed if anything was."""
        backend, _ = self._boxes.pop(task_id)
        if not self._boxes:
            self._is_busy.clear()
        if self._seen.pop(task_id, None) is not None:
            backend.delete(_asked_key(task_id))
            backend.delete(_told_key(task_id))

    def _look(self) -> None:
        while True:
            self._is_busy.wait()
            time.sleep(LOOK_SECONDS)
            for task_id, (backend, box) in list(self._boxes.items()):
                try:
                    self._look_at(task_id, backend, box)
                except Exception as error:
                    quiet.exception(type(error), "it is not known whether stacks are asked for")

    def _look_at(self, task_id: str, backend: Any, box: StackBox) -> None:
        asked = backend.get(_asked_key(task_id))
        if asked is not None and asked != self._seen.get(task_id):
            fulfil([_decode(asked)])
            self._seen[task_id] = asked
        if (told := box.news()) is not None and task_id in self._boxes:
            backend.set(_told_key(task_id), stacks_message(told))


_looking = _Looking()


@contextlib.contextmanager
def answering(task_id: str, backend: Any) -> Iterator[StackBox]:
    """In a worker: the code inside does a task, and tells its stacks when asked."""
    box = StackBox()
    _looking.add(task_id, backend, box)
    try:
        yield box
    finally:
        _looking.remove(task_id)


def _after_fork() -> None:
    global _looking
    _looking = _Looking()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
