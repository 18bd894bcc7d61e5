"""Long names in a narrow column, such that different names still look different."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size


def fitted(names: Sequence[str], width: int) -> list[str]:
    """Each name in at most ``width`` (8 or more) terminal cells; different names stay different.

    A long name keeps its beginning and its end. Where that makes two names look alike, they keep where they differ;
    where nothing helps, they are numbered.
    """
    shown = {name: _middle_cut(name, width) for name in names}
    for alike in _alike(shown):
        common = _common(alike)
        shown |= {name: _around(name, common, width) for name in alike}
    for alike in _alike(shown):
        for number, name in enumerate(alike, 1):
            mark = f"…{number}"
            shown[name] = _head(name, width - len(mark)) + mark
    return [shown[name] for name in names]


def _alike(shown: dict[str, str]) -> Iterable[list[str]]:
    groups = defaultdict(list)
    for name, text in shown.items():
        groups[text].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _common(names: Sequence[str]) -> int:
    """How many characters all these names begin with."""
    first, last = min(names), max(names)
    pairs = zip(first, last, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))


def _middle_cut(name: str, width: int) -> str:
    if cell_len(name) <= width:
        return name
    tail = (width - 1) // 3
    return f"{_head(name, width - 1 - tail)}…{_tail(name, tail)}"


def _around(name: str, place: int, width: int) -> str:
    """The beginning of a name and what follows ``place``, where it differs from others."""
    if cell_len(name) <= width:
        return name
    head = _head(name, width // 4)
    rest = name[max(len(head), place - 2) :]
    room = width - cell_len(head) - 1
    if cell_len(rest) > room:
        rest = _head(rest, room - 1) + "…"
    return f"{head}…{rest}"


def _head(text: str, width: int) -> str:
    return set_cell_size(text, min(width, cell_len(text)))


def _tail(text: str, width: int) -> str:
    # A character has at most two cells.
    tail = text[-width:] if width else ""
    while cell_len(tail) > width:
        tail = tail[1:]
    return tail
