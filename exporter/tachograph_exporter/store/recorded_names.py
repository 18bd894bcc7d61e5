"""What the spans of executions recorded here say, noted in the index as their events are stored.

Their spans are made from rows when somebody reads them (see ``views.otlp_spans``), so the index is told what they will
say. Values that are other ones in every execution are left out; readers look them up in the executions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter
from typing import Any, Final, TypeAlias, cast

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    Failure,
    StepCost,
    StepFinished,
    StepRetrying,
    StepsFolded,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, Origin, StepRef, workspace_id
from tachograph.spans import semconv
from tachograph.spans.attributes import (
    add_cost,
    attempt_attributes,
    execution_attributes,
    execution_state_attributes,
    step_attributes,
    step_state_attributes,
)
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.merging import Rows
from tachograph_exporter.store.schema import ATTEMPT_ROWS, EXECUTION_ROWS, STEP_ROWS
from tachograph_exporter.store.span_index import (
    DAY_NS,
    RECORDED_SERVICE,
    Day,
    Notes,
    Source,
    SpanIndex,
    day_of,
)

UNIQUE: Final = frozenset({
    semconv.EXECUTION_ID, semconv.PIPELINE_RUN_ID, semconv.TASK_RUN_ID, semconv.STEP_WAIT, semconv.COST,
    semconv.TOKENS_IN, semconv.TOKENS_OUT,
})  # fmt: skip
"""Attributes whose values are not in the index."""
_ROOT: Final = 2
_INTERNAL: Final = 1
_RESOURCE: Final = {"service.name": RECORDED_SERVICE}
_MAX_ROWS: Final = 20_000
"""Rows that are remembered: a run of very many steps would fill more with rows that never come again."""
Place: TypeAlias = tuple[str, str]
"""An execution, and a step of it ("": the execution itself), by id."""
_ROWS: Final[Day] = ("", 0)
"""Stands for the days of rows."""


def _places(rows: Rows, *names: str) -> list[int]:
    columns = [column.name for column in rows.table.columns]
    return [columns.index(name) for name in names]


_STEP_ID, _STATUS, _ATTEMPT, _ERROR, _STARTED, _ATTEMPT_STARTED, _FINISHED = _places(
    STEP_ROWS, "step_id", "status", "attempt", "error_type", "started_ns", "attempt_started_ns", "finished_ns"
)
_OF_EXECUTION: Final = itemgetter(*_places(EXECUTION_ROWS, "workflow_id", "version", "status", "error_type"))
_OF_ATTEMPT: Final = itemgetter(*_places(ATTEMPT_ROWS, "step_id", "attempt", "status", "error_type"))
(_CREATED,) = _places(EXECUTION_ROWS, "created_ns")
(_BEGAN,) = _places(ATTEMPT_ROWS, "started_ns")


def _of_steps(batch: Batch) -> set[tuple[Any, ...]]:
    """All that says what the spans of steps say, but for times and ids, with their days."""
    # Nearly all rows are of this kind, so it is one pass without calls.
    return {
        (row[_STARTED] // DAY_NS, row[_STEP_ID], row[_STATUS], row[_ATTEMPT], row[_ERROR])
        for row in batch.steps.values()
        if row[_STARTED] is not None
    }


def _of_others(batch: Batch) -> Iterator[tuple[tuple[Any, ...], Place]]:
    """The same of executions, attempts, costs and steps that have not started, with where each is said."""
    for row in batch.steps.values():
        if row[_STARTED] is None:
            time_ns = row[_ATTEMPT_STARTED] or row[_FINISHED]
            # What waits has no span.
            if time_ns is not None:
                yield (time_ns // DAY_NS, row[_STEP_ID], row[_STATUS], row[_ATTEMPT], row[_ERROR]), row[:2]
    for row in batch.executions.values():
        yield (row[_CREATED] // DAY_NS, _OF_EXECUTION(row)), (row[0], "")
    for row in batch.attempts.values():
        yield (row[_BEGAN] // DAY_NS, _OF_ATTEMPT(row)), row[:2]
    for row in batch.reports:
        if row[4] == "cost":
            workspace = batch.refs[row[0]].workspace
            yield (row[5] // DAY_NS, workspace, row[6], bool(row[8]), bool(row[9] or row[10])), row[:2]


def _said_by(batch: Batch, new: AbstractSet[tuple[Any, ...]]) -> dict[tuple[Any, ...], Place]:
    """Where some of it is said: of all that say the same, the first."""
    places: dict[tuple[Any, ...], Place] = {}
    for row in batch.steps.values() if new else ():
        if row[_STARTED] is not None:
            said = (row[_STARTED] // DAY_NS, row[_STEP_ID], row[_STATUS], row[_ATTEMPT], row[_ERROR])
            if said in new:
                places.setdefault(said, row[:2])
    return places


class RecordedNames:
    """Notes what the spans of recorded executions will say."""

    def __init__(self, dialect: Dialect) -> None:
        self._index = SpanIndex(dialect, Source.RECORDED)
        self._workspaces: dict[str, str] = {}
        # Rows like these were noted; asked of every row, so without the detour over its events.
        self._rows: set[tuple[Any, ...]] = set()
        self._epoch = 0

    def note(self, connection: Connection, batch: Batch, events: Sequence[Event]) -> Notes | None:
        """Note what these events' spans will say, in the transaction that stores their rows; None: nothing new."""
        notes = self._index.begin()
        if self._epoch != self._index.epoch or len(self._rows) > _MAX_ROWS:
            self._rows, self._epoch = set(), self._index.epoch
        new = _said_by(batch, _of_steps(batch) - self._rows)
        for said, place in _of_others(batch):
            if said not in self._rows:
                new.setdefault(said, place)
        if not new:
            return None
        notes.shapes.update([(_ROWS, said) for said in new])
        # What many say is looked for in the events of one of them. Those of an execution are all of it.
        places, whole = set(new.values()), batch.ended_first
        for event in events:
            kind = type(event)
            note = _NOTES.get(kind)
            if note is None or (kind is StepStarted and event.step.span_id in whole):  # type: ignore[union-attr]
                continue
            ref = event.execution
            if (ref.execution_id, "") not in places:
                step = getattr(event, "step", None)
                if step is None or (ref.execution_id, step.step_id) not in places:
                    continue
            if ref.origin is not Origin.INGESTED:
                note(self, notes, event)
        if notes.pending:
            self._index.write(connection, notes)
        return notes

    def remember(self, notes: Notes) -> None:
        """The transaction is committed."""
        self._rows.update(row for day, row in notes.shapes if day is _ROWS)
        notes.shapes = {shape for shape in notes.shapes if shape[0] is not _ROWS}
        self._index.remember(notes)

    def _day(self, ref: ExecutionRef, time_ns: int) -> Day:
        identifier = self._workspaces.get(ref.workspace)
        if identifier is None:
            if len(self._workspaces) > 1_000:
                self._workspaces.clear()
            identifier = self._workspaces[ref.workspace] = workspace_id(ref.workspace)
        return day_of(identifier, time_ns)

    def _span(self, notes: Notes, day: Day, name: str, kind: int, attributes: Mapping[str, Any]) -> None:
        self._index.note_operation(notes, day, RECORDED_SERVICE, name, kind)
        self._index.note_resource(notes, day, RECORDED_SERVICE, _RESOURCE)
        shown = {key: None if key in UNIQUE else value for key, value in attributes.items()}
        self._index.note_attributes(notes, day, shown)

    def started(self, notes: Notes, event: ExecutionQueued | ExecutionStarted) -> None:
        ref = event.execution
        day = self._day(ref, event.time_ns)
        if self._index.is_new(notes, day, ("run", ref.workflow_id, ref.version)):
            self._span(notes, day, semconv.run_span_name(ref.workflow), _ROOT, execution_attributes(ref))

    def finished(self, notes: Notes, event: ExecutionFinished) -> None:
        ref, error = event.execution, _error(event.failure)
        day = self._day(ref, event.started_ns)
        if self._index.is_new(notes, day, ("ran", ref.workflow_id, ref.version, event.status, *error.values())):
            state = execution_state_attributes(event.status)
            attributes = {**execution_attributes(ref), **state, **error}
            self._span(notes, day, semconv.run_span_name(ref.workflow), _ROOT, attributes)

    def _is_new_step(self, notes: Notes, day: Day, step: StepRef, *shape: Any) -> bool:
        """Whether spans of such steps were not noted that day. Repetitions and instances differ in their ids alone."""
        ref = step.execution
        if self._index.is_new(notes, day, (ref.workflow_id, ref.version, step.name, step.step_type, *shape)):
            return True
        self._index.note_attributes(notes, day, {semconv.STEP_ID: step.step_id})
        return False

    def _step(self, notes: Notes, day: Day, step: StepRef, state: Mapping[str, Any]) -> None:
        attributes = {**step_attributes(execution_attributes(step.execution), step), **state}
        self._span(notes, day, step.name, _INTERNAL, attributes)

    def step_started(self, notes: Notes, event: StepStarted) -> None:
        step = event.step
        if event.attempt == 1 and step.folded_as is None:
            day = self._day(step.execution, event.time_ns)
            if self._is_new_step(notes, day, step, "started"):
                self._step(notes, day, step, {})

    def step_finished(self, notes: Notes, event: StepFinished) -> None:
        step, failure = event.step, event.failure
        if step.folded_as is not None:
            return
        attempt = event.attempt
        day = self._day(step.execution, event.started_ns)
        error = _error(failure)
        if self._is_new_step(notes, day, step, event.status._value_, attempt, event.between_attempts, *error.values()):
            self._step(notes, day, step, {**step_state_attributes(event.status, attempt), **error})
            if attempt > 1 and not event.between_attempts:
                self._attempt(notes, day, step, attempt, event.status.value, failure)

    def step_retrying(self, notes: Notes, event: StepRetrying) -> None:
        step = event.step
        day = self._day(step.execution, event.started_ns)
        shape = ("retry", event.attempt, event.status._value_, *_error(event.failure).values())
        if step.folded_as is None and self._is_new_step(notes, day, step, *shape):
            self._attempt(notes, day, step, event.attempt, event.status.value, event.failure)

    def _attempt(
        self, notes: Notes, day: Day, step: StepRef, attempt: int, status: str, failure: Failure | None
    ) -> None:
        attributes = {
            **attempt_attributes(execution_attributes(step.execution), step, attempt),
            semconv.STEP_STATUS: status,
            **_error(failure),
        }
        self._span(notes, day, semconv.attempt_span_name(step.name, attempt), _INTERNAL, attributes)

    def step_skipped(self, notes: Notes, event: StepSkipped) -> None:
        step = event.step
        day = self._day(step.execution, event.time_ns)
        if step.folded_as is None and self._is_new_step(notes, day, step, "skip", event.reason._value_):
            from_event = step_state_attributes(StepStatus.SKIPPED, 0, skip_reason=event.reason.value)
            self._step(notes, day, step, from_event)

    def folded(self, notes: Notes, event: StepsFolded) -> None:
        step, folded = event.step, event.folded
        day = self._day(step.execution, folded.started_ns)
        if self._is_new_step(notes, day, step, "folded", folded.status._value_):
            self._step(notes, day, step, step_state_attributes(folded.status, 1))

    def cost(self, notes: Notes, event: StepCost) -> None:
        step = event.step
        day = self._day(step.execution, event.time_ns)
        shape = ("cost", event.model, bool(event.usd), bool(event.tokens_in or event.tokens_out))
        if self._index.is_new(notes, day, shape):
            attributes: dict[str, Any] = {}
            add_cost(attributes, event.usd, event.tokens_in, event.tokens_out, event.model)
            shown = {key: None if key in UNIQUE else value for key, value in attributes.items()}
            self._index.note_attributes(notes, day, shown)


def _error(failure: Failure | None) -> dict[str, str]:
    return {semconv.ERROR_TYPE: failure.type} if failure is not None else {}


_NOTES: Final = cast(
    "dict[type[Event], Callable[[RecordedNames, Notes, Any], None]]",
    {
        ExecutionQueued: RecordedNames.started,
        ExecutionStarted: RecordedNames.started,
        ExecutionFinished: RecordedNames.finished,
        StepStarted: RecordedNames.step_started,
        StepRetrying: RecordedNames.step_retrying,
        StepFinished: RecordedNames.step_finished,
        StepSkipped: RecordedNames.step_skipped,
        StepsFolded: RecordedNames.folded,
        StepCost: RecordedNames.cost,
    },
)
