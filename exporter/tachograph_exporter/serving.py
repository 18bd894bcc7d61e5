"""Serving until the process is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Callable

from tachograph_exporter.api import connections
from tachograph_exporter.service import SHUTDOWN_SECONDS, CannotListen, Service

log = logging.getLogger(__name__)


async def serve(service: Service, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully; a second signal stops at once.

    ``on_ready`` is called with the address once requests are accepted. Raises `CannotListen` when an address is not
    available.
    """
    config = service.config
    connections.raise_descriptor_limit()
    runner = connections.Runner(
        service.application(),
        # A request that never ends must not keep the process from ending.
        shutdown_timeout=SHUTDOWN_SECONDS,
        max_connections_per_peer=config.max_connections_per_peer,
        tls=config.tls(),
        access_log=None,
        handle_signals=False,
    )
    try:
        await runner.setup()
        site = connections.Site(runner, config.host, config.port)
        try:
            await site.start()
        except OSError as error:
            raise CannotListen(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}") from error
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.add_signal_handler(number, stop.set)
        host = f"[{config.host}]" if ":" in config.host else config.host
        # What the service consists of stays; a collection of garbage, which stops every thread, need not go through it.
        gc.collect()
        gc.freeze()
        if on_ready is not None:
            on_ready(f"{config.scheme}://{host}:{site.bound_port}")
        await stop.wait()
        log.info("stopping: running steps have %g s to finish", config.grace_seconds)
        stop.clear()
        work = asyncio.create_task(service.stop_work())
        second_signal = asyncio.create_task(stop.wait())
        await asyncio.wait({work, second_signal}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await service.executor.drain(0)
        second_signal.cancel()
        await work
    finally:
        await runner.cleanup()
