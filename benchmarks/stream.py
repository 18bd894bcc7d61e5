"""1,000 WebSocket clients on 100 running executions, 20 on the whole stream; 500 events per second; 50 stalled clients.

    python benchmarks/run.py stream

Latency: from the timestamp of an event until a healthy client has read it, the commit included. The same workflows run
without and with clients in turn, to see how much longer they take. The clients run in another process.
"""

from __future__ import annotations

import asyncio
import base64
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
from summary import Line, against, scaled

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.local_service import LocalService, eventually

EXECUTIONS = scaled(100, 8)
CLIENTS_PER_EXECUTION = 10
WHOLE_STREAM_CLIENTS = 20
STALLED_CLIENTS = scaled(50, 10)
STEPS = scaled(30, 5)
STEP_SECONDS = 0.4
ROUNDS = scaled(3, 1)


class Client:
    """A WebSocket client that reads frames and notes the latency of each event, in seconds."""

    def __init__(self, path: str, *, is_stalled: bool = False) -> None:
        self.path = path
        self.is_stalled = is_stalled
        self.latencies: list[float] = []

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
            # A stalled client never reads again.
            await asyncio.sleep(3600)
        buffer = b""
        while chunk := await reader.read(1 << 16):
            now = time.time()
            buffer += chunk
            at = 0
            while len(buffer) - at >= 2:
                length, head = buffer[at + 1], 2
                if length == 126:
                    length, head = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
                elif length == 127:
                    length, head = int.from_bytes(buffer[at + 2 : at + 10], "big"), 10
                if len(buffer) < at + head + length:
                    break
                kind, payload = buffer[at] & 0x0F, buffer[at + head : at + head + length]
                at += head + length
                if kind == 9:
                    writer.write(b"\x8a\x80\0\0\0\0")
                elif kind == 1 and b'"workflow_execution_id":null' not in payload[:400]:
                    start = payload.index(b'"timestamp":"') + 13
                    self.latencies.append(now - unix_seconds(payload[start : payload.index(b'"', start)].decode()))
            buffer = buffer[at:]


def unix_seconds(text: str) -> float:
    """Unix seconds of an RFC 3339 time of today: only the time of day is parsed."""
    clock = text[11:-1]
    return _midnight() + int(clock[:2]) * 3600 + int(clock[3:5]) * 60 + float(clock[6:])


def _midnight() -> float:
    now = time.time()
    return now - now % 86_400


def run_clients(port: int, executions: list[str], pipe: Connection) -> None:
    """The process of the clients."""

    async def work() -> None:
        paths = [
            f"/ws/workflows/executions/{execution}" for execution in executions for _ in range(CLIENTS_PER_EXECUTION)
        ]
        clients = [
            Client(path, is_stalled=i % (len(paths) // (STALLED_CLIENTS - 5)) == 0) for i, path in enumerate(paths)
        ]
        clients += [Client("/ws/workflows/stream", is_stalled=i < 5) for i in range(WHOLE_STREAM_CLIENTS)]
        tasks = []
        for client in clients:
            tasks.append(asyncio.create_task(client.run(port)))
            if len(tasks) % 50 == 0:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        pipe.send("connected")
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await asyncio.sleep(0.5)
        broken = [task.exception() for task in tasks if task.done()]
        healthy = [client for client in clients if not client.is_stalled]
        latencies = sorted(value for client in healthy for value in client.latencies)
        counts = [len(client.latencies) for client in healthy]
        pipe.send((latencies, min(counts), sum(counts), sum(error is not None for error in broken)))

    asyncio.run(work())


def start_executions(service: LocalService) -> list[str]:
    """Start all executions; their ids."""
    return [service.post("/api/workflows/chain/execute")["execution_id"] for _ in range(EXECUTIONS)]


def durations(service: LocalService, executions: list[str]) -> list[float]:
    """Wait until all executions have ended; their durations in seconds."""

    def ended() -> list[float] | None:
        page = service.get("/api/workflows/executions?limit=200&status=completed")
        seconds = {item["execution_id"]: item["duration_seconds"] for item in page["items"]}
        return [seconds[execution] for execution in executions] if seconds.keys() >= set(executions) else None

    result: list[float] = eventually(ended, 120)
    return result


def memory(service: LocalService) -> float:
    """Resident MiB of the service."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def metric(service: LocalService, name: str) -> float:
    """The sum of a metric's series."""
    with urlopen(Request(f"{service.address}/metrics")) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def main(console: Console) -> list[Line]:
    """Print the table."""
    steps: list[dict[str, Any]] = [
        {"name": f"s{i:02}", "depends_on_steps": [f"s{i - 1:02}"] if i else [],
         "config": {"handler": "sleep", "seconds": STEP_SECONDS}}
        for i in range(STEPS)
    ]  # fmt: skip
    alone: list[float] = []
    followed: list[float] = []
    latencies: list[float] = []
    fewest, total, broken = 10**9, 0, 0
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalService(Path(directory), "--max-executions", "200") as service,
    ):
        service.post("/api/workflows", {"name": "chain", "steps": steps})
        before = memory(service)
        peak = before
        for number in range(ROUNDS + 1):
            plain = durations(service, start_executions(service))
            executions = start_executions(service)
            pipe, child_pipe = multiprocessing.Pipe()
            process = multiprocessing.Process(target=run_clients, args=(service.port, executions, child_pipe))
            process.start()
            pipe.recv()
            taken = durations(service, executions)
            peak = max(peak, memory(service))
            pipe.send("done")
            values, smallest, count, failures = pipe.recv()
            process.join()
            if number:
                alone.append(statistics.median(plain))
                followed.append(statistics.median(taken))
                latencies += values
                fewest, total, broken = min(fewest, smallest), total + count, broken + failures
        dropped = metric(service, "tachograph_events_dropped_total")
        refused = metric(service, "tachograph_stream_clients_refused_total")
    latencies.sort()
    rate = EXECUTIONS * STEPS * 2 / statistics.median(followed)
    table = Table("1,020 clients, 50 of them stalled", "")
    table.add_row("events per second", f"{rate:,.0f}")
    table.add_row("messages delivered to healthy clients", f"{total:,} (fewest to a client: {fewest})")
    for part, name in ((0.5, "median"), (0.99, "99th percentile"), (1.0, "longest")):
        table.add_row(
            f"latency, commit included: {name}",
            f"{1000 * latencies[min(len(latencies) - 1, int(part * len(latencies)))]:.0f} ms",
        )
    ratios = [b / a for a, b in zip(alone, followed, strict=True)]
    table.add_row("run time of a workflow, without clients", f"{statistics.median(alone):.3f} s")
    table.add_row("… with them", f"{statistics.median(followed):.3f} s ({statistics.median(ratios):.3f} times)")
    table.add_row("memory of the service, before and peak", f"{before:.0f} and {peak:.0f} MiB")
    table.add_row("events lost; clients refused; connections broken", f"{dropped:.0f}; {refused:.0f}; {broken}")
    console.print(table)
    clients = f"{EXECUTIONS * CLIENTS_PER_EXECUTION + WHOLE_STREAM_CLIENTS:,} clients follow, {STALLED_CLIENTS} stalled"
    return [
        against(
            f"a run while {clients}", statistics.median(followed), "s", "the same without clients",
            statistics.median(alone), ratio=statistics.median(ratios),
        ),
        against(f"memory while {clients}", peak, "MiB", "before", before),
    ]  # fmt: skip


if __name__ == "__main__":
    main(Console())
