"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

MAX_HINTS: Final = 5
"""Faults of one document that get a hint: finding one takes much longer than finding the fault."""
_MAX_CANDIDATES: Final = 500
_MAX_LENGTH: Final = 80


def did_you_mean(word: str, candidates: Iterable[str], faults: Sequence[object] = ()) -> str:
    """`` (did you mean "x"?)`` for the closest candidate, or an empty text if none is close.

    ``faults``: those found so far; after the first few there are no more hints. Long words get none.
    """
    if len(faults) >= MAX_HINTS or len(word) > _MAX_LENGTH:
        return ""
    short = islice((name for name in candidates if len(name) <= _MAX_LENGTH), _MAX_CANDIDATES)
    close = difflib.get_close_matches(word, list(short), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""
