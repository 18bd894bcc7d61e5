"""What a span of every matching trace must have, as far as a database can look for it.

`criteria_of` gives alternatives of which one holds. All of them are necessary, none is sufficient: whoever searches by
them has to evaluate the query on what is found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from tachograph_exporter.attribute_text import as_text
from tachograph_exporter.store.span_criteria import SpanCriteria
from tachograph_exporter.traces.traceql.fields import IS_ROOT, KINDS, SERVICE, STATUSES
from tachograph_exporter.traces.traceql.lexer import Duration
from tachograph_exporter.traces.traceql.syntax import (
    Attribute,
    Binary,
    Expression,
    Filter,
    Intrinsic,
    Kind,
    Literal,
    Pipeline,
    Query,
    Relation,
    Stage,
    Status,
)

_MAX_ALTERNATIVES: Final = 12
_ANYTHING: Final = SpanCriteria()
_NOTHING_KNOWN: Final = (_ANYTHING,)
_LITERALS: Final = re.compile(r"[\w \-/:,]+(?:\|[\w \-/:,]+)*")
"""A pattern that is a list of texts."""
_INT64: Final = 1 << 63
_STATUS_CODES: Final = {word: code for code, word in STATUSES.items()}
_KIND_CODES: Final = {word: code for code, word in KINDS.items()}
_NOTED_SCOPES: Final = ("span", "resource")
"""An attribute without a scope may be one of an event."""
_FLIPPED: Final = {"=": "=", ">": "<", ">=": "<=", "<": ">", "<=": ">="}

Alternatives = Sequence[SpanCriteria]


def criteria_of(query: Query) -> Alternatives:
    """The alternatives that a span of every trace has one of that matches a query."""
    return _of_stage(query.pipeline)


def is_anything(alternatives: Alternatives) -> bool:
    """Whether the alternatives exclude no span."""
    return _ANYTHING in alternatives


def _of_stage(stage: Stage) -> Alternatives:
    if isinstance(stage, Filter):
        return of_condition(stage.condition)
    if isinstance(stage, Pipeline):
        for inner in stage.stages:
            alternatives = _of_stage(inner)
            if not is_anything(alternatives):
                return alternatives
    if isinstance(stage, Relation):
        left, right = _of_stage(stage.left), _of_stage(stage.right)
        if stage.operator == "||":
            return _either(left, right)
        if stage.operator.startswith("!"):
            return right
        return max(left, right, key=_selectivity)
    return _NOTHING_KNOWN


def _selectivity(alternatives: Alternatives) -> tuple[int, int]:
    """How much a database is helped by alternatives: as much as by the worst of them."""
    worst = min(
        8 * (each.status == _STATUS_CODES["error"])
        + 4 * (each.name is not None or each.root_name is not None or bool(each.values))
        + 2 * (each.min_ns is not None or each.trace_min_ns is not None)
        + (each.service is not None or each.root_service is not None)
        for each in alternatives
    )
    return worst, -len(alternatives)


def of_condition(condition: Expression) -> Alternatives:
    """The alternatives that a span for which a condition is true has one of."""
    if condition == IS_ROOT:
        return (SpanCriteria(is_root=True),)
    if not isinstance(condition, Binary):
        return _NOTHING_KNOWN
    if condition.operator in ("&&", "||"):
        left, right = of_condition(condition.left), of_condition(condition.right)
        return both(left, right) if condition.operator == "&&" else _either(left, right)
    return _of_comparison(condition)


def _either(left: Alternatives, right: Alternatives) -> Alternatives:
    alternatives = tuple(dict.fromkeys((*left, *right)))
    return _NOTHING_KNOWN if is_anything(alternatives) or len(alternatives) > _MAX_ALTERNATIVES else alternatives


def both(left: Alternatives, right: Alternatives) -> Alternatives:
    """The alternatives of what has one of each."""
    if len(left) * len(right) > _MAX_ALTERNATIVES:
        return right if is_anything(left) else left
    return tuple(dict.fromkeys(_merged(a, b) for a in left for b in right))


def _merged(a: SpanCriteria, b: SpanCriteria) -> SpanCriteria:
    """Both; where they differ, one of them: it is as necessary as the other."""
    values: list[Any] = [one if one not in (None, False) else other for one, other in zip(a, b, strict=True)]
    return SpanCriteria(*values)._replace(
        values=tuple(sorted({*a.values, *b.values})), stored=tuple(sorted({*a.stored, *b.stored}))
    )


def _of_comparison(condition: Binary) -> Alternatives:
    field, operator, value = condition.left, condition.operator, condition.right
    if isinstance(field, Literal):
        if operator not in _FLIPPED:
            return _NOTHING_KNOWN
        field, operator, value = value, _FLIPPED[operator], field
    if not isinstance(value, Literal):
        return _NOTHING_KNOWN
    if operator == "=~" and isinstance(value.value, str) and _LITERALS.fullmatch(value.value):
        texts = value.value.split("|")
        if len(texts) <= _MAX_ALTERNATIVES:
            return tuple(dict.fromkeys(each for text in texts for each in _equal(field, text)))
        return _NOTHING_KNOWN
    if operator == "=":
        return _equal(field, value.value)
    if field == Intrinsic("nestedSetParent") and (operator, value.value) in (("<", 0), ("<=", -1)):
        return (SpanCriteria(is_root=True),)
    if operator in (">", ">=") and type(value.value) in (int, float, Duration):
        longest = min(int(value.value), 1 << 62)  # type: ignore[arg-type]
        if field == Intrinsic("duration"):
            return (SpanCriteria(min_ns=longest),)
        if field == Intrinsic("traceDuration"):
            return (SpanCriteria(trace_min_ns=longest),)
    return _NOTHING_KNOWN


def _equal(field: Expression, value: object) -> Alternatives:
    make = _EQUAL.get(field) if isinstance(value, str) else None
    if make is not None:
        return (make(str(value)),)
    if isinstance(field, Attribute) and field.scope in _NOTED_SCOPES and type(value) in (str, bool, int, float):
        is_number = type(value) is float and not math.isfinite(value)  # type: ignore[arg-type]
        return _NOTHING_KNOWN if is_number else _attribute_is(field.scope, field.name, value)  # type: ignore[arg-type]
    if field == Intrinsic("nestedSetParent") and value == -1 and type(value) is int:
        return (SpanCriteria(is_root=True),)
    return _NOTHING_KNOWN


def _attribute_is(scope: str, name: str, value: str | float) -> Alternatives:
    """The alternatives of an attribute, or an item of it, with a value: of a number, it may be a whole one or not."""
    encodings = _encodings(value)
    if not _is_stored(name) or not encodings:
        return (SpanCriteria(values=((name, as_text(value)),)),)
    key = name.encode()
    alternatives = []
    for text, encoding in encodings:
        pair = KeyValue(key=name, value=encoding).SerializeToString()
        item = ArrayValue(values=[encoding]).SerializeToString()
        alternatives.append(SpanCriteria(values=((name, text),), stored=((scope, ((pair,), (key, item))),)))
    return tuple(alternatives)


def _encodings(value: str | float) -> list[tuple[str, AnyValue]]:
    """The values that equal one, as texts (see `attribute_text`) and as OTLP has them; none: it is not known."""
    if isinstance(value, str):
        return [(value, AnyValue(string_value=value))] if _is_stored(value) else []
    if isinstance(value, bool):
        return [(as_text(value), AnyValue(bool_value=value))]
    encodings = []
    if value == int(value) and -_INT64 <= value < _INT64:
        encodings.append((as_text(int(value)), AnyValue(int_value=int(value))))
    if float(value) == value:
        numbers = (0.0, -0.0) if value == 0 else (float(value),)
        encodings += [(as_text(number), AnyValue(double_value=number)) for number in numbers]
    return encodings


def _is_stored(text: str) -> bool:
    """Whether a span with this text has it, as UTF-8, in what is stored of it."""
    return bool(text) and text.isprintable() and "\ufffd" not in text


_EQUAL: Final[dict[Expression, Callable[[str], SpanCriteria]]] = {
    SERVICE: lambda text: SpanCriteria(service=text),
    Intrinsic("name"): lambda text: SpanCriteria(name=text),
    Intrinsic("rootName"): lambda text: SpanCriteria(root_name=text),
    Intrinsic("rootServiceName"): lambda text: SpanCriteria(root_service=text),
    Intrinsic("status"): lambda text: SpanCriteria(status=_STATUS_CODES.get(Status(text), -1)),
    Intrinsic("kind"): lambda text: SpanCriteria(kind=_KIND_CODES.get(Kind(text), -1)),
}
