"""Stacks of steps that Dask's workers do: the runner has a function run on the worker, beside the step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec

from tachograph.folded_stacks import StackWish
from tachograph.quiet_log import QuietLog
from tachograph.runners.work import relay_stacks, stacks_message
from tachograph.stacks.passing_on import AttemptElsewhere, StackBox, done_elsewhere
from tachograph.stacks.wishes import fulfil
from tachograph.workflow.context import StepContext

quiet = QuietLog(logging.getLogger(__name__))

ANSWER_SECONDS: Final = 10.0
"""How long a worker may take to tell its stacks."""
FETCH_SECONDS: Final = 5.0
"""How often a worker that samples is asked what it has sampled."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(StackWish).decode
_boxes: Final[dict[str, StackBox]] = {}
"""Of the attempts that this worker does."""


class AskedAttempt:
    """In the runner: an attempt whose worker may be asked for its stacks.

    Args:
        client: Dask's.
        key: names the attempt to the worker; see `answering`.
        find_worker: the address of the worker that has begun it, or None.
        context: what is told is recorded there.
    """

    def __init__(
        self, client: Any, key: str, find_worker: Callable[[], Awaitable[str | None]], context: StepContext
    ) -> None:
        self._client = client
        self._key = key
        self._find_worker = find_worker
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempt: AttemptElsewhere | None = None
        self._is_fetching = False

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """A worker does the attempt while the code inside waits for it."""
        with done_elsewhere(self._context.reporter, self._ask) as self._attempt:
            try:
                yield
            finally:
                self._attempt = None
                for task in list(self._tasks):
                    task.cancel()

    def _ask(self, wish: StackWish) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
            self._loop.call_soon_threadsafe(self._start, wish)

    def _start(self, wish: StackWish) -> None:
        if self._attempt is not None:
            task = self._loop.create_task(self._serve(wish))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, wish: StackWish) -> None:
        try:
            address = await self._find_worker()
            if address is None:
                self._is_not_sampled()
                return
            await self._fetch(address, _encode(wish))
            if not wish.step_ids or self._is_fetching:
                return
            self._is_fetching = True
            try:
                while True:
                    await asyncio.sleep(FETCH_SECONDS)
                    await self._fetch(address, b"")
            finally:
                self._is_fetching = False
        except Exception as error:
            self._is_not_sampled()
            quiet.warning(type(error), "a worker of Dask could not be asked for its stacks: %r", error)

    def _is_not_sampled(self) -> None:
        # That a step is late is told again and again.
        if self._attempt is not None:
            self._attempt.is_sampled = False

    async def _fetch(self, address: str, wish: bytes) -> None:
        call = self._client.run(asked, self._key, wish, workers=[address])
        for told in (await asyncio.wait_for(call, ANSWER_SECONDS)).values():
            if told:
                relay_stacks(told, self._context)


@contextlib.contextmanager
def answering(key: str) -> Iterator[StackBox]:
    """On a worker: the code inside does an attempt, and tells its stacks when asked."""
    box = _boxes[key] = StackBox()
    try:
        yield box
    finally:
        del _boxes[key]


def asked(key: str, wish: bytes) -> bytes:
    """On a worker: do what is asked of an attempt (a `StackWish` as JSON; empty: nothing new), and tell its stacks.

    Empty if there are none since the last call, or the attempt has ended.
    """
    box = _boxes.get(key)
    if box is None:
        return b""
    if wish:
        fulfil([_decode(wish)])
    told = box.news()
    return stacks_message(told) if told else b""
