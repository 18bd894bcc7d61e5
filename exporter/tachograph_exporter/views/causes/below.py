"""What lies below a step: the time of the spans in it, by their names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from tachograph_exporter.store.samples import SpanTime
from tachograph_exporter.views.causes.statistics import median


class SelfTime(NamedTuple):
    """The time of the spans of a name in which none of their own children ran, and how many they are.

    ``elapsed_ns``: the time in which at least one of them ran; less than ``self_ns`` if they ran beside each other.
    """

    self_ns: int
    span_count: int
    elapsed_ns: int


class Excess(NamedTuple):
    """Spans of a name that took longer than usual. ``usual_*`` are medians over the reference runs that were read."""

    name: str
    self_ns: int
    span_count: int
    usual_ns: int
    usual_count: int
    additional_elapsed_ns: int
    references: int

    @property
    def additional_ns(self) -> int:
        """How much longer than usual they took of the step's time; spans beside each other count once."""
        return min(self.self_ns - self.usual_ns, self.additional_elapsed_ns)


def self_times(spans: Sequence[SpanTime], roots: Collection[str]) -> dict[str, SelfTime]:
    """The self time of all spans below these, by name. Cycles are cut."""
    children: dict[str, list[SpanTime]] = {}
    for span in spans:
        children.setdefault(span.parent_span_id, []).append(span)
    totals: dict[str, int] = {}
    named: dict[str, list[SpanTime]] = {}
    pending = list(roots)
    seen = set(roots)
    while pending:
        for span in children.get(pending.pop(), ()):
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            pending.append(span.span_id)
            alone = max(0, span.end_ns - span.start_ns) - _union(children.get(span.span_id, ()), span)
            totals[span.name] = totals.get(span.name, 0) + alone
            named.setdefault(span.name, []).append(span)
    return {name: SelfTime(self_ns, len(named[name]), _union(named[name], None)) for name, self_ns in totals.items()}


def _union(spans: Iterable[SpanTime], within: SpanTime | None) -> int:
    """The time in which at least one of the spans ran, of all or within another one."""
    covered = until = 0
    for span in sorted(spans, key=lambda span: span.start_ns):
        start, end = max(span.start_ns, until), span.end_ns
        if within is not None:
            start, end = max(start, within.start_ns), min(end, within.end_ns)
        if end > start:
            covered += end - start
            until = end
    return covered


def excess(times: Mapping[str, SelfTime], references: Sequence[Mapping[str, SelfTime]]) -> list[Excess]:
    """The names by how much longer than usual their spans took, the most first."""
    result = []
    for name, total in times.items():
        usual = [reference.get(name, SelfTime(0, 0, 0)) for reference in references]
        result.append(
            Excess(
                name,
                total.self_ns,
                total.span_count,
                round(median([each.self_ns for each in usual])),
                round(median([each.span_count for each in usual])),
                total.elapsed_ns - round(median([each.elapsed_ns for each in usual])),
                len(references),
            )
        )
    result.sort(key=lambda each: (-each.additional_ns, each.name))
    return result
