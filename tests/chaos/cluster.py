"""Two PostgreSQL servers, one of them the standby of the other, each behind a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time

from tests.chaos.proxy import Proxy
from tests.postgres_server import PostgresServer, PostgresStandby


class Cluster:
    """A primary and a standby that has whatever a commit acknowledged; both are where they were after a failover."""

    def __init__(self) -> None:
        # A standby that lost its primary looks for it again at once.
        self.primary = PostgresServer(max_connections=120, wal_retrieve_retry_interval="200ms")
        self.primary.sql("CREATE ROLE app LOGIN")
        self.primary.sql("CREATE DATABASE runs OWNER app")
        self.standby: PostgresServer = PostgresStandby(self.primary)
        self._wait_for_standby()
        self.proxies = [Proxy(self.primary.port), Proxy(self.standby.port)]
        self._copying: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Names both hosts."""
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)
        return f"postgresql://app@{hosts}/runs"

    def sql(self, statement: str, database: str = "postgres") -> None:
        """Run a statement on the primary, past the proxies; it may fail."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.primary.sql(statement, database=database, timeout=30)

    def answer(self, statement: str) -> str:
        """What the primary answers, past the proxies; empty if it does not."""
        try:
            return self.primary.sql(statement, timeout=30)
        except subprocess.SubprocessError:
            return ""

    async def fail_over(self) -> None:
        """The primary crashes, the standby is promoted. The old primary becomes a standby of the new one meanwhile."""
        if self._copying is not None:
            await self._copying
        await asyncio.to_thread(self.primary.stop, "immediate")
        await asyncio.to_thread(self.standby.promote)
        self.primary, self.standby = self.standby, self.primary
        self._copying = asyncio.create_task(self._copy())

    async def _copy(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.standby.follow, self.primary)
            except subprocess.SubprocessError:  # The primary restarts, perhaps.
                await asyncio.sleep(0.5)
            else:
                break
        await asyncio.to_thread(self._wait_for_standby)

    def _wait_for_standby(self) -> None:
        """Let commits of the primary wait for the standby, whose copy of the settings says that it waits for nobody."""
        while True:
            with contextlib.suppress(subprocess.SubprocessError):  # The primary restarts, perhaps.
                self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'", timeout=30)
                self.primary.sql("SELECT pg_reload_conf()", timeout=30)
                if self.primary.sql("SELECT sync_state FROM pg_stat_replication", timeout=30) == "sync":
                    # By the checkpointer's settings commits wait; it reads them before a checkpoint.
                    self.primary.sql("CHECKPOINT", timeout=30)
                    return
            time.sleep(0.2)

    async def start(self) -> None:
        """Start the proxies."""
        for proxy in self.proxies:
            await proxy.start()

    async def stop(self) -> None:
        """End everything."""
        if self._copying is not None:
            self._copying.cancel()
            await asyncio.wait({self._copying})
        for proxy in self.proxies:
            await proxy.stop()
        for server in (self.standby, self.primary):
            await asyncio.to_thread(server.close)
