"""Which traces have a span with an attribute's value, by day (UTC): for searches by attributes.

A row says that a trace has a value, by a digest of workspace, attribute and value. Values that many traces have are
left out, because a search that reads the newest traces finds them at once: they are marked by a row without a trace.
What is found still has to be looked at, since digests may collide and a trace has several spans.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection, bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph_exporter.attribute_text import as_text
from tachograph_exporter.store import state
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.schema import span_values
from tachograph_exporter.store.span_index import DAY_NS

SINCE: Final = "span_values_since"
"""Name of the moment (unix nanoseconds) since which values are noted, if there were spans before."""
SAMPLE: Final = 2_000
"""Traces of which it is counted what they have, again and again."""
COMMON: Final = SAMPLE // 20
"""A value is common that so many of them have."""
MAX_VALUES: Final = 200
"""Values of a trace that are noted of one request."""
MAX_DAYS: Final = 400
"""Days of which values are looked for."""
_MARK_NS: Final = 0
"""The start in the row of a value that is common."""
_MAX_DAYS: Final = 40
_STREAM: Final = {"yield_per": 500}

_values = span_values.c
_MARKS: Final = select(_values.token).where(
    _values.day.in_(bindparam("days", expanding=True)), _values.token.in_(bindparam("tokens", expanding=True)),
    _values.start_ns == _MARK_NS,
)  # fmt: skip
_NEWEST: Final = select(func.max(_values.day)).where(_values.day < bindparam("below"))
_PLACES: Final = (
    select(_values.start_ns, _values.trace_id)
    .where(
        _values.day == bindparam("day"), _values.token.in_(bindparam("tokens", expanding=True)),
        _values.start_ns >= bindparam("low"), _values.start_ns <= bindparam("high"),
    )
    .order_by(_values.start_ns.desc())
)  # fmt: skip


@functools.lru_cache(50_000)
def token_of(workspace_id: str, name: str, text: str) -> int:
    """What stands for an attribute's value in the table."""
    digest = hashlib.blake2b(f"{workspace_id}\0{name}\0{text}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _texts(value: Any) -> Iterator[str]:
    if value is not None:
        yield as_text(value)
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


_MORE: Final = "\0more"
"""Stands for the attribute of a trace with more values than are noted."""
Value: TypeAlias = tuple[str, str]
"""An attribute and its value, as text."""
Spans: TypeAlias = Iterable[tuple[int, Iterable[Mapping[str, Any]]]]
"""When each span started, and its attributes."""


class Noted(NamedTuple):
    """What was noted in a transaction: values that are common from now on, by day."""

    common: Mapping[int, AbstractSet[int]]


class SpanValues:
    """Notes the values of traces whose spans are stored. Used by one transaction at a time."""

    def __init__(self, dialect: Dialect) -> None:
        insert = (postgresql if dialect.name == "postgresql" else sqlite).insert
        self._insert = str(insert(span_values).on_conflict_do_nothing().compile(dialect=dialect))
        self._marked: dict[int, set[int]] = {}
        self._common: frozenset[int] = frozenset()
        self._counts: Counter[int] = Counter()
        self._counted = 0

    def note(self, connection: Connection, workspace_id: str, traces: Mapping[str, Spans]) -> Noted:
        """Note the values of spans, by trace, in the transaction that stores them."""
        rows: list[tuple[int, int, int, str]] = []
        common: dict[int, set[int]] = {}
        more = token_of(workspace_id, _MORE, "")
        for trace_id, spans in traces.items():
            starts = _starts_of(workspace_id, spans)
            self._count(starts)
            left = MAX_VALUES
            for token, start_ns in starts.items():
                day = start_ns // DAY_NS
                if token in self._marked.get(day, ()):
                    continue
                if token in self._common:
                    common.setdefault(day, set()).add(token)
                elif left >= 0:
                    rows.append((day, token if left else more, start_ns, trace_id))
                    left -= 1
        rows += [(day, token, _MARK_NS, "") for day, tokens in common.items() for token in tokens]
        # In order: other writers may add the same ones now.
        insert_many(connection, self._insert, sorted(set(rows)))
        return Noted(common)

    def remember(self, noted: Noted) -> None:
        """What was noted is committed: what is common need not be noted again."""
        for day, tokens in noted.common.items():
            self._marked.setdefault(day, set()).update(tokens)
        for day in sorted(self._marked)[:-_MAX_DAYS]:
            del self._marked[day]

    def _count(self, tokens: Iterable[int]) -> None:
        self._counts.update(tokens)
        self._counted += 1
        if self._counted >= SAMPLE:
            self._common = frozenset([token for token, count in self._counts.items() if count >= COMMON])
            self._counts, self._counted = Counter(), 0


def _starts_of(workspace_id: str, spans: Spans) -> dict[int, int]:
    """The values that spans of a trace have, each with the start of the first that has it."""
    starts: dict[int, int] = {}
    for start_ns, scopes in spans:
        for attributes in scopes:
            for name, value in attributes.items():
                for text in (value,) if value.__class__ is str else _texts(value):
                    token = token_of(workspace_id, name, text)
                    known = starts.get(token)
                    if known is None or start_ns < known:
                        starts[token] = max(start_ns, _MARK_NS + 1)
    return starts


def places(
    connection: Connection, workspace_id: str, alternatives: Sequence[Collection[Value]], low_ns: int, high_ns: int
) -> Generator[tuple[int, str], None, None] | None:
    """(start, trace id) of traces that may have a span with all values of an alternative, which started in a range.

    The newest come first. None if the table does not know: all values of an alternative are common, or the range begins
    before values were noted.
    """
    since = state.state_of(connection, SINCE)
    if since is not None and low_ns < int(since):
        return None
    days = _days(connection, low_ns // DAY_NS, high_ns // DAY_NS)
    if len(days) > MAX_DAYS:
        return None
    tokens = [[token_of(workspace_id, name, text) for name, text in values] for values in alternatives]
    parameters = {"days": days, "tokens": sorted({token for own in tokens for token in own})}
    common = set(connection.execute(_MARKS, parameters).scalars()) if days else set()
    chosen = {token_of(workspace_id, _MORE, "")}
    for own in tokens:
        rare = next((token for token in own if token not in common), None)
        if rare is None:
            return None
        chosen.add(rare)
    return _places(connection, days, sorted(chosen), low_ns, high_ns)


def _places(
    connection: Connection, days: Sequence[int], tokens: Sequence[int], low_ns: int, high_ns: int
) -> Generator[tuple[int, str], None, None]:
    for day in days:
        parameters = {"day": day, "tokens": tokens, "low": max(low_ns, _MARK_NS + 1), "high": high_ns}
        with connection.execute(_PLACES, parameters, execution_options=_STREAM) as rows:
            for row in rows:
                yield row[0], row[1]


def _days(connection: Connection, low: int, high: int) -> list[int]:
    """The days of a range that have rows, the newest first."""
    days: list[int] = []
    below = high + 1
    while len(days) <= MAX_DAYS:
        newest = connection.execute(_NEWEST, {"below": below}).scalar()
        if newest is None or newest < low:
            break
        days.append(newest)
        below = newest
    return days


def drop_days(connection: Connection, before_ns: int) -> None:
    """Forget what spans of the days before a moment have."""
    connection.execute(delete(span_values).where(_values.day < before_ns // DAY_NS))
