"""Work handed to threads, pools and processes: a step belongs to the run that submitted it.

New threads do not inherit context variables, and processes that are not forked inherit nothing. While a run is open,
the ways by which the standard library starts such work carry the run along:

- `threading.Thread`, `concurrent.futures.ThreadPoolExecutor`, `multiprocessing.pool.ThreadPool`: a copy of the context;
- `multiprocessing.Process`, `multiprocessing.Pool`, `concurrent.futures.ProcessPoolExecutor`, however their processes
  are started (fork, spawn, forkserver): the run's identity, in a small envelope that is pickled with the work.

The threads and processes of a pool outlive the run in which the pool happened to be made, so they themselves belong to
no run; only what is submitted does. Without an open run everything is exactly as it was.
``TACHOGRAPH_PATCH_POOLS=false`` turns all of this off.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import multiprocessing.pool
import multiprocessing.process
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from tachograph.recording import carried_run, open_execution

log = logging.getLogger(__name__)

PATCH_VARIABLE: Final = "TACHOGRAPH_PATCH_POOLS"
_POOL_MODULES: Final = frozenset(
    {"concurrent.futures.thread", "concurrent.futures.process", "multiprocessing.pool", "multiprocessing.queues"}
)

T = TypeVar("T")

_lock = threading.Lock()
_is_installed = False


def install() -> None:
    """Patch the standard library, once; called when the first run is opened."""
    global _is_installed
    with _lock:
        if _is_installed:
            return
        _is_installed = True
        if os.environ.get(PATCH_VARIABLE, "").strip().lower() in ("false", "0", "no"):
            return
        _patch_threads()
        _patch_thread_pool()
        _patch_processes()
        _patch_process_pool()
        _patch_multiprocessing_pool()


def _belongs_to_a_pool(worker: Any) -> bool:
    """Whether a thread or process is part of a pool's machinery."""
    target = getattr(worker, "_target", None)
    return type(worker).__module__ in _POOL_MODULES or getattr(target, "__module__", None) in _POOL_MODULES


@contextlib.contextmanager
def _outside_any_run() -> Iterator[None]:
    tokens = open_execution.leave()
    try:
        yield
    finally:
        open_execution.restore(tokens)


def _patch_threads() -> None:
    start = threading.Thread.start

    @functools.wraps(start)
    def start_with_context(self: threading.Thread) -> None:
        if not open_execution.is_open():
            start(self)
        elif _belongs_to_a_pool(self):
            with _outside_any_run():
                start(self)
        else:
            if not getattr(self, "_tachograph_context", False):
                self._tachograph_context = True  # type: ignore[attr-defined]
                self.run = functools.partial(contextvars.copy_context().run, self.run)  # type: ignore[method-assign]
            start(self)

    threading.Thread.start = start_with_context  # type: ignore[method-assign]


def _patch_thread_pool() -> None:
    submit = ThreadPoolExecutor.submit

    @functools.wraps(submit)  # type: ignore[arg-type]
    def submit_with_context(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if open_execution.is_open():
            fn = functools.partial(contextvars.copy_context().run, fn)
        return submit(self, fn, *args, **kwargs)

    ThreadPoolExecutor.submit = submit_with_context  # type: ignore[method-assign,assignment]


def _patch_processes() -> None:
    start = multiprocessing.process.BaseProcess.start

    @functools.wraps(start)
    def start_with_run(self: multiprocessing.process.BaseProcess) -> None:
        if not open_execution.is_open():
            start(self)
        elif _belongs_to_a_pool(self):
            with _outside_any_run():
                start(self)
        else:
            # Unpickling the envelope in the new process opens the run there; a forked one does not unpickle anything.
            self._tachograph_run = carried_run.envelope()  # type: ignore[attr-defined]
            try:
                start(self)
            finally:
                del self._tachograph_run  # type: ignore[attr-defined]

    multiprocessing.process.BaseProcess.start = start_with_run  # type: ignore[method-assign]


def _patch_process_pool() -> None:
    submit = ProcessPoolExecutor.submit

    @functools.wraps(submit)  # type: ignore[arg-type]
    def submit_with_run(self: ProcessPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return submit(self, _carried(fn), *args, **kwargs)

    ProcessPoolExecutor.submit = submit_with_run  # type: ignore[method-assign,assignment]


def _patch_multiprocessing_pool() -> None:
    pool = multiprocessing.pool.Pool
    for name in ("apply_async", "_map_async", "imap", "imap_unordered"):
        original: Callable[..., Any] = getattr(pool, name)

        def with_run(
            self: multiprocessing.pool.Pool, func: Any, *args: Any, _original: Any = original, **kwargs: Any
        ) -> Any:
            if open_execution.is_open():
                is_threads = isinstance(self, multiprocessing.pool.ThreadPool)
                func = _InContext(func) if is_threads else _carried(func)
            return _original(self, func, *args, **kwargs)

        setattr(pool, name, functools.wraps(original)(with_run))


class _InContext:
    """A function that runs in a copy of the context it was submitted in, as often as it is called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._context = contextvars.copy_context()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._context.copy().run(self._function, *args, **kwargs)


def _carried(function: Callable[..., T]) -> Callable[..., T]:
    run = carried_run.current()
    return function if run is None else carried_run.CarriedCall(function, run)
