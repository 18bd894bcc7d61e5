"""Which events of ingested executions listeners have received, remembered by span.

Listeners receive an event of an ingested execution once, however often its trace is assembled: as soon as its span has
arrived and the execution's workflow is known. When a step may still get more spans (further attempts, or work that
outlasts the span above it), its events are withheld until the execution has ended and its trace has been quiet; until
then only the starts of the execution and of steps that run are announced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import Final

from sqlalchemy import Connection, update

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, Heartbeat
from tachograph_exporter.ingest.assembly.executions import AssembledExecution, EventKey
from tachograph_exporter.store.schema import spans

_CHUNK: Final = 500


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
    ordered = sorted(span_ids)
    for i in range(0, len(ordered), _CHUNK):
        statement = update(spans).where(
            spans.c.workspace_id == workspace_id,
            spans.c.trace_id == trace_id,
            spans.c.span_id.in_(ordered[i : i + _CHUNK]),
        )
        connection.execute(statement.values(told=state.value))
