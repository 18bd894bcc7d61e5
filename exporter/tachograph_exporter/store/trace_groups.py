"""Which traces are read together, because they tell of one run: rows of `trace_keys`.

A group is known by one of its traces, its *home*. The key of a run says which group the run is in, the key of a trace
which group that trace is in, whether spans of it have arrived yet or not. A trace without a row is alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, or_, select, update
from sqlalchemy.engine import Dialect

from tachograph_exporter.store.inserting import insert_many, upsert
from tachograph_exporter.store.keyed import KEYS, keyed
from tachograph_exporter.store.schema import spans, trace_keys

RUN: Final = "run:"
"""What the keys of runs begin with."""
TRACE: Final = "trace:"
"""What the keys of traces begin with."""
_CHUNK: Final = 500

_keys = trace_keys.c
_HOMES: Final = keyed(
    select(_keys.key, _keys.trace_id).where(_keys.workspace_id == bindparam("workspace")), trace_keys.c.key
)
_MEMBERS: Final = keyed(
    select(_keys.key, _keys.trace_id).where(
        _keys.workspace_id == bindparam("workspace"), _keys.key.like(bindparam("kind"))
    ),
    trace_keys.c.trace_id,
)


class TraceGroupRows:
    """Writes which group runs and traces are in."""

    def __init__(self, dialect: Dialect) -> None:
        self._put = str(upsert(dialect, trace_keys).compile(dialect=dialect))

    def put(self, connection: Connection, workspace_id: str, homes: Mapping[str, str]) -> None:
        """Note the homes of the groups that these keys are in."""
        insert_many(connection, self._put, [(workspace_id, key, home) for key, home in sorted(homes.items())])


def homes_of(connection: Connection, workspace_id: str, keys: Collection[str]) -> dict[str, str]:
    """The homes of the groups that these keys are in, by key."""
    homes: dict[str, str] = {}
    ordered = sorted(keys)
    for i in range(0, len(ordered), _CHUNK):
        parameters = {"workspace": workspace_id, KEYS: ordered[i : i + _CHUNK]}
        homes |= {row[0]: row[1] for row in connection.execute(_HOMES.of(connection.dialect), parameters)}
    return homes


def members_of(connection: Connection, workspace_id: str, homes: Collection[str]) -> dict[str, set[str]]:
    """The traces of these groups, by home; the home is one of them."""
    members = {home: {home} for home in homes}
    ordered = sorted(homes)
    for i in range(0, len(ordered), _CHUNK):
        parameters = {"workspace": workspace_id, "kind": f"{TRACE}%", KEYS: ordered[i : i + _CHUNK]}
        for key, home in connection.execute(_MEMBERS.of(connection.dialect), parameters):
            members[home].add(key.removeprefix(TRACE))
    return members


def merge(connection: Connection, workspace_id: str, source: str, target: str) -> None:
    """Make one group of two: what was in ``source`` is in ``target``."""
    connection.execute(
        update(trace_keys)
        .where(
            _keys.workspace_id == workspace_id,
            _keys.trace_id == source,
            or_(_keys.key.like(f"{RUN}%"), _keys.key.like(f"{TRACE}%")),
        )
        .values(trace_id=target)
    )


def traces_beside(connection: Connection, workspace_id: str, trace_id: str) -> list[str]:
    """The traces that are read together with a trace; itself first."""
    home = homes_of(connection, workspace_id, [TRACE + trace_id]).get(TRACE + trace_id)
    if home is None:
        return [trace_id]
    others = members_of(connection, workspace_id, [home])[home] - {trace_id}
    return [trace_id, *sorted(others)]


def spans_beside(connection: Connection, workspace_id: str, trace_id: str) -> dict[str, str]:
    """The traces of spans that are read together with a trace and are in another one, by the span's id."""
    others = traces_beside(connection, workspace_id, trace_id)[1:]
    if not others:
        return {}
    is_here = spans.c.workspace_id == workspace_id
    own = select(spans.c.span_id).where(is_here, spans.c.trace_id == trace_id)
    statement = select(spans.c.span_id, spans.c.trace_id).where(
        is_here, spans.c.trace_id.in_(others), spans.c.span_id.not_in(own)
    )
    return {row[0]: row[1] for row in connection.execute(statement)}
