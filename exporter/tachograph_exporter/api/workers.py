"""Threads for what a request computes: documents to be decoded and checked, scrapes to be rendered.

Each kind of work has threads of its own, so that a flood of one does not hold up another, and the event loop waits for
none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Workers:
    """A few threads; calls beyond their number wait. Threads start when they are needed."""

    def __init__(self, name: str, threads: int = 2) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"tachograph-{name}")

    async def run(self, call: Callable[[], T]) -> T:
        """The result of the call."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """Start nothing more; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
