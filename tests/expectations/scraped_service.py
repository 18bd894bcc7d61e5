"""A service whose clock is moved: what it tells of runs, and what Prometheus scrapes of it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from sqlalchemy import select

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepFinished,
    StepStarted,
    StepStatus,
)
from tachograph.expectation import Expectation
from tachograph.identity import workspace_id
from tachograph.metrics.exposition import render
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import EXPECTATION_METRICS, LAST_FAILURE, LAST_SUCCESS, OLDEST_RUNNING
from tachograph_exporter.expectations.metrics import ExpectationMetrics
from tachograph_exporter.expectations.watch import Watch
from tachograph_exporter.metrics.workflow_metrics import WorkflowMetrics
from tachograph_exporter.store import expectations
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import notices
from tachograph_exporter.store.writer import StoreWriter
from tests.conftest import make_execution, make_step
from tests.expectations.promtool import TICK, Told
from tests.expectations.simulation import Plan, Simulated

STEP: Final = "load"
SCRAPED: Final = [spec.name for spec in (*EXPECTATION_METRICS, LAST_SUCCESS, LAST_FAILURE, OLDEST_RUNNING)]


class ScrapedService:
    """Records, evaluates, and is scraped, whenever there is something new; all of it at multiples of `TICK`."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self._writer = StoreWriter(self.database)
        self._now = 0
        self._shown = WorkflowMetrics(self.database, SeriesRegistry(family_limit=10_000))
        self._watch = Watch(
            self.database, workspace_id("default"), settle_seconds=0,
            clock=lambda: self._now * NS, monotonic=lambda: float(self._now),
        )  # fmt: skip
        self._registry = CollectorRegistry()
        self._registry.register(self._shown)
        self._registry.register(ExpectationMetrics(self._watch, 10_000))
        self._told: dict[str, Told] = {}
        self.samples: dict[str, list[tuple[int, float | None]]] = {}
        """See `promtool.Samples`."""
        self.scrapes = 0

    def expect(self, name: str, plan: Plan, expectation: Expectation) -> None:
        """Expect something of a workflow, from an hour before its first time on."""
        since = (plan.times[0] - 3600) * NS
        self.database.run(lambda c: expectations.say(c, expectations.ANY, name, expectations.FILE, expectation, since))

    def live(self, workflows: Mapping[str, Simulated], begin: int, end: int) -> list[Told]:
        """Live through all runs of the workflows. Returns what was told, oldest first."""
        facts = iter(sorted(_facts(workflows), key=lambda fact: fact[0]))
        time, event = next(facts)
        self._now = begin
        while self._now <= end:
            batch: list[Event] = []
            while time <= self._now:
                batch.append(event)
                time, event = next(facts, (float("inf"), event))
            if batch:
                self._writer.apply(batch)
            self._watch.look()
            self._scrape()
            wakes = [w.evaluation.next_ns / NS for w in self._watch.watched.values() if w.evaluation.next_ns]
            self._now = max(self._now + TICK, int(-(-min([time, end + 1, *wakes]) // TICK)) * TICK)
        self._remember()
        return sorted(self._told.values(), key=lambda told: told.told_at)

    def _scrape(self) -> None:
        if self.scrapes % 100 == 0:
            asyncio.run(self._shown.start())
        if self.scrapes % 10 == 0:
            self._remember()
        self.scrapes += 1
        assert self._shown.refresh(60)
        generation = self._shown.births.scraping()
        text = render(self._registry, names=SCRAPED).decode()
        self._shown.births.scraped(generation, None)
        gone = {series for series, samples in self.samples.items() if samples[-1][1] is not None}
        for line in text.splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                gone.discard(series)
                samples = self.samples.setdefault(series, [])
                if not samples or samples[-1][1] != float(value):
                    samples.append((self._now, float(value)))
        for series in gone:
            self.samples[series].append((self._now, None))

    def _remember(self) -> None:
        """Notices are not kept for ever."""
        for row in self.database.look(lambda c: c.execute(select(notices)).all()):
            over = None if row.resolved_ns is None else row.resolved_ns / NS
            self._told[row.id] = Told(row.workflow, row.kind, row.key, row.told_ns / NS, over)


def _facts(workflows: Mapping[str, Simulated]) -> Iterable[tuple[float, Event]]:
    for name, simulated in workflows.items():
        for start, end, status in simulated.runs:
            execution = make_execution(name)
            start_ns, end_ns = round(start * NS), round(end * NS)
            yield start, ExecutionStarted(execution=execution, time_ns=start_ns)
            if (step_end := simulated.steps.get(start)) is not None:
                step, step_ns = make_step(execution, STEP), round(step_end * NS)
                yield start, StepStarted(step=step, time_ns=start_ns)
                yield step_end, StepFinished(
                    step=step, time_ns=step_ns, status=StepStatus.COMPLETED, attempt=1, started_ns=start_ns,
                    attempt_started_ns=start_ns, run_ns=step_ns - start_ns,
                )  # fmt: skip
            yield (
                end,
                ExecutionFinished(
                    execution=execution,
                    time_ns=end_ns,
                    status=ExecutionStatus(status),
                    started_ns=start_ns,
                    step_count=0,
                ),
            )
