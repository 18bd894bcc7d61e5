"""A queue of requests and the thread that stores them: one of each for a receiver, started when it is first needed."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Generic, Protocol, TypeVar

from tachograph.errors import StoreUnavailable
from tachograph.quiet_log import QuietLog

quiet = QuietLog(logging.getLogger(__name__))

CLOSE_SECONDS: Final = 3.0

T = TypeVar("T")


class Awaited(Protocol):
    """A request that somebody waits for."""

    @property
    def answer(self) -> Future[Any]:
        """Gets the result, or what went wrong."""


class RequestQueue(Generic[T]):
    """Requests that wait, and the thread that stores them.

    Args:
        name: the thread's.
        items: what requests have, for the log: "spans".
        store_next: called in the thread again and again. Takes requests with `get`, notes them in the list it is given
            and answers them; returns False when it has met the end of the queue, `None`.
    """

    def __init__(self, name: str, items: str, store_next: Callable[[list[Any]], bool]) -> None:
        self._name = name
        self._items = items
        self._store_next = store_next
        self._waiting: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, request: T) -> None:
        """Queue a request. Raises `StoreUnavailable` when no thread can be started."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                try:
                    thread.start()
                except (RuntimeError, MemoryError) as error:
                    raise StoreUnavailable(f"no thread can be started now: {error}") from error
                self._thread = thread
        self._waiting.put(request)

    def get(self, seconds: float | None = None) -> T | None:
        """The next request, waited for as long as it takes, or ``seconds``; None at the end. Raises `queue.Empty`."""
        return self._waiting.get(timeout=seconds) if seconds != 0 else self._waiting.get_nowait()

    def close(self) -> None:
        """Store what waits, then stop; what is not stored within `CLOSE_SECONDS` has not been acknowledged."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        is_open = True
        while is_open:
            requests: list[Awaited] = []
            try:
                is_open = self._store_next(requests)
            except BaseException as error:
                # Out of memory, for instance. Whoever waits must get an answer.
                for request in requests:
                    if not request.answer.done():
                        request.answer.set_exception(error)
                quiet.exception((self._items, type(error)), "a batch of %s could not be stored", self._items)
