"""A span is lost, or heard of again, and another one arrives, at every moment of an assembly: nothing is missed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.api.test_otlp import export, span
from tests.ingest.intake import Intake, intakes
from tests.store.test_rollups import differing

from tachograph_exporter.ingest import span_rows, span_store
from tachograph_exporter.ingest.envelope import scopes_of
from tachograph_exporter.ingest.reassembly import claim_due, reassemble
from tachograph_exporter.ingest.spans import SpanRecord, records_of
from tachograph_exporter.store import open_spans
from tachograph_exporter.store.schema import traces, workflow_executions

FIRST, BEFORE_READING, BEFORE_WRITING, LAST = range(4)
"""When something happens: before the trace is claimed, before its spans are read, before the rest, or after it all."""
Act = Callable[[], Any]


def records(number: int, *spans: tuple[str, int, int, float, float | None]) -> list[SpanRecord]:
    body = export([span(*entry[:3], *entry[3:], trace=number) for entry in spans]).SerializeToString()
    return [record for record in records_of(scopes_of(body)) if isinstance(record, SpanRecord)]


ROOT = ("nightly", 1, 0, 0.0, None)
EXTRACT = ("extract", 2, 1, 1.0, None)
LATE = ("late", 50, 1, 50.0, 51.0)
MANY = [(f"step {number}", number, 1, float(number), number + 0.5) for number in range(10, 40)]


class Assembly(Intake):
    """An intake whose assembly of a due trace lets things happen in between."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.acts: dict[int, list[Act]] = {}
        look, commit = self.database.look, self.store.commit
        self.is_assembling = False

        def looks(*arguments: Any, **options: Any) -> Any:
            self._happens(BEFORE_READING)
            return look(*arguments, **options)

        def commits(work: Any) -> Any:
            self._happens(BEFORE_WRITING)
            return commit(work)

        self.database.look, self.store.commit = looks, commits  # type: ignore[method-assign]

    def _happens(self, moment: int) -> None:
        if self.is_assembling:
            self.is_assembling = False
            for act in self.acts.pop(moment, ()):
                act()
            self.is_assembling = True

    def assembled(self, moments: dict[int, list[Act]]) -> None:
        """Assemble what is due, or will be, with acts at moments; then whatever has become due, until nothing is."""
        self.acts = dict(moments)
        for act in self.acts.pop(FIRST, ()):
            act()
        for _ in range(10):
            self.database.run(lambda c: c.execute(update(traces).where(traces.c.due_ns.is_not(None)).values(due_ns=1)))
            due = self.database.run(claim_due)
            self.is_assembling = True
            for trace in due:
                reassemble(self.store, trace)
            self.is_assembling = False
            for moment in sorted(self.acts):
                for act in self.acts.pop(moment):
                    act()
                due = due or [None]  # type: ignore[list-item]
            if not due:
                return
        raise AssertionError("a trace is due again and again")

    def execution_of(self, trace_id: str) -> str:
        """The id of the execution that a trace is."""
        query = select(workflow_executions.c.execution_id).where(workflow_executions.c.trace_id == trace_id)
        return str(self.database.run(lambda c: c.execute(query).scalar_one()))

    def lose(self, trace_id: str) -> None:
        """The lease of the trace's step runs out."""

        def work(connection: Any) -> None:
            silent = [one for one in open_spans.leased(connection) if one.key[1:] == (trace_id, f"{2:016x}")]
            open_spans.lose(connection, silent, time.time_ns())

        self.database.run(work)


@pytest.fixture
def assembly(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Assembly]:
    # A trace of more than 20 spans is long.
    monkeypatch.setattr(span_store, "MAX_AT_ONCE", 20)
    monkeypatch.setattr(span_rows, "MAX_AT_ONCE", 20)
    with intakes(Assembly, tmp_path, empty_database) as make:
        yield make()


@pytest.mark.parametrize("others", [MANY, MANY[:3]], ids=["long", "short"])
def test_whatever_comes_at_whatever_moment_of_an_assembly_is_not_missed(
    assembly: Assembly, others: list[tuple[str, int, int, float, float | None]]
) -> None:
    moments = list(itertools.combinations_with_replacement(range(4), 3))
    cases = itertools.product(itertools.permutations(("lost", "late", "alive")), moments)
    # Of a short trace, which goes another way, a part of them.
    for number, (order, times) in enumerate(itertools.islice(cases, 0, None, 2 if len(others) > 20 else 5), start=1):
        spans = records(number, ROOT, EXTRACT, *others)
        trace_id = spans[0].trace_id
        acts: dict[str, Act] = {
            "lost": lambda trace_id=trace_id: assembly.lose(trace_id),  # type: ignore[misc]
            "late": lambda number=number: assembly.take(records(number, LATE)),  # type: ignore[misc]
            "alive": lambda number=number: assembly.take(records(number, ROOT, EXTRACT)),  # type: ignore[misc]
        }
        assembly.take(spans)
        moments_of: dict[int, list[Act]] = {}
        for name, moment in zip(order, times, strict=True):
            moments_of.setdefault(moment, []).append(acts[name])
        assembly.assembled(moments_of)
        timeline = assembly.timeline(assembly.execution_of(trace_id))
        states = {entry["step_name"]: entry["status"] for entry in timeline["step_timeline"]}
        expected = "lost" if order.index("lost") > order.index("alive") else "running"
        assert (timeline["status"], states["extract"], states["late"]) == ("running", expected, "completed"), (
            order, times,
        )  # fmt: skip
    assert differing(assembly.database) == 0
