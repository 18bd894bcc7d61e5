"""How fast ``/-/healthy`` and ``/metrics`` respond while somebody tries to stop the service, on both databases.

    python benchmarks/run.py attacks

Each attack is repeated by several clients for `SECONDS`; another process measures. The goals: 100 ms for
``/-/healthy``, 1 s for ``/metrics``, 300 MB of memory. Where there are few cores, the attackers, the database and the
measuring take them from the service, and latencies show that, too. So the service also measures itself: how late its
event loop was, and the most processor time that the loop took at a stretch, which nobody else has a part in.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import multiprocessing
import os
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import aiohttp
import databases
import grpc_attacks
import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.local_service import TACHOGRAPH, LocalService, eventually, free_port

from tachograph_exporter.ingest import rests
from tachograph_exporter.ingest.envelope import field

SECONDS = 6.0
CLIENTS = 6
PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
LONG_TRACE = b"long trace......"
MAX_MEMORY_MIB = 300
GOALS_MS = {"/-/healthy": 100.0, "/metrics": 1000.0}

Attack = Callable[[aiohttp.ClientSession, str], Awaitable[None]]


async def _get(session: aiohttp.ClientSession, url: str) -> None:
    async with session.get(url) as response:
        async for _ in response.content.iter_chunked(1 << 16):
            pass


async def _post(session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str]) -> None:
    with contextlib.suppress(aiohttp.ClientError, ConnectionError):
        async with session.post(url, data=_stream(body), headers=headers) as response:
            await response.read()


async def _stream(body: bytes) -> Any:
    for at in range(0, len(body), 1 << 16):
        yield body[at : at + (1 << 16)]


def _search(query: str) -> Attack:
    async def attack(session: aiohttp.ClientSession, address: str) -> None:
        async with session.get(f"{address}/tempo/api/search", params={"q": query, "limit": "500"}) as response:
            await response.read()

    return attack


def _document(document: dict[str, Any]) -> Attack:
    return _json(msgspec.json.encode(document))


def _json(body: bytes) -> Attack:
    async def attack(session: aiohttp.ClientSession, address: str) -> None:
        await _post(session, f"{address}/api/workflows/validate", body, JSON)

    return attack


def _unknown_names(count: int) -> dict[str, Any]:
    steps = [
        {"name": f"step number {i}", "depends_on_steps": [f"stepp nummer {i}"], "config": {"handler": f"nooop{i}"}}
        for i in range(count)
    ]
    return {"name": "w", "steps": steps}


def _long_conditions(count: int) -> dict[str, Any]:
    steps = [{"name": f"s{i}", "condition_expression": f"variable_{i} < " * 200 + "1"} for i in range(count)]
    return {"name": "w", "steps": steps}


def _condition(expression: str) -> Attack:
    document = {"name": f"evil {abs(hash(expression))}", "variables": [{"name": "xs", "data_type": "json"}],
                "steps": [{"name": "s", "condition_expression": expression}]}  # fmt: skip

    async def attack(session: aiohttp.ClientSession, address: str) -> None:
        await _post(session, f"{address}/api/workflows", msgspec.json.encode(document), JSON)
        inputs = msgspec.json.encode({"input_variables": {"xs": list(range(300))}})
        await _post(session, f"{address}/api/workflows/{document['name']}/execute", inputs, JSON)

    return attack


def _body(body: bytes, kind: dict[str, str] = PROTOBUF) -> Attack:
    compressed = gzip.compress(body)

    async def attack(session: aiohttp.ClientSession, address: str) -> None:
        await _post(session, f"{address}/v1/traces", compressed, {**kind, "Content-Encoding": "gzip"})

    return attack


async def _idle(_session: aiohttp.ClientSession, address: str) -> None:
    """Fifty posts that announce 10 MB, and fifty unfinished heads, by each client."""
    host, _, port = address.partition("//")[2].partition(":")
    writers = []
    for i in range(100):
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST /v1/traces HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-protobuf\r\n"
            writer.write(head.encode() + (b"Content-Length: 10000000\r\n\r\nx" if i % 2 else b""))
            writers.append(writer)
    await asyncio.sleep(2)
    for writer in writers:
        writer.close()


async def _new_trace(session: aiohttp.ClientSession, address: str) -> None:
    await _post(session, f"{address}/v1/traces", _spans([os.urandom(16)], 5_000), PROTOBUF)


async def _long_trace(session: aiohttp.ClientSession, address: str) -> None:
    await _get(session, f"{address}/jaeger/api/traces/{LONG_TRACE.hex()}")


async def _nonsense(session: aiohttp.ClientSession, address: str) -> None:
    for path in (
        "/api/workflows/executions?to=9999-12-31T23:59:59Z",
        "/api/workflows/%00",
        "/tempo/api/search?q={" + "!" * 1036 + "true}",
        "/api/workflows/executions?skip=" + "9" * 5000,
    ):
        await _get(session, address + path)  # fmt: skip


_SPAN_OF_MANY = field(1, field(2, field(2, b"\x4a\x00" * 4_900_000)))
_EMPTY_PARTS = gzip.compress(b"") * 400_000


async def _parts(session: aiohttp.ClientSession, address: str) -> None:
    await _post(session, f"{address}/v1/traces", _EMPTY_PARTS, {**PROTOBUF, "Content-Encoding": "gzip"})


ATTACKS: dict[str, Attack] = {
    "nothing": lambda _session, _address: asyncio.sleep(0.1),
    "TraceQL: wildcards": _search('{name=~"' + "|||.*.*.*.*.*.*.*.*.*" * 20 + '!"}'),
    "slow searches of all spans": _search("{ span.text =~ `.*a.*b.*c.*` }"),
    "a trace of 50,000 spans": _long_trace,
    "new traces of 5,000 spans": _new_trace,
    "a document with 2,000 unknown names": _document(_unknown_names(2000)),
    "a document with long conditions": _document(_long_conditions(500)),
    "gzip: a million tiny spans": _body(b"\x0a\x82\x89\x7a" + b"\x12\x00" * 1_000_001),
    "gzip: 300 MB of zeros": _body(b"\0" * 300_000_000),
    "gzip: 400,000 empty parts": _parts,
    "a span of 4,900,000 attributes": _body(_SPAN_OF_MANY),
    "OTLP in JSON: 249,000 objects": _body(b'{"resourceSpans":[' + b",".join([b'{"a":1}'] * 249_000) + b"]}", JSON),
    "a document with 90,000 faulty steps": _json(
        b'{"name":"w","steps":[' + b",".join([b'{"x":"a","depends_on_steps":["q"]}'] * 90_000) + b"]}"
    ),
    "idle posts and unfinished heads": _idle,
    "gRPC: messages of 20 MiB that stop before their end": grpc_attacks.half_messages,
    "gRPC: 200 MiB in 200 kB": grpc_attacks.bombs,
    "times, texts and numbers without end": _nonsense,
    # Last: what they started waits for its turn long after.
    "a condition: three nested loops": _condition("xs.all(a, xs.all(b, xs.all(c, a + b + c >= 0)))"),
    "a condition: doubled lists": _condition("size([[1]]" + ".map(x, x + x)" * 22 + ") > 0"),
}


def _spans(trace_ids: list[bytes], each: int) -> bytes:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = "shop"
    spans = group.scope_spans.add().spans
    now = time.time_ns()
    for trace_id in trace_ids:
        for i in range(1, each + 1):
            span = spans.add(trace_id=trace_id, span_id=struct.pack(">Q", i), name=f"op {i % 50}",
                             start_time_unix_nano=now + i, end_time_unix_nano=now + i + 1000)  # fmt: skip
            span.attributes.add(key="text").value.string_value = f"aaa value {i} " + "ab" * 20
    return request.SerializeToString()


async def _fill(address: str) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900)) as session:
        for i in range(20):
            trace_ids = [struct.pack(">QQ", 1, 1 + i * 100 + j) for j in range(100)]
            await _post(session, f"{address}/v1/traces", _spans(trace_ids, 20), PROTOBUF)
        for _ in range(2):
            await _post(session, f"{address}/v1/traces", _spans([LONG_TRACE], 50_000), PROTOBUF)


class AttackedService(LocalService):
    """A service that measures its own event loop."""

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory, *options)
        self._lag = directory / "lag"
        program = str(Path(__file__).parent / "attacked_service.py")
        self._command = [sys.executable, program, str(self._lag), *self._command[len(TACHOGRAPH) :]]

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    def lag_ms(self) -> tuple[float, float]:
        """How late the loop was at most, and the most processor time it took at a stretch, since `reset`."""
        late, most = struct.unpack("dd", self._lag.read_bytes())
        return 1000 * late, 1000 * most

    def memory_mib(self) -> float:
        """The most memory it had since `reset`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    def reset(self) -> None:
        """Measure from here on."""
        with self._lag.open("r+b") as file:
            file.write(bytes(16))
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _is_settled(service: AttackedService) -> bool:
    """Whether the service does nothing: the spans have become executions."""
    before = service.cpu_seconds()
    time.sleep(2)
    return service.cpu_seconds() - before < 0.1


async def _attack(address: str, attack: Attack) -> int:
    """Attack for `SECONDS`; how often."""
    end = time.monotonic() + SECONDS
    count = 0

    async def client() -> None:
        nonlocal count
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while time.monotonic() < end:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    await attack(session, address)
                count += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return count


def measure(address: str, started: Event, stop: Event, results: Any) -> None:
    """The process that measures: sends the longest and the median latency of each path, in milliseconds."""

    async def work() -> dict[str, list[float]]:
        taken: dict[str, list[float]] = {path: [] for path in GOALS_MS}
        async with aiohttp.ClientSession() as session:
            while not stop.is_set():
                for path, latencies in taken.items():
                    began = time.monotonic()
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get(address + path) as response:
                            await response.read()
                            if response.status != 200:
                                latencies.append(float("inf"))
                    latencies.append(1000 * (time.monotonic() - began))
                started.set()
                await asyncio.sleep(0.02)
        return taken

    results.put(asyncio.run(work()))


def _row(service: AttackedService, name: str, attack: Attack) -> list[str]:
    context = multiprocessing.get_context("spawn")
    started, stop, results = context.Event(), context.Event(), context.Queue()
    process = context.Process(target=measure, args=(service.address, started, stop, results))
    process.start()
    started.wait(60)
    service.reset()
    count = asyncio.run(_attack(service.address, attack))
    late, most = service.lag_ms()
    stop.set()
    taken = results.get(timeout=60)
    process.join()
    cells = [name, str(count)]
    for path, goal in GOALS_MS.items():
        latencies = sorted(taken[path])
        share = sum(latency <= goal for latency in latencies) / len(latencies)
        cells.append(f"{latencies[len(latencies) // 2]:.0f} / {latencies[-1]:.0f}, {100 * share:.1f} %")
    memory = service.memory_mib()
    return [*cells, f"{late:.0f} / {most:.0f}", f"{memory:.0f}{'!' if memory > MAX_MEMORY_MIB else ''}"]


def main(console: Console) -> None:
    """Print a table for each database."""
    for database, url in databases.installed(console):
        grpc_attacks.address = f"127.0.0.1:{free_port()}"
        with (
            tempfile.TemporaryDirectory() as directory,
            AttackedService(Path(directory), "--database", url, "--otlp-grpc", grpc_attacks.address) as service,
        ):
            asyncio.run(_fill(service.address))
            eventually(functools.partial(_is_settled, service), 600)
            # The long trace rests, and is assembled once more.
            time.sleep(rests.MAX_SECONDS)
            eventually(functools.partial(_is_settled, service), 600)
            goals = [f"{path}: median / longest ms, within {goal:g}" for path, goal in GOALS_MS.items()]
            loop = "loop: late / busy, longest ms"
            table = Table(f"{database}: attack", "times", *goals, loop, "memory MiB")
            for name, attack in ATTACKS.items():
                table.add_row(*_row(service, name, attack))
            console.print(table)
