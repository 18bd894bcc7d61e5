"""A service that is started again whenever it ends, its database, the load, and the faults, one after another."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select

from tachograph_exporter.store.database import Database
from tachograph_exporter.store.rollups import rebuild
from tachograph_exporter.store.schema import workflow_executions, workflow_step_executions
from tachograph_exporter.store.series.recount import recount_one
from tests.chaos.faults import ON_POSTGRES, ON_SQLITE, Fault, Postgres
from tests.chaos.load import WORKFLOW, Load
from tests.e2e.conftest import environment

RECOVERY_SECONDS = 60.0
"""How long to wait for an execution to be accepted after a fault, at most."""


# Only steps that were retried have rows of attempts; all that began have a start.
_BEGUN_STEPS = (
    select(func.count())
    .where(
        workflow_step_executions.c.execution_id == workflow_executions.c.execution_id,
        workflow_step_executions.c.started_ns.is_not(None),
    )
    .scalar_subquery()
)


class ServiceProcess:
    """``tachograph serve``, started again whenever it ends."""

    def __init__(self, database: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = directory / "serve.log"
        self._command = [sys.executable, "-m", "tachograph_exporter", "serve", "--listen", f"127.0.0.1:{self.port}",
                         "--database", database, "--grace", "2"]  # fmt: skip
        self._environment = environment(TACHOGRAPH_SPOOL_DIR=str(directory / "spool"))
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


class Verdict(NamedTuple):
    """What came of it. ``recoveries``: seconds until an execution was accepted again, by fault."""

    recoveries: dict[str, list[float]]
    faults: list[str]
    counts: dict[str, int]


class World:
    """Everything that takes part."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.postgres: Postgres | None = None
        self.database = f"sqlite:///{directory / 'chaos.db'}"

    async def run(self, seconds: float, faults: int | None = None) -> Verdict:
        """Let the load and the faults run for a while, then compare what is there with what was promised."""
        if self.kind == "postgresql":
            self.postgres = Postgres(Path(tempfile.mkdtemp(prefix="tachograph-chaos-", dir="/tmp")))
            await asyncio.to_thread(self.postgres.start)
            await self.postgres.proxy.start()
            self.database = f"postgresql://postgres@127.0.0.1:{self.postgres.proxy.port}/chaos"
        self.service = ServiceProcess(self.database, self.directory)
        await self.service.start()
        self.load = Load(self.service.address, self.database, str(self.directory / "spool"))
        try:
            await self._until_accepting(register=True)
            await self.load.start()
            recoveries = await self._faults(seconds, faults)
            await self.load.stop()
            return await self._verdict(recoveries)
        finally:
            await self.service.stop()
            if self.postgres is not None:
                await self.postgres.proxy.stop()
                await asyncio.to_thread(self.postgres.control, "-m", "immediate", "stop")

    async def _faults(self, seconds: float, count: int | None) -> dict[str, list[float]]:
        kinds = list(ON_POSTGRES if self.postgres is not None else ON_SQLITE)
        recoveries: dict[str, list[float]] = defaultdict(list)
        end = time.monotonic() + seconds
        pending: list[Fault] = []
        while time.monotonic() < end and (count is None or sum(map(len, recoveries.values())) < count):
            if not pending:
                pending = random.sample(kinds, len(kinds))
            fault = pending.pop()
            await asyncio.sleep(random.uniform(0.3, 1.0))
            await fault(self)
            recoveries[fault.__name__].append(await self._until_accepting())
        return recoveries

    async def _until_accepting(self, *, register: bool = False) -> float:
        """Seconds until an execution is accepted."""
        begin = time.monotonic()
        async with aiohttp.ClientSession() as session:
            while time.monotonic() - begin < RECOVERY_SECONDS:
                try:
                    if register:
                        async with session.post(self.service.address + "/api/workflows", json=WORKFLOW) as response:
                            register = response.status not in (201, 409)
                    path = f"{self.service.address}/api/workflows/probe/execute"
                    body = {"input_variables": {"n": "recovery"}}
                    patience = aiohttp.ClientTimeout(total=3)
                    async with session.post(path, json=body, timeout=patience) as response:
                        if response.status == 202:
                            return time.monotonic() - begin
                except (TimeoutError, aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.05)
        return RECOVERY_SECONDS

    async def _verdict(self, recoveries: dict[str, list[float]]) -> Verdict:
        oracle, faults = self.load.oracle, list(self.load.oracle.surprises)
        database = await asyncio.to_thread(Database, self.database)
        statement = select(
            workflow_executions.c.workflow, workflow_executions.c.execution_id, workflow_executions.c.trace_id,
            workflow_executions.c.inputs, workflow_executions.c.status, _BEGUN_STEPS.label("begun_steps"),
        )  # fmt: skip
        rows: list[Any] = []
        # What was spooled is delivered, and what a killed process left open is given up, within a lease.
        for _ in range(90):
            rows = list(await asyncio.to_thread(database.look, lambda c: c.execute(statement).all()))
            present = {row.execution_id for row in rows}
            is_open = any(row.status in ("pending", "running") for row in rows)
            if not is_open and oracle.scripts <= present:
                break
            await asyncio.sleep(1)
        probes = [(msgspec.json.decode(row.inputs)["n"], row) for row in rows if row.workflow == "probe" and row.inputs]
        inputs = Counter(n for n, _ in probes)
        ids = {row.execution_id for row in rows}
        traces = Counter(row.trace_id for row in rows if row.workflow == "spans")
        faults += [
            f"{n} was acknowledged and is there {inputs[n]} times" for n in oracle.acknowledged if inputs[n] != 1
        ]
        faults += [f"{n} was refused, and is there" for n in oracle.refused if inputs[n]]
        faults += [
            f"nobody knew whether {n} was accepted; it is {row.status}, and {row.begun_steps} of its steps began"
            for n, row in probes
            if n in oracle.unknown and (row.status not in ("cancelled", "lost") or row.begun_steps)
        ]
        faults += [
            f"trace {t} was acknowledged and is there {traces[t]} times" for t in oracle.traces if traces[t] != 1
        ]
        faults += [f"the run {i} of a script is lost" for i in oracle.scripts - ids]
        faults += [
            f"{r.execution_id} of {r.workflow} is {r.status}" for r in rows if r.status in ("pending", "running")
        ]
        for key in await asyncio.to_thread(database.look, rebuild.workflows_with_executions):
            wrong = await asyncio.to_thread(database.run, lambda c, k=key: rebuild.rebuild_one(c, k, write=False))
            wrong += await asyncio.to_thread(database.run, lambda c, k=key: recount_one(c, k, write=False))
            if wrong:
                faults.append(f"{wrong} rollups or series of {key[1]} are not what the executions add up to")
        faults += await self._unlike_metrics(rows)
        await asyncio.to_thread(database.close)
        counts = {"acknowledged": len(oracle.acknowledged), "refused": len(oracle.refused),
                  "unknown": len(oracle.unknown), "traces": len(oracle.traces),
                  "scripts": len(oracle.scripts), "starts": self.service.starts,
                  **{f"answered {status}": count for status, count in sorted(oracle.answers.items())}}  # fmt: skip
        return Verdict(recoveries, faults, counts)

    async def _unlike_metrics(self, rows: list[Any]) -> list[str]:
        expected = Counter((row.workflow, row.status) for row in rows)
        shown: dict[tuple[str, str], float] = {}
        async with aiohttp.ClientSession() as session:
            for _ in range(100):
                async with session.get(self.service.address + "/metrics") as response:
                    text = await response.text()
                shown = {
                    (sample.labels["workflow"], sample.labels["status"]): sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                    if sample.name == "workflow_execution_duration_seconds_count"
                }
                if all(shown.get(key, 0) >= count for key, count in expected.items()):
                    break
                await asyncio.sleep(0.2)
        # A run that was given up as lost and ended after all is shown as both.
        return [
            f"/metrics shows {shown.get(key, 0):g} of {key}, {count} are stored"
            for key, count in expected.items()
            if shown.get(key, 0) != count and key[1] != "lost"
        ]


def table(verdict: Verdict) -> str:
    """Fault, times, recovery."""
    lines = ["| fault | times | recovery, median | longest |", "|---|---|---|---|"]
    for name, seconds in sorted(verdict.recoveries.items()):
        middle, longest = statistics.median(seconds), max(seconds)
        lines.append(f"| {name.replace('_', ' ')} | {len(seconds)} | {middle:.1f} s | {longest:.1f} s |")
    return "\n".join(lines)
