"""What is known of kinds of steps from those before: whether they are tiny, or at least not long."""

from __future__ import annotations

from typing import Final

Kind = tuple[str, str]
"""What steps have in common that take about as long: the id of their workflow, and their name."""
TAKEN_FOR_TINY: Final = 16
"""The score of a kind from which on its steps are taken for tiny. Each tiny one that is measured counts 1."""
MAX_SCORE: Final = 96
_NOT_TINY: Final = 32
_LONG: Final = 400
"""What a longer step takes from the score of its kind, which may have been held up; and one that worked long."""
TAKEN_FOR_BRIEF: Final = 8
"""The number of brief steps in a row from which on the next one of the kind is taken for brief, too."""
MAX_KINDS: Final = 10_000
scores: dict[Kind, int] = {}
"""How tiny the latest steps of a kind were."""
tiny: set[Kind] = set()
"""Kinds of steps that are taken for tiny."""
brief: dict[Kind, int] = {}
"""How many steps of a kind in a row were neither tiny nor long."""


def note_tiny(kind: Kind) -> None:
    """A step of this kind was measured and tiny."""
    score = scores.get(kind, 0) + 1
    if len(scores) >= MAX_KINDS:
        scores.clear()
        tiny.clear()
    scores[kind] = score
    if score >= TAKEN_FOR_TINY:
        tiny.add(kind)


def note_other(kind: Kind, *, worked_long: bool) -> None:
    """A step took longer, of a kind of which others were tiny. ``worked_long``: its thread worked, it did not wait."""
    score = scores[kind] = max(scores.get(kind, 0) - (_LONG if worked_long else _NOT_TINY), -_LONG)
    if score < TAKEN_FOR_TINY:
        tiny.discard(kind)


def note_length(kind: Kind, *, is_long: bool) -> None:
    """A step of this kind was measured that was not tiny."""
    if is_long:
        brief.pop(kind, None)
        return
    if len(brief) >= MAX_KINDS:
        brief.clear()
    brief[kind] = brief.get(kind, 0) + 1


def forget() -> None:
    """Begin anew."""
    scores.clear()
    tiny.clear()
    brief.clear()
