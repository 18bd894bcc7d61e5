"""Spans per second by OTLP/HTTP and OTLP/gRPC until they are durable, through the real service. Compared with the
database's own bulk insert of the same span rows, and with arize-phoenix receiving the same requests.

    python benchmarks/run.py ingest

Traces of ten spans, fifty per request, protobuf, from a few clients at once. Tachograph's spans are counted when the
request is answered: by then they are committed. Timelines, rollups and metrics follow when that many arrive at once;
the rate until they are there is the last column. Phoenix answers before it stores, so its spans are counted when its
database has all of them. Phoenix takes part if ``PHOENIX`` names a Python that has
arize-phoenix, or if an environment for it can be created (see benchmarks/peers/run.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import databases
import grpc
import ingest_lineage
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Executable, delete, insert, select
from summary import SCALE, Line, against, scaled

from tachograph_exporter.ingest.spans import SpanRecord, parse, records
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.schema import span_resources, spans, traces

SPANS = 10
TRACES = 50
REQUESTS = scaled(40, 4)
CLIENTS = 4
ROUNDS = scaled(5, 1)
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def build_request() -> bytes:
    """Fifty runs of a pipeline of nine steps."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    for key, value in (("service.name", "nightly"), ("host.name", "worker-1"), ("telemetry.sdk.language", "python")):
        group.resource.attributes.add(key=key).value.string_value = value
    scope = group.scope_spans.add()
    scope.scope.name = "bench"
    now = time.time_ns()
    for _ in range(TRACES):
        trace, root = secrets.token_bytes(16), secrets.token_bytes(8)
        at = now
        for number in range(SPANS):
            span = scope.spans.add(trace_id=trace, span_id=secrets.token_bytes(8) if number else root, kind=1)
            span.name = f"step {number}" if number else "nightly"
            span.parent_span_id = root if number else b""
            span.start_time_unix_nano = at
            at += 1_000_000 if number else 0
            span.end_time_unix_nano = at if number else at + SPANS * 1_000_000
            for key, value in (("code.function.name", "run"), ("db.system.name", "postgresql"), ("table", "orders")):
                span.attributes.add(key=key).value.string_value = value
            span.attributes.add(key="rows").value.int_value = number
    return request.SerializeToString()


def bulk(database: Database, bodies: list[bytes]) -> float:
    """Spans per second for the same rows into the same table, with one INSERT and one commit per request."""
    groups = [
        [record for record in records(parse(body).resource_spans) if isinstance(record, SpanRecord)] for body in bodies
    ]
    statement = str(insert(spans).compile(dialect=database.dialect))
    start = time.perf_counter()
    for group in groups:
        rows = [
            ("w", span.trace_id, span.span_id, span.parent_span_id, span.name, span.service, span.start_ns, span.end_ns,
             span.resource_id, span.payload, 1, span.kind, span.status_code)
            for span in group
        ]  # fmt: skip
        database.run(partial(insert_many, statement=statement, rows=rows))
    rate = sum(len(group) for group in groups) / (time.perf_counter() - start)
    for table in (spans, span_resources):
        database.run(partial(_execute, delete(table)))
    return rate


def _execute(statement: Executable, connection: Connection) -> None:
    connection.execute(statement)


async def _send(address: str, bodies: list[bytes]) -> None:
    waiting = list(bodies)
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            while waiting:
                body = waiting.pop()
                while True:
                    kind = {"Content-Type": "application/x-protobuf"}
                    async with session.post(f"{address}/v1/traces", data=body, headers=kind) as answer:
                        if answer.status == 200:
                            break
                        assert answer.status in (429, 503), (answer.status, await answer.text())
                    await asyncio.sleep(0.05)

        await asyncio.gather(*[client() for _ in range(CLIENTS)])


async def _send_by_grpc(address: str, bodies: list[bytes]) -> None:
    waiting = list(bodies)

    async def client() -> None:
        # Each with a connection of its own, as programs have.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            export: Any = channel.unary_unary(EXPORT)
            while waiting:
                body = waiting.pop()
                while True:
                    try:
                        await export(body)
                        break
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
                            raise
                    await asyncio.sleep(0.05)

    await asyncio.gather(*[client() for _ in range(CLIENTS)])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        assert process.poll() is None, f"the process behind {url} has stopped"
        time.sleep(0.1)
    raise TimeoutError(url)


@contextlib.contextmanager
def tachograph(url: str) -> Iterator[tuple[str, str]]:
    """A Tachograph service on the database; its addresses for HTTP and gRPC."""
    port, grpc_address = _free_port(), f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "tachograph_exporter", "serve", "--database", url,
               "--listen", f"127.0.0.1:{port}", "--otlp-grpc", grpc_address]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/-/ready", process)
        yield f"http://127.0.0.1:{port}", grpc_address
    finally:
        process.terminate()
        process.wait(30)


def ours(sending: Coroutine[Any, Any, None], bodies: list[bytes], database: Database) -> tuple[float, float]:
    """Spans per second, counted when the requests are answered, and when their executions are there."""
    start = time.perf_counter()
    asyncio.run(sending)
    answered = time.perf_counter()
    wait_until_assembled(database)
    count = len(bodies) * TRACES * SPANS
    return count / (answered - start), count / (time.perf_counter() - start)


def wait_until_assembled(database: Database) -> None:
    """Wait until every span that was acknowledged is in its execution."""
    query = select(traces.c.trace_id).where(traces.c.due_ns.is_not(None), traces.c.untold.is_not(None)).limit(1)
    deadline = time.monotonic() + 300
    while database.look(lambda c: c.execute(query).first()) is not None:
        assert time.monotonic() < deadline, "the executions have not been assembled"
        time.sleep(0.02)


def phoenix_python() -> Path | None:
    """A Python that has arize-phoenix, or None if it cannot be installed."""
    if "PHOENIX" in os.environ:
        return Path(os.environ["PHOENIX"])
    path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tachograph-peers" / "phoenix"
    python = path / "bin" / "python"
    if not (path / "installed").exists():
        venv.create(path, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "arize-phoenix"]
        if subprocess.run([*map(str, command)], check=False).returncode != 0:
            return None
        (path / "installed").touch()
    return python


@contextlib.contextmanager
def phoenix(python: Path) -> Iterator[tuple[str, Path]]:
    """A Phoenix; its address and its SQLite database (the default)."""
    with tempfile.TemporaryDirectory() as directory:
        port = _free_port()
        environment = {
            **os.environ,
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(_free_port()),
            "PHOENIX_WORKING_DIR": directory,
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        command = [str(python.parent / "phoenix"), "serve"]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=directory
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/healthz", process)
            yield f"http://127.0.0.1:{port}", Path(directory) / "phoenix.db"
        finally:
            process.terminate()
            process.wait(60)


def theirs(address: str, database: Path, bodies: list[bytes]) -> float:
    """Spans per second, counted when they are in Phoenix's database."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:

        def count() -> int:
            return int(connection.execute("SELECT count(*) FROM spans").fetchone()[0])

        before = count()
        start = time.perf_counter()
        asyncio.run(_send(address, bodies))
        expected = before + len(bodies) * TRACES * SPANS
        while count() < expected:
            time.sleep(0.05)
            assert time.perf_counter() - start < 600, "Phoenix has not stored all spans"
        return (expected - before) / (time.perf_counter() - start)


def main(console: Console) -> list[Line]:
    """Print the table."""
    rates: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    assembled: dict[str, list[float]] = {}
    # Only to see whether it works, no peer is installed.
    peer = phoenix_python() if SCALE >= 1 else None
    with contextlib.ExitStack() as stack:
        peer_service = stack.enter_context(phoenix(peer)) if peer is not None else None
        sides: dict[str, tuple[Database, tuple[str, str]]] = {}
        databases_of: dict[str, Database] = {}
        for name, open_database in databases.ALL.items():
            url, plain = stack.enter_context(open_database()), stack.enter_context(open_database())
            if url is not None and plain is not None:
                sides[name] = (Database(plain), stack.enter_context(tachograph(url)))
                databases_of[name] = Database(url)
        for number in range(ROUNDS + 1):
            for name, (plain_database, (address, grpc_address)) in sides.items():
                bodies = [build_request() for _ in range(REQUESTS)]
                inserted = bulk(plain_database, bodies)
                rates.setdefault(f"{name}, bulk insert", []).append(inserted)
                for protocol, send, target in (("HTTP", _send, address), ("gRPC", _send_by_grpc, grpc_address)):
                    bodies = [build_request() for _ in range(REQUESTS)]
                    taken, with_executions = ours(send(target, bodies), bodies, databases_of[name])
                    side = f"Tachograph on {name}, {protocol}"
                    rates.setdefault(side, []).append(taken)
                    ratios.setdefault(side, []).append(taken / inserted)
                    assembled.setdefault(side, []).append(with_executions)
                batches = [ingest_lineage.build_batch() for _ in range(REQUESTS // 4)]
                inserted = ingest_lineage.bulk(plain_database, batches)
                taken = ingest_lineage.ours(address, batches, CLIENTS)
                ingest_lineage.wait_until_assembled(databases_of[name])
                rates.setdefault(f"{name}, bulk insert (OpenLineage)", []).append(inserted)
                rates.setdefault(f"OpenLineage on {name}", []).append(taken)
                ratios.setdefault(f"OpenLineage on {name}", []).append(taken / inserted)
            if peer_service is not None:
                # Fewer requests: it is much slower.
                rates.setdefault("Phoenix on SQLite", []).append(
                    theirs(*peer_service, [build_request() for _ in range(4)])
                )
            if number == 0:
                rates, ratios, assembled = {}, {}, {}
        for database in (*[plain_database for plain_database, _ in sides.values()], *databases_of.values()):
            database.close()
    table = Table("", "spans or events/s, durable", "/ bulk insert (paired median)", "/ Phoenix", "with executions")
    phoenix_rate = statistics.median(rates["Phoenix on SQLite"]) if "Phoenix on SQLite" in rates else None
    for name, rates_of_side in rates.items():
        rate = statistics.median(rates_of_side)
        ratio = f"{statistics.median(ratios[name]):.2f}" if name in ratios else ""
        beside = f"{rate / phoenix_rate:.1f}" if phoenix_rate and name in ratios else ""
        whole = f"{statistics.median(assembled[name]):,.0f}" if name in assembled else ""
        table.add_row(name, f"{rate:,.0f}", ratio, beside, whole)
    console.print(table)
    lines: list[Line] = []
    for side, of_side in ratios.items():
        kind = " (OpenLineage)" if side.startswith("OpenLineage") else ""
        database_name = next(name for name in databases.ALL if name in side)
        rate, bulk_rate = (
            statistics.median(rates[side]),
            statistics.median(rates[f"{database_name}, bulk insert{kind}"]),
        )
        what = "events acknowledged" if kind else "spans acknowledged"
        subject = f"{what}: {side.removeprefix('Tachograph on ')}"
        lines.append(
            against(subject, rate, "/s", "the database's bulk insert of the rows", bulk_rate,
                    ratio=statistics.median(of_side), goal=None if kind else 0.3, is_rate=True)
        )  # fmt: skip
        if phoenix_rate and not kind:
            lines.append(against(subject, rate, "/s", "Phoenix", phoenix_rate, is_rate=True))
    return lines
