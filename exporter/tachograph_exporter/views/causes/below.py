"""What lies below a step: the time of the spans in it, by their names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from tachograph_exporter.store.samples import SpanTime
from tachograph_exporter.views.causes.statistics import median


class SelfTime(NamedTuple):
    """The time of the spans of a name in which none of their own children ran, and how many they are."""

    self_ns: int
    span_count: int


class Excess(NamedTuple):
    """Spans of a name that took longer than usual. ``usual_*`` are medians over the reference runs that were read."""

    name: str
    self_ns: int
    span_count: int
    usual_ns: int
    usual_count: int
    references: int

    @property
    def additional_ns(self) -> int:
        """How much longer than usual."""
        return self.self_ns - self.usual_ns


def self_times(spans: Sequence[SpanTime], roots: Collection[str]) -> dict[str, SelfTime]:
    """The self time of all spans below these, by name. Spans at the same time count each; cycles are cut."""
    children: dict[str, list[SpanTime]] = {}
    for span in spans:
        children.setdefault(span.parent_span_id, []).append(span)
    totals: dict[str, SelfTime] = {}
    pending = list(roots)
    seen = set(roots)
    while pending:
        for span in children.get(pending.pop(), ()):
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            pending.append(span.span_id)
            alone = max(0, span.end_ns - span.start_ns) - _covered(span, children.get(span.span_id, ()))
            total = totals.get(span.name, SelfTime(0, 0))
            totals[span.name] = SelfTime(total.self_ns + alone, total.span_count + 1)
    return totals


def _covered(span: SpanTime, children: Iterable[SpanTime]) -> int:
    """The time of a span in which at least one of its children ran."""
    covered, until = 0, span.start_ns
    for child in sorted(children, key=lambda child: child.start_ns):
        start, end = max(child.start_ns, until), min(child.end_ns, span.end_ns)
        if end > start:
            covered += end - start
            until = end
    return covered


def excess(times: Mapping[str, SelfTime], references: Sequence[Mapping[str, SelfTime]]) -> list[Excess]:
    """The names by how much longer than usual their spans took, the most first."""
    result = []
    for name, total in times.items():
        usual = [reference.get(name, SelfTime(0, 0)) for reference in references]
        result.append(
            Excess(
                name,
                total.self_ns,
                total.span_count,
                round(median([each.self_ns for each in usual])),
                round(median([each.span_count for each in usual])),
                len(references),
            )
        )
    result.sort(key=lambda each: (-each.additional_ns, each.name))
    return result
