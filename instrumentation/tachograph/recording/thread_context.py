"""Context in threads: a thread or pool task started inside a workflow belongs to it.

New threads do not inherit context variables (from Python 3.14 on they may), so a step in a pool would not know its
workflow or its parent span. Once a workflow was opened in this process, `threading.Thread` and
`concurrent.futures.ThreadPoolExecutor` pass a copy of the starter's context on, but only while a workflow is open in
that context. Other threads behave as before.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_lock = threading.Lock()
_installed = False


def hand_over(is_open: Callable[[], bool]) -> None:
    """Patch both classes, once. ``is_open`` returns whether a workflow is open in the current context."""
    global _installed
    with _lock:
        if _installed:
            return
        _installed = True
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit

    @functools.wraps(start)
    def start_with_context(self: threading.Thread) -> None:
        if is_open() and not getattr(self, "_tachograph_context", False):
            self._tachograph_context = True  # type: ignore[attr-defined]
            self.run = functools.partial(contextvars.copy_context().run, self.run)  # type: ignore[method-assign]
        start(self)

    @functools.wraps(submit)  # type: ignore[arg-type]
    def submit_with_context(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if is_open():
            fn = functools.partial(contextvars.copy_context().run, fn)
        return submit(self, fn, *args, **kwargs)

    threading.Thread.start = start_with_context  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_with_context  # type: ignore[method-assign,assignment]
