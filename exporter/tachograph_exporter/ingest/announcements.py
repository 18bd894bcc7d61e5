"""Which events of ingested executions listeners have received, remembered by span.

Listeners receive an event of an ingested execution once, however often its trace is assembled: as soon as its span has
arrived and the execution's workflow is known. When a step may still get more spans (further attempts, or work that
outlasts the span above it), its events are withheld until the execution has ended and its trace has been quiet; until
then only the starts of the execution and of steps that run are announced. If it goes on after all, that is announced
(`resumption`), and then its end again (`ends_otherwise`).

What was announced is found by assembling the spans as they were then (`as_announced`): whatever assembles a trace notes
of each of its spans what has been announced now (`changed_states`), of those that had arrived before, too.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, update

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, Heartbeat, StepCost, StepFinished
from tachograph_exporter.ingest.assembly.executions import AssembledExecution, EventKey
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.store.keyed import change_each
from tachograph_exporter.store.schema import spans, traces

_ID_BYTES: Final = 8
_OF_ENDS: Final = (
    "time_ns", "status", "step_count", "completed_step_count", "failed_step_count", "skipped_step_count", "work_ns",
)  # fmt: skip
"""What the end of an execution says of it."""
_OF_ENDED: Final = (StepFinished, StepCost)
"""What the end of the last attempt tells."""


class Announced(IntEnum):
    """What listeners have received of a span; the column ``told`` of the spans' table."""

    NOTHING = 0
    EVERYTHING = 1
    START = 2
    """Only that the execution which begins with this span has started."""
    BEGUN = 3
    """Only that, and that the attempt which this span is has started."""
    OPEN = 4
    """Everything that it told before it ended, and nothing since."""
    INNER = 5
    """Everything of the execution which begins with this span, and nothing of the step that it is of another one."""


_BY_KNOWLEDGE: Final = {
    state: place
    for place, state in enumerate(
        (Announced.NOTHING, Announced.START, Announced.BEGUN, Announced.INNER, Announced.OPEN, Announced.EVERYTHING)
    )
}
"""The least that listeners know comes first."""


def as_announced(told: Iterable[SpanRecord], states: Mapping[str, Announced]) -> list[SpanRecord]:
    """Those of a trace's spans that were announced, as they were then. ``states``: what was, by span id."""
    known = []
    for span in told:
        state = states.get(span.span_id)
        if state is Announced.EVERYTHING or state is Announced.INNER:
            known.append(span)
        elif state is Announced.OPEN:
            known.append(as_open(span))
    return known


def as_open(span: SpanRecord) -> SpanRecord:
    """A span as it was before it ended."""
    return msgspec.structs.replace(span, end_ns=0, status_code=0, status_message="", exception=None, events=())


def changed_states(
    before: Mapping[str, Announced], now: Mapping[str, Announced] | None, untold: Container[str] = ()
) -> dict[str, Announced]:
    """What is announced of the spans of a trace that has been assembled, where their rows say otherwise.

    ``before``: what the rows say, by span id; ``untold``: those of them that were stored only. ``now``: what is
    announced of which spans (see `Update.withheld`); None: everything is.
    """
    changed: dict[str, Announced] = {}
    for span_id, state in before.items():
        known = Announced.EVERYTHING if now is None else now.get(span_id, Announced.NOTHING)
        if state is Announced.EVERYTHING and span_id in untold:
            # Its row says nothing.
            if known is not state:
                changed[span_id] = known
        elif _BY_KNOWLEDGE[known] > _BY_KNOWLEDGE[state] or (
            # What is around its execution has arrived since, and makes it a step, too.
            (known, state) == (Announced.INNER, Announced.EVERYTHING)
        ):
            changed[span_id] = known
    return changed


def when_rewritten(before: Announced) -> Announced:
    """What is announced of a span that has arrived again, and that its trace has not been assembled with since."""
    if before is Announced.EVERYTHING:
        return Announced.OPEN
    return Announced.START if before is Announced.INNER else before


def when_assembled(now: Announced, before: Announced) -> Announced:
    """What is announced of a span that has arrived again: ``now``, by its trace, and what was ``before``."""
    if now in (Announced.EVERYTHING, Announced.INNER):
        return now
    return Announced.OPEN if before in (Announced.EVERYTHING, Announced.OPEN) else now


def keys_of(executions: Collection[AssembledExecution], inner: AbstractSet[str] = frozenset()) -> set[EventKey]:
    """The keys of all events of executions whose workflow is known.

    ``inner``: spans that begin an execution, and tell nothing of the step that this is of another one.
    """
    keys = {key for execution in executions if execution.is_named for key, _ in execution.keyed()}
    return {key for key in keys if key[1] not in inner} if inner else keys


def start_key(execution_id: str) -> EventKey:
    """The key of an execution's start."""
    return (ExecutionStarted, execution_id, 0)


def unannounced(
    execution: AssembledExecution, announced: AbstractSet[EventKey], *, is_withheld: bool, has_ended: bool
) -> list[Event]:
    """The events of an execution to announce now.

    That a step has failed which may be tried again is not among them. ``announced``: keys of the events announced
    before. ``is_withheld``: only the starts of the execution and of attempts that run may be announced. ``has_ended``:
    the end was announced before.
    """
    if not execution.is_named:
        return []
    begun = {execution.starts[span_id] for span_id in execution.running} if is_withheld else ()
    unsure = execution.unsure
    return [
        event
        for key, event in execution.keyed()
        if key not in announced
        and key[0] is not Heartbeat
        and not (key[0] in _OF_ENDED and key[1] in unsure and key[2] == unsure[key[1]].attempt)
        and not (is_withheld and key[0] is not ExecutionStarted and key not in begun)
        and not (has_ended and key[0] is ExecutionFinished)
    ]


def resumption(execution: AssembledExecution) -> list[Event]:
    """That an execution goes on whose end was announced, if it does."""
    if execution.is_finished:
        return []
    started = next(event for event in execution.events if isinstance(event, ExecutionStarted))
    return [msgspec.structs.replace(started, is_resumed=True)]


def ends_otherwise(execution: AssembledExecution, end: ExecutionFinished) -> bool:
    """Whether an execution has ended otherwise than it was announced to have.

    Only of one that ends with its last step, more than its outcome counts.
    """
    now = execution.events[-1]
    if not isinstance(now, ExecutionFinished):
        return False
    return any(getattr(now, name) != getattr(end, name) for name in (_OF_ENDS if execution.is_lasting else ("status",)))


def mark_announced(connection: Connection, workspace_id: str, trace_id: str, states: Mapping[str, Announced]) -> None:
    """Write what is announced of these spans of a trace."""
    is_of_trace = (spans.c.workspace_id == workspace_id) & (spans.c.trace_id == trace_id)
    for state in sorted(set(states.values())):
        ids = sorted([span_id for span_id, announced in states.items() if announced is state])
        change_each(connection, update(spans).where(is_of_trace).values(told=state.value), spans.c.span_id, ids)


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
            new = [i for i in untold_of(row) if states.get(i) is Announced.EVERYTHING]
            states |= dict.fromkeys(new, Announced.NOTHING)


def write_untold(connection: Connection, workspace_id: str, rows: Mapping[str, Row[Any]]) -> None:
    """Write to the rows of spans what the rows of their traces say: that nothing was announced of those stored only.

    The row of a span that had been assembled, and has arrived again since, says itself what is known of it.
    """
    untold = {trace_id: ids for trace_id, row in rows.items() if (ids := untold_of(row))}
    is_new = spans.c.told == Announced.EVERYTHING.value
    for trace_id, span_ids in untold.items():
        is_of_trace = (spans.c.workspace_id == workspace_id) & (spans.c.trace_id == trace_id)
        change = update(spans).where(is_of_trace, is_new).values(told=Announced.NOTHING.value)
        change_each(connection, change, spans.c.span_id, sorted(span_ids))
    _write_traces(connection, workspace_id, untold, {"untold": None})


def mark_assembled(
    connection: Connection,
    workspace_id: str,
    rows: Mapping[str, Row[Any]],
    due: Mapping[str, int | None],
) -> None:
    """Note that traces were assembled with the spans that had only been stored.

    ``rows``: by trace, as they were. ``due``: when to assemble a trace again (None: never); the others stay as due as
    they are.
    """
    due_at: dict[int | None, list[str]] = {}
    kept: list[str] = []
    for trace_id, row in rows.items():
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
