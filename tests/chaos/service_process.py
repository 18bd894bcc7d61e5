"""A service that is started again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from tools.local_service import free_port

from tests.conftest import ROOT
from tests.e2e.conftest import environment


class ServiceProcess:
    """``tachograph serve``, started again whenever it ends.

    ``ahead_seconds``: how far its clock is ahead of the machine's.
    """

    def __init__(self, database: str, directory: Path, ahead_seconds: float = 0) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = directory / f"serve-{self.port}.log"
        program = ["tests.chaos.shifted", str(ahead_seconds)] if ahead_seconds else ["tachograph_exporter"]
        self._command = [sys.executable, "-m", *program, "serve", "--database", database,
                         "--listen", f"127.0.0.1:{self.port}", "--grace", "2"]  # fmt: skip
        self._environment = environment(TACHOGRAPH_SPOOL_DIR=str(directory / "spool"), PYTHONPATH=str(ROOT))
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Keep it running."""
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, env=self._environment, stdout=log, stderr=log
                )
            self.starts += 1
            await self._process.wait()
            await asyncio.sleep(0.2)

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self) -> None:
        """End it for good."""
        if self._keeping is not None:
            self._keeping.cancel()
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), 20)
            except TimeoutError:
                self._process.kill()
