"""When a process may fork while a listener delivers: not while it holds locks, but while it waits for an answer.

A listener queue holds its lock around each delivery, and a fork takes it, so that no child inherits half of something.
Most of a delivery is waiting for the network, where nothing is half done: there the lock is given back.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_here: Final = threading.local()


@contextmanager
def delivering(lock: threading.Lock) -> Iterator[None]:
    """Hold the lock that forks take."""
    with lock:
        _here.lock = lock
        try:
            yield
        finally:
            _here.lock = None


@contextmanager
def sending() -> Iterator[None]:
    """Nothing that a child must not have is in use in this block but the connection: see `wait_for_answer`."""
    lock = getattr(_here, "lock", None)
    _here.may_fork = lock is not None
    try:
        yield
    finally:
        _here.may_fork = False


def wait_for_answer(connection: socket.socket | None, seconds: float) -> None:
    """Wait until something arrives. Inside `sending`, forks need not wait for that.

    Raises TimeoutError after so many seconds.
    """
    poll: Any = getattr(select, "poll", None)
    if connection is None or poll is None or not getattr(_here, "may_fork", False):
        return
    waiting = poll()
    waiting.register(connection.fileno(), select.POLLIN)
    lock: threading.Lock = _here.lock
    lock.release()
    try:
        has_arrived = waiting.poll(seconds * 1e3)
    finally:
        lock.acquire()
    if not has_arrived:
        raise TimeoutError("timed out")
