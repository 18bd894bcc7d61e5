"""Groups of failures, as users read them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.redaction import mask_text
from tachograph_exporter.store.failure_groups import backfill, groups, reading
from tachograph_exporter.store.failure_groups.failing import ATTEMPT
from tachograph_exporter.store.failure_groups.reading import Counts, Range
from tachograph_exporter.times import rfc3339, rfc3339_or_none
from tachograph_exporter.views.schemas.failures import (
    DEFAULT_STATES,
    FailureCounts,
    FailureExample,
    FailureGroupDetail,
    FailureGroupSummary,
    FailureOccurrence,
    FailurePage,
    FailurePlace,
    FailuresOfVersion,
    FailuresOnHost,
)

REGRESSED: Final = "regressed"
STATE_AFTER: Final[Mapping[str, str]] = {
    "mute": groups.MUTED,
    "unmute": groups.OPEN,
    "resolve": groups.RESOLVED,
    "reopen": groups.OPEN,
}
"""The state of a group after an action."""
WINDOW_SECONDS: Final = 14 * 86_400
MAX_WINDOW_SECONDS: Final = 90 * 86_400
BUCKETS: Final = 28
MAX_NOTE: Final = 1_000
NEW_NS: Final = 86_400 * NS
_LISTED_PLACES: Final = 3

_SORTS: Final[dict[str, Callable[[Row[Any], Counts], int]]] = {
    "last_seen": lambda row, counts: counts.last_ns,
    "first_seen": lambda row, counts: reading.first_seen(row),
    "failures": lambda row, counts: counts.failures,
    "executions": lambda row, counts: counts.executions,
}


def state_of(row: Row[Any]) -> str:
    """What a group is: what a person said last, unless it has come again since."""
    return REGRESSED if reading.has_come_again(row) else str(row.state)


def read_failures(
    connection: Connection,
    within: Range,
    now_ns: int,
    *,
    states: Collection[str] = DEFAULT_STATES,
    sort: str = "-last_seen",
    skip: int = 0,
    limit: int = 50,
) -> FailurePage:
    """The groups that have failures in a range."""
    counts = reading.counts(connection, within)
    rows = reading.rows_of(connection, within.workspace_id, counts)
    chosen = [row for group_id, row in sorted(rows.items()) if state_of(row) in states]
    key = _SORTS[sort.removeprefix("-")]
    chosen.sort(key=lambda row: key(row, counts[row.group_id]), reverse=sort.startswith("-"))
    shown = chosen[skip : skip + limit]
    return FailurePage(
        items=_summaries(connection, within, shown, counts, now_ns, _LISTED_PLACES),
        total=len(chosen),
        skip=skip,
        limit=limit,
        window_from=rfc3339(within.low_ns),
        window_to=rfc3339(within.high_ns),
        is_complete=backfill.is_complete(connection),
    )


def read_failure(
    connection: Connection, within: Range, group_id: str, now_ns: int, *, skip: int = 0, limit: int = 50
) -> FailureGroupDetail | None:
    """A group, or None."""
    row = reading.rows_of(connection, within.workspace_id, [group_id]).get(group_id)
    if row is None:
        return None
    counts = reading.counts(connection, within)
    (summary,) = _summaries(connection, within, [row], counts, now_ns, reading.MAX_PLACES, with_stack=True)
    return FailureGroupDetail(
        group=summary,
        frames=_frames(row),
        by_version=[
            FailuresOfVersion(workflow_name=workflow, workflow_version=version, failures=failures)
            for workflow, version, failures in reading.by_version(connection, within, group_id)
        ],
        by_host=[
            FailuresOnHost(host=host, failures=failures)
            for host, failures in reading.by_host(connection, within, group_id)
        ],
        occurrences=[
            FailureOccurrence(
                execution_id=entry.execution_id,
                workflow_name=entry.workflow or entry.workflow_id,
                workflow_version=entry.workflow_version,
                step_id=entry.step_id or None,
                step_name=entry.step or None,
                attempt=entry.attempt,
                was_retried=entry.kind == ATTEMPT,
                count=entry.times,
                at=rfc3339(entry.time_ns),
            )
            for entry in reading.occurrences(connection, within, group_id, skip, limit)
        ],
        total=reading.count_occurrences(connection, within, group_id),
        skip=skip,
        limit=limit,
        window_from=rfc3339(within.low_ns),
        window_to=rfc3339(within.high_ns),
    )


def change_failure(
    connection: Connection, workspace_id: str, group_id: str, action: str, by: str, note: str, now_ns: int
) -> bool:
    """Mute, unmute, resolve or reopen a group. Returns whether there is such a group. The note is masked."""
    text = mask_text(note[:MAX_NOTE])
    return groups.say(connection, workspace_id, group_id, STATE_AFTER[action], by, text, now_ns)


def _summaries(
    connection: Connection,
    within: Range,
    rows: Sequence[Row[Any]],
    counts: Mapping[str, Counts],
    now_ns: int,
    places: int,
    *,
    with_stack: bool = False,
) -> list[FailureGroupSummary]:
    ids = [row.group_id for row in rows]
    if not ids:
        return []
    trends = reading.by_time(connection, within, ids, BUCKETS)
    where = reading.places(connection, within, ids, places)
    examples = reading.examples(connection, within, ids)
    texts = reading.told(connection, examples.values())
    return [
        FailureGroupSummary(
            id=row.group_id,
            error_type=row.error_type,
            message=row.template or _MESSAGES.get(row.group_id, ""),
            location=_location(_frames(row)) or row.place or None,
            state=state_of(row),
            is_new=reading.first_seen(row) > now_ns - NEW_NS,
            new_since_version=reading.new_since_version(connection, row),
            state_changed_at=rfc3339_or_none(row.state_ns),
            state_changed_by=row.state_by or None,
            note=row.note or None,
            first_seen_at=rfc3339(reading.first_seen(row)),
            last_seen_at=rfc3339_or_none(reading.last_seen(row)),
            counts=_counts(counts.get(row.group_id, Counts())),
            trend=trends[row.group_id],
            places=[
                FailurePlace(
                    workflow_id=place.workflow_id,
                    workflow_name=place.workflow,
                    step_name=place.step or None,
                    failures=place.failures,
                )
                for place in where[row.group_id]
            ],
            example=_example(examples.get(row.group_id), texts, with_stack=with_stack),
            rules_version=row.version,
        )
        for row in rows
    ]


_MESSAGES: Final = {groups.OTHER: "failures of further causes: there are more groups than are told apart"}


def _counts(counts: Counts) -> FailureCounts:
    return FailureCounts(
        failures=counts.failures, attempts=counts.attempts, steps=counts.steps, executions=counts.executions
    )


def _example(
    row: Row[Any] | None, texts: Mapping[tuple[str, str, int], reading.Told], *, with_stack: bool
) -> FailureExample | None:
    if row is None:
        return None
    told = texts.get((row.execution_id, row.step_id, row.attempt))
    return FailureExample(
        execution_id=row.execution_id,
        workflow_name=row.workflow or row.workflow_id,
        step_name=row.step or None,
        attempt=row.attempt,
        at=rfc3339(row.time_ns),
        error_message=told.error_message if told is not None else None,
        error_stack=told.error_stack if told is not None and with_stack else None,
    )


def _frames(row: Row[Any]) -> list[str]:
    return msgspec.json.decode(row.frames, type=list[str])


def _location(frames: Sequence[str]) -> str | None:
    own = [frame for frame in frames if not frame.startswith("!")]
    return own[-1] if own else None
