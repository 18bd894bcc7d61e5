"""Steps are done by Dask workers, for data that stays on them.

Dask does a task again by itself when its worker dies. A step must not be: how often it is tried is its definition's
business. So a task notes on the scheduler that it has begun, and one that finds its own note answers that the worker
before it is gone. https://distributed.dask.org/en/stable/resilience.html
"""

from __future__ import annotations

import asyncio
import importlib
import uuid
from typing import Any, Final
from urllib.parse import urlsplit

from tachograph.errors import SetupError, StepFailed
from tachograph.runners.dask_stacks import AskedAttempt, answering
from tachograph.runners.work import finish, lost, perform, work_of
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import Handler, HandlerRegistry, registry

_BEGUN: Final = "tachograph-begun"
_serving: HandlerRegistry | None = None


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError:
        raise SetupError("steps on Dask need it: pip install 'tachograph[dask]'") from None


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme.partition('+')[2] or 'tcp'}://{parts.netloc or 'localhost:8786'}"


class DaskRunner:
    """Has the work of steps done by Dask workers. See `tachograph.workflow.Runner`.

    ``url``: ``dask://HOST:PORT`` of the scheduler. A function that runs on a worker cannot be stopped; a cancelled step
    that no worker has begun is not run.
    """

    is_local = False

    def __init__(self, url: str) -> None:
        self._dask = _distributed()
        self._address = _address(url)
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Places of notes on the scheduler, which never forgets one: used again, they are as many as steps run at once.
        self._id = uuid.uuid4().hex
        self._places: list[str] = []
        self._made = 0

    async def run(self, handler: Handler, context: StepContext) -> Any:
        """See `Runner.run`."""
        body = work_of(handler, context)
        client = await self._connected()
        place = self._places.pop() if self._places else self._new_place()
        attempt = uuid.uuid4().hex
        future = client.submit(do, body, place, attempt, key=f"tachograph-{attempt}", pure=False, retries=0)

        async def find_worker() -> str | None:
            note = await client.get_metadata([_BEGUN, place], None)
            return note[1] if note is not None and note[0] == attempt else None

        try:
            with AskedAttempt(client, attempt, find_worker, context).asking():
                answer = await future
        except self._dask.KilledWorker as error:
            answer = lost(str(error.last_worker), f"Dask: {error}")
        except self._dask.CancelledError:
            answer = lost("", "Dask's scheduler has forgotten the step")
        finally:
            # A task that no worker has begun is not run then.
            future.release()
            self._places.append(place)
        return finish(answer, context)

    async def close(self) -> None:
        """See `Runner.close`."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.close()

    def _new_place(self) -> str:
        self._made += 1
        return f"{self._id}/{self._made}"

    async def _connected(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop or self._client.status in ("closed", "closing"):
            self._loop = loop
            self._client = self._dask.Client(self._address, asynchronous=True, set_as_default=False, timeout="10s")
        try:
            # Whoever asks first connects, the others wait for the same.
            return await self._client
        except (OSError, TimeoutError) as error:
            self._client = None
            raise StepFailed(f"no Dask scheduler answers at {self._address}: {error}") from None


def do(body: bytes, place: str, attempt: str) -> bytes:
    """On a worker: do a `Work`, once. ``place``: where the note is that ``attempt`` has begun."""
    dask = _distributed()
    address, client = str(dask.get_worker().address), dask.get_client()
    note = client.get_metadata([_BEGUN, place], None)
    if note is not None and note[0] == attempt:
        return lost(str(note[1]), f"worker {note[1]} was lost while it did the step")
    client.set_metadata([_BEGUN, place], [attempt, address])
    with answering(attempt) as box:
        return perform(body, _handlers(), address, box=box)


def _handlers() -> HandlerRegistry:
    """Those of the worker that ``tachograph worker`` started; another one has what is registered in its process."""
    if _serving is not None:
        return _serving
    registry.load_entry_points()
    return registry


def work(url: str, handlers: HandlerRegistry, concurrency: int, name: str | None = None) -> int:
    """Be a worker with so many threads, until the process is asked to stop. Returns the exit code.

    Raises `SetupError`.
    """
    global _serving
    dask, _serving = _distributed(), handlers

    async def serve() -> None:
        async with dask.Worker(_address(url), nthreads=concurrency, name=name) as worker:
            await worker.finished()

    try:
        asyncio.run(serve())
    except (OSError, TimeoutError) as error:
        raise SetupError(f"no Dask scheduler answers at {_address(url)}: {error}") from None
    return 0
