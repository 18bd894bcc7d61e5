"""Text of a TraceQL query as tokens.

As in Tempo's ``pkg/traceql/lexer.go``: text is quoted as in Go, durations are Go's or Prometheus', and the name of an
attribute ends at white space or at one of ``{}()=~!<>&|^,`` (so that ``.a-b`` is one name), unless it is quoted.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_CHARACTERS: Final = 10_000
_MAX_NUMBER: Final = 40
"""Characters of a number."""
_MAX_INTEGER: Final = 1 << 63
SCOPES: Final = ("span", "resource", "event", "link", "instrumentation")
"""Scopes of attributes."""


class TraceQLError(ValueError):
    """A query that is wrong or not supported; says what and where."""


class Duration(int):
    """A duration in nanoseconds."""

    __slots__ = ()


class Token(NamedTuple):
    """A token that begins at character ``at``.

    ``kind``: ``operator``, ``word``, ``text``, ``number``, ``attribute`` (``value``: its name), ``intrinsic`` (with a
    scope, as ``span:id``) or ``end``.
    """

    kind: str
    text: str
    at: int
    value: object = None


_UNITS: Final = {
    "ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
    "d": 86_400 * 10**9, "w": 7 * 86_400 * 10**9, "y": 365 * 86_400 * 10**9,
}  # fmt: skip
_UNIT: Final = "(?:ns|us|µs|μs|ms|s|m|h|d|w|y)"
_PART: Final = re.compile(rf"(\d+(?:\.\d*)?|\.\d+)({_UNIT})")
_TOKEN: Final = re.compile(
    rf"""\s*(?:
    (?P<duration>(?:(?:\d+(?:\.\d*)?|\.\d+){_UNIT})+(?![\w.]))
  | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
  | (?P<attribute>(?:parent\.(?:(?:span|resource)\.)?|(?:{"|".join(SCOPES)})?\.)
        (?:"(?:[^"\\]|\\.)*"|[^\s{{}}()=~!<>&|^,"])+)
  | (?P<intrinsic>(?:trace|span|event|link|instrumentation):[A-Za-z]+)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<text>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
  | (?P<operator>&>>|&<<|!>>|!<<|&&|\|\||!=|=~|!~|>=|<=|>>|<<|!>|!<|&>|&<|&~|[{{}}()=<>|~!+\-*/^%,])
    )""",
    re.VERBOSE,
)
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_ESCAPED: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
                   "\\": "\\", '"': '"', "'": "'"}  # fmt: skip


def tokens(text: str) -> list[Token]:
    """The tokens of a query, the last of them its end. Raises `TraceQLError`."""
    if len(text) > MAX_CHARACTERS:
        raise TraceQLError(f"the query is longer than {MAX_CHARACTERS} characters")
    taken: list[Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            rest = text[at:].lstrip()
            raise TraceQLError(f"not understood at {len(text) - len(rest) + 1}: {rest[:40]!r}")
        kind = match.lastgroup or ""
        taken.append(_token(kind, match[kind], match.start(kind)))
        at = match.end()
    taken.append(Token("end", "", end))
    return taken


def _token(kind: str, text: str, at: int) -> Token:
    if kind in ("number", "duration"):
        return Token("number", text, at, _number(kind, text, at))
    if kind == "text":
        return Token(kind, text, at, text[1:-1] if text[0] == "`" else _unescaped(text[1:-1], at))
    if kind == "attribute":
        quote = text.find('"')
        dot = text.index(".")
        if text.startswith("parent."):
            raise TraceQLError(f"attributes of the parent are not supported at {at + 1}: {text[:40]!r}")
        name = text[dot + 1 :]
        if quote >= 0:
            name = _QUOTED.sub(lambda part: re.sub(r"\\(.)", r"\1", part[1]), name)
        return Token(kind, text, at, name)
    return Token(kind, text, at)


def _number(kind: str, text: str, at: int) -> int | float:
    if len(text) <= _MAX_NUMBER:
        if kind == "duration":
            parts = _PART.findall(text)
            nanoseconds = sum(
                int(amount) * _UNITS[unit] if amount.isdigit() else round(float(amount) * _UNITS[unit])
                for amount, unit in parts
            )
            if nanoseconds < _MAX_INTEGER:
                return Duration(nanoseconds)
        else:
            value = int(text) if text.isdigit() else float(text)
            if value < _MAX_INTEGER:
                return value
    raise TraceQLError(f"expected a number or a duration in nanoseconds within 64 bits at {at + 1}, not {text[:40]!r}")


def _unescaped(text: str, at: int) -> str:
    def escape(match: re.Match[str]) -> str:
        code = match[1]
        if code in _ESCAPED:
            return _ESCAPED[code]
        if len(code) > 1:
            number = int(code, 8) if code[0].isdigit() else int(code[1:], 16)
            if number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF:
                return chr(number)
        raise TraceQLError(f"not a valid escape at {at + match.start() + 2}: {match[0][:12]!r}")

    return _ESCAPE.sub(escape, text) if "\\" in text else text
