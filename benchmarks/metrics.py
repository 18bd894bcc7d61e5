"""A workflow's metrics over HTTP for 1,000, 100,000 and 1,000,000 executions spread over a year, compared with one
plain aggregate query over the same rows of the same database; and the error of the percentiles.

The aggregate query returns count, sum, minimum and maximum by status. The route returns those, percentiles, waits and
cost, and the same for every step. Set ``SIZES=1000,100000`` in the environment to measure less.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import databases
from aiohttp import web
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, insert, text
from summary import Line, against, scaled

from tachograph.clock import NS
from tachograph.errors import StoreUnavailable
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    PathStep,
    StepFinished,
    StepStatus,
)
from tachograph.identity import StepRef, new_execution_ref, new_span_id, step_id, workflow_id, workspace_id
from tachograph_exporter.config import Config
from tachograph_exporter.service import Service
from tachograph_exporter.store import partitions
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.merging import execution_rank, step_rank
from tachograph_exporter.store.rollups import rebuild as rollup_rebuild
from tachograph_exporter.store.schema import workflow_definitions, workflow_executions, workflow_step_executions
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.store.writer import StoreWriter

SIZES = [scaled(int(size), 100) for size in os.environ.get("SIZES", "1000,100000,1000000").split(",")]
STEPS = ("extract", "transform", "load")
YEAR = 365 * 86_400
ROUNDS = 25
WORKSPACE, WORKFLOW = workspace_id("default"), workflow_id("default", "bench")


def executions(count: int, now_s: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Rows of executions that ended during the last year, in order of time, each with the rows of its steps."""
    rng = random.Random(count)
    for i in range(count):
        end = round((now_s - YEAR + YEAR * (i + 1) / count) * NS) - rng.randrange(NS)
        parts = [round(rng.lognormvariate(mu, 0.6) * NS) for mu in (0.0, 1.0, 0.5)]
        failed = rng.random() < 0.04
        status = ExecutionStatus.FAILED if failed else ExecutionStatus.COMPLETED
        # The id encodes the start, as the id of a real execution does.
        start = end - sum(parts)
        millis = f"{start // 1_000_000:012x}"
        identifier = f"{millis[:8]}-{millis[8:]}-7{rng.getrandbits(12):03x}-8{rng.getrandbits(12):03x}-{i:012x}"
        steps, at = [], start
        for order, (name, length) in enumerate(zip(STEPS, parts, strict=True)):
            ended = StepStatus.FAILED if failed and order == 2 else StepStatus.COMPLETED
            steps.append(
                {
                    "execution_id": identifier, "step_id": _STEP_IDS[order], "name": name, "step_type": "task",
                    "step_order": order, "repetition": 0, "span_id": "0" * 16, "parent_span_id": "0" * 16,
                    "depends_on": "[]", "rank": step_rank(ended, 1), "status": ended.value, "attempt": 1,
                    "started_ns": at, "attempt_started_ns": at, "finished_ns": at + length,
                    "dependency_ns": at - start, "queue_ns": 0, "backoff_ns": 0, "run_ns": length,
                }
            )  # fmt: skip
            at += length
        yield (
            {
                "execution_id": identifier, "workspace_id": WORKSPACE, "project": "default", "workflow_id": WORKFLOW,
                "workflow": "bench", "version": "1", "trace_id": "0" * 32, "span_id": "0" * 16, "created_ns": start,
                "rank": execution_rank(status), "status": status.value, "started_ns": start, "finished_ns": end,
                "last_seen_ns": end, "step_count": 3, "completed_step_count": 3, "failed_step_count": 0,
                "skipped_step_count": 0, "work_ns": end - start, "critical_path_ns": end - start,
                "critical_path": _PATH,
            },
            steps,
        )  # fmt: skip


_STEP_IDS = [step_id(WORKFLOW, name) for name in STEPS]
_PATH = "[" + ",".join(f'"{identifier}"' for identifier in _STEP_IDS) + "]"


def ended_run() -> list[Event]:
    """The events of a run that has just ended."""
    run = new_execution_ref(workspace="default", workflow="bench", workflow_id=WORKFLOW)
    start = time.time_ns()
    events: list[Event] = [ExecutionStarted(execution=run, time_ns=start, step_count=3)]
    path = []
    for order, name in enumerate(STEPS):
        step = StepRef(execution=run, step_id=_STEP_IDS[order], name=name, span_id=new_span_id(),
                       parent_span_id=run.span_id, step_order=order)  # fmt: skip
        end = start + (order + 1) * NS
        path.append(PathStep(step.step_id, name, NS))
        events.append(
            StepFinished(step=step, time_ns=end, status=StepStatus.COMPLETED, attempt=1, started_ns=end - NS,
                         attempt_started_ns=end - NS, dependency_ns=order * NS, run_ns=NS)
        )  # fmt: skip
    return [
        *events,
        ExecutionFinished(execution=run, time_ns=start + 3 * NS, status=ExecutionStatus.COMPLETED, started_ns=start,
                          step_count=3, completed_step_count=3, work_ns=3 * NS, critical_path=tuple(path)),
    ]  # fmt: skip


def fill(database: Database, count: int, now_s: int) -> list[float]:
    """Write executions and their rollups; returns the durations in seconds."""
    durations: list[float] = []

    def begin(connection: Connection) -> None:
        now = time.time_ns()
        add_workspace(connection, "default", now)
        add_project(connection, "default", "default", now)
        connection.execute(
            insert(workflow_definitions).values(
                id=WORKFLOW, workspace_id=WORKSPACE, name="bench", created_ns=now, updated_ns=now
            )
        )

    database.run(begin)
    rows: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []

    def write(connection: Connection) -> None:
        months = {partitions.month_of_id(rows[0]["execution_id"]), partitions.month_of_id(rows[-1]["execution_id"])}
        partitions.ensure(connection, [month for month in months if month is not None])
        connection.execute(insert(workflow_executions), rows)
        connection.execute(insert(workflow_step_executions), steps)

    for row, step_rows in executions(count, now_s):
        durations.append((row["finished_ns"] - row["started_ns"]) / NS)
        rows.append(row)
        steps += step_rows
        if len(rows) == 5_000:
            database.run(write)
            rows.clear()
            steps.clear()
    if rows:
        database.run(write)
    database.run(lambda c: rollup_rebuild.rebuild_one(c, (WORKSPACE, WORKFLOW)))
    database.run(lambda c: c.exec_driver_sql("ANALYZE"))
    return durations


PLAIN = """
SELECT status, count(*), sum(finished_ns - started_ns), min(finished_ns - started_ns), max(finished_ns - started_ns)
FROM workflow_executions WHERE workspace_id = :workspace AND workflow_id = :workflow AND finished_ns >= :low
GROUP BY status
"""


async def measure(url: str, count: int) -> dict[str, Any]:
    """Medians in milliseconds, and the relative error of the percentiles."""
    now_s = int(time.time())
    database = Database(url)
    durations = sorted(await asyncio.to_thread(fill, database, count, now_s))
    service = Service(Config(database=url))
    runner = web.AppRunner(service.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    address = f"{origin}/api/workflows/{WORKFLOW}"
    low = (now_s - YEAR + 1234) * NS
    kinds = ("plain", "all", "year", "trends", "after", "used", "scraped", "http")
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    parameters = {"workspace": WORKSPACE, "workflow": WORKFLOW, "low": low}
    body: Any = None
    async with aiohttp.ClientSession() as session:

        async def ask(query: str, what: str = "metrics") -> float:
            nonlocal body
            start = time.perf_counter()
            async with session.get(f"{address}/{what}{query}") as response:
                body = await response.json()
            return (time.perf_counter() - start) * 1e3

        for number in range(ROUNDS + 2):
            trends = await ask("?bucket=1d", "trends")
            year = await ask(f"?from={low / NS}")
            whole = await ask("")
            start = time.perf_counter()
            if number < 5:
                await asyncio.to_thread(database.look, lambda c: c.execute(text(PLAIN), parameters).all())
                times["plain"].append((time.perf_counter() - start) * 1e3)
            if number >= 2:
                times["all"].append(whole)
                times["year"].append(year)
                times["trends"].append(trends)
        whole_body, total = body, body["total_executions"]
        # What is cached does not help: each time a run has ended since.
        recorded = Database(url)
        writer = StoreWriter(recorded)
        counting_until = time.monotonic() + 600
        for number in range(ROUNDS + 2):
            run = ended_run()
            while True:
                try:
                    await asyncio.to_thread(writer.apply, run)
                    break
                except StoreUnavailable:
                    # The service counts what was here before it, for the first time.
                    if time.monotonic() > counting_until:
                        raise
            gc.collect()
            used = time.process_time()
            after = await ask("")
            used = (time.process_time() - used) * 1e3
            if body["total_executions"] != total + number + 1:
                raise RuntimeError("a run that ended is missing")
            start = time.perf_counter()
            async with session.get(f"{origin}/metrics") as response:
                await response.read()
            scraped = (time.perf_counter() - start) * 1e3
            start = time.perf_counter()
            async with session.get(f"{origin}/-/healthy") as response:
                await response.read()
            http = (time.perf_counter() - start) * 1e3
            if number >= 2:
                for key, took in (("after", after), ("used", used), ("scraped", scraped), ("http", http)):
                    times[key].append(took)
        await recorded.aclose()
    if total != count:
        raise RuntimeError(f"{total} executions counted, {count} recorded")
    error = 0.0
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        exact = durations[max(1, -(-round(q * 100) * count // 100)) - 1]
        error = max(error, abs(whole_body[name] - exact) / exact)
    await runner.cleanup()
    await database.aclose()
    return {key: statistics.median(values) for key, values in times.items()} | {
        "error": error, "stated": body["percentile_error"]
    }  # fmt: skip


def main(console: Console) -> list[Line]:
    """Print the table."""
    lines: list[Line] = []
    table = Table(
        "database", "executions", "plain aggregate, ms", "metrics, all time, ms", "plain / all time",
        "metrics, an unaligned year, ms", "plain / year", "all time, a run having ended, ms (processor)",
        "/metrics, a run having ended, ms", "a route that does nothing, ms", "trends, 180 days, ms",
        "growth since the first size", "percentile error, at most", "stated error",
    )  # fmt: skip
    for name, open_database in databases.ALL.items():
        first: dict[str, Any] | None = None
        for size in SIZES:
            with open_database() as url:
                if url is None:
                    console.print(f"{name} is not installed")
                    break
                figures = asyncio.run(measure(url, size))
            first = first or figures
            subject = f"`metrics` of {size:,} executions over HTTP, {name}"
            lines.append(against(subject, figures["all"], "ms", "one plain aggregate query", figures["plain"]))
            lines.append(
                against(f"… after each run that ends, {name}", figures["after"], "ms", "the goal", 2.0, goal=1.0)
            )
            lines.append(
                against(f"… of that, processor time, with the client's, {name}", figures["used"], "ms", "the goal", 2.0)
            )
            lines.append(
                against(
                    f"`/metrics` after each run that ends, {name}",
                    figures["scraped"],
                    "ms",
                    "a route that does nothing",
                    figures["http"],
                )
            )
            subject = f"`trends` of 180 days, of {size:,} executions over HTTP, {name}"
            lines.append(against(subject, figures["trends"], "ms", "one plain aggregate query", figures["plain"]))
            table.add_row(
                name, f"{size:,}", f"{figures['plain']:.2f}", f"{figures['all']:.2f}",
                f"{figures['plain'] / figures['all']:.1f}", f"{figures['year']:.2f}",
                f"{figures['plain'] / figures['year']:.1f}", f"{figures['after']:.2f} ({figures['used']:.2f})",
                f"{figures['scraped']:.2f}", f"{figures['http']:.2f}", f"{figures['trends']:.2f}",
                f"{figures['all'] / first['all']:.2f}, {figures['year'] / first['year']:.2f}",
                f"{100 * figures['error']:.2f} %", f"{100 * figures['stated']:.2f} %",
            )  # fmt: skip
    console.print(table)
    return lines
