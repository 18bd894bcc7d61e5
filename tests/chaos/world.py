"""The services, their database, the load, and the faults, one after another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import aiohttp

from tests.chaos.cluster import Cluster
from tests.chaos.faults import ON_POSTGRES, ON_SQLITE, Fault
from tests.chaos.load import WORKFLOW, Load
from tests.chaos.service_process import ServiceProcess
from tests.chaos.verdict import Happened, Verdict, judge

RECOVERY_SECONDS = 60.0
"""How long to wait for an execution to be accepted after a fault, at most."""
MIN_ACKNOWLEDGED: Final = 11
MIN_TRACES: Final = 3
"""What there must be to compare at the end."""


class World:
    """Everything that takes part: on PostgreSQL, some services on a primary with a standby.

    ``ahead_seconds``: how far the clock of each service is ahead of the machine's; on SQLite there is one service.
    """

    def __init__(self, directory: Path, kind: str, ahead_seconds: Sequence[float] = (0, 0)) -> None:
        self.directory = directory
        self._ahead_seconds = ahead_seconds
        self.kind = kind
        self.cluster: Cluster | None = None
        self.services: list[ServiceProcess] = []
        self.database = f"sqlite:///{directory / 'chaos.db'}"

    async def run(self, seconds: float, first: Sequence[Fault] = ()) -> Verdict:
        """Let the load and the faults run for a while, then compare what is there with what was promised.

        ``first``: faults that happen in any case.
        """
        try:
            if self.kind == "postgresql":
                self.cluster = await asyncio.to_thread(Cluster)
                await self.cluster.start()
                self.database = self.cluster.url
            self.services = [
                ServiceProcess(self._url_for(number), self.directory, ahead)
                for number, ahead in enumerate(self._ahead_seconds if self.cluster else self._ahead_seconds[:1])
            ]
            self.service = self.services[0]
            addresses = [service.address for service in self.services]
            self.load = Load(addresses, self.database, str(self.directory / "spool"))
            for service in self.services:
                await service.start()
            await self._until_accepting(self.service, register=True)
            await self._until_all_accept()
            await self.load.start()
            happened = await self._faults(seconds, first)
            # On a busy machine little comes through in a few seconds.
            oracle = self.load.oracle
            while len(oracle.acknowledged) < MIN_ACKNOWLEDGED or len(oracle.traces) < MIN_TRACES:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await self.load.stop()
            starts = sum(service.starts for service in self.services)
            return await judge(self.database, addresses, self.load.oracle, happened, starts)
        finally:
            await asyncio.gather(*[service.stop() for service in self.services])
            if self.cluster is not None:
                await self.cluster.stop()

    async def _faults(self, seconds: float, first: Sequence[Fault]) -> list[Happened]:
        kinds = list(ON_POSTGRES if self.cluster is not None else ON_SQLITE)
        happened: list[Happened] = []
        end = time.monotonic() + seconds
        pending = list(reversed(first))
        while time.monotonic() < end or len(happened) < len(first):
            if not pending:
                pending = random.sample(kinds, len(kinds))
            fault = pending.pop()
            self.service = random.choice(self.services)
            await asyncio.sleep(random.uniform(0.3, 1.0))
            began = time.time()
            await fault(self)
            happened.append(Happened(fault.__name__, began, await self._until_all_accept()))
        return happened

    def _url_for(self, number: int) -> str:
        """The database's URL; PostgreSQL knows the connections of each service by a name."""
        return f"{self.database}?application_name=service{number}" if self.cluster else self.database

    async def _until_all_accept(self) -> float:
        """Seconds until an execution is accepted by every service."""
        return max(await asyncio.gather(*[self._until_accepting(service) for service in self.services]))

    async def _until_accepting(self, service: ServiceProcess, *, register: bool = False) -> float:
        begin = time.monotonic()
        async with aiohttp.ClientSession() as session:
            while time.monotonic() - begin < RECOVERY_SECONDS:
                try:
                    if register:
                        async with session.post(service.address + "/api/workflows", json=WORKFLOW) as response:
                            register = response.status not in (201, 409)
                    path = f"{service.address}/api/workflows/probe/execute"
                    body = {"input_variables": {"n": "recovery"}}
                    patience = aiohttp.ClientTimeout(total=3)
                    async with session.post(path, json=body, timeout=patience) as response:
                        if response.status == 202:
                            return time.monotonic() - begin
                except (TimeoutError, aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.05)
        return RECOVERY_SECONDS
