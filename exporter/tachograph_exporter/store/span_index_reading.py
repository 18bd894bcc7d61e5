"""Reading the index of what spans say (see `span_index`).

Days are whole: a list of a range has what was said on each day that the range touches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Table, and_, delete, func, select

from tachograph_exporter.attribute_text import ValueKind
from tachograph_exporter.store import state
from tachograph_exporter.store.schema import span_index, traces, workflow_executions
from tachograph_exporter.store.span_index import DAY_NS, MAX_CHARACTERS, Source, What

MAX_LISTED: Final = 10_000
"""Entries that a list of many days has at most."""
MAX_DAYS: Final = 400
"""Days that a list is of, the newest ones that have anything."""
SINCE: Final = "span_index_since"
"""Name of the moment (unix nanoseconds) since which attributes are noted, if there were spans before."""

_index = span_index.c


class Days(NamedTuple):
    """A range of time in unix nanoseconds, both ends included; None: open."""

    start_ns: int | None = None
    end_ns: int | None = None


ALWAYS: Final = Days()
_VALUES: Final = (What.SPAN_VALUE.value, What.RESOURCE_VALUE.value)
_NAMES: Final = (What.SPAN_NAME.value, What.RESOURCE_NAME.value)


def _of_days(connection: Connection, workspace_id: str, days: Days) -> ColumnElement[bool]:
    """The rows of a workspace of these days: those that have any, by number, so that an index finds each list."""
    newest = select(func.max(_index.day)).where(_index.workspace_id == workspace_id)
    found: list[int] = []
    below = None if days.end_ns is None else days.end_ns // DAY_NS + 1
    while len(found) < MAX_DAYS:
        statement = newest if below is None else newest.where(_index.day < below)
        below = connection.execute(statement).scalar()
        if below is None or (days.start_ns is not None and below < days.start_ns // DAY_NS):
            break
        found.append(below)
    return and_(_index.workspace_id == workspace_id, _index.day.in_(found))


def _rows(connection: Connection, workspace_id: str, what: What, name: str | None, days: Days) -> list[tuple[int, str]]:
    """(kind, value) of a list, sorted by value; ``name`` None: of all lists of the kind."""
    of_days = _of_days(connection, workspace_id, days)
    statement = select(_index.kind, _index.value).where(of_days, _index.what == what.value)
    if name is not None:
        statement = statement.where(_index.name == name[:MAX_CHARACTERS])
    rows = connection.execute(statement.distinct().limit(MAX_LISTED))
    return sorted({(row[0], row[1]) for row in rows}, key=lambda row: (row[1], row[0]))


def services(connection: Connection, workspace_id: str, days: Days = ALWAYS) -> list[str]:
    """The services that have spans."""
    return [value for _, value in _rows(connection, workspace_id, What.SERVICE, "", days)]


def operations(
    connection: Connection, workspace_id: str, service: str | None, days: Days = ALWAYS
) -> list[tuple[str, int]]:
    """The span names of a service (None: of all services), each with its kind, sorted."""
    return [(value, kind) for kind, value in _rows(connection, workspace_id, What.OPERATION, service, days)]


def attribute_names(connection: Connection, workspace_id: str, days: Days = ALWAYS) -> dict[str, list[str]]:
    """The names of attributes by scope: ``span`` and ``resource``."""
    return {
        scope: [value for _, value in _rows(connection, workspace_id, what, "", days)]
        for scope, what in (("span", What.SPAN_NAME), ("resource", What.RESOURCE_NAME))
    }


def attribute_values(
    connection: Connection, workspace_id: str, scope: str | None, name: str, days: Days = ALWAYS
) -> list[tuple[str, ValueKind]]:
    """The values of an attribute of a scope (``span``, ``resource``; None: both), as text with their type, sorted."""
    of_scope = {"span": (What.SPAN_VALUE,), "resource": (What.RESOURCE_VALUE,)}
    whats = of_scope.get(scope or "", (What.SPAN_VALUE, What.RESOURCE_VALUE))
    rows = {row for what in whats for row in _rows(connection, workspace_id, what, name, days)}
    return sorted((value, ValueKind(kind)) for kind, value in rows)


def has_value(
    connection: Connection, workspace_id: str, name: str, text: str, days: Days = ALWAYS, source: Source | None = None
) -> bool:
    """Whether a span or resource (of a source) may have an attribute with this value. False is certain.

    Nothing is known of days before the index began, and of those on which there were too many values.
    """
    if (days.start_ns is None and noted_since(connection)) or (days.start_ns or 0) < noted_since(connection):
        return True
    of_days = _of_days(connection, workspace_id, days)
    if source is not None:
        of_days &= _index.source == source.value
    name = name[:MAX_CHARACTERS]
    is_value = and_(_index.what.in_(_VALUES), _index.name == name, _index.value == text[:MAX_CHARACTERS])
    # Its own values, or attributes.
    is_full = and_(_index.what == What.FULL.value, _index.name.in_((name, "")), _index.kind.in_((*_VALUES, *_NAMES)))
    return any(
        connection.execute(select(_index.day).where(of_days, condition).limit(1)).first() is not None
        for condition in (is_value, is_full)
    )


def has_name(connection: Connection, workspace_id: str, service: str, name: str, days: Days = ALWAYS) -> bool:
    """Whether a span of a service may have this name. False is certain, but for days of which nothing is known."""
    since = noted_since(connection)
    if since and (days.start_ns or 0) < since:
        return True
    of_days = _of_days(connection, workspace_id, days)
    is_name = and_(_index.what == What.OPERATION.value, _index.name == service, _index.value == name[:MAX_CHARACTERS])
    is_full = and_(
        _index.what == What.FULL.value, _index.name.in_((service, "")),
        _index.kind.in_((What.OPERATION.value, What.SERVICE.value)),
    )  # fmt: skip
    return any(
        connection.execute(select(_index.day).where(of_days, condition).limit(1)).first() is not None
        for condition in (is_name, is_full)
    )


def noted_since(connection: Connection) -> int:
    """Since when attributes are noted, in unix nanoseconds; 0: since the first span."""
    return int(state.state_of(connection, SINCE) or 0)


def drop_days(connection: Connection, source: Source, before_ns: int) -> None:
    """Delete the days of a source that ended before a moment, but not those from which something is still there."""
    table, started = _OLDEST[source]
    for workspace_id in connection.execute(select(_index.workspace_id).distinct()).scalars().all():
        oldest = connection.execute(select(func.min(started)).where(table.c.workspace_id == workspace_id)).scalar()
        end_ns = before_ns if oldest is None else min(before_ns, oldest)
        connection.execute(
            delete(span_index).where(
                _index.workspace_id == workspace_id, _index.source == source.value, _index.day < end_ns // DAY_NS
            )
        )


_OLDEST: Final[Mapping[Source, tuple[Table, Column[Any]]]] = {
    Source.ARRIVED: (traces, traces.c.start_ns),
    Source.RECORDED: (workflow_executions, workflow_executions.c.created_ns),
}
