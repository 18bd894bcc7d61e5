"""A command as a child of this process, on the event loop. When it has ended, the kernel says what it used."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from tachograph.counters import largest_so_far, usage_of
from tachograph.resources import Resources
from tachograph.workflow.worker_threads import DaemonThreads

_UNKNOWN: Final = 255
"""The exit code of a command that something else waited for, as asyncio has it."""
_threads: Final = DaemonThreads()


class CommandProcess:
    """A command in a session of its own, without input. ``stdout`` and ``stderr`` are to be read to their ends.

    asyncio's own subprocesses do not tell what a child used: whoever waits for it learns that, once.
    """

    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._largest_of_parent = largest_so_far()
        self._transports: list[asyncio.ReadTransport] = []
        self._ended = asyncio.ensure_future(_threads.run(self._wait))

    @classmethod
    async def start(
        cls, arguments: Sequence[str], *, environment: Mapping[str, str], directory: str | None
    ) -> CommandProcess:
        """Start a command. Raises `OSError` if it cannot be started."""
        # Not off the event loop: asyncio would not do so either, and it takes as long as a fork.
        started = subprocess.Popen(  # noqa: ASYNC220, S603
            arguments,
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        process = cls(started)
        process.stdout = await process._reader(started.stdout)
        process.stderr = await process._reader(started.stderr)
        return process

    async def _reader(self, pipe: object) -> asyncio.StreamReader:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), pipe)
        self._transports.append(transport)
        return reader

    def _wait(self) -> tuple[int, Resources | None]:
        process = self._process
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except ChildProcessError:
            process.returncode = _UNKNOWN
            return _UNKNOWN, None
        process.returncode = code = os.waitstatus_to_exitcode(status)
        return code, usage_of(usage, self._largest_of_parent)

    async def wait(self) -> tuple[int, Resources | None]:
        """Its exit code (negative: the signal that ended it), and what it and all that it waited for used."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """Kill it, and all that it started in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop reading. What it left behind may hold its outputs open for as long as it likes."""
        for transport in self._transports:
            transport.close()
