"""The stored executions of traces, kept up to date with the spans that have arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select

from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, ExecutionStatus, StepStarted
from tachograph.reported_process import ReportedProcess
from tachograph_exporter.ingest.announcements import (
    Announced,
    ends_otherwise,
    keys_of,
    resumption,
    start_key,
    unannounced,
)
from tachograph_exporter.ingest.assembly.executions import AssembledExecution, EventKey, assemble
from tachograph_exporter.ingest.lineage.vocabulary import KEY, SCOPE
from tachograph_exporter.ingest.rules import Kind, Role, Rulebook
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.store import locking
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.merging import INGESTED_PROCESS
from tachograph_exporter.store.schema import workflow_executions
from tachograph_exporter.store.writer import StoreWriter

QUIET_SECONDS: Final = 10.0
"""How long after its last span a trace counts as quiet: if its root is missing, it is then assembled again."""
PARENT_SECONDS: Final = 3_600.0
"""How long after its last span what may be a step of something else is a run of its own, though the span above it is of
the same process: that one may last for long, and comes when it has ended."""
ENDED_SECONDS: Final = 300.0
"""How long after its last span an execution has ended whose engine exports no span for it: with its last step."""
_CHUNK: Final = 500
_MAX_EVENTS: Final = 5_000

_executions = workflow_executions.c
_COLUMNS: Final = [
    _executions[name] for name in ("execution_id", "workspace_id", "workflow_id", "trace_id", "process", "status")
]
_OF_TRACES: Final = select(*_COLUMNS).where(_executions.trace_id.in_(bindparam("traces", expanding=True)))
_OF_IDS: Final = select(*_COLUMNS).where(_executions.execution_id.in_(bindparam("ids", expanding=True)))


class Reading(NamedTuple):
    """What is known of a trace, or of several that are assembled together.

    ``announced``: what listeners have received of its spans, by span id; ``earlier``: the spans that they have received
    everything of, as they were then; ``started``: those of which they know that an execution began with them, as if
    they were open. ``is_quiet``: no more spans are expected; ``is_old``: not even those of what lasts for long.
    ``traces``: all of them, where there are several.
    """

    spans: Sequence[SpanRecord]
    announced: Mapping[str, Announced] = {}
    earlier: Sequence[SpanRecord] = ()
    is_quiet: bool = False
    traces: tuple[str, ...] = ()
    started: Sequence[SpanRecord] = ()
    is_old: bool = False

    def may_be_a_step(self, execution: AssembledExecution) -> bool:
        """Whether a span may still arrive that makes an execution a step of something else."""
        return execution.may_be_a_step and not (self.is_old if execution.is_parent_near else self.is_quiet)


class Update(NamedTuple):
    """The result of bringing traces' executions up to date.

    ``new``: events that listeners have not received. ``due``: when to assemble a trace again, by the key of its
    reading. ``withheld``: by this key, where not everything is announced, what is of which spans.
    """

    new: list[Event]
    due: Mapping[str, int]
    withheld: Mapping[str, Mapping[str, Announced]]


class TraceExecutions:
    """Assembles executions from spans and stores them with ``writer``; ``book`` says what a span is."""

    def __init__(self, writer: StoreWriter, book: Rulebook) -> None:
        self._writer = writer
        self._book = book

    def update(
        self,
        connection: Connection,
        workspace_id: str,
        workspace: str,
        readings: Mapping[str, Reading],
        now: int,
        emptied: AbstractSet[str] = frozenset(),
    ) -> Update:
        """Replace the stored executions of these traces, and log the events that are new.

        ``readings``: by trace id; those of several traces by one of them. ``emptied``: traces whose spans have moved
        into others; their executions are removed.
        """
        if not readings and not emptied:
            return Update([], {}, {})
        assembled = {
            trace_id: assemble(workspace, reading.spans, now, self._book, is_quiet=reading.is_quiet)
            for trace_id, reading in readings.items()
        }
        ids = [
            execution.execution.execution_id
            for executions in assembled.values()
            for execution in executions
            if _may_be_given(execution)
        ]
        if ids:
            # Another trace may have one of the same id.
            locking.lock(connection)
        traces_of = {key: reading.traces or (key,) for key, reading in readings.items()}
        own_traces = {trace_id for traces in traces_of.values() for trace_id in traces} | emptied
        rows = _stored_executions(connection, own_traces, ids)
        avoided = self._avoid_taken_ids(workspace_id, workspace, readings, now, assembled, rows, own_traces, emptied)
        # Whoever ran an execution recorded it in this very database, and knows more than its spans say.
        recorded = {row.execution_id for row in rows.values() if row.process != INGESTED_PROCESS}
        recorded_traces = {row.trace_id for row in rows.values() if row.execution_id in recorded}
        # The engine's own hooks told of these.
        reported = [
            (row.trace_id, told.engine)
            for row in rows.values()
            if row.process is not None and (told := ReportedProcess.parse(row.process)) is not None and told.engine
        ]
        events: list[Event] = []
        new: list[Event] = []
        due: dict[str, int] = {}
        ids_now: set[str] = set()
        withheld: dict[str, dict[str, Announced]] = {}
        unsettled: set[str] = set()
        for trace_id, executions in assembled.items():
            reading = readings[trace_id]
            told_by = {engine for trace, engine in reported if trace in traces_of[trace_id]}
            is_recorded = not recorded_traces.isdisjoint(traces_of[trace_id])
            begun = {span_id for span_id, state in reading.announced.items() if state is Announced.BEGUN}
            starts = begun | {span_id for span_id, state in reading.announced.items() if state is Announced.START}
            avoid = avoided.get(trace_id, frozenset())
            announced, ends = self._announced(workspace, reading, executions, now, avoid)
            open_ids: set[str] = set()
            unsure: set[str] = set()
            # Listeners hear nothing of what may turn out to be a step of something else.
            uncertain = [execution for execution in executions if reading.may_be_a_step(execution)]
            is_uncertain = bool(uncertain)
            if is_uncertain:
                withheld[trace_id] = {}
                is_near = any(execution.is_parent_near for execution in uncertain)
                # Nothing is put off for longer: then it is looked at again.
                due[trace_id] = now + round((ENDED_SECONDS if is_near else QUIET_SECONDS) * NS)
            for execution in executions:
                execution_id = execution.execution.execution_id
                is_stray = execution.root is None and not execution.is_named and is_recorded
                if execution_id in recorded or is_stray or (told_by and self._is_of(execution, told_by)):
                    continue
                ids_now.add(execution_id)
                events += execution.events
                if is_uncertain:
                    unsettled.add(execution_id)
                    continue
                is_withheld = execution.is_named and execution.may_change and not reading.is_quiet
                if is_withheld or not execution.is_named:
                    open_ids.add(execution_id)
                first = execution.root if execution.root is not None else execution.spans[0]
                if starts and any(span.span_id in starts for span in (first, *execution.spans)):
                    announced.add(start_key(execution_id))
                announced.update([execution.starts[span_id] for span_id in begun & execution.starts.keys()])
                if is_withheld:
                    states = withheld.setdefault(trace_id, {})
                    states[first.span_id] = Announced.START
                    now_begun = {i for i in execution.running if execution.starts[i] not in announced}
                    states |= dict.fromkeys(begun & execution.starts.keys() | now_begun, Announced.BEGUN)
                if is_withheld or not (execution.is_named or reading.is_quiet):
                    unsettled.add(execution_id)
                # What listeners have only heard the start of has not ended for them, though it is stored.
                is_told = _is_told(execution, reading.announced)
                was_over = _has_ended(rows.get(execution_id))
                has_ended = is_told and not execution.may_change and was_over
                end = ends.get(execution_id)
                if was_over and execution.is_named and (end is not None or execution.root is None):
                    new += resumption(execution)
                if end is not None and not is_withheld and ends_otherwise(execution, end):
                    announced.discard((ExecutionFinished, execution_id, 0))
                    has_ended = False
                new += unannounced(execution, announced, is_withheld=is_withheld, has_ended=has_ended)
                if execution_id not in open_ids:
                    unsure.update([last.span_id for last in execution.unsure.values()])
                if execution_id in unsettled and execution.is_finished:
                    due[trace_id] = now + round(QUIET_SECONDS * NS)
                elif execution.root is None and not execution.is_finished and not reading.is_quiet:
                    due[trace_id] = now + round((ENDED_SECONDS if execution.is_named else QUIET_SECONDS) * NS)
            if (open_ids or unsure) and not is_uncertain:
                states = _states(reading.spans, executions, open_ids, announced) | withheld.get(trace_id, {})
                withheld[trace_id] = states | dict.fromkeys(unsure, Announced.BEGUN)
        ours = {
            row.execution_id
            for row in rows.values()
            if row.workspace_id == workspace_id and row.trace_id in own_traces and row.process == INGESTED_PROCESS
        }
        # Executions that the traces seemed to be when fewer of their spans had arrived.
        outdated = ours - ids_now
        if events or outdated:
            workflow_ids = {rows[execution_id].workflow_id for execution_id in ours}
            workflow_ids |= {event.execution.workflow_id for event in events}
            locking.claim(connection, Claim.WORKFLOW, workflow_ids)
        gone: AbstractSet[str] = outdated
        for some in _parts(events):
            self._writer.replace(connection, some, gone, known=ours, unsettled=unsettled)
            gone = frozenset()
        if gone:
            self._writer.replace(connection, (), gone, known=ours, unsettled=unsettled)
        for i in range(0, len(new), _MAX_EVENTS):
            self._writer.append_log(connection, new[i : i + _MAX_EVENTS])
        return Update(new, due, withheld)

    def _announced(
        self,
        workspace: str,
        reading: Reading,
        executions: Sequence[AssembledExecution],
        now: int,
        avoid: frozenset[str],
    ) -> tuple[set[EventKey], Mapping[str, ExecutionFinished]]:
        """The keys of what listeners have received of a trace, of which ``executions`` are those of now.

        And the ends that they have received, by the execution's id.
        """
        if not reading.earlier:
            return set(), {}
        begun = {
            execution.root.span_id
            for execution in executions
            if execution.root is not None and execution.root.span_id not in execution.starts
        }
        roots = [span for span in reading.started if span.span_id in begun and not self._is_step(span)]
        inner = {span_id for span_id, state in reading.announced.items() if state is Announced.INNER}
        inner.update([root.span_id for root in roots])
        known = before = assemble(workspace, reading.earlier, now, self._book, avoid=avoid)
        if roots:
            known = assemble(workspace, [*reading.earlier, *roots], now, self._book, avoid=avoid)
        ended = [event for run in before if run.is_named and isinstance(event := run.events[-1], ExecutionFinished)]
        ends = {end.execution.execution_id: end for end in ended}
        # That one has begun may be what says that another one has ended, which nobody was told of.
        keys = {key for key in keys_of(known, inner) if key[0] is not ExecutionFinished or _run_of(key) in ends}
        return keys, {key: end for key, end in ends.items() if end.status is not ExecutionStatus.LOST}

    def _is_step(self, span: SpanRecord) -> bool:
        """Whether a span that begins an execution may be a step of it, too."""
        rule = self._book.find(span)
        return span.kind == Kind.PRODUCER if rule is None else rule.role is not Role.EXECUTION

    def _is_of(self, execution: AssembledExecution, engines: AbstractSet[str]) -> bool:
        """Whether one of these engines ran a part of an execution."""
        first = [execution.root] if execution.root is not None else []
        rules = [self._book.find(span) for span in (*first, *execution.spans)]
        # Of what OpenLineage tells, the key of a run says whose it is.
        keys = [str(span.attributes.get(KEY) or "") for span in (*first, *execution.spans)]
        return any(rule is not None and rule.engine in engines for rule in rules) or any(
            key.partition(":")[0] in engines for key in keys
        )

    def faults_of(self, workspace: str, spans: Mapping[str, Sequence[SpanRecord]], now: int) -> dict[str, Exception]:
        """Those of these traces that cannot be assembled even by themselves, with the reason."""
        faults: dict[str, Exception] = {}
        for trace_id, own in spans.items():
            try:
                assemble(workspace, own, now, self._book)
            except Exception as error:
                faults[trace_id] = error
        return faults

    def _avoid_taken_ids(
        self,
        workspace_id: str,
        workspace: str,
        readings: Mapping[str, Reading],
        now: int,
        assembled: dict[str, list[AssembledExecution]],
        rows: Mapping[str, Row[Any]],
        own_traces: AbstractSet[str],
        emptied: AbstractSet[str],
    ) -> dict[str, frozenset[str]]:
        """Assemble traces again whose executions have ids of another workspace or trace; those ids, by trace id."""
        taken = {
            row.execution_id
            for row in rows.values()
            if row.workspace_id != workspace_id or row.trace_id not in own_traces
        }
        avoided: dict[str, frozenset[str]] = {}
        for trace_id, executions in assembled.items():
            own = readings[trace_id].traces or (trace_id,)
            ids = frozenset(
                execution_id
                for execution_id in (execution.execution.execution_id for execution in executions)
                if execution_id in taken
                or (
                    (row := rows.get(execution_id)) is not None
                    and row.trace_id not in own
                    and row.trace_id not in emptied
                )
            )
            if ids:
                avoided[trace_id] = ids
                reading = readings[trace_id]
                assembled[trace_id] = assemble(
                    workspace, reading.spans, now, self._book, avoid=ids, is_quiet=reading.is_quiet
                )
        return avoided


def _states(
    spans: Sequence[SpanRecord],
    executions: Sequence[AssembledExecution],
    open_ids: AbstractSet[str],
    announced: AbstractSet[EventKey],
) -> dict[str, Announced]:
    """What is announced of a trace's spans: everything, but of those of some executions nothing.

    ``open_ids``: the ids of these. ``announced``: the keys of what was before.
    """
    untold = {
        span.span_id
        for execution in executions
        if execution.execution.execution_id in open_ids
        for span in (*execution.spans, *([execution.root] if execution.root is not None else ()))
    }
    states = {span.span_id: Announced.EVERYTHING for span in spans if span.span_id not in untold}
    for execution in executions:
        root, around = execution.root, execution.execution.parent_execution_id
        if root is None or around not in open_ids or (StepStarted, root.span_id, 1) in announced:
            continue
        if root.span_id in states:
            states[root.span_id] = Announced.INNER
    return states


def _run_of(key: EventKey) -> Any:
    """The id of the execution whose end has this key; what is lost has another."""
    return key[1][1] if isinstance(key[1], tuple) else key[1]


def _parts(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """Events, those of an execution together, in parts of which the rows may be in memory at the same time."""
    start = 0
    for i in range(1, len(events) + 1):
        is_last = i == len(events)
        if is_last or (i - start >= _MAX_EVENTS and events[i].execution != events[i - 1].execution):
            yield events[start:i]
            start = i


def _may_be_given(execution: AssembledExecution) -> bool:
    """Whether its id may come from an engine, and be any execution's. Ours derive from the trace (UUID version 5)."""
    first = execution.root if execution.root is not None else execution.spans[0]
    return execution.execution.execution_id[14] != "5" or first.scope == SCOPE or execution.has_id_of_run


def _is_told(execution: AssembledExecution, announced: Mapping[str, Announced]) -> bool:
    """Whether listeners have received everything of an execution, when its newest span had not arrived."""
    if execution.root is not None and (state := announced.get(execution.root.span_id)) is not None:
        return state in (Announced.EVERYTHING, Announced.INNER)
    return any(announced.get(span.span_id) is Announced.EVERYTHING for span in execution.spans)


def _has_ended(row: Row[Any] | None) -> bool:
    return row is not None and ExecutionStatus(row.status).is_terminal and row.status != ExecutionStatus.LOST


def _stored_executions(connection: Connection, trace_ids: Iterable[str], ids: Sequence[str]) -> dict[str, Row[Any]]:
    """The stored executions of these traces, and those with these ids."""
    rows: dict[str, Row[Any]] = {}
    trace_list = list(trace_ids)
    for i in range(0, len(trace_list), _CHUNK):
        batch = connection.execute(_OF_TRACES, {"traces": trace_list[i : i + _CHUNK]})
        rows |= {row.execution_id: row for row in batch}
    given = [execution_id for execution_id in ids if execution_id not in rows]
    for i in range(0, len(given), _CHUNK):
        batch = connection.execute(_OF_IDS, {"ids": given[i : i + _CHUNK]})
        rows |= {row.execution_id: row for row in batch}
    return rows
