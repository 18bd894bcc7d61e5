"""Which traces have a span with an attribute's value, by day (UTC): for searches by attributes. And which executions
have an input's value.

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

from sqlalchemy import Connection, Table, bindparam, delete, func, intersect, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph_exporter.attribute_text import as_text
from tachograph_exporter.store import state
from tachograph_exporter.store.inserting import insert_many, insert_new
from tachograph_exporter.store.schema import input_values, span_values
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
MAX_TOGETHER: Final = 50_000
"""Traces with a value that are read to see which of them have another one, too."""
_MARK_NS: Final = 0
"""The start in the row of a value that is common."""
_MAX_DAYS: Final = 40
_MAX_KEYS: Final = 2_000
_STREAM: Final = {"yield_per": 500}


class Between(NamedTuple):
    """Days, the newest first, and the range of time."""

    days: Sequence[int]
    low: int
    high: int

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of a statement."""
        return {"days": self.days, "low": self.low, "high": self.high}


class ValueTable:
    """A table with such rows: ``day``, ``token``, when the trace (or what has the value) started, and its id.

    ``since``: name of the moment (unix nanoseconds) since which values are noted, if there was something before.
    """

    def __init__(self, table: Table, since: str) -> None:
        self.table = table
        self.since = since
        day, token, start, key = table.columns
        of_days = day.in_(bindparam("days", expanding=True))
        tokens = token.in_(bindparam("tokens", expanding=True))
        self.marks = select(token).where(of_days, tokens, start == _MARK_NS)
        self.newest_day = select(func.max(day)).where(day < bindparam("below"))
        of_range = (start >= bindparam("low"), start <= bindparam("high"))
        self.places = (
            select(start, key, token)
            .where(day == bindparam("day"), tokens, *of_range)
            .order_by(start.desc())
        )  # fmt: skip
        self.places_among = self.places.where(
            or_(token == bindparam("more"), key.in_(bindparam("keys", expanding=True)))
        )
        self._key, self._token, self._of_range = key, token, (of_days, *of_range)

    def count(self, connection: Connection, between: Between, token: int, most: int) -> int:
        """How many rows have a value, up to ``most``."""
        rows = select(self._key).where(self._token == token, *self._of_range).limit(most).subquery()
        return int(connection.execute(select(func.count()).select_from(rows), between.parameters).scalar_one())

    def with_all(self, connection: Connection, between: Between, tokens: Sequence[int]) -> set[str]:
        """What has all of several values."""
        each = [select(self._key).where(self._token == token, *self._of_range) for token in tokens]
        return set(connection.execute(intersect(*each), between.parameters).scalars())

    def drop_days(self, connection: Connection, before_ns: int) -> None:
        """Forget the days before a moment."""
        connection.execute(delete(self.table).where(self.table.c.day < before_ns // DAY_NS))


SPANS: Final = ValueTable(span_values, SINCE)
INPUTS: Final = ValueTable(input_values, "input_values_since")


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


MORE: Final = "\0more"
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

    def __init__(self, dialect: Dialect, of: ValueTable = SPANS) -> None:
        insert = (postgresql if dialect.name == "postgresql" else sqlite).insert
        self._table = of.table
        self._insert = str(insert(of.table).on_conflict_do_nothing().compile(dialect=dialect))
        self._marked: dict[int, set[int]] = {}
        self._common: frozenset[int] = frozenset()
        self._counts: Counter[int] = Counter()
        self._counted = 0

    def note(
        self, connection: Connection, workspace_id: str, traces: Mapping[str, Spans], new: Collection[str] = ()
    ) -> Noted:
        """Note the values of spans, by trace, in the transaction that stores them.

        ``new``: the traces of which nothing was stored before.
        """
        rows: list[tuple[int, int, int, str]] = []
        new_rows: list[tuple[int, int, int, str]] = []
        common: dict[int, set[int]] = {}
        more = token_of(workspace_id, MORE, "")
        for trace_id, spans in traces.items():
            starts = _starts_of(workspace_id, spans)
            self._count(starts.keys())
            left = MAX_VALUES
            into = new_rows if trace_id in new else rows
            for token, start_ns in starts.items():
                day = start_ns // DAY_NS
                if token in self._marked.get(day, ()):
                    continue
                if token in self._common:
                    common.setdefault(day, set()).add(token)
                elif left >= 0:
                    into.append((day, token if left else more, start_ns, trace_id))
                    left -= 1
        rows += [(day, token, _MARK_NS, "") for day, tokens in common.items() for token in tokens]
        # In order: other writers may add the same ones now.
        insert_many(connection, self._insert, sorted(set(rows)))
        insert_new(connection, self._table, self._insert, sorted(set(new_rows)))
        return Noted(common)

    def remember(self, noted: Noted) -> None:
        """What was noted is committed: what is common need not be noted again."""
        for day, tokens in noted.common.items():
            self._marked.setdefault(day, set()).update(tokens)
        for day in sorted(self._marked)[:-_MAX_DAYS]:
            del self._marked[day]

    def _count(self, tokens: AbstractSet[int]) -> None:
        # Not the dictionary, whose values would be added.
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
    connection: Connection,
    workspace_id: str,
    alternatives: Sequence[Collection[Value]],
    low_ns: int,
    high_ns: int,
    of: ValueTable = SPANS,
) -> Generator[tuple[int, str], None, None] | None:
    """(start, trace id) of traces that may have a span with all values of an alternative, which started in a range.

    The newest come first. None if the table does not know: all values of an alternative are common, or the range begins
    before values were noted.
    """
    since = state.state_of(connection, of.since)
    if since is not None and low_ns < int(since):
        return None
    days = _days(connection, of, low_ns // DAY_NS, high_ns // DAY_NS)
    if len(days) > MAX_DAYS:
        return None
    tokens = [[token_of(workspace_id, name, text) for name, text in values] for values in alternatives]
    all_tokens = sorted({token for own in tokens for token in own})
    marks = connection.execute(of.marks, {"days": days, "tokens": all_tokens}) if days else None
    common = set(marks.scalars()) if marks is not None else set()
    rare = [[token for token in own if token not in common] for own in tokens]
    if not all(rare):
        return None
    between = Between(days, max(low_ns, _MARK_NS + 1), high_ns)
    return _places(connection, of, between, [_chosen(connection, of, between, own) for own in rare],
                   token_of(workspace_id, MORE, ""))  # fmt: skip


class _Chosen(NamedTuple):
    """What an alternative is looked for by: the traces with ``token`` that are in ``among`` (None: all of them)."""

    token: int
    among: AbstractSet[str] | None = None


def _chosen(connection: Connection, of: ValueTable, between: Between, tokens: Sequence[int]) -> _Chosen:
    """Of several values that a trace must have, the rarest, and the traces that have the others."""
    if len(tokens) == 1 or not between.days:
        return _Chosen(tokens[0])
    counts = {token: of.count(connection, between, token, MAX_TOGETHER + 1) for token in tokens}
    few = [token for token in sorted(tokens, key=counts.__getitem__) if counts[token] <= MAX_TOGETHER]
    if not few:
        return _Chosen(tokens[0])
    return _Chosen(few[0], of.with_all(connection, between, few) if len(few) > 1 else None)


def _places(
    connection: Connection, of: ValueTable, between: Between, chosen: Sequence[_Chosen], more: int
) -> Generator[tuple[int, str], None, None]:
    """``more``: marks traces with more values than are noted."""
    among: dict[int, list[AbstractSet[str] | None]] = {more: [None]}
    for each in chosen:
        if each.among is None or each.among:
            among.setdefault(each.token, []).append(each.among)
    parameters: dict[str, Any] = {"tokens": sorted(among), "low": between.low, "high": between.high}
    statement = of.places
    # Where few have all of several values, only these are read, and those of which not all is noted.
    known = [each.among for each in chosen]
    keys = set().union(*[ids for ids in known if ids is not None])
    if None not in known and len(keys) <= _MAX_KEYS:
        statement = of.places_among
        parameters |= {"keys": sorted(keys), "more": more}
    for day in between.days:
        with connection.execute(statement, parameters | {"day": day}, execution_options=_STREAM) as rows:
            for start_ns, trace_id, token in rows:
                if any(ids is None or trace_id in ids for ids in among[token]):
                    yield start_ns, trace_id


def _days(connection: Connection, of: ValueTable, low: int, high: int) -> list[int]:
    """The days of a range that have rows, the newest first."""
    days: list[int] = []
    below = high + 1
    while len(days) <= MAX_DAYS:
        newest = connection.execute(of.newest_day, {"below": below}).scalar()
        if newest is None or newest < low:
            break
        days.append(newest)
        below = newest
    return days


def drop_days(connection: Connection, before_ns: int) -> None:
    """Forget what spans of the days before a moment have."""
    SPANS.drop_days(connection, before_ns)
