"""Names and values of attributes, for the lists that viewers offer: from the index, which has all that it can hold.

Three things are not in the index, and are read from the newest traces: what a query narrows down, what was stored
before the index began, and values that are other ones in every execution recorded here (see `recorded_names`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from tachograph.spans import semconv
from tachograph_exporter.attribute_text import ValueKind, kind_of
from tachograph_exporter.store import span_index_reading as index
from tachograph_exporter.store.recorded_names import UNIQUE
from tachograph_exporter.store.recorded_search import recorded_ids
from tachograph_exporter.store.span_index import MAX_CHARACTERS, RECORDED_SERVICE
from tachograph_exporter.store.span_index_reading import Days
from tachograph_exporter.traces import search
from tachograph_exporter.traces.search import Search
from tachograph_exporter.traces.traceql.syntax import Query

MAX_IDS: Final = 1_000
"""Ids of executions that are listed, the newest ones."""
_IDS: Final = frozenset({semconv.EXECUTION_ID, semconv.PIPELINE_RUN_ID})


def attribute_names(
    connection: Connection, workspace_id: str, slug: str, query: Query | None, days: Days
) -> dict[str, list[str]]:
    """Names of attributes by scope (``span``, ``resource``), sorted. ``query``: only of traces that it matches."""
    names: dict[str, set[str]] = {"span": set(), "resource": set()}
    if query is None:
        for scope, of_scope in index.attribute_names(connection, workspace_id, days).items():
            names[scope].update(of_scope)
    if sample := _sample(connection, query, days):
        for scope, values in search.attributes(connection, workspace_id, slug, sample).items():
            names[scope].update(values)
    return {scope: sorted(of_scope) for scope, of_scope in names.items()}


def attribute_values(
    connection: Connection, workspace_id: str, slug: str, scope: str | None, name: str, query: Query | None, days: Days
) -> list[tuple[str, ValueKind]]:
    """Values of an attribute of a scope (``span``, ``resource``; None: both) as text with their type, sorted."""
    values: set[tuple[str, ValueKind]] = set()
    if query is None:
        values.update(index.attribute_values(connection, workspace_id, scope, name, days))
        if name in _IDS and scope != "resource":
            ids = recorded_ids(connection, workspace_id, days.start_ns, days.end_ns, MAX_IDS)
            values |= {(identifier, ValueKind.STRING) for identifier in ids}
    samples = [_sample(connection, query, days)]
    if name in UNIQUE - _IDS and query is None and scope != "resource":
        samples.append(Search(service=RECORDED_SERVICE, start_ns=days.start_ns, end_ns=days.end_ns))
    for sample in samples:
        if sample is not None:
            values |= _sampled(connection, workspace_id, slug, scope, name, sample)
    return sorted(values)


def _sample(connection: Connection, query: Query | None, days: Days) -> Search | None:
    """Which traces to read, the newest first; None: the index has it all."""
    if query is not None:
        return Search(query=query, start_ns=days.start_ns, end_ns=days.end_ns)
    since = index.noted_since(connection)
    if not since or (days.start_ns is not None and days.start_ns > since):
        return None
    until = since if days.end_ns is None else min(since, days.end_ns)
    return Search(start_ns=days.start_ns, end_ns=until)


def _sampled(
    connection: Connection, workspace_id: str, slug: str, scope: str | None, name: str, sample: Search
) -> set[tuple[str, ValueKind]]:
    by_scope = search.attributes(connection, workspace_id, slug, sample)
    scopes: Sequence[str] = (scope,) if scope else ("span", "resource")
    return {
        (text[:MAX_CHARACTERS], kind_of(value))
        for of_scope in scopes
        for text, value in by_scope.get(of_scope, {}).get(name, {}).items()
    }
