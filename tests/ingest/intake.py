"""An intake without a service around it: spans go into a database, timelines and metrics come out of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
from sqlalchemy import select, update
from tests.store.test_rollups import differing

from tachograph.clock import NS
from tachograph.distribution import Distribution
from tachograph.events import Event
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.reassembly import claim_due, reassemble
from tachograph_exporter.ingest.rules import Rulebook
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.schema import traces, workflow_executions
from tachograph_exporter.store.series.rows import current_series
from tachograph_exporter.store.series.values import ATTEMPTS, DURATION, EXECUTION, RETRIES, SEPARATOR, SKIPPED
from tachograph_exporter.store.workspaces import add_workspace
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.timeline import build_timeline

WORKSPACE: Final = "default"
_LATER_NS: Final = 3_600_000_000_000


AnyIntake = TypeVar("AnyIntake", bound="Intake")


@contextlib.contextmanager
def intakes(
    kind: Callable[[str], AnyIntake], directory: Path, empty_database: Path
) -> Iterator[Callable[[], AnyIntake]]:
    """Makes intakes, each with a database of its own in ``directory``."""
    opened: list[AnyIntake] = []

    def make() -> AnyIntake:
        path = directory / f"{len(opened)}.db"
        shutil.copy(empty_database, path)
        opened.append(kind(f"sqlite:///{path}"))
        return opened[-1]

    yield make
    for intake in opened:
        intake.close()


class Intake:
    """Takes spans into the database with this URL."""

    def __init__(self, url: str, rules: Rulebook = BUILT_IN) -> None:
        self.database = Database(url)
        self.events: list[Event] = []
        """What listeners received."""
        self.store = SpanStore(StoreWriter(self.database), self.events.extend, rules)
        self.workspace_id = self.database.run(lambda c: add_workspace(c, WORKSPACE, time.time_ns()))

    def take(self, spans: Sequence[SpanRecord]) -> int:
        """Store the spans of one request; returns how many of them were new."""
        taken = self.store.commit(
            lambda c: (result := self.store.take(c, self.workspace_id, WORKSPACE, spans), result.events)
        )
        assert not taken.refused
        return taken.stored

    def pause(self, seconds: float) -> None:
        """Let so much time pass without a span; what is due after that stays due."""
        by_ns = round(seconds * NS)
        is_due = traces.c.due_ns.is_not(None)
        values = {"due_ns": traces.c.due_ns - by_ns, "changed_ns": traces.c.changed_ns - by_ns}
        self.database.run(lambda c: c.execute(update(traces).where(is_due).values(values)))
        for trace in self.database.run(claim_due):
            reassemble(self.store, trace)

    def settle(self) -> None:
        """Let so much time pass without a span that every trace is assembled for the last time."""
        for _ in range(10):
            is_due = traces.c.due_ns.is_not(None)
            values = {"due_ns": 1, "changed_ns": traces.c.changed_ns - _LATER_NS}
            self.database.run(lambda c, due=is_due, new=values: c.execute(update(traces).where(due).values(new)))  # type: ignore[misc]
            due = self.database.run(claim_due)
            if not due:
                return
            for trace in due:
                reassemble(self.store, trace)
        raise AssertionError("a trace is due again and again")

    def assemble(self) -> int:
        """Assemble what will be due, without any time passing; returns the number of traces."""
        is_due = traces.c.due_ns.is_not(None)
        self.database.run(lambda c: c.execute(update(traces).where(is_due).values(due_ns=1)))
        due = self.database.run(claim_due)
        for trace in due:
            reassemble(self.store, trace)
        return len(due)

    def timelines(self) -> list[dict[str, Any]]:
        """The timelines of all executions, as the API gives them, by start."""
        return self.timelines_of(self.workspace_id)

    def timelines_of(self, workspace_id: str) -> list[dict[str, Any]]:
        """Those of a workspace."""
        columns = workflow_executions.c
        query = select(columns.execution_id).where(columns.workspace_id == workspace_id)
        query = query.order_by(columns.started_ns, columns.execution_id)
        ids = self.database.look(lambda c: [row[0] for row in c.execute(query)])
        return [self.timeline(execution_id, workspace_id) for execution_id in ids]

    def timeline(self, execution_id: str, workspace_id: str | None = None) -> dict[str, Any]:
        run = self.database.look(lambda c: find_run(c, workspace_id or self.workspace_id, execution_id))
        encoded = msgspec.json.encode(build_timeline(run, now_ns=time.time_ns()))
        return cast("dict[str, Any]", json.loads(encoded))

    def counted(self) -> Counter[tuple[str, ...]]:
        """How many executions, steps, attempts and retries the metrics show: by workflow, step, metric and label."""
        names = {timeline["workflow_id"]: timeline["workflow_name"] for timeline in self.timelines()}
        counts: Counter[tuple[str, ...]] = Counter()
        for workflow_id, name in names.items():
            key = (self.workspace_id, workflow_id)
            for step, series in self.database.look(lambda c, key=key: current_series(c, key)).items():  # type: ignore[misc]
                for code, one in series.by_code.items():
                    metric, *labels = code.split(SEPARATOR)
                    if metric in (EXECUTION, DURATION, ATTEMPTS, RETRIES, SKIPPED):
                        value = one.value.count if isinstance(one.value, Distribution) else one.value
                        counts[name, step, metric, *labels[:1]] += int(value)
        return +counts

    def rows_to_correct(self) -> int:
        """How many rollup rows do not hold what their executions add up to."""
        return differing(self.database)

    def close(self) -> None:
        self.database.close()


def counts_of(timelines: Sequence[dict[str, Any]]) -> Counter[tuple[str, ...]]:
    """What `Intake.counted` must be, going by the timelines."""
    counts: Counter[tuple[str, ...]] = Counter()
    for timeline in timelines:
        name = timeline["workflow_name"]
        if timeline["completed_at"] is None:
            # An execution counts when it ends.
            continue
        counts[name, "", EXECUTION, timeline["status"]] += 1
        for entry in timeline["step_timeline"]:
            step = entry["step_name"]
            if entry["skip_reason"] is not None:
                counts[name, step, SKIPPED, entry["skip_reason"]] += 1
                continue
            if entry["completed_at"] is not None and entry["started_at"] is not None:
                counts[name, step, DURATION, entry["status"]] += 1
            for attempt in entry["attempts"]:
                if attempt["completed_at"] is not None:
                    counts[name, step, ATTEMPTS, attempt["status"]] += 1
            counts[name, step, RETRIES] += max(0, len(entry["attempts"]) - 1)
    return +counts
