"""Patterns from outside, matched in linear time: text, ``.``, ``.*``, ``.+`` and ``|``, as in a regular expression.

A backtracking matcher (such as `re`) can be made to run for hours. This one follows all ways to match at once, as the
bits of an integer, so that a character of the text costs the same whatever came before it.
"""

from __future__ import annotations

from typing import Final

MAX_CHARACTERS: Final = 2000
"""Length of a pattern at most, and of the text before which the rest is ignored."""


class PatternError(ValueError):
    """A pattern that is not supported; says what and where."""


class Pattern:
    """A pattern that a whole text must match. Raises `PatternError`.

    >>> Pattern("ch.*|x")("charge")
    True
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_CHARACTERS:
            raise PatternError(f"patterns longer than {MAX_CHARACTERS} characters are not supported")
        # State i of an alternative: its first i characters have matched. `_loops`: states that any character keeps.
        self._starts = self._ends = self._loops = self._any = 0
        self._literals: dict[str, int] = {}
        bit = 1
        self._starts |= bit
        at = 0
        while at < len(pattern):
            character, following = pattern[at], pattern[at + 1 : at + 2]
            if character == "|":
                self._ends |= bit
                bit <<= 1
                self._starts |= bit
                at += 1
            elif character == "." and following == "*":
                self._loops |= bit
                at += 2
            elif character == ".":
                self._any |= bit
                bit <<= 1
                if following == "+":
                    self._loops |= bit
                at += 2 if following == "+" else 1
            else:
                is_escape = character == "\\" and following != "" and not following.isalnum()
                if not is_escape and character in "\\*+?()[]{}^$":
                    raise PatternError(
                        f"patterns support only text, ., .*, .+ and |: expected one of them at {at + 1}, not "
                        f"{pattern[at : at + 20]!r}"
                    )
                literal = following if is_escape else character
                self._literals[literal] = self._literals.get(literal, 0) | bit
                bit <<= 1
                at += 2 if is_escape else 1
        self._ends |= bit

    def __call__(self, text: str) -> bool:
        """Whether the text (its first `MAX_CHARACTERS`) matches as a whole."""
        states, loops, any_character, literals = self._starts, self._loops, self._any, self._literals
        for character in text[:MAX_CHARACTERS]:
            states = ((states & (any_character | literals.get(character, 0))) << 1) | (states & loops)
            if not states:
                return False
        return states & self._ends != 0
