"""A parser for the part of TraceQL that is supported: spansets of comparisons, joined by ``&&`` and ``||``.

Language: https://grafana.com/docs/tempo/latest/traceql/construct-traceql-queries/. Not supported, and refused by name:
structural operators between spansets (``>>``, ``~`` …), pipelines (``| count() > 2``), arithmetic, and regular
expressions beyond ``.``, ``.*``, ``.+`` and ``|`` (see `Pattern`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tachograph_exporter.traces.pattern import Pattern, PatternError
from tachograph_exporter.traces.trace_query import (
    ALIASES,
    INTRINSICS,
    KINDS,
    STATUSES,
    Field,
    SpanSet,
    Test,
    TraceQuery,
    Word,
    attribute,
    comparison,
    every_span,
    match,
    presence,
)

MAX_CHARACTERS: Final = 10_000
_MAX_DEPTH: Final = 50
_MAX_ALTERNATIVES: Final = 50
_MAX_CONDITIONS: Final = 100
_MAX_NUMBER: Final = 40
"""Characters of a number."""


class TraceQLError(ValueError):
    """A query that is not supported; says what and where."""


_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<operator>&&|\|\||!=|!~|=~|>=|<=|[{}()=<>|~!+\-*/^%,])
  | (?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)
  | (?P<number>\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h|d)?(?![\w.]))
  | (?P<word>\.?[A-Za-z_](?:[\w.\-/:]|"(?:[^"\\]|\\.)*")*)
    )""",
    re.VERBOSE,
)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_NANOSECONDS: Final = {
    "ns": 1, "us": 1000, "µs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9,
}  # fmt: skip
_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_ESCAPE: Final = re.compile(r"\\(.)")


def parse(text: str) -> TraceQuery:
    """Parse a query. Raises `TraceQLError`."""
    if len(text) > MAX_CHARACTERS:
        raise TraceQLError(f"the query is longer than {MAX_CHARACTERS} characters")
    return _Parser(text).query()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[_Token] = []
        at = 0
        end = len(text.rstrip())
        while at < end:
            token = _TOKEN.match(text, at)
            if token is None:
                raise TraceQLError(f"not understood at {at + 1}: {text[at:].strip()[:40]!r}")
            kind = token.lastgroup or ""
            self._tokens.append(_Token(kind, token[kind], token.start(kind)))
            at = token.end()
        self._next = 0
        self._conditions = 0

    def _peek(self) -> str:
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        return token.text if token is not None and token.kind == "operator" else ""

    def _take(self, text: str) -> bool:
        if self._peek() == text:
            self._next += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._error(f"expected {text}")

    def _error(self, problem: str) -> TraceQLError:
        if self._next >= len(self._tokens):
            return TraceQLError(f"{problem} at the end of {self._text[-40:]!r}")
        token = self._tokens[self._next]
        return TraceQLError(f"{problem} at {token.at + 1}, not {self._text[token.at : token.at + 40]!r}")

    # Between spansets: lists of alternatives, each of spansets that must all be found.

    def query(self) -> TraceQuery:
        alternatives = self._either(0)
        if self._next < len(self._tokens):
            following = self._peek()
            if following == "|":
                raise self._error("pipelines are not supported; expected the end")
            if following in (">", "<", "~", "!", ">=", "<="):
                raise self._error("structural operators are not supported; expected && or ||")
            raise self._error("expected && or ||")
        return TraceQuery(tuple(alternatives))

    def _either(self, depth: int) -> list[tuple[SpanSet, ...]]:
        alternatives = self._both(depth)
        while self._take("||"):
            alternatives += self._both(depth)
        return alternatives

    def _both(self, depth: int) -> list[tuple[SpanSet, ...]]:
        alternatives = self._spansets(depth)
        while self._take("&&"):
            right = self._spansets(depth)
            alternatives = [(*a, *b) for a in alternatives for b in right]
            if len(alternatives) > _MAX_ALTERNATIVES:
                raise self._error("too many spansets; expected fewer")
        return alternatives

    def _spansets(self, depth: int) -> list[tuple[SpanSet, ...]]:
        if self._take("("):
            if depth >= _MAX_DEPTH:
                raise self._error("too deep; expected a spanset")
            alternatives = self._either(depth + 1)
            self._expect(")")
            return alternatives
        self._expect("{")
        spanset = SpanSet(every_span, ()) if self._peek() == "}" else self._any_of(0)
        self._expect("}")
        return [(spanset,)]

    # Inside a spanset.

    def _any_of(self, depth: int) -> SpanSet:
        parts = [self._all_of(depth)]
        while self._take("||"):
            parts.append(self._all_of(depth))
        if len(parts) == 1:
            return parts[0]
        tests = [part.test for part in parts]
        return SpanSet(lambda span, trace: any(test(span, trace) for test in tests), ())

    def _all_of(self, depth: int) -> SpanSet:
        parts = [self._condition(depth)]
        while self._take("&&"):
            parts.append(self._condition(depth))
        if len(parts) == 1:
            return parts[0]
        tests = [part.test for part in parts]
        required = tuple(pair for part in parts for pair in part.required)
        return SpanSet(lambda span, trace: all(test(span, trace) for test in tests), required)

    def _condition(self, depth: int) -> SpanSet:
        if self._peek() in ("(", "!") and depth >= _MAX_DEPTH:
            raise self._error("too deep; expected a comparison")
        if self._take("("):
            spanset = self._any_of(depth + 1)
            self._expect(")")
            return spanset
        if self._take("!"):
            inner = self._condition(depth + 1).test
            return SpanSet(lambda span, trace: not inner(span, trace), ())
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        if token is None or token.kind != "word":
            raise self._error("expected a field")
        self._conditions += 1
        if self._conditions > _MAX_CONDITIONS:
            raise self._error(f"more than {_MAX_CONDITIONS} conditions; expected the end")
        self._next += 1
        if token.text in ("true", "false"):
            answer = token.text == "true"
            return SpanSet(lambda _span, _trace: answer, ())
        name, field = self._field(token)
        how = self._peek()
        if how in ("}", ")", "&&", "||", ""):
            # A field without a comparison must be true.
            return SpanSet(lambda span, trace: field(span, trace) is True, ())
        if how not in (*_OPERATORS, "=~", "!~"):
            raise self._error("expected a comparison")
        self._next += 1
        value = self._value()
        if how in ("=~", "!~"):
            return SpanSet(self._match(field, value, expected=how == "=~"), ())
        if value is None:
            return SpanSet(presence(field, expected=how == "!="), ())
        required = ((name, value),) if how == "=" else ()
        return SpanSet(comparison(field, _OPERATORS[how], value), required)

    def _field(self, token: _Token) -> tuple[str, Field]:
        text = ALIASES.get(token.text, token.text)
        if text in INTRINSICS:
            return text, INTRINSICS[text]
        scope, dot, rest = text.partition(".")
        name = re.sub(r'"((?:[^"\\]|\\.)*)"', lambda quoted: _ESCAPE.sub(r"\1", quoted[1]), rest)
        if dot and name and scope in ("", "span", "resource"):
            return text, attribute(scope, name)
        self._next -= 1
        raise self._error(
            "expected a field: span.NAME, resource.NAME, .NAME, or one of " + ", ".join([*INTRINSICS, *ALIASES])
        )

    def _value(self) -> Any:
        is_negative = self._take("-")
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        if token is None or token.kind == "operator":
            raise self._error("expected a value")
        self._next += 1
        if token.kind == "number":
            value = self._number(token)
            return -value if is_negative else value
        if is_negative:
            raise self._error("expected a number after -")
        if token.kind == "string":
            return token.text[1:-1] if token.text[0] == "`" else _ESCAPE.sub(r"\1", token.text[1:-1])
        if token.text in ("true", "false"):
            return token.text == "true"
        if token.text == "nil":
            return None
        if token.text in {*STATUSES.values(), *KINDS.values()}:
            return Word(token.text)
        self._next -= 1
        raise self._error('expected a value: "text", 5, 1.5s, true, nil, a status or a kind')

    def _number(self, token: _Token) -> int | float:
        if len(token.text) <= _MAX_NUMBER:
            duration = _DURATION.fullmatch(token.text)
            if duration is None:
                value = float(token.text) if "." in token.text else int(token.text)
            else:
                value = round(float(duration[1]) * _NANOSECONDS[duration[2]])
            if value < 1 << 63:
                return value
        self._next -= 1
        raise self._error("expected a number or a duration in nanoseconds within 64 bits")

    def _match(self, field: Field, value: Any, *, expected: bool) -> Test:
        if not isinstance(value, str) or isinstance(value, Word):
            self._next -= 1
            raise self._error('expected a "pattern"')
        try:
            return match(field, Pattern(value), expected=expected)
        except PatternError as error:
            self._next -= 1
            raise self._error(f"{error}; expected such a pattern") from None
