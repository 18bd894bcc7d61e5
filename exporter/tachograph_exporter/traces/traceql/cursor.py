"""A position among the tokens of a query, with the errors that say what was expected there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tachograph_exporter.traces.traceql.lexer import Token, TraceQLError, tokens

MAX_DEPTH: Final = 50
"""Depth of parentheses and prefixes."""
MAX_OPERATORS: Final = 100
"""Operators of a query."""


class Cursor:
    """The tokens of a query, read one after another. Raises `TraceQLError`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokens(text)
        self._next = 0
        self._depth = 0
        self._operators = 0

    @property
    def token(self) -> Token:
        """The next token."""
        return self._tokens[self._next]

    def ahead(self, count: int) -> Token:
        """The token ``count`` tokens after the next one."""
        return self._tokens[min(self._next + count, len(self._tokens) - 1)]

    def take(self) -> Token:
        """The next token; the one after it is next."""
        token = self.token
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def accept(self, *texts: str) -> str | None:
        """The text of the next token if it is one of these operators or words, which is then taken."""
        token = self.token
        if token.kind in ("operator", "word") and token.text in texts:
            self.take()
            return token.text
        return None

    def peeks(self, *texts: str) -> bool:
        """Whether the next token is one of these operators or words."""
        return self.token.kind in ("operator", "word") and self.token.text in texts

    def expect(self, text: str, hint: str = "") -> None:
        """Take an operator."""
        if self.accept(text) is None:
            raise self.error(f"expected {text}{hint}")

    def error(self, problem: str, at: Token | None = None) -> TraceQLError:
        """An error at a token (default: the next one)."""
        token = self.token if at is None else at
        if token.kind == "end":
            return TraceQLError(f"{problem} at {token.at + 1}, the end of {self._text[-40:]!r}")
        return TraceQLError(f"{problem} at {token.at + 1}, not {self._text[token.at : token.at + 40]!r}")

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """One level deeper: in parentheses or behind a prefix."""
        if self._depth >= MAX_DEPTH:
            raise self.error(f"too deep (more than {MAX_DEPTH} levels); expected less")
        self._depth += 1
        yield
        self._depth -= 1

    def count_operator(self) -> None:
        """Count an operator: queries are bounded."""
        self._operators += 1
        if self._operators > MAX_OPERATORS:
            raise self.error(f"more than {MAX_OPERATORS} operators; expected the end")
