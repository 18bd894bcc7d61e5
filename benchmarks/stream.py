"""1,000 WebSocket clients on 100 running executions, 20 on the whole stream, 500 events a second, 50 clients stalled.

    python benchmarks/run.py stream

Latency: from the time an event says it happened to the time a healthy client has read it, so the commit is in it. The
same workflows are run without clients and with them in turn: how much longer do they take? Clients are another process.
"""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.e2e.conftest import Server, eventually

EXECUTIONS = 100
EACH = 10
WHOLE = 20
STALLED = 50
STEPS = 30
SECONDS = 0.4
ROUNDS = 3


class Client:
    """A WebSocket client that reads frames and notes how late each event is."""

    def __init__(self, path: str, *, is_stalled: bool = False) -> None:
        self.path = path
        self.is_stalled = is_stalled
        self.late: list[float] = []

    async def run(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            (
                f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        status = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in status, status
        if self.is_stalled:
            # It never reads again.
            await asyncio.sleep(3600)
        waiting = b""
        while part := await reader.read(1 << 16):
            now = time.time()
            waiting += part
            at = 0
            while len(waiting) - at >= 2:
                length, head = waiting[at + 1], 2
                if length == 126:
                    length, head = int.from_bytes(waiting[at + 2 : at + 4], "big"), 4
                elif length == 127:
                    length, head = int.from_bytes(waiting[at + 2 : at + 10], "big"), 10
                if len(waiting) < at + head + length:
                    break
                kind, payload = waiting[at] & 0x0F, waiting[at + head : at + head + length]
                at += head + length
                if kind == 9:
                    writer.write(b"\x8a\x80\0\0\0\0")
                elif kind == 1 and b'"workflow_execution_id":null' not in payload[:400]:
                    begun = payload.index(b'"timestamp":"') + 13
                    self.late.append(now - moment(payload[begun : payload.index(b'"', begun)].decode()))
            waiting = waiting[at:]


def moment(text: str) -> float:
    """Unix seconds of RFC 3339; of one day only the time of day is read."""
    clock = text[11:-1]
    return _day() + int(clock[:2]) * 3600 + int(clock[3:5]) * 60 + float(clock[6:])


def _day() -> float:
    now = time.time()
    return now - now % 86_400


def clients(port: int, executions: list[str], pipe: Connection) -> None:
    """The clients' process."""

    async def work() -> None:
        paths = [f"/ws/workflows/executions/{execution}" for execution in executions for _ in range(EACH)]
        every = [Client(path, is_stalled=i % (len(paths) // (STALLED - 5)) == 0) for i, path in enumerate(paths)]
        every += [Client("/ws/workflows/stream", is_stalled=i < 5) for i in range(WHOLE)]
        tasks = []
        for client in every:
            tasks.append(asyncio.create_task(client.run(port)))
            if len(tasks) % 50 == 0:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        pipe.send("connected")
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await asyncio.sleep(0.5)
        broken = [task.exception() for task in tasks if task.done()]
        healthy = [client for client in every if not client.is_stalled]
        late = sorted(value for client in healthy for value in client.late)
        counts = [len(client.late) for client in healthy]
        pipe.send((late, min(counts), sum(counts), len([one for one in broken if one is not None])))

    asyncio.run(work())


def execute(service: Server) -> list[str]:
    """Start all executions; their ids."""
    return [service.post("/api/workflows/chain/execute")["execution_id"] for _ in range(EXECUTIONS)]


def lengths(service: Server, executions: list[str]) -> list[float]:
    """How long each took, once all have ended."""

    def ended() -> list[float] | None:
        page = service.get("/api/workflows/executions?limit=200&status=completed")
        known = {item["execution_id"]: item["duration_seconds"] for item in page["items"]}
        return [known[one] for one in executions] if known.keys() >= set(executions) else None

    found: list[float] = eventually(ended, 120)
    return found


def memory(service: Server) -> float:
    """Resident MiB of the service."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def metric(service: Server, name: str) -> float:
    """The sum of a metric's series."""
    with urlopen(Request(f"{service.address}/metrics")) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def main(console: Console) -> None:
    """Print the table."""
    steps: list[dict[str, Any]] = [
        {"name": f"s{i:02}", "depends_on_steps": [f"s{i - 1:02}"] if i else [],
         "config": {"handler": "sleep", "seconds": SECONDS}}
        for i in range(STEPS)
    ]  # fmt: skip
    alone: list[float] = []
    followed: list[float] = []
    late: list[float] = []
    least, total, broken = 10**9, 0, 0
    with tempfile.TemporaryDirectory() as directory:
        service = Server(Path(directory), "--database", f"sqlite:///{directory}/x.db", "--max-executions", "200")
        service.start()
        try:
            service.post("/api/workflows", json.loads(json.dumps({"name": "chain", "steps": steps})))
            before = memory(service)
            most = before
            for number in range(ROUNDS + 1):
                plain = lengths(service, execute(service))
                executions = execute(service)
                here, there = multiprocessing.Pipe()
                process = multiprocessing.Process(target=clients, args=(service.port, executions, there))
                process.start()
                here.recv()
                taken = lengths(service, executions)
                most = max(most, memory(service))
                here.send("done")
                values, fewest, count, failures = here.recv()
                process.join()
                if number:
                    alone.append(statistics.median(plain))
                    followed.append(statistics.median(taken))
                    late += values
                    least, total, broken = min(least, fewest), total + count, broken + failures
            dropped = metric(service, "tachograph_events_dropped_total")
            refused = metric(service, "tachograph_stream_clients_refused_total")
        finally:
            service.stop()
    late.sort()
    rate = EXECUTIONS * STEPS * 2 / statistics.median(followed)
    table = Table("1,020 clients, 50 of them stalled", "")
    table.add_row("events a second", f"{rate:,.0f}")
    table.add_row("messages delivered to healthy clients", f"{total:,} (fewest to one: {least})")
    for part, name in ((0.5, "median"), (0.99, "99th percentile"), (1.0, "longest")):
        table.add_row(
            f"latency, commit included: {name}", f"{1000 * late[min(len(late) - 1, int(part * len(late)))]:.0f} ms"
        )
    ratios = [b / a for a, b in zip(alone, followed, strict=True)]
    table.add_row("run time of a workflow, without clients", f"{statistics.median(alone):.3f} s")
    table.add_row("… with them", f"{statistics.median(followed):.3f} s ({statistics.median(ratios):.3f} times)")
    table.add_row("memory of the service, before and most", f"{before:.0f} and {most:.0f} MiB")
    table.add_row("events lost; clients let go; connections broken", f"{dropped:.0f}; {refused:.0f}; {broken}")
    console.print(table)


if __name__ == "__main__":
    main(Console())
