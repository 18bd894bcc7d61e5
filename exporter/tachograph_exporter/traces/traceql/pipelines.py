"""TraceQL's pipelines as functions: from the spans of a trace to the spansets that match.

Structural operators go by the ids of parents: ``A >> B`` are the spans of B below one of A, ``A !>> B`` those below
none, ``A &>> B`` the spans of both that are so related. They, as all others, run in time linear in the spans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.traces.traceql.expressions import condition, evaluator
from tachograph_exporter.traces.traceql.fields import Getter, TraceView, first
from tachograph_exporter.traces.traceql.lexer import Duration
from tachograph_exporter.traces.traceql.syntax import (
    Aggregate,
    Coalesce,
    Filter,
    GroupBy,
    Pipeline,
    Relation,
    ScalarFilter,
    Stage,
    text_of,
)


class Spanset(NamedTuple):
    """Spans of one trace, with the values of aggregates and groups they were chosen by."""

    spans: Sequence[SpanRecord]
    attributes: tuple[tuple[str, Any], ...] = ()


Evaluate: TypeAlias = Callable[[Sequence[Spanset], TraceView], list[Spanset]]
_Spans: TypeAlias = Sequence[SpanRecord]
_Pick: TypeAlias = Callable[[_Spans, _Spans, TraceView], list[SpanRecord]]


def stage(node: Stage) -> Evaluate:
    """The function that works on spansets as a stage of a query does."""
    match node:
        case Filter():
            return _filter(node)
        case Relation():
            return _relation(node)
        case ScalarFilter():
            return _scalar_filter(node)
        case GroupBy():
            return _group(node)
        case Coalesce():
            return lambda spansets, _: [Spanset(_unique(spanset.spans for spanset in spansets))] if spansets else []
        case Pipeline():
            return _chain([stage(inner) for inner in node.stages])
    # What is selected is read where the spans are shown.
    return lambda spansets, _: list(spansets)


def _chain(stages: Sequence[Evaluate]) -> Evaluate:
    def evaluate(spansets: Sequence[Spanset], view: TraceView) -> list[Spanset]:
        current = list(spansets)
        for each in stages:
            if not current:
                break
            current = each(current, view)
        return current

    return evaluate


def _filter(node: Filter) -> Evaluate:
    test = condition(node.condition)

    def evaluate(spansets: Sequence[Spanset], view: TraceView) -> list[Spanset]:
        kept = []
        for spanset in spansets:
            spans = [span for span in spanset.spans if test(span, view)]
            if spans:
                kept.append(spanset._replace(spans=spans))
        return kept

    return evaluate


def _relation(node: Relation) -> Evaluate:
    left, right, pick = stage(node.left), stage(node.right), _PICKS[node.operator]

    def evaluate(spansets: Sequence[Spanset], view: TraceView) -> list[Spanset]:
        related = []
        for spanset in spansets:
            first_side = _unique(side.spans for side in left([spanset], view))
            second_side = _unique(side.spans for side in right([spanset], view))
            spans = pick(first_side, second_side, view)
            if spans:
                related.append(spanset._replace(spans=spans))
        return related

    return evaluate


def _unique(parts: Iterable[_Spans]) -> list[SpanRecord]:
    return list({span.span_id: span for part in parts for span in part}.values())


def _both(left: _Spans, right: _Spans, _view: TraceView) -> list[SpanRecord]:
    return _unique((left, right)) if left and right else []


def _either(left: _Spans, right: _Spans, _view: TraceView) -> list[SpanRecord]:
    return _unique((left, right))


_Related: TypeAlias = Callable[[_Spans, _Spans, TraceView], set[str]]
"""The ids of those of the second spans that are related to one of the first."""


def _ids(spans: _Spans) -> set[str]:
    return {span.span_id for span in spans}


def _children(of: _Spans, among: _Spans, _view: TraceView) -> set[str]:
    parents = _ids(of)
    return {span.span_id for span in among if span.parent_span_id in parents and span.parent_span_id != span.span_id}


def _parents(of: _Spans, among: _Spans, _view: TraceView) -> set[str]:
    parents = {span.parent_span_id for span in of if span.parent_span_id != span.span_id}
    return {span.span_id for span in among if span.span_id in parents}


def _descendants(of: _Spans, among: _Spans, view: TraceView) -> set[str]:
    return _below(_ids(of), view) & _ids(among)


def _below(ids: Collection[str], view: TraceView) -> set[str]:
    """Ids of the spans below these."""
    below: set[str] = set()
    pending = [child for span_id in ids for child in view.children.get(span_id, ())]
    while pending:
        span_id = pending.pop()
        if span_id not in below:
            below.add(span_id)
            pending += view.children.get(span_id, ())
    return below


def _ancestors(of: _Spans, among: _Spans, view: TraceView) -> set[str]:
    parents = {span.span_id: span.parent_span_id for span in view.spans}
    above: set[str] = set()
    for span in of:
        parent = span.parent_span_id
        while parent and parent not in above:
            above.add(parent)
            parent = parents.get(parent, "")
    return above & _ids(among)


def _siblings(of: _Spans, among: _Spans, _view: TraceView) -> set[str]:
    ids = _ids(of)
    counts = Counter(span.parent_span_id for span in of)
    return {span.span_id for span in among if counts[span.parent_span_id] > (span.span_id in ids)}


def _related(related: _Related) -> _Pick:
    def pick(left: _Spans, right: _Spans, view: TraceView) -> list[SpanRecord]:
        ids = related(left, right, view)
        return [span for span in right if span.span_id in ids]

    return pick


def _unrelated(related: _Related) -> _Pick:
    def pick(left: _Spans, right: _Spans, view: TraceView) -> list[SpanRecord]:
        ids = related(left, right, view)
        return [span for span in right if span.span_id not in ids]

    return pick


def _union(related: _Related, inverse: _Related) -> _Pick:
    def pick(left: _Spans, right: _Spans, view: TraceView) -> list[SpanRecord]:
        ids = related(left, right, view)
        others = inverse(right, left, view)
        return _unique(
            ([span for span in left if span.span_id in others], [span for span in right if span.span_id in ids])
        )

    return pick


_STRUCTURAL: Final = {
    ">": (_children, _parents), "<": (_parents, _children), ">>": (_descendants, _ancestors),
    "<<": (_ancestors, _descendants), "~": (_siblings, _siblings),
}  # fmt: skip
_PICKS: Final[dict[str, _Pick]] = {
    "&&": _both, "||": _either,
    **{name: _related(related) for name, (related, _) in _STRUCTURAL.items()},
    **{f"!{name}": _unrelated(related) for name, (related, _) in _STRUCTURAL.items()},
    **{f"&{name}": _union(*relations) for name, relations in _STRUCTURAL.items()},
}  # fmt: skip


def _group(node: GroupBy) -> Evaluate:
    value_of, name = evaluator(node.expression), text_of(node)

    def evaluate(spansets: Sequence[Spanset], view: TraceView) -> list[Spanset]:
        grouped = []
        for spanset in spansets:
            groups: dict[Any, tuple[Any, list[SpanRecord]]] = {}
            for span in spanset.spans:
                value = first(value_of(span, view))
                groups.setdefault(key_of(value), (value, []))[1].append(span)
            grouped += [Spanset(spans, (*spanset.attributes, (name, value))) for value, spans in groups.values()]
        return grouped

    return evaluate


def key_of(value: Any) -> Any:
    """What tells values apart: 1, 1.0, true and "1" are four values."""
    # A float that is not a number does not even equal itself.
    return type(value), repr(value) if isinstance(value, list | dict | float) else value


def _scalar_filter(node: ScalarFilter) -> Evaluate:
    aggregate, name = _aggregate(node.aggregate), text_of(node.aggregate)
    compare = _COMPARE[node.operator]

    def evaluate(spansets: Sequence[Spanset], view: TraceView) -> list[Spanset]:
        kept = []
        for spanset in spansets:
            value = aggregate(spanset.spans, view)
            if value is not None and compare(value, node.value):
                kept.append(spanset._replace(attributes=(*spanset.attributes, (name, value))))
        return kept

    return evaluate


_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": lambda a, b: a == b, "!=": lambda a, b: a != b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
}  # fmt: skip


def _aggregate(node: Aggregate) -> Callable[[_Spans, TraceView], int | float | None]:
    if node.of is None:
        return lambda spans, _: len(spans)
    value_of = evaluator(node.of)

    def numbers(spans: _Spans, view: TraceView) -> list[int | float]:
        return [number for span in spans if (number := _number(value_of, span, view)) is not None]

    def aggregate(spans: _Spans, view: TraceView) -> int | float | None:
        values = numbers(spans, view)
        if not values:
            return None
        if node.function in ("min", "max"):
            return min(values) if node.function == "min" else max(values)
        total: int | float = sum(values)
        is_duration = all(isinstance(value, Duration) for value in values)
        if node.function == "avg":
            # As in Tempo, the average of durations is one, in whole nanoseconds.
            return Duration(total // len(values)) if is_duration else total / len(values)
        return Duration(total) if is_duration else total

    return aggregate


def _number(value_of: Getter, span: SpanRecord, view: TraceView) -> int | float | None:
    value = first(value_of(span, view))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
