"""How long an answer may be: it is paid for, and what is too long is not read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

MAX_TOKENS: Final = 4_000
"""Of an answer, its text and its structured content together: clients give either one to the model, or both."""
BYTES_PER_TOKEN: Final = 3
"""The rule by which tokens are counted: so many bytes of UTF-8. English prose has more than four bytes a token, JSON
with ids and times about three."""
SHRINK: Final = 0.7


class Answer(NamedTuple):
    """An answer as text, and the same as a structure."""

    text: str
    structure: Any


def tokens(answer: Answer) -> int:
    """How many tokens an answer has, by the rule of `BYTES_PER_TOKEN`."""
    return -(-(len(answer.text.encode()) + len(msgspec.json.encode(answer.structure))) // BYTES_PER_TOKEN)


def fitted(build: Callable[[int], Answer], rows: int) -> Answer:
    """The answer with as many rows as fit, at most ``rows``. With one row every answer fits."""
    while True:
        answer = build(rows)
        if rows <= 1 or tokens(answer) <= MAX_TOKENS:
            return answer
        rows = max(1, int(rows * SHRINK))


def cut(text: str, note: str) -> str:
    """Text without the lines at its end that are too many for an answer; ``note`` replaces them."""
    room = MAX_TOKENS * BYTES_PER_TOKEN
    if len(text.encode()) <= room:
        return text
    kept: list[str] = []
    room -= len(note.encode()) + 1
    for line in text.split("\n"):
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join([*kept, note])
