"""The index of services, span names, attribute names and values, by day (UTC), for viewers' drop-downs and searches.

Whoever stores spans notes what they say in the same transaction. Nearly all of it was noted before on the same day, and
a set in memory knows so; only what is new costs a row. The index is exact within its bounds: of each service's span
names, of all attribute names, and of each attribute's values, the first `MAX_VALUES` of a day are kept, each cut to
`MAX_CHARACTERS`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from sqlalchemy import Connection, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.clock import NS
from tachograph_exporter.attribute_text import ValueKind, as_text, kind_of
from tachograph_exporter.store import locking
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.schema import span_index

DAY_NS: Final = 86_400 * NS
MAX_VALUES: Final = 1_000
"""Values kept of one list (a service's span names, the attribute names, an attribute's values) and day."""
MAX_ROWS: Final = 100_000
"""Rows of one workspace, source and day."""
MAX_CHARACTERS: Final = 200
REFRESH_SECONDS: Final = 3600.0
"""How long what was noted is taken for granted: rows may have been deleted since."""
_MAX_ENTRIES: Final = 300_000
"""Entries in memory."""
_MAX_DAYS: Final = 500
_CHUNK: Final = 200

RECORDED_SERVICE: Final = "tachograph"
"""The service of executions recorded here."""


class Source(IntEnum):
    """Where spans come from. Rows of each source are dropped when its spans of that day are."""

    ARRIVED = 0
    RECORDED = 1


class What(IntEnum):
    """What a row is about."""

    SERVICE = 0
    OPERATION = 1
    """``name`` is the service, ``kind`` the span's kind, ``value`` its name."""
    RESOURCE_NAME = 2
    SPAN_NAME = 3
    RESOURCE_VALUE = 4
    """``name`` is the attribute, ``kind`` the type of its value."""
    SPAN_VALUE = 5
    FULL = 6
    """Not all of a list was noted: ``name`` is its name, ``kind`` its `What`."""


class List(NamedTuple):
    """One of the lists of a day."""

    what: What
    name: str


Day: TypeAlias = tuple[str, int]
"""A workspace id, and days since 1970."""
Entry: TypeAlias = str | tuple[int, str]
"""A value: text, or its kind and its text. Text alone, the most frequent one, needs no tuple."""

_SERVICES: Final = List(What.SERVICE, "")
_NAMES: Final = {
    What.OPERATION: _SERVICES,
    What.RESOURCE_VALUE: List(What.RESOURCE_NAME, ""),
    What.SPAN_VALUE: List(What.SPAN_NAME, ""),
}
"""The list that names the lists of a kind."""


class Known(Protocol):
    """The entries of a list that need not be noted."""

    def __contains__(self, entry: object, /) -> bool: ...


class _Everything:
    """A full list: nothing more can be noted."""

    def __contains__(self, entry: object) -> bool:
        return True


_FULL: Final = _Everything()
_NOTHING: Final[frozenset[Entry]] = frozenset()


class _KnownDay:
    """What is noted of a day. ``attributes``: the lists of span attributes' values, which are asked for most."""

    def __init__(self) -> None:
        self.lists: dict[List, set[Entry]] = {}
        self.full: set[List] = set()
        self.attributes: dict[str, Known] = {}
        self.shapes: set[Any] = set()
        self.count: int | None = None

    def known(self, key: List) -> Known:
        return _FULL if key in self.full else self.lists.get(key, _NOTHING)


class Notes:
    """What the spans of a transaction say that was not known before it."""

    def __init__(self) -> None:
        self.pending: dict[Day, dict[List, set[Entry]]] = {}
        self.shapes: set[tuple[Day, Any]] = set()
        self.learned: dict[tuple[Day, List], set[Entry]] = {}
        self.full: set[tuple[Day, List]] = set()
        self.unnamed: set[tuple[Day, List]] = set()
        """Those of them whose service or attribute is one too many itself."""
        self.counts: dict[Day, int] = {}

    def add(self, day: Day, key: List, entry: Entry) -> None:
        """Note an entry of a list."""
        self.pending.setdefault(day, {}).setdefault(key, set()).add(entry)


class SpanIndex:
    """Notes what spans of one source say. Used by one transaction at a time, but for `remember`.

    >>> notes = index.begin()
    >>> index.note(notes, day, ...)
    >>> index.write(connection, notes)
    >>> index.remember(notes)  # once the transaction is committed
    """

    def __init__(self, dialect: Dialect, source: Source) -> None:
        insert = (postgresql if dialect.name == "postgresql" else sqlite).insert
        self._insert = str(insert(span_index).on_conflict_do_nothing().compile(dialect=dialect))
        self._source = source
        self._days: dict[Day, _KnownDay] = {}
        self._entries = 0
        self._since = time.monotonic()
        self.epoch = 0
        """Grows whenever everything is forgotten."""

    def begin(self) -> Notes:
        """Notes for a transaction."""
        is_old = time.monotonic() - self._since > REFRESH_SECONDS
        if is_old or self._entries > _MAX_ENTRIES or len(self._days) > _MAX_DAYS:
            self._days, self._entries, self._since = {}, 0, time.monotonic()
            self.epoch += 1
        return Notes()

    def is_new(self, notes: Notes, day: Day, shape: Any) -> bool:
        """Whether no span of this shape was noted that day; from now on one is.

        A shape is any key of which everything that they say follows.
        """
        known = self._days.get(day)
        if (known is not None and shape in known.shapes) or (day, shape) in notes.shapes:
            return False
        notes.shapes.add((day, shape))
        return True

    def note_operation(self, notes: Notes, day: Day, service: str, name: str, kind: int) -> None:
        """Note a span's name and its service."""
        shape = (service, name, kind)
        if self.is_new(notes, day, shape):
            service = service[:MAX_CHARACTERS]
            notes.add(day, _SERVICES, service)
            notes.add(day, List(What.OPERATION, service), (max(-1, min(kind, 9)), name[:MAX_CHARACTERS]))

    def note_resource(self, notes: Notes, day: Day, shape: Any, attributes: Mapping[str, Any]) -> None:
        """Note the attributes of a resource."""
        if self.is_new(notes, day, shape):
            for name, value in attributes.items():
                _note_value(notes, day, What.RESOURCE_VALUE, name, value)

    def note_attributes(self, notes: Notes, day: Day, attributes: Mapping[str, Any]) -> None:
        """Note a span's attributes. Of one whose value is None, the name."""
        known_day = self._days.get(day)
        known = known_day.attributes if known_day is not None else {}
        for name, value in attributes.items():
            values = known.get(name)
            if values is not None:
                if value.__class__ is str:
                    if value in values:
                        continue
                elif values is _FULL or value is None or entry_of(value) in values:
                    continue
            _note_value(notes, day, What.SPAN_VALUE, name, value)

    def write(self, connection: Connection, notes: Notes) -> None:
        """Write what is new."""
        rows: list[tuple[Any, ...]] = []
        for day, lists in notes.pending.items():
            known = self._days.setdefault(day, _KnownDay())
            if known.count is None:
                known.count = self._stored_count(connection, day)
                known.full |= self._stored_full(connection, day)
                known.lists |= self._stored(connection, day, _NAMES.values())
                known.attributes |= {key.name: _FULL for key in known.full if key.what is What.SPAN_VALUE}
            stored = self._stored(connection, day, [key for key in lists if key not in known.lists])
            room = MAX_ROWS - known.count
            # Names come before values.
            for key in sorted(lists):
                if key in known.full:
                    continue
                present = known.lists.get(key) or stored.get(key) or set()
                accepted = self._accepted(notes, day, key, lists[key] - present, present, room)
                room -= len(accepted)
                rows += [self._row(day, key, entry) for entry in accepted]
                notes.learned[day, key] = present.union(accepted)
                if (day, key) in notes.full and (day, key) not in notes.unnamed:
                    rows.append(self._row(day, List(What.FULL, key.name), (key.what.value, "")))
            notes.counts[day] = MAX_ROWS - known.count - room
        if rows:
            locking.claim(connection, Claim.NAMES)
            insert_many(connection, self._insert, rows)

    def remember(self, notes: Notes) -> None:
        """Note that what was written is committed."""
        for (day, key), entries in notes.learned.items():
            known = self._days.setdefault(day, _KnownDay())
            before = known.lists.setdefault(key, set())
            self._entries += 1 + len(entries - before)
            before |= entries
            if (day, key) in notes.full:
                known.full.add(key)
            if key.what is What.SPAN_VALUE:
                known.attributes[key.name] = known.known(key)
        for day, count in notes.counts.items():
            known = self._days.setdefault(day, _KnownDay())
            known.count = (known.count or 0) + count
        for day, shape in notes.shapes:
            self._days.setdefault(day, _KnownDay()).shapes.add(shape)
        self._entries += len(notes.shapes)

    def _accepted(
        self, notes: Notes, day: Day, key: List, fresh: Iterable[Entry], present: set[Entry], room: int
    ) -> list[Entry]:
        """Those of the fresh entries that there is room for; otherwise the list is full."""
        fresh = sorted(fresh, key=lambda entry: entry if isinstance(entry, tuple) else (ValueKind.STRING, entry))
        names = _NAMES.get(key.what)
        if names is not None:
            learned = notes.learned.get((day, names))
            admitted = self._days[day].lists.get(names, _NOTHING) if learned is None else learned
            if key.name not in admitted:
                # The service or attribute itself is one too many; the list that lacks it is known to be full.
                notes.full.add((day, key))
                notes.unnamed.add((day, key))
                return []
        accepted = fresh[: max(0, min(MAX_VALUES - len(present), room))]
        if len(accepted) < len(fresh) or len(present) + len(accepted) >= MAX_VALUES:
            notes.full.add((day, key))
        return accepted

    def _row(self, day: Day, key: List, entry: Entry) -> tuple[Any, ...]:
        kind, value = entry if isinstance(entry, tuple) else (ValueKind.STRING.value, entry)
        return (*day, key.what.value, key.name, self._source.value, kind, value)

    def _stored_count(self, connection: Connection, day: Day) -> int:
        columns = span_index.c
        statement = select(func.count()).where(
            columns.workspace_id == day[0], columns.day == day[1], columns.source == self._source.value
        )
        return int(connection.execute(statement).scalar_one())

    def _stored_full(self, connection: Connection, day: Day) -> set[List]:
        parameters = {"workspace": day[0], "day": day[1], "source": self._source.value}
        return {List(What(what), name) for what, name in connection.execute(_FULL_LISTS, parameters)}

    def _stored(self, connection: Connection, day: Day, keys: Iterable[List]) -> dict[List, set[Entry]]:
        """The stored entries of these lists."""
        names: dict[What, list[str]] = {}
        for key in keys:
            names.setdefault(key.what, []).append(key.name)
        lists: dict[List, set[Entry]] = {}
        for what, of_what in names.items():
            for i in range(0, len(of_what), _CHUNK):
                parameters = {"workspace": day[0], "day": day[1], "source": self._source.value, "what": what.value,
                              "names": of_what[i : i + _CHUNK]}  # fmt: skip
                for name, kind, value in connection.execute(_LISTS, parameters):
                    entry = value if kind == ValueKind.STRING and what is not What.OPERATION else (kind, value)
                    lists.setdefault(List(what, name), set()).add(entry)
        return lists


_index = span_index.c
_LISTS: Final = select(_index.name, _index.kind, _index.value).where(
    _index.workspace_id == bindparam("workspace"),
    _index.day == bindparam("day"),
    _index.what == bindparam("what"),
    _index.name.in_(bindparam("names", expanding=True)),
    _index.source == bindparam("source"),
)

_FULL_LISTS: Final = select(_index.kind, _index.name).where(
    _index.workspace_id == bindparam("workspace"),
    _index.day == bindparam("day"),
    _index.what == What.FULL.value,
    _index.source == bindparam("source"),
)


def day_of(workspace_id: str, time_ns: int) -> Day:
    """The day of a moment."""
    return (workspace_id, time_ns // DAY_NS)


def entry_of(value: Any) -> Entry:
    """An attribute's value as an entry."""
    if value.__class__ is str:
        return _storable(value)
    return (kind_of(value).value, _storable(as_text(value)))


def _storable(text: str) -> str:
    """The text as every database stores it: cut, and without NUL."""
    return text[:MAX_CHARACTERS].replace("\0", "\ufffd")


def _note_value(notes: Notes, day: Day, what: What, name: str, value: Any) -> None:
    name = _storable(name)
    notes.add(day, _NAMES[what], name)
    if value is not None:
        notes.add(day, List(what, name), entry_of(value))
    else:
        notes.pending[day].setdefault(List(what, name), set())
