"""Which events of ingested executions listeners have received, remembered by span.

Listeners receive an event of an ingested execution once, however often its trace is assembled: as soon as its span has
arrived and the execution's workflow is known. When a step may still get more spans (further attempts, or work that
outlasts the span above it), its events are withheld until the execution has ended and its trace has been quiet; until
then only the starts of the execution and of steps that run are announced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import Any, Final

from sqlalchemy import Connection, Row, update

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, Heartbeat
from tachograph_exporter.ingest.assembly.executions import AssembledExecution, EventKey
from tachograph_exporter.store.keyed import change_each
from tachograph_exporter.store.schema import spans, traces

_ID_BYTES: Final = 8


class Announced(IntEnum):
    """What listeners have received of a span; the column ``told`` of the spans' table."""

    NOTHING = 0
    EVERYTHING = 1
    START = 2
    """Only that the execution which begins with this span has started."""
    BEGUN = 3
    """Only that, and that the attempt which this span is has started."""


def keys_of(executions: Collection[AssembledExecution]) -> set[EventKey]:
    """The keys of all events of executions whose workflow is known."""
    return {key for execution in executions if execution.is_named for key, _ in execution.keyed()}


def start_key(execution_id: str) -> EventKey:
    """The key of an execution's start."""
    return (ExecutionStarted, execution_id, 0)


def unannounced(
    execution: AssembledExecution, announced: AbstractSet[EventKey], *, is_withheld: bool, has_ended: bool
) -> list[Event]:
    """The events of an execution to announce now.

    ``announced``: keys of the events announced before. ``is_withheld``: only the starts of the execution and of
    attempts that run may be announced. ``has_ended``: the end was announced before.
    """
    if not execution.is_named:
        return []
    begun = {execution.starts[span_id] for span_id in execution.running} if is_withheld else ()
    return [
        event
        for key, event in execution.keyed()
        if key not in announced
        and key[0] is not Heartbeat
        and not (is_withheld and key[0] is not ExecutionStarted and key not in begun)
        and not (has_ended and key[0] is ExecutionFinished)
    ]


def mark_reassembled(
    connection: Connection,
    workspace_id: str,
    trace_id: str,
    announced: Mapping[str, Announced],
    withheld: Mapping[str, Announced] | None,
) -> None:
    """Note what was announced when a trace was assembled again.

    ``announced``: by span id, what had been announced of the spans it was assembled from. ``withheld``: of which spans
    only a start is announced, and which; None: everything is announced.
    """
    if withheld is None:
        ids = [span_id for span_id, state in announced.items() if state is not Announced.EVERYTHING]
        _mark(connection, workspace_id, trace_id, ids, Announced.EVERYTHING)
    else:
        mark_started(connection, workspace_id, trace_id, withheld)


def mark_started(connection: Connection, workspace_id: str, trace_id: str, withheld: Mapping[str, Announced]) -> None:
    """Note the spans of a trace of which only a start is announced."""
    for state in (Announced.START, Announced.BEGUN):
        ids = [span_id for span_id, started in withheld.items() if started is state]
        _mark(connection, workspace_id, trace_id, ids, state)


def _mark(
    connection: Connection, workspace_id: str, trace_id: str, span_ids: Collection[str], state: Announced
) -> None:
    is_of_trace = (spans.c.workspace_id == workspace_id) & (spans.c.trace_id == trace_id)
    change_each(
        connection, update(spans).where(is_of_trace).values(told=state.value), spans.c.span_id, sorted(span_ids)
    )


def untold_of(row: Row[Any]) -> list[str]:
    """The ids of the spans that a trace's row lists as stored only."""
    ids = row.untold
    return [ids[i : i + _ID_BYTES].hex() for i in range(0, len(ids), _ID_BYTES)] if ids else []


def with_more_untold(row: Row[Any] | None, span_ids: Iterable[str]) -> bytes:
    """What a trace's row lists once these spans are stored, too."""
    known = untold_of(row) if row is not None else []
    return b"".join([bytes.fromhex(span_id) for span_id in dict.fromkeys([*known, *span_ids])])


def note_untold(announced: Mapping[str, dict[str, Announced]], rows: Mapping[str, Row[Any]]) -> None:
    """Correct what the rows of spans say was announced by what the rows of their traces say. Both by trace."""
    for trace_id, row in rows.items():
        if row.untold and (states := announced.get(trace_id)):
            states |= {span_id: Announced.NOTHING for span_id in untold_of(row) if span_id in states}


def write_untold(connection: Connection, workspace_id: str, rows: Mapping[str, Row[Any]]) -> None:
    """Write to the rows of spans what the rows of their traces say: that nothing was announced of them."""
    untold = {trace_id: ids for trace_id, row in rows.items() if (ids := untold_of(row))}
    for trace_id, span_ids in untold.items():
        _mark(connection, workspace_id, trace_id, span_ids, Announced.NOTHING)
    _write_traces(connection, workspace_id, untold, {"untold": None})


def mark_assembled(
    connection: Connection,
    workspace_id: str,
    rows: Mapping[str, Row[Any]],
    withheld: Mapping[str, Mapping[str, Announced]],
    due: Mapping[str, int | None],
) -> None:
    """Note that traces were assembled with the spans that had only been stored, and what was announced of these.

    ``rows``: by trace, as they were. ``withheld``: by trace, of which spans only a start is announced, and which; if a
    trace has no entry, everything is. ``due``: when to assemble a trace again (None: never); the others stay as due as
    they are.
    """
    due_at: dict[int | None, list[str]] = {}
    kept: list[str] = []
    for trace_id, row in rows.items():
        if row.untold and (states := withheld.get(trace_id)) is not None:
            ids = [span_id for span_id in untold_of(row) if span_id not in states]
            _mark(connection, workspace_id, trace_id, ids, Announced.NOTHING)
        if trace_id in due:
            due_at.setdefault(due[trace_id], []).append(trace_id)
        elif row.untold:
            kept.append(trace_id)
    for due_ns, trace_ids in due_at.items():
        _write_traces(connection, workspace_id, trace_ids, {"untold": None, "due_ns": due_ns})
    _write_traces(connection, workspace_id, kept, {"untold": None})


def _write_traces(
    connection: Connection, workspace_id: str, trace_ids: Collection[str], values: Mapping[str, Any]
) -> None:
    change = update(traces).where(traces.c.workspace_id == workspace_id).values(values)
    change_each(connection, change, traces.c.trace_id, sorted(trace_ids))
