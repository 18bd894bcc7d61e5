"""Who waited for whom: executions that ran inside others, that others started, and that read what others wrote."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row

from tachograph.spans.attributes import attempt_span_id
from tachograph_exporter.ingest.lineage.events import LineageEvent
from tachograph_exporter.store.lineage import has_events, summaries
from tachograph_exporter.store.windows import Caller, callers
from tachograph_exporter.views.schemas.night import NightEdge

NESTED: Final = "nested"
TRIGGER: Final = "trigger"
DATASET: Final = "dataset"
MAX_EDGES: Final = 5_000
MAX_EVENTS: Final = 50_000
"""So many events of lineage are read."""
MAX_DATASETS: Final = 20
"""So many datasets are named of two executions."""
MAX_ATTEMPTS: Final = 100
"""So many attempts of a step are looked at."""
_decoder: Final = msgspec.msgpack.Decoder(LineageEvent)


def read_relations(connection: Connection, workspace_id: str, rows: Sequence[Row[Any]]) -> tuple[list[NightEdge], bool]:
    """What connects executions (rows of `store.windows`), and whether that is all."""
    edges = [*_calls(connection, rows)]
    lineage, is_whole = _datasets(connection, workspace_id, rows)
    edges += lineage
    return edges[:MAX_EDGES], is_whole and len(edges) <= MAX_EDGES


def _calls(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[NightEdge]:
    """Of executions that a step of another one called: whether the step waited for them."""
    by_id = {row.execution_id: row for row in rows}
    by_trace: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        by_trace[row.trace_id].append(row)
    steps: list[tuple[str, str]] = []
    spans: list[tuple[str, str]] = []
    called = []
    for row in rows:
        if row.parent_execution_id is not None:
            if row.parent_execution_id in by_id:
                called.append(row)
                if row.parent_step_id is not None:
                    steps.append((row.parent_execution_id, row.parent_step_id))
        elif row.parent_span_id and len(by_trace[row.trace_id]) > 1:
            called.append(row)
            others = [other for other in by_trace[row.trace_id] if other.execution_id != row.execution_id]
            spans += [(other.execution_id, row.parent_span_id) for other in others]
    if not called:
        return
    by_step: dict[tuple[str, str], Caller] = {}
    by_span: dict[str, Caller] = {}
    for step in callers(connection, steps, spans):
        by_step[step.execution_id, step.step_id] = step
        by_span[step.span_id] = step
        for attempt in range(1, min(step.attempt, MAX_ATTEMPTS) + 1 if step.attempt > 1 else 1):
            by_span[attempt_span_id(step.span_id, attempt)] = step
    of_span = {row.span_id: row for row in rows}
    for row in called:
        source, step_ = _caller(row, by_step, by_span, of_span)
        if source is None or source == row.execution_id:
            continue
        ended_ns = step_.finished_ns if step_ is not None else by_id[source].finished_ns if source in by_id else None
        # Whoever ended before it did not wait for it.
        waited = (
            row.parent_execution_id is not None or ended_ns is None or (row.finished_ns or ended_ns + 1) <= ended_ns
        )
        yield NightEdge(
            kind=NESTED if waited else TRIGGER, source=source, target=row.execution_id,
            step=step_.name if step_ is not None else None, datasets=[],
        )  # fmt: skip


def _caller(
    row: Row[Any],
    by_step: Mapping[tuple[str, str], Caller],
    by_span: Mapping[str, Caller],
    of_span: Mapping[str, Row[Any]],
) -> tuple[str | None, Caller | None]:
    if row.parent_execution_id is not None:
        return row.parent_execution_id, by_step.get((row.parent_execution_id, row.parent_step_id or ""))
    step = by_span.get(row.parent_span_id)
    if step is not None:
        return step.execution_id, step
    execution = of_span.get(row.parent_span_id)
    return (execution.execution_id if execution is not None else None), None


def _datasets(
    connection: Connection, workspace_id: str, rows: Sequence[Row[Any]]
) -> tuple[Iterator[NightEdge] | list[NightEdge], bool]:
    """Who read what another execution had written last before."""
    if not rows or not has_events(connection, workspace_id):
        return [], True
    by_id = {row.execution_id: row for row in rows}
    of_trace: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (row.parent_span_id is not None, row.created_ns)):
        of_trace.setdefault(row.trace_id, row.execution_id)
    runs: dict[tuple[str, str], list[LineageEvent]] = defaultdict(list)
    events = islice(summaries(connection, workspace_id, list(of_trace)), MAX_EVENTS + 1)
    count = 0
    for trace_id, summary in events:
        count += 1
        event = _decoder.decode(summary)
        if event.inputs or event.outputs or event.kind in ("START", "COMPLETE"):
            owner = next((name for name in event.mentioned if name in by_id), of_trace[trace_id])
            runs[owner, event.run_id].append(event)
    return _written_and_read(runs), count <= MAX_EVENTS


def _written_and_read(runs: Mapping[tuple[str, str], Sequence[LineageEvent]]) -> Iterator[NightEdge]:
    writes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for (owner, _), events in runs.items():
        ends = [event.time_ns for event in events if event.kind == "COMPLETE"]
        if ends:
            for dataset in {name for event in events for name in event.outputs}:
                writes[dataset].append((max(ends), owner))
    for times in writes.values():
        times.sort()
    datasets: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for (owner, _), events in runs.items():
        start = min(event.time_ns for event in events)
        for dataset in dict.fromkeys(name for event in events for name in event.inputs):
            earlier = writes.get(dataset, [])
            place = bisect.bisect_right(earlier, (start, "\U0010ffff"))
            # What it wrote itself before is its own business.
            if place and earlier[place - 1][1] != owner:
                datasets[earlier[place - 1][1], owner][dataset] = None
    for (source, target), names in datasets.items():
        yield NightEdge(kind=DATASET, source=source, target=target, step=None, datasets=[*names][:MAX_DATASETS])
