"""Log lines of an execution: those that its steps recorded, and those that arrived by OTLP in its spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection

from tachograph_exporter.store import log_rows
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.log_rows import LogRow, Position
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.store.trace_groups import traces_beside
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.logs import LogEntry

SEVERITIES: Final = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
"""The lowest severity number of each level, see OpenTelemetry's log data model."""
_ALIASES: Final = {"warning": 13, "critical": 21, "notice": 10}


class Line(NamedTuple):
    """A line and its place in the order of lines."""

    position: Position
    entry: LogEntry


class Owners(NamedTuple):
    """Which step the lines of a span belong to, by span id; None: to the execution itself."""

    steps: Mapping[str, StoredStep | None]

    @classmethod
    def of(cls, run: StoredRun) -> Owners:
        """The owners of an execution's own spans."""
        # Loads OpenTelemetry, which most commands do without.
        from tachograph.spans.attributes import attempt_span_id

        steps: dict[str, StoredStep | None] = {run.execution.span_id: None}
        for step in run.steps:
            steps[step.span_id] = step
            for attempt in range(1, step.attempt + 1) if step.attempt > 1 else ():
                steps[attempt_span_id(step.span_id, attempt)] = step
        return cls(steps)


def level_of(severity: int) -> str:
    """The name of a severity number: ``error`` of 17 to 20; empty for 0."""
    return next((name for name, low in reversed(SEVERITIES.items()) if severity >= low), "")


def is_selected(step: StoredStep | None, names: frozenset[str]) -> bool:
    """Whether lines of a step are asked for, by its name or id; without names, all are."""
    return not names or (step is not None and (step.name in names or step.step_id in names))


def read_lines(
    connection: Connection,
    workspace_id: str,
    run: StoredRun,
    names: frozenset[str],
    severity: int,
    limit: int,
    after: Position | None = None,
) -> list[Line]:
    """The first ``limit`` lines of an execution after a position, those that steps recorded and those by OTLP.

    ``names``: only of steps with these names or ids. ``severity``: only of this severity or more.
    """
    owners = Owners.of(run).steps
    lines = list(recorded_lines(run, names, after, severity))
    for trace_id in traces_beside(connection, workspace_id, run.execution.trace_id):
        logged = log_rows.span_ids_of(connection, workspace_id, trace_id)
        nearest = log_rows.ancestors_of(connection, workspace_id, trace_id, logged, owners)
        steps = {span_id: owners[at] for span_id, at in nearest.items()}
        chosen = [span_id for span_id in logged if is_selected(steps.get(span_id), names)]
        rows = log_rows.page(
            connection, workspace_id, trace_id, chosen, after=after, min_severity=severity, limit=limit
        )
        lines += arrived_lines(rows, steps)
    lines.sort(key=lambda line: line.position)
    return lines[:limit]


_CHUNK: Final = 1_000


def read_newest_lines(
    connection: Connection, workspace_id: str, run: StoredRun, names: frozenset[str], severity: int, limit: int
) -> tuple[list[LogEntry], bool]:
    """(the last ``limit`` lines of an execution in order, whether there are older ones). See `read_lines`."""
    newest: list[LogEntry] = []
    after: Position | None = None
    are_older = False
    while page := read_lines(connection, workspace_id, run, names, severity, _CHUNK, after):
        newest += [line.entry for line in page]
        are_older = are_older or len(newest) > limit
        newest = newest[-limit:]
        after = page[-1].position
        if len(page) < _CHUNK:
            break
    return newest, are_older


def recorded_lines(run: StoredRun, names: frozenset[str], after: Position | None, min_severity: int) -> list[Line]:
    """The lines that steps logged, in order."""
    steps = {step.step_id: step for step in run.steps}
    lines = []
    for step, key, level, message, time_ns, attempt in _logged(run, steps):
        severity = SEVERITIES.get(level.lower(), _ALIASES.get(level.lower(), 0))
        position = Position(time_ns, step.span_id if step is not None else "", key)
        if severity < min_severity or not is_selected(step, names) or (after is not None and position <= after):
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
            yield steps.get(row.step_id), f"{row.sequence:010d}", row.unit, row.name, row.time_ns, row.attempt
    for step in run.steps:
        for i, log in enumerate(step.folded.logs if step.folded is not None else ()):
            yield step, f"{i:010d}", log.level, log.message, log.time_ns, None


def arrived_lines(rows: Sequence[LogRow], owners: Mapping[str, StoredStep | None]) -> list[Line]:
    """The lines that arrived by OTLP. ``owners``: the step of each span, as far as it has one."""
    return [Line(Position(row.time_ns, row.span_id, row.id), _entry(row, owners.get(row.span_id))) for row in rows]


def _entry(row: LogRow, step: StoredStep | None) -> LogEntry:
    attributes: Any = msgspec.Raw(row.attributes.encode()) if row.attributes is not None else None
    return LogEntry(
        at=rfc3339(row.time_ns), level=level_of(row.severity), severity=row.severity, message=row.body,
        step_id=step.step_id if step is not None else None, step_name=step.name if step is not None else None,
        trace_id=row.trace_id, span_id=row.span_id, source="otlp", service=row.service, event_name=row.event_name,
        attributes=attributes, error_type=row.error_type, error_message=row.error_message, error_stack=row.error_stack,
    )  # fmt: skip
