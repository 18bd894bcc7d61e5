"""TraceQL as far as it is understood here: spansets of comparisons, joined by ``&&`` and ``||``.

Language: https://grafana.com/docs/tempo/latest/traceql/construct-traceql-queries/. Not understood, and refused by name:
structural operators between spansets (``>>``, ``~`` …), pipelines (``| count() > 2``), arithmetic, and regular
expressions beyond ``.``, ``.*``, ``.+`` and ``|`` (others can be made to run for ever).

As in Tempo: an attribute without a scope is looked for on the span, then on its resource; comparing what is not there,
or is of another kind, is false; ``!=`` and ``!~`` too; two spansets joined by ``&&`` need a span each.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.times import parse_duration

MAX_CHARACTERS: Final = 10_000
_DEEP: Final = 50
_WILDCARDS: Final = 4


class TraceQLError(ValueError):
    """A query that is not understood; says what and where."""


class Around(NamedTuple):
    """What a span's trace says of itself. Durations are nanoseconds."""

    trace_id: str
    root_name: str
    root_service: str
    duration_ns: int


Test = Callable[[SpanRecord, Around], bool]
Field = Callable[[SpanRecord, Around], Any]


class SpanSet(NamedTuple):
    """``{ … }``: spans that fit a condition; ``wanted``: (field, value) pairs that every one of them has."""

    test: Test
    wanted: tuple[tuple[str, Any], ...]


class TraceQuery(NamedTuple):
    """A query: alternatives, each of spansets that must all have a span in a trace."""

    alternatives: tuple[tuple[SpanSet, ...], ...]

    def find(self, spans: Sequence[SpanRecord], around: Around) -> list[SpanRecord] | None:
        """The spans of a trace that fit, or None when the trace does not."""
        for spansets in self.alternatives:
            found: dict[str, SpanRecord] = {}
            for one in spansets:
                fitting = [span for span in spans if one.test(span, around)]
                if not fitting:
                    break
                found |= {span.span_id: span for span in fitting}
            else:
                return list(found.values())
        return None

    def only(self, field: str) -> Any:
        """The value that a field has on some span of every trace that fits, if the query says so; else None."""
        values = [
            {value for one in spansets for name, value in one.wanted if name == field} for spansets in self.alternatives
        ]
        first = values[0] if values else set()
        return next(iter(first)) if len(first) == 1 and all(one == first for one in values) else None


def everything() -> TraceQuery:
    """``{}``."""
    return TraceQuery(((SpanSet(_always, ()),),))


def _always(_span: SpanRecord, _around: Around) -> bool:
    return True


_STATUSES: Final = {0: "unset", 1: "ok", 2: "error"}
_KINDS: Final = {0: "unspecified", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


class _Word(str):
    """A value without quotes: a status or a kind."""

    __slots__ = ()


def _status(span: SpanRecord, _around: Around) -> _Word:
    return _Word(_STATUSES.get(span.status_code, "unset"))


def _kind(span: SpanRecord, _around: Around) -> _Word:
    return _Word(_KINDS.get(span.kind, "unspecified"))


def _duration(span: SpanRecord, _around: Around) -> int | None:
    return span.end_ns - span.start_ns if span.end_ns else None


INTRINSICS: Final[dict[str, Field]] = {
    "name": lambda span, _: span.name,
    "status": _status,
    "statusMessage": lambda span, _: span.status_message,
    "kind": _kind,
    "duration": _duration,
    "rootName": lambda _, around: around.root_name,
    "rootServiceName": lambda _, around: around.root_service,
    "traceDuration": lambda _, around: around.duration_ns,
    # Tempo numbers the spans of a trace as a nested set; of the numbers only this is asked for: whether it is the root.
    "nestedSetParent": lambda span, _: 1 if span.parent_span_id else -1,
    "span:id": lambda span, _: span.span_id,
    "span:parentID": lambda span, _: span.parent_span_id,
    "trace:id": lambda _, around: around.trace_id,
    "instrumentation:name": lambda span, _: span.scope,
}
_SAME: Final = {
    "span:name": "name", "span:status": "status", "span:statusMessage": "statusMessage", "span:kind": "kind",
    "span:duration": "duration", "trace:rootName": "rootName", "trace:rootService": "rootServiceName",
    "trace:duration": "traceDuration",
}  # fmt: skip
_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<operator>&&|\|\||!=|!~|=~|>=|<=|[{}()=<>|~!+\-*/^%,])
  | (?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)
  | (?P<number>\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h|d)?(?![\w.]))
  | (?P<word>\.?[A-Za-z_](?:[\w.\-/:]|"(?:[^"\\]|\\.)*")*)
    )""",
    re.VERBOSE,
)
_LENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_SHORT: Final = {"ns": 1, "us": 1000, "µs": 1000}
_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_ESCAPE: Final = re.compile(r"\\(.)")


def parse(text: str) -> TraceQuery:
    """Read a query. Raises `TraceQLError`."""
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
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise TraceQLError(f"not understood at {at + 1}: {text[at:].strip()[:40]!r}")
            kind = match.lastgroup or ""
            self._tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        self._next = 0

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

    def _error(self, why: str) -> TraceQLError:
        if self._next >= len(self._tokens):
            return TraceQLError(f"{why} at the end of {self._text[-40:]!r}")
        token = self._tokens[self._next]
        return TraceQLError(f"{why} at {token.at + 1}, not {self._text[token.at : token.at + 40]!r}")

    # --- between spansets

    def query(self) -> TraceQuery:
        alternatives = self._either(0)
        if self._next < len(self._tokens):
            found = self._peek()
            if found == "|":
                raise self._error("pipelines are not supported; expected the end")
            if found in (">", "<", "~", "!", ">=", "<="):
                raise self._error("structural operators are not supported; expected && or ||")
            raise self._error("expected && or ||")
        return TraceQuery(tuple(alternatives))

    def _either(self, depth: int) -> list[tuple[SpanSet, ...]]:
        found = self._both(depth)
        while self._take("||"):
            found += self._both(depth)
        return found

    def _both(self, depth: int) -> list[tuple[SpanSet, ...]]:
        found = self._one(depth)
        while self._take("&&"):
            right = self._one(depth)
            found = [(*a, *b) for a in found for b in right]
            if len(found) > _DEEP:
                raise self._error("too many spansets; expected fewer")
        return found

    def _one(self, depth: int) -> list[tuple[SpanSet, ...]]:
        if self._take("("):
            if depth >= _DEEP:
                raise self._error("too deep; expected a spanset")
            found = self._either(depth + 1)
            self._expect(")")
            return found
        self._expect("{")
        spanset = SpanSet(_always, ()) if self._peek() == "}" else self._any_of(0)
        self._expect("}")
        return [(spanset,)]

    # --- inside of one

    def _any_of(self, depth: int) -> SpanSet:
        parts = [self._all_of(depth)]
        while self._take("||"):
            parts.append(self._all_of(depth))
        if len(parts) == 1:
            return parts[0]
        tests = [part.test for part in parts]
        return SpanSet(lambda span, around: any(test(span, around) for test in tests), ())

    def _all_of(self, depth: int) -> SpanSet:
        parts = [self._condition(depth)]
        while self._take("&&"):
            parts.append(self._condition(depth))
        if len(parts) == 1:
            return parts[0]
        tests = [part.test for part in parts]
        wanted = tuple(one for part in parts for one in part.wanted)
        return SpanSet(lambda span, around: all(test(span, around) for test in tests), wanted)

    def _condition(self, depth: int) -> SpanSet:
        if self._take("("):
            if depth >= _DEEP:
                raise self._error("too deep; expected a comparison")
            found = self._any_of(depth + 1)
            self._expect(")")
            return found
        if self._take("!"):
            inner = self._condition(depth + 1 if depth < _DEEP else depth).test
            return SpanSet(lambda span, around: not inner(span, around), ())
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        if token is None or token.kind != "word":
            raise self._error("expected a field")
        self._next += 1
        if token.text in ("true", "false"):
            answer = token.text == "true"
            return SpanSet(lambda _span, _around: answer, ())
        name, field = self._field(token)
        how = self._peek()
        if how in ("}", ")", "&&", "||", ""):
            # A field by itself: it is true.
            return SpanSet(lambda span, around: field(span, around) is True, ())
        if how not in (*_OPERATORS, "=~", "!~"):
            raise self._error("expected a comparison")
        self._next += 1
        value = self._value()
        if how in ("=~", "!~"):
            return SpanSet(self._matching(field, value, is_wanted=how == "=~"), ())
        if value is None:
            is_there = how == "!="
            return SpanSet(lambda span, around: (field(span, around) is not None) is is_there, ())
        wanted = ((name, value),) if how == "=" else ()
        return SpanSet(_comparing(field, _OPERATORS[how], value), wanted)

    def _field(self, token: _Token) -> tuple[str, Field]:
        text = _SAME.get(token.text, token.text)
        if text in INTRINSICS:
            return text, INTRINSICS[text]
        scope, dot, rest = text.partition(".")
        name = re.sub(r'"((?:[^"\\]|\\.)*)"', lambda m: _ESCAPE.sub(r"\1", m[1]), rest)
        if dot and name and scope in ("", "span", "resource"):
            if scope == "span":
                return text, lambda span, _: span.attributes.get(name)
            if scope == "resource":
                return text, lambda span, _: span.around.get(name)
            return text, lambda span, _: span.attributes.get(name, span.around.get(name))
        self._next -= 1
        raise self._error(
            "expected a field: span.NAME, resource.NAME, .NAME, or one of " + ", ".join([*INTRINSICS, *_SAME])
        )

    def _value(self) -> Any:
        is_negative = self._take("-")
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        if token is None or token.kind == "operator":
            raise self._error("expected a value")
        self._next += 1
        if token.kind == "number":
            if match := _LENGTH.fullmatch(token.text):
                short = _SHORT.get(match[2])
                value: Any = round(float(match[1]) * short) if short is not None else parse_duration(token.text)
            else:
                value = float(token.text) if "." in token.text else int(token.text)
            return -value if is_negative else value
        if is_negative:
            raise self._error("expected a number after -")
        if token.kind == "string":
            return token.text[1:-1] if token.text[0] == "`" else _ESCAPE.sub(r"\1", token.text[1:-1])
        if token.text in ("true", "false"):
            return token.text == "true"
        if token.text == "nil":
            return None
        if token.text in {*_STATUSES.values(), *_KINDS.values()}:
            return _Word(token.text)
        self._next -= 1
        raise self._error('expected a value: "text", 5, 1.5s, true, nil, a status or a kind')

    def _matching(self, field: Field, value: Any, *, is_wanted: bool) -> Test:
        if not isinstance(value, str) or isinstance(value, _Word):
            self._next -= 1
            raise self._error('expected a "pattern"')
        try:
            matches = _pattern(value)
        except TraceQLError:
            self._next -= 1
            raise

        def test(span: SpanRecord, around: Around) -> bool:
            found = field(span, around)
            return isinstance(found, str) and matches(found) is is_wanted

        return test


def _comparing(field: Field, compare: Callable[[Any, Any], bool], value: Any) -> Test:
    kind: tuple[type, ...] | type = str
    if isinstance(value, bool):
        kind = bool
    elif isinstance(value, int | float):
        kind = (int, float)
    is_word = isinstance(value, _Word)

    def test(span: SpanRecord, around: Around) -> bool:
        found = field(span, around)
        if not isinstance(found, kind) or isinstance(found, bool) is not (kind is bool):
            return False
        # A word is compared with words, a text with texts; intrinsics of both sorts take either.
        return (not is_word or isinstance(found, _Word)) and compare(found, value)

    return test


def _pattern(text: str) -> Callable[[str], bool]:
    """A regular expression, anchored, of which only what always ends soon is understood."""
    if text.count("*") + text.count("+") > _WILDCARDS * (1 + text.count("|")) or len(text) > 2000:
        raise TraceQLError(f"the pattern {text[:40]!r} has too many wildcards")
    made: list[str] = []
    at = 0
    while at < len(text):
        here = text[at]
        if here == "\\" and at + 1 < len(text) and not text[at + 1].isalnum():
            made.append(re.escape(text[at + 1]))
            at += 2
        elif here == ".":
            more = text[at + 1 : at + 2]
            made.append("." + more if more in ("*", "+") and more else ".")
            at += 2 if more in ("*", "+") and more else 1
        elif here == "|":
            made.append("|")
            at += 1
        elif here in "\\*+?()[]{}^$":
            raise TraceQLError(f"of patterns only text, ., .*, .+ and | are supported, not {text[at:][:20]!r}")
        else:
            made.append(re.escape(here))
            at += 1
    compiled = re.compile("".join(made), re.DOTALL)
    return lambda found: compiled.fullmatch(found[:2000]) is not None
