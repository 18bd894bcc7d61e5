"""The protocol on standard input and output, for an agent that starts the process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
from mcp.server.stdio import stdio_server

from tachograph_exporter.mcp.context import Context
from tachograph_exporter.mcp.server import build_server

MAX_AT_ONCE: Final = 4
"""How many questions are answered at the same time; others wait."""


def serve(answer: Callable[[Callable[[Context], Any]], Any]) -> None:
    """Answer until standard input ends. ``answer`` calls a question with a context; it is called in threads."""

    async def run() -> None:
        limiter = anyio.CapacityLimiter(MAX_AT_ONCE)

        async def ask(question: Callable[[Context], Any]) -> Any:
            return await anyio.to_thread.run_sync(partial(answer, question), limiter=limiter)

        server = build_server(lambda _context: ask)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    anyio.run(run)
