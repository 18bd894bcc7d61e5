"""Log lines of an execution: those that its steps wrote, and those that arrived by OTLP in its spans.

Each source is read in the same order, and a `Position` says how far a reader is in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection

from tachograph.events import OUTPUT_WRITER
from tachograph_exporter.store import log_rows, step_lines
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.log_rows import LogRow, Position
from tachograph_exporter.store.step_lines import LineRow, Place
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.store.trace_groups import traces_beside
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.logs import LogEntry

SEVERITIES: Final = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
"""The lowest severity number of each level, see OpenTelemetry's log data model."""
_ALIASES: Final = {"warning": 13, "critical": 21, "notice": 10}
_LINES: Final = "~"
"""Before a step's id, in the position of a line that a step wrote: at one moment, they come after all others."""
_CHUNK: Final = 1_000


class Line(NamedTuple):
    """A line and its place in the order of lines."""

    position: Position
    entry: LogEntry


class LineFilter(NamedTuple):
    """Which lines are asked for.

    ``names``: those of steps with these names or ids. ``severity``: of this severity or more. ``text``: those with this
    text in them, or in the exception or the logger's name; case does not matter. ``attempt``: of this attempt.
    """

    names: frozenset[str] = frozenset()
    severity: int = 0
    text: str = ""
    attempt: int | None = None

    def selects_step(self, step: StoredStep | None) -> bool:
        """Whether lines of a step are asked for; None: of the execution itself."""
        return not self.names or (step is not None and (step.name in self.names or step.step_id in self.names))

    def matches(self, entry: LogEntry) -> bool:
        """Whether a line of a step that is asked for is one, by its text and attempt."""
        if self.attempt is not None and entry.attempt != self.attempt:
            return False
        if not self.text:
            return True
        text = self.text.casefold()
        parts = (entry.message, entry.error_type, entry.error_message, entry.error_stack, entry.logger)
        return any(text in part.casefold() for part in parts if part)


class Owners(NamedTuple):
    """Which step the lines of a span belong to, by span id; None: to the execution itself."""

    steps: Mapping[str, StoredStep | None]
    attempts: Mapping[str, int]
    """The attempt that a span is, where that is known."""

    @classmethod
    def of(cls, run: StoredRun) -> Owners:
        """The owners of an execution's own spans."""
        # Loads OpenTelemetry, which most commands do without.
        from tachograph.spans.attributes import attempt_span_id

        steps: dict[str, StoredStep | None] = {run.execution.span_id: None}
        attempts: dict[str, int] = {}
        for step in run.steps:
            steps[step.span_id] = step
            if step.attempt == 1:
                attempts[step.span_id] = 1
            for attempt in range(1, step.attempt + 1) if step.attempt > 1 else ():
                span_id = attempt_span_id(step.span_id, attempt)
                steps[span_id], attempts[span_id] = step, attempt
        return cls(steps, attempts)


def level_of(severity: int) -> str:
    """The name of a severity number: ``error`` of 17 to 20; empty for 0."""
    return next((name for name, low in reversed(SEVERITIES.items()) if severity >= low), "")


def read_lines(
    connection: Connection,
    workspace_id: str,
    run: StoredRun,
    choice: LineFilter,
    limit: int,
    after: Position | None = None,
) -> list[Line]:
    """The first ``limit`` of the lines asked for after a position."""
    lines = [line for line in recorded_lines(run, after, choice) if choice.matches(line.entry)]
    lines += _first(_written_lines(connection, run, after, choice), choice, limit)
    owners = Owners.of(run)
    for trace_id in traces_beside(connection, workspace_id, run.execution.trace_id):
        arrived = _arrived_lines(connection, workspace_id, trace_id, owners, after, choice)
        lines += _first(arrived, choice, limit)
    lines.sort(key=lambda line: line.position)
    return lines[:limit]


def read_newest_lines(
    connection: Connection, workspace_id: str, run: StoredRun, choice: LineFilter, limit: int
) -> tuple[list[LogEntry], bool]:
    """(the last ``limit`` of the lines asked for in order, whether there are older ones)."""
    newest: list[LogEntry] = []
    after: Position | None = None
    are_older = False
    while page := read_lines(connection, workspace_id, run, choice, _CHUNK, after):
        newest += [line.entry for line in page]
        are_older = are_older or len(newest) > limit
        newest = newest[-limit:]
        after = page[-1].position
        if len(page) < _CHUNK:
            break
    return newest, are_older


def dropped_count(connection: Connection, workspace_id: str, run: StoredRun) -> int:
    """How many lines of an execution were not kept."""
    traces = traces_beside(connection, workspace_id, run.execution.trace_id)
    dropped = sum(log_rows.dropped_of(connection, workspace_id, trace_id) for trace_id in traces)
    if run.lines is None:
        return dropped + step_lines.dropped_of(connection, run.execution.execution_id)
    return dropped + step_lines.kept_and_dropped(run.lines)[1]


def _first(pages: Iterator[list[Line]], choice: LineFilter, limit: int) -> list[Line]:
    lines: list[Line] = []
    for page in pages:
        lines += [line for line in page if choice.matches(line.entry)]
        if len(lines) >= limit:
            break
    return lines[:limit]


def recorded_lines(run: StoredRun, after: Position | None, choice: LineFilter) -> list[Line]:
    """The lines that steps logged, and what their commands wrote, in order. Their text is not looked at."""
    steps = {step.step_id: step for step in run.steps}
    lines = []
    for step, key, level, message, time_ns, attempt in _logged(run, steps):
        severity = SEVERITIES.get(level.lower(), _ALIASES.get(level.lower(), 0))
        position = Position(time_ns, step.span_id if step is not None else "", key)
        if severity < choice.severity or not choice.selects_step(step) or (after is not None and position <= after):
            continue
        entry = LogEntry(
            at=rfc3339(time_ns), level=level, severity=severity, message=message,
            step_id=step.step_id if step is not None else None, step_name=step.name if step is not None else None,
            trace_id=run.execution.trace_id, span_id=position.span_id, source="recorded",
            attempt=attempt,
        )  # fmt: skip
        lines.append(Line(position, entry))
    lines.sort(key=lambda line: line.position)
    return lines


def _logged(
    run: StoredRun, steps: Mapping[str, StoredStep]
) -> Iterable[tuple[StoredStep | None, str, str, str, int, int | None]]:
    for row in run.reports:
        if row.kind == "log":
            key = f"{row.attempt:06d}{row.sequence:010d}"
            yield steps.get(row.step_id), key, row.unit, row.name, row.time_ns, row.attempt
    for step in run.steps:
        for i, log in enumerate(step.folded.logs if step.folded is not None else ()):
            yield step, f"{i:016d}", log.level, log.message, log.time_ns, None


def _written_lines(
    connection: Connection, run: StoredRun, after: Position | None, choice: LineFilter
) -> Iterator[list[Line]]:
    """The lines that code wrote while it did a step's work, in order."""
    steps = {step.step_id: step for step in run.steps if choice.selects_step(step)}
    chosen = list(steps) if choice.names else None
    if run.lines is not None:
        kept, _ = step_lines.kept_and_dropped(run.lines)
        page = [line for line in (_written(run, row, steps) for row in kept if row.writer != OUTPUT_WRITER) if line]
        yield sorted(
            line for line in page
            if line.entry.severity >= choice.severity and (after is None or line.position > after)
        )  # fmt: skip
        return
    at = _place(after)
    while True:
        rows = step_lines.page(
            connection, run.execution.execution_id, chosen, after=at, min_severity=choice.severity, limit=_CHUNK
        )
        yield [line for line in (_written(run, row, steps) for row in rows) if line]
        if len(rows) < _CHUNK:
            return
        at = rows[-1].place


def _written(run: StoredRun, row: LineRow, steps: Mapping[str, StoredStep]) -> Line | None:
    step = steps.get(row.step_id)
    if step is None:
        return None
    key = f"{row.attempt:010d}/{row.writer}/{row.number:016d}"
    entry = LogEntry(
        at=rfc3339(row.time_ns), level=level_of(row.severity), severity=row.severity, message=row.message,
        step_id=step.step_id, step_name=step.name, trace_id=run.execution.trace_id, span_id=step.span_id,
        source="recorded", attempt=row.attempt, logger=row.logger, error_type=row.error_type,
        error_message=row.error_message, error_stack=row.error_stack,
    )  # fmt: skip
    return Line(Position(row.time_ns, f"{_LINES}{row.step_id}", key), entry)


def _place(after: Position | None) -> Place | None:
    """Where the lines that steps wrote begin after a position. A wrong one begins at its moment."""
    if after is None:
        return None
    attempt, _, rest = after.id.partition("/")
    writer, _, number = rest.rpartition("/")
    if after.span_id.startswith(_LINES) and attempt.isdecimal() and number.isdecimal():
        return Place(after.time_ns, after.span_id.removeprefix(_LINES), int(attempt[:10]), writer, int(number[:16]))
    return Place(after.time_ns, "", -1, "", 0)


def _arrived_lines(
    connection: Connection,
    workspace_id: str,
    trace_id: str,
    owners: Owners,
    after: Position | None,
    choice: LineFilter,
) -> Iterator[list[Line]]:
    logged = log_rows.span_ids_of(connection, workspace_id, trace_id)
    nearest = log_rows.ancestors_of(connection, workspace_id, trace_id, logged, owners.steps)
    steps = {span_id: owners.steps[at] for span_id, at in nearest.items()}
    attempts = {span_id: owners.attempts[at] for span_id, at in nearest.items() if at in owners.attempts}
    chosen = [span_id for span_id in logged if choice.selects_step(steps.get(span_id))]
    if after is not None and after.span_id.startswith(_LINES):
        # All that arrived of that moment came before.
        after = Position(after.time_ns + 1, "", "")
    while True:
        rows = log_rows.page(
            connection, workspace_id, trace_id, chosen, after=after, min_severity=choice.severity, limit=_CHUNK
        )
        lines = arrived_lines(rows, Owners(steps, attempts))
        yield lines
        if len(rows) < _CHUNK:
            return
        after = lines[-1].position


def arrived_lines(rows: Sequence[LogRow], owners: Owners) -> list[Line]:
    """The lines that arrived by OTLP. ``owners``: the step of each span, as far as it has one."""
    return [
        Line(
            Position(row.time_ns, row.span_id, row.id),
            _entry(row, owners.steps.get(row.span_id), owners.attempts.get(row.span_id)),
        )
        for row in rows
    ]


def _entry(row: LogRow, step: StoredStep | None, attempt: int | None) -> LogEntry:
    attributes: Any = msgspec.Raw(row.attributes.encode()) if row.attributes is not None else None
    return LogEntry(
        at=rfc3339(row.time_ns), level=level_of(row.severity), severity=row.severity, message=row.body,
        step_id=step.step_id if step is not None else None, step_name=step.name if step is not None else None,
        trace_id=row.trace_id, span_id=row.span_id, source="otlp", attempt=attempt, service=row.service,
        event_name=row.event_name, attributes=attributes, error_type=row.error_type, error_message=row.error_message,
        error_stack=row.error_stack,
    )  # fmt: skip
