"""The columns of a search's answer: the fields that the query reads or selects, in the order of their first mention.

As in Tempo, a column has the name of its attribute without the scope, and what every answer says has no column.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from tachograph_exporter.traces.traceql.fields import Getter, getter_of
from tachograph_exporter.traces.traceql.syntax import Attribute, Expression, Field, Pipeline, expressions_of, fields_of

Column: TypeAlias = tuple[str, Getter]
"""Its name, and how it is read of a span."""

_SAID_ANYWAY: Final = frozenset(
    ("name", "duration", "traceDuration", "rootServiceName", "rootName", "trace:id", "span:id")
)


def columns_of(pipeline: Pipeline) -> list[Column]:
    """The columns of a query. Of fields with one name, the first that is mentioned counts."""
    columns: dict[str, Getter] = {}
    for field in _fields(expressions_of(pipeline)):
        if isinstance(field, Attribute) or field.name not in _SAID_ANYWAY:
            columns.setdefault(field.name, getter_of(field))
    return list(columns.items())


def _fields(expressions: Iterator[Expression]) -> Iterator[Field]:
    for expression in expressions:
        yield from fields_of(expression)
