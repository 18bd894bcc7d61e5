"""What a service does of its own accord, again and again: it closes what was left open, and clears up old rows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from tachograph.clock import NS
from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph.quiet_log import QuietLog
from tachograph.recording.recorder import LEASE_SECONDS, Recorder
from tachograph.recording.spooled_store import SpooledStore
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.lineage.receiver import LineageReceiver
from tachograph_exporter.ingest.neighbours import Neighbours
from tachograph_exporter.ingest.reassembly import DueTrace, claim_due, has_due, reassemble
from tachograph_exporter.ingest.receiver import Receiver
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.store import (
    archiving,
    failures,
    idempotency,
    log_rows,
    numbers,
    open_spans,
    partitions,
    process_rows,
    recovery,
    reported,
    senders,
)
from tachograph_exporter.store import lineage as lineage_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.failure_groups import backfill
from tachograph_exporter.store.failure_groups import groups as failure_groups

log = logging.getLogger(__name__)
quiet = QuietLog(log)

SWEEP_SECONDS: Final = 10.0
SPOOL_SECONDS: Final = 5.0
"""How long a sweep delivers what other processes spooled."""
RETENTION_SECONDS: Final = 3600.0
SUCCESSION_SECONDS: Final = 10.0
"""How often a service looks whether it is the one that looks after old rows now."""
REASSEMBLY_SECONDS: Final = 0.5
GROUPING_PAUSE: Final = 3.0
"""How long grouping old failures pauses, in times that its last part took."""
LOOKS_PER_LEASE: Final = 6
"""How often open spans are looked at while their lease runs."""


class Upkeep:
    """The tasks of a service that nobody asks for.

    Args:
        config: how long leases and old rows last.
        database: where everything is.
        store: delivers what other processes spooled.
        recorder: takes the events that close what was left open.
        span_store: assembles executions from traces.
        receiver: knows how far behind it is with spans.
        lineage: reads what was stored and not read yet.
        neighbours: delivers what other services spooled.
        is_leader: whether this service, of several on the database, looks after old rows.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        *,
        store: SpooledStore,
        recorder: Recorder,
        span_store: SpanStore,
        receiver: Receiver,
        lineage: LineageReceiver,
        neighbours: Neighbours,
        is_leader: Callable[[], bool],
    ) -> None:
        self._config = config
        self._database = database
        self._store = store
        self._recorder = recorder
        self._span_store = span_store
        self._receiver = receiver
        self._lineage = lineage
        self._neighbours = neighbours
        self._is_leader = is_leader
        self._reassembling = asyncio.Lock()
        # Traces that are claimed and could not be assembled, because the database was unavailable.
        self._claimed: list[DueTrace] = []
        self._silences = recovery.Silences()
        self._closing = recovery.Closing()
        # Time between two looks counts at most twice: nobody could be heard while this process was held up.
        self._look_seconds = min(SWEEP_SECONDS, config.lease_seconds / LOOKS_PER_LEASE)
        self._reported_silences = recovery.Silences(max_gap_seconds=2 * reported.QUIET_SECONDS)
        self._span_silences = recovery.Silences(max_gap_seconds=2 * self._look_seconds)

    async def begin(self) -> None:
        """Look once for what was left behind while no service ran."""
        try:
            await self.sweep()
        except StoreUnavailable as error:
            log.warning("starting although %s", error)

    def start(self) -> list[asyncio.Task[None]]:
        """Start everything that goes on until it is cancelled, and what ends once nothing is left to do."""
        endless = [
            _every(SWEEP_SECONDS, lambda: self.sweep(), "looking for lost executions"),
            _every(self._look_seconds, lambda: self.expire_leases(), "looking for lost spans"),
            _every(reported.QUIET_SECONDS, lambda: self.end_quiet(), "looking for reported runs that are over"),
            _every(REASSEMBLY_SECONDS, lambda: self.reassemble_due_traces(), "assembling executions from traces"),
            asyncio.create_task(self._apply_retention(), name="tachograph retention"),
        ]
        for task in endless:
            task.add_done_callback(note_end)
        return [*endless, asyncio.create_task(self._group_failures(), name="tachograph failures")]

    async def sweep(self) -> int:
        """Store what others left behind, then close executions whose process died as ``lost``; returns their number."""
        await asyncio.to_thread(self._store.deliver_spooled, SPOOL_SECONDS)
        await asyncio.to_thread(self._neighbours.deliver, SPOOL_SECONDS)
        self._lineage.resume(await self._database.read(lineage_rows.unread))
        lease = max(self._config.lease_seconds, LEASE_SECONDS)
        lost = await self._database.read(
            lambda c: recovery.find_lost(c, time.time_ns(), lease_seconds=lease, silences=self._silences)
        )
        for run in lost:
            # In a thread: a run may have thousands of steps.
            closing: list[Event] = await asyncio.to_thread(self._closing.events, run)
            for event in closing:
                self._recorder(event)
            log.warning("execution %s of %s was lost", run.execution.execution_id, run.execution.workflow)
        if lost:
            queue = self._recorder.queues["store"]
            goal = queue.delivered + len(queue)
            await asyncio.to_thread(queue.flush, 10.0)
            if queue.delivered >= goal:  # Or refused; while the database is away, they wait.
                self._closing.delivered(lost)
        return len(lost)

    async def expire_leases(self) -> int:
        """Give up open spans that nothing was heard of for their lease; returns how many.

        Their traces are assembled again. Spans that wait in the receiver's queue have been heard of, but not stored.
        """
        rows = await self._database.read(open_spans.leased)
        silent = self._span_silences.look((span.key, span.seen_ns) for span in rows)
        limit = self._config.lease_seconds + self._receiver.behind_seconds()
        expired = [span for span in rows if silent[span.key] >= limit]
        if not expired:
            return 0
        lost = await self._database.write(lambda c: open_spans.lose(c, expired, time.time_ns()))
        if lost:
            log.warning("%d span(s) are lost: nothing was heard of them for %g s", lost, self._config.lease_seconds)
        return lost

    async def end_quiet(self) -> int:
        """End executions that engines report and of which nothing goes on; returns how many."""
        runs = await self._database.read(lambda c: reported.find_quiet(c, self._reported_silences))
        for run in runs:
            for event in reported.quiet_events(run):
                self._recorder(event)
        return len(runs)

    async def reassemble_due_traces(self) -> int:
        """Assemble the executions of traces that are due again; returns the number of traces."""
        async with self._reassembling:
            traces, self._claimed = self._claimed, []
            if not traces:
                if not await self._database.read(has_due):
                    return 0
                traces = await self._database.write(claim_due)
            for i, trace in enumerate(traces):
                try:
                    await asyncio.to_thread(reassemble, self._span_store, trace)
                except BaseException as error:
                    # Claims hold for minutes, and nobody else looks at these. What failed by itself is left out.
                    self._claimed = traces[i if failures.is_away(error) else i + 1 :]
                    raise
            return len(traces)

    async def _group_failures(self) -> None:
        """Group what failed before there were groups, in small parts, so that writers hardly wait."""
        while True:
            began = time.monotonic()
            try:
                if not await asyncio.to_thread(self._database.run, backfill.group_some):
                    return
            except StoreUnavailable as error:
                quiet.warning("failures", "grouping failures has to wait: %s", error)
                await asyncio.sleep(SWEEP_SECONDS)
            except Exception:
                quiet.exception("failures", "grouping failures failed; trying again later")
                await asyncio.sleep(SWEEP_SECONDS)
            await asyncio.sleep(GROUPING_PAUSE * (time.monotonic() - began))

    async def _apply_retention(self) -> None:
        """Archive or delete old executions as configured, and whatever else is due once an hour; now and every hour.

        Of several services on the database, the one that shows the workflow metrics does it.
        """
        config = self._config
        days = config.archive_after_days if config.archive_after_days is not None else config.delete_after_days
        while True:
            if not self._is_leader():
                # It takes over within this time.
                await asyncio.sleep(SUCCESSION_SECONDS)
                continue
            try:
                await asyncio.to_thread(self._database.run, partitions.ensure_coming)
                await asyncio.to_thread(self._database.run, idempotency.prune)
                await asyncio.to_thread(self._database.run, senders.prune)
                await asyncio.to_thread(self._database.run, numbers.fill)
                await asyncio.to_thread(self._prune_logs)
                await asyncio.to_thread(self._prune_failures)
                oldest_ns = time.time_ns() - process_rows.KEPT_SECONDS * NS
                await asyncio.to_thread(self._database.run, partial(process_rows.prune, before_ns=oldest_ns))
                if days is not None:
                    before = time.time_ns() - round(days * 86_400 * NS)
                    moved = await asyncio.to_thread(archiving.archive, self._database, before, config.archive_directory)
                    if moved.executions:
                        log.info("archived or deleted %d old execution(s)", moved.executions)
            except StoreUnavailable as error:
                log.warning("archiving or deleting old executions has to wait: %s", error)
            except Exception:
                log.exception("archiving or deleting old executions failed; trying again later")
            await asyncio.sleep(RETENTION_SECONDS)

    def _prune_logs(self) -> None:
        while self._database.run(lambda c: log_rows.prune_unknown(c, time.time_ns())):
            pass

    def _prune_failures(self) -> None:
        while self._database.run(lambda c: failure_groups.prune(c, time.time_ns())):
            pass


def _every(seconds: float, work: Callable[[], Awaitable[object]], what: str) -> asyncio.Task[None]:
    """Do something periodically. While the database is away it waits; another failure is told, and tried again."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except StoreUnavailable as error:
                quiet.warning(what, f"{what} has to wait: %s", error)
            except Exception:
                quiet.exception(what, f"{what} failed; trying again later")

    return asyncio.create_task(repeat(), name=f"tachograph {what}")


def note_end(task: asyncio.Task[None]) -> None:
    """Say that a background task has ended, which none does while the service runs."""
    reason = "it was cancelled" if task.cancelled() else repr(task.exception())
    log.critical('the task "%s" has ended: %s; restart the service', task.get_name(), reason)
