"""What may set a run apart from others: named values, flattened from its inputs, its outputs and its surroundings."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

Value: TypeAlias = str | float | bool

MAX_FEATURES: Final = 4_000
"""Values of one document that are compared; further ones are left out."""
MIN_FEATURES: Final = 60
_MAX_VALUES: Final = 600_000
"""Values of all documents that are compared: of many runs fewer each, but at least `MIN_FEATURES`."""
_MAX_DEPTH: Final = 5
_MAX_TEXT: Final = 100
_MAX_LIST: Final = 20
_MAX_DOCUMENT: Final = 256_000
_DATE: Final = re.compile(r"\d{4}-?\d{2}(-?\d{2})?([T ].*)?")


class Place(NamedTuple):
    """What a kind of feature is, and how near it is to a cause: the lower, the earlier it is named among equals."""

    kind: str
    order: int


VERSION: Final = Place("version", 0)
INPUT: Final = Place("input", 1)
HOST: Final = Place("host", 2)
BESIDE: Final = Place("beside", 4)
PROCESS: Final = Place("process", 5)
FIRST: Final = Place("first_run", 3)
MISSING: Final = Place("missing_step", 2)
PAIR: Final = Place("pair", 0)
WEEKDAY: Final = Place("weekday", 8)
PROJECT: Final = Place("project", 4)
ATTRIBUTE: Final = Place("attribute", 6)
WORKERS: Final = Place("workers", 1)
CONCURRENCY: Final = Place("concurrency", 7)
TIME_OF_DAY: Final = Place("time_of_day", 8)
OUTPUT: Final = Place("output", 10)
SIZE: Final = Place("output", 11)
MEMORY: Final = Place("memory", 12)
RESOURCE: Final = Place("resource", 14)
PAIRED: Final = frozenset({"version", "input", "host", "beside", "project", "attribute", "missing_step"})
"""Kinds of values of which two are looked at together."""
_RESOURCES: Final = {"peak_memory_bytes": MEMORY, "cpu_seconds": Place("cpu", 15)}


class Feature(NamedTuple):
    """A value of a run. ``key`` is its path (``input.region``), the same in every run of the workflow."""

    key: str
    value: Value
    place: Place


def limit_of(documents: int) -> int:
    """How many values of each of so many documents are compared."""
    return min(max(MIN_FEATURES, _MAX_VALUES // max(1, documents)), MAX_FEATURES)


def flattened(key: str, document: str | None, place: Place, limit: int = MIN_FEATURES) -> Iterator[Feature]:
    """The values of a JSON document by their paths. Dates are left out: they follow the time. At most ``limit``."""
    if document is None or len(document) > _MAX_DOCUMENT:
        return
    try:
        value = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    for path, leaf in itertools.islice(_leaves(key, value, 0), limit):
        yield Feature(path, leaf, place)


def _leaves(path: str, value: Any, depth: int) -> Iterator[tuple[str, Value]]:
    if isinstance(value, dict):
        if depth < _MAX_DEPTH:
            for name, item in value.items():
                inner = f"{path}.{name[:_MAX_TEXT]}"
                if isinstance(item, dict | list):
                    yield from _leaves(inner, item, depth + 1)
                elif (leaf := _leaf(item)) is not None:
                    yield inner, leaf
    elif isinstance(value, list):
        yield f"{path}.length", float(len(value))
        if depth < _MAX_DEPTH and value and len(value) <= _MAX_LIST:
            scalars = [item for item in value if isinstance(item, str) and not is_date(item)]
            for item in sorted(set(scalars))[:_MAX_LIST]:
                yield f"{path}[{item[:_MAX_TEXT]}]", True
    elif (leaf := _leaf(value)) is not None:
        yield path, leaf


def _leaf(value: Any) -> Value | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    return value[:_MAX_TEXT] if isinstance(value, str) and not is_date(value) else None


def _number(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_date(text: str) -> bool:
    """Whether a text is a date or a time in the ISO form."""
    if not text[:1].isdigit() or not _DATE.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text if len(text) > 7 else f"{text}-01")
    except ValueError:
        return False
    return True


_OF_PROCESS: Final = frozenset({"peak_memory_bytes", "memory_growth_bytes", "gc_seconds"})
"""What says nothing of an attempt that shared its process with others."""
_REPEATED: Final = frozenset({"thread_cpu_seconds", "gc_full_seconds", "gc_count", "voluntary_switches"})
"""What says much the same as another number does."""


def of_resources(key: str, stored: str | None) -> Iterator[Feature]:
    """What an attempt used of the machine, each number by its name."""
    if stored is None:
        return
    try:
        numbers = msgspec.json.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if not isinstance(numbers, Mapping):
        return
    is_shared = numbers.get("is_shared") is True
    for name, value in list(numbers.items())[:MIN_FEATURES]:
        if name in _REPEATED or (is_shared and name in _OF_PROCESS):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool) and (number := _number(value)) is not None:
            yield Feature(f"{key}.{name}", number, _RESOURCES.get(name, RESOURCE))


def host_of(process: str | None) -> str | None:
    """The host in a process identity (see `tachograph.process`)."""
    if not process:
        return None
    parts = process.rsplit("/", 3)
    return parts[0] if len(parts) == 4 else None
