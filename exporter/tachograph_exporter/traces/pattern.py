"""Patterns from outside, matched in linear time by RE2.

A backtracking matcher (such as `re`) can be made to run for hours. Syntax: https://github.com/google/re2/wiki/Syntax,
which is also what Tempo and Prometheus take. As there, a pattern must match the whole text, and ``.`` any character.
"""

from __future__ import annotations

import functools
from typing import Final

import re2

MAX_CHARACTERS: Final = 2000
"""Length of a pattern at most."""
MAX_TEXT: Final = 5_000
"""Characters of a text after which the rest is ignored: one match takes milliseconds at most."""
_MAX_MEMORY: Final = 1 << 20
"""Bytes that a compiled pattern may take."""


class PatternError(ValueError):
    """A pattern that is not valid or too large; says what is wrong."""


def _options() -> re2.Options:
    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    options.dot_nl = True
    options.never_capture = True
    return options


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re2._Regexp:
    return re2.compile(pattern, _options())


class Pattern:
    """A pattern that a whole text must match. Raises `PatternError`.

    >>> Pattern("ch(ar|oo)[a-z]+")("charge")
    True
    """

    __slots__ = ("_match",)

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_CHARACTERS:
            raise PatternError(f"patterns longer than {MAX_CHARACTERS} characters are not supported")
        try:
            self._match = _compiled(pattern).fullmatch
        except re2.error as error:
            reason = error.args[0] if error.args else ""
            text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise PatternError(f"not a valid pattern ({text})") from None
        except UnicodeEncodeError:
            raise PatternError("not a valid pattern (half a surrogate pair)") from None

    def __call__(self, text: str) -> bool:
        """Whether the text (its first `MAX_TEXT` characters) matches as a whole."""
        return self._match(text[:MAX_TEXT]) is not None
