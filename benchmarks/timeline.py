"""The timeline route over HTTP on SQLite, compared with a bare SQLAlchemy Core read plus msgspec encoding of the same
rows, and with a trivial JSON route of the same server.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, select
from summary import Line, against, scaled

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus, StepFinished, StepStatus
from tachograph.identity import StepRef, new_execution_ref, new_span_id, step_id, workflow_id
from tachograph_exporter.config import Config
from tachograph_exporter.service import Service
from tachograph_exporter.store.schema import workflow_executions, workflow_step_executions
from tachograph_exporter.store.writer import StoreWriter

SIZES = tuple(sorted({scaled(size, 10) for size in (100, 1_000, 10_000, 50_000)}))
ROUNDS = {size: scaled(max(6, min(60, 120_000 // size)), 2) for size in SIZES}


def build_events(count: int) -> list[Event]:
    """The events of a finished run in which every step depends on the two before it."""
    run = new_execution_ref(workspace="default", workflow="bench", workflow_id=workflow_id("default", "bench"))
    ids = [step_id(run.workflow_id, f"step-{i}") for i in range(count)]
    start = time.time_ns()
    events: list[Event] = [ExecutionStarted(execution=run, time_ns=start, step_count=count)]
    for i in range(count):
        step = StepRef(
            execution=run,
            step_id=ids[i],
            name=f"step-{i}",
            span_id=new_span_id(),
            parent_span_id=run.span_id,
            step_order=i + 1,
            depends_on=tuple(ids[max(0, i - 2) : i]),
        )
        started = start + i * 1_000_000
        events.append(
            StepFinished(
                step=step,
                time_ns=started + 900_000,
                status=StepStatus.COMPLETED,
                attempt=1,
                started_ns=started,
                attempt_started_ns=started,
                dependency_ns=i * 1_000_000,
                run_ns=900_000,
                inputs='{"part":1,"path":"/data/in"}',
                output='{"rows":1200}',
            )
        )
    end = start + count * 1_000_000
    events.append(
        ExecutionFinished(
            execution=run, time_ns=end, status=ExecutionStatus.COMPLETED, started_ns=start, step_count=count
        )
    )
    return events


def bare_read(connection: Connection, execution_id: str) -> bytes:
    """All columns of the run's rows, as JSON."""
    execution = connection.execute(
        select(workflow_executions).where(workflow_executions.c.execution_id == execution_id)
    ).all()
    steps = connection.execute(
        select(workflow_step_executions).where(workflow_step_executions.c.execution_id == execution_id)
    ).all()
    return msgspec.json.encode([[dict(row._mapping) for row in rows] for rows in (execution, steps)])


async def measure(console: Console) -> list[Line]:
    """Measure every size and print the table."""
    with tempfile.TemporaryDirectory() as directory:
        service = Service(Config(database=f"sqlite:///{directory}/x.db"))
        app = service.application()

        async def trivial(_request: web.Request) -> web.Response:
            return web.Response(body=msgspec.json.encode({"status": "ok"}), content_type="application/json")

        app.router.add_get("/trivial", trivial)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address = runner.addresses[0]
        writer = StoreWriter(service.database)
        lines: list[Line] = []
        table = Table("steps", "trivial route, ms", "bare read + encode, ms", "timeline route, ms", "ratio", "KiB")
        async with aiohttp.ClientSession(f"http://127.0.0.1:{address[1]}") as session:
            for size in SIZES:
                events = build_events(size)
                writer.apply(events)
                row, line = await measure_size(session, service, events[0].execution.execution_id, size)
                table.add_row(*row)
                lines.append(line)
        console.print(table)
        console.print("ratio: timeline route to bare read, paired median; the bare read includes no HTTP")
        await runner.cleanup()
    return lines


async def measure_size(
    session: aiohttp.ClientSession, service: Service, execution_id: str, size: int
) -> tuple[tuple[str, ...], Line]:
    """The tables' rows for a run of this many steps."""
    sides: dict[str, list[float]] = {"trivial": [], "bare": [], "timeline": []}
    length = 0
    path = f"/api/workflows/executions/{execution_id}/timeline"

    async def fetch(url: str) -> bytes:
        async with session.get(url) as response:
            return await response.read()

    def bare() -> Any:
        return service.database.look(lambda c: bare_read(c, execution_id))

    for number in range(ROUNDS[size] + 2):
        if number == 2:
            for values in sides.values():
                values.clear()
        gc.collect()
        start = time.perf_counter()
        await fetch("/trivial")
        sides["trivial"].append(time.perf_counter() - start)
        start = time.perf_counter()
        bare()
        sides["bare"].append(time.perf_counter() - start)
        start = time.perf_counter()
        length = len(await fetch(path))
        sides["timeline"].append(time.perf_counter() - start)
    ratio = statistics.median(t / b for t, b in zip(sides["timeline"], sides["bare"], strict=True))
    figures = [f"{statistics.median(values) * 1000:.2f}" for values in sides.values()]
    line = against(
        f"timeline of {size:,} steps over HTTP", statistics.median(sides["timeline"]) * 1e3, "ms",
        "the bare read of its rows, as JSON", statistics.median(sides["bare"]) * 1e3, ratio=ratio,
        goal=1.5 if size >= 10_000 else None,
    )  # fmt: skip
    return (f"{size:,}", *figures, f"{ratio:.2f}", f"{length / 1024:.0f}"), line


def main(console: Console) -> list[Line]:
    """Print the table."""
    return asyncio.run(measure(console))
