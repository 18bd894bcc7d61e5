"""Patterns of names, as people write them: ``*`` is anything, ``?`` one character, and everything else itself."""

from __future__ import annotations

import fnmatch


def fits(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern. Brackets are brackets: names of mapped tasks have them."""
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))
