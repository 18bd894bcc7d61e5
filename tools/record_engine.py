"""Record what an engine sends, raw and in order of arrival, while a service gets it too.

    python -m tools.record_engine RECORDING [--listen 127.0.0.1:9924] [--forward http://127.0.0.1:9923]

Point the engine's OTLP exporter (or its OpenLineage transport) at the address; stop with Ctrl-C to write
RECORDING.jsonl. With ``--forward`` every request goes on to a service, whose answer the engine gets; without, each is
answered with 200 and no content.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import Self

from aiohttp import ClientSession, web
from tools.recordings import Mask, Request, decoded, write

MAX_BODY_BYTES = 64 << 20


class Recorder:
    """An HTTP server in a thread that keeps every POST. Use it as a context manager."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, forward: str | None = None) -> None:
        self._host, self._port, self._forward = host, port, forward
        self._requests: list[tuple[float, str, bytes, str]] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recorder", daemon=True)
        self._runner: web.AppRunner | None = None
        self._session: ClientSession | None = None
        self.last_arrival = time.monotonic()
        """When the last request came, by the monotonic clock."""

    @property
    def address(self) -> str:
        """The URL to send to."""
        return f"http://{self._host}:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._session = ClientSession(auto_decompress=False)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        self._port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        # aiohttp has decompressed the body.
        body = await request.read()
        if request.method == "POST":
            with self._lock:
                self.last_arrival = time.monotonic()
                self._requests.append((self.last_arrival, request.path, body, request.content_type))
        if self._forward is None or self._session is None:
            return web.Response()
        headers = {name: request.headers[name] for name in ("Content-Type", "Authorization") if name in request.headers}
        async with self._session.request(
            request.method, self._forward + request.path_qs, data=body, headers=headers
        ) as answer:
            passed = {name: answer.headers[name] for name in ("Content-Type", "Retry-After") if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=passed)

    def count(self) -> int:
        """How many requests are waiting to be taken."""
        with self._lock:
            return len(self._requests)

    def take(self) -> list[Request]:
        """The requests since the last call. Raises ValueError if one cannot be written without loss."""
        with self._lock:
            requests, self._requests = self._requests, []
        start = requests[0][0] if requests else 0.0
        return [
            Request(arrival - start, path, decoded(path, body, content_type))
            for arrival, path, body, content_type in requests
        ]


def main() -> None:
    """Record until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--listen", default="127.0.0.1:9924")
    parser.add_argument("--forward")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    with Recorder(host, int(port), arguments.forward) as recorder:
        print(f"recording what is sent to {recorder.address}; Ctrl-C ends it", file=sys.stderr)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            requests = recorder.take()
    paths: list[str | Path] = [os.getcwd(), sys.prefix, sys.base_prefix, Path.home()]
    print(f"{len(requests)} requests in {write(arguments.recording, requests, Mask(paths))}")


if __name__ == "__main__":
    main()
