"""Logging errors that may come by the thousand: each kind once in a while, with the number of those not logged."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

_Hook = TypeVar("_Hook", bound=Callable[..., Any])

INTERVAL_SECONDS: Final = 60.0
_MAX_KINDS: Final = 1000


class QuietLog:
    """Logs to ``log``, at most one record of each kind in ``interval_seconds``. Safe from any thread; never raises."""

    def __init__(
        self,
        log: logging.Logger,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._interval = interval_seconds
        self._now = now
        self._lock = threading.Lock()
        self._again: dict[object, tuple[float, int]] = {}

    def exception(self, kind: object, message: str, *arguments: Any) -> None:
        """Log the current exception with its traceback, as `logging.Logger.exception` does."""
        self._emit(kind, logging.ERROR, message, arguments, with_traceback=True)

    def warning(self, kind: object, message: str, *arguments: Any) -> None:
        """Log a warning."""
        self._emit(kind, logging.WARNING, message, arguments, with_traceback=False)

    def harmless(self, owner: str) -> Callable[[_Hook], _Hook]:
        """Decorator of a hook that never raises into its ``owner``, an engine: what it raises is logged."""

        def wrap(hook: _Hook) -> _Hook:
            @functools.wraps(hook)
            def call(*args: Any, **kwargs: Any) -> Any:
                try:
                    return hook(*args, **kwargs)
                except Exception:
                    self.exception(hook.__name__, "not reported: %s of %s", hook.__name__, owner)

            return cast(_Hook, call)

        return wrap

    def _emit(
        self, kind: object, level: int, message: str, arguments: tuple[Any, ...], *, with_traceback: bool
    ) -> None:
        try:
            now = self._now()
            with self._lock:
                again_at, left_out = self._again.get(kind, (0.0, 0))
                if again_at > now:
                    self._again[kind] = (again_at, left_out + 1)
                    return
                if len(self._again) >= _MAX_KINDS:
                    self._again.clear()
                self._again[kind] = (now + self._interval, 0)
            if left_out:
                message, arguments = message + " (and %d more like it since the last time)", (*arguments, left_out)
            self._log.log(level, message, *arguments, exc_info=with_traceback)
        except MemoryError:
            pass  # Whoever reports an error must be able to go on.
