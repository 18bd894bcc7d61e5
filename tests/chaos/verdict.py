"""What was promised, compared with what is stored and shown."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, func, null, select

from tachograph.clock import NS
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.rollups import rebuild
from tachograph_exporter.store.schema import archived_executions, workflow_executions, workflow_step_executions
from tachograph_exporter.store.series.recount import recount_one
from tests.chaos.load import PIECES, Oracle

_SETTLING_SECONDS: Final = 90
"""What was spooled is delivered, and what a killed process left open is given up, within a lease."""
# Only steps that were retried have rows of attempts; all that began have a start.
_BEGUN_STEPS: Final = (
    select(func.count())
    .where(
        workflow_step_executions.c.execution_id == workflow_executions.c.execution_id,
        workflow_step_executions.c.started_ns.is_not(None),
    )
    .scalar_subquery()
)
_EXECUTIONS: Final = select(
    workflow_executions.c.workflow,
    workflow_executions.c.execution_id,
    workflow_executions.c.trace_id,
    workflow_executions.c.inputs,
    workflow_executions.c.status,
    workflow_executions.c.created_ns,
    _BEGUN_STEPS.label("begun_steps"),
)

_archived = archived_executions.c
_ARCHIVED: Final = select(
    _archived.workflow, _archived.execution_id, _archived.trace_id, _archived.inputs, _archived.status,
    _archived.created_ns, null().label("begun_steps"),
)  # fmt: skip
"""Archived ones may lack what came later."""


class Happened(NamedTuple):
    """A fault that happened: its name, the time it began, and seconds until executions were accepted again."""

    fault: str
    began: float
    recovery: float


class Wrong(NamedTuple):
    """Something that is not as promised: ``kind`` (lost, doubled, ran, stuck or other), and when it was promised."""

    kind: str
    text: str
    time: float = 0.0


class Verdict(NamedTuple):
    """What came of it."""

    happened: list[Happened]
    wrongs: list[Wrong]
    counts: dict[str, int]

    def table(self) -> str:
        """Fault, times, what went wrong then, and recovery, as Markdown."""
        wrongs = Counter((self._fault_at(wrong.time), wrong.kind) for wrong in self.wrongs)
        lines = ["| fault | times | lost | doubled | stuck | recovery, median | longest |", "|" + "---|" * 7]
        for fault in sorted({happened.fault for happened in self.happened}):
            seconds = [happened.recovery for happened in self.happened if happened.fault == fault]
            counts = " | ".join(str(wrongs[fault, kind]) for kind in ("lost", "doubled", "stuck"))
            middle, longest = statistics.median(seconds), max(seconds)
            lines.append(
                f"| {fault.replace('_', ' ')} | {len(seconds)} | {counts} | {middle:.1f} s | {longest:.1f} s |"
            )
        return "\n".join(lines)

    def _fault_at(self, time: float) -> str:
        """The last fault that had begun."""
        return next((happened.fault for happened in reversed(self.happened) if happened.began <= time), "")


async def judge(url: str, addresses: Sequence[str], oracle: Oracle, happened: list[Happened], starts: int) -> Verdict:
    """Compare, once everything has ended. ``starts``: how often services were started."""
    database = await asyncio.to_thread(Database, url)
    try:
        rows: list[Any] = []
        for _ in range(_SETTLING_SECONDS):
            rows = await asyncio.to_thread(database.look, lambda c: [*c.execute(_EXECUTIONS), *c.execute(_ARCHIVED)])
            is_open = any(row.status in ("pending", "running") for row in rows)
            is_open |= any(row.workflow == "pieces" and row.begun_steps not in (None, PIECES - 1) for row in rows)
            if not is_open and oracle.scripts.keys() <= {row.execution_id for row in rows}:
                break
            await asyncio.sleep(1)
        wrongs = [*_unlike_the_oracle(oracle, rows), *await asyncio.to_thread(database.run, _unlike_the_rows)]
        wrongs += [Wrong("other", text) for text in await _unlike_metrics(addresses, rows)]
    finally:
        await asyncio.to_thread(database.close)
    counts = {"acknowledged": len(oracle.acknowledged), "refused": len(oracle.refused),
              "unknown": len(oracle.unknown), "traces": len(oracle.traces),
              "pieces": len(oracle.pieces), "scripts": len(oracle.scripts),
              "starts": starts,
              **{f"answered {status}": count for status, count in sorted(oracle.answers.items())}}  # fmt: skip
    return Verdict(happened, wrongs, counts)


def _unlike_the_oracle(oracle: Oracle, rows: Sequence[Any]) -> Iterator[Wrong]:
    probes = [(msgspec.json.decode(row.inputs)["n"], row) for row in rows if row.workflow == "probe" and row.inputs]
    yield from (Wrong("other", text) for text in oracle.surprises)
    yield from _not_once("execution", oracle.acknowledged, Counter(n for n, _ in probes))
    yield from _not_once("trace", oracle.traces, Counter(row.trace_id for row in rows if row.workflow == "spans"))
    pieces = [row for row in rows if row.workflow == "pieces"]
    yield from _not_once("trace in pieces,", oracle.pieces, Counter(row.trace_id for row in pieces))
    for row in pieces:
        if row.trace_id in oracle.pieces and row.begun_steps not in (None, PIECES - 1):
            text = f"the trace {row.trace_id} in {PIECES} pieces is a run of {row.begun_steps} steps"
            yield Wrong("lost", text, oracle.pieces[row.trace_id])
    yield from _not_once("run of a script,", oracle.scripts, Counter(row.execution_id for row in rows))
    for n, row in probes:
        if n in oracle.refused:
            yield Wrong("ran", f"{n} was not accepted, and is there as {row.status}", row.created_ns / NS)
        if n in oracle.unknown and (row.status not in ("cancelled", "lost") or row.begun_steps):
            text = f"nobody knew whether {n} was accepted; it is {row.status}, and {row.begun_steps} of its steps began"
            yield Wrong("ran", text, row.created_ns / NS)
    for row in rows:
        if row.status in ("pending", "running"):
            yield Wrong("stuck", f"{row.execution_id} of {row.workflow} is {row.status}", row.created_ns / NS)


def _not_once(what: str, promised: dict[str, float], stored: Counter[str]) -> Iterator[Wrong]:
    for name, time in promised.items():
        if stored[name] != 1:
            kind = "doubled" if stored[name] else "lost"
            yield Wrong(kind, f"the {what} {name} was acknowledged and is there {stored[name]} times", time)


def _unlike_the_rows(connection: Connection) -> list[Wrong]:
    wrongs = []
    for key in rebuild.workflows_with_executions(connection):
        count = rebuild.rebuild_one(connection, key, write=False) + recount_one(connection, key, write=False)
        if count:
            wrongs.append(
                Wrong("other", f"{count} rollups or series of {key[1]} are not what the executions add up to")
            )
    return wrongs


async def _unlike_metrics(addresses: Sequence[str], rows: Sequence[Any]) -> list[str]:
    expected = Counter((row.workflow, row.status) for row in rows)
    shown: dict[tuple[str, str], float] = {}
    async with aiohttp.ClientSession() as session:
        for _ in range(200):
            # One of them shows the metrics of the workflows.
            shown = {}
            for address in addresses:
                async with session.get(address + "/metrics") as response:
                    shown |= _ended(await response.text())
            if all(shown.get(key, 0) >= count for key, count in expected.items()):
                break
            await asyncio.sleep(0.2)
    # A run that was given up as lost and ended after all is shown as both.
    return [
        f"/metrics shows {shown.get(key, 0):g} of {key}, {count} are stored"
        for key, count in expected.items()
        if shown.get(key, 0) != count and key[1] != "lost"
    ]


def _ended(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["workflow"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "workflow_execution_duration_seconds_count"
    }
