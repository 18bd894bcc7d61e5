"""What lies below a step: self time by name."""

from __future__ import annotations

from tachograph_exporter.store.samples import SpanTime
from tachograph_exporter.views.causes.below import SelfTime, excess, self_times


def span(span_id: str, parent: str, name: str, start: int, end: int) -> SpanTime:
    return SpanTime("t", span_id, parent, name, start, end)


def test_time_belongs_to_the_innermost_span() -> None:
    spans = [
        span("a", "step", "handle", 0, 100), span("b", "a", "SELECT", 10, 40), span("c", "a", "SELECT", 30, 60),
        span("d", "c", "connect", 30, 35), span("x", "elsewhere", "SELECT", 0, 1000), span("e", "a", "late", 90, 120),
    ]  # fmt: skip
    assert self_times(spans, {"step"}) == {
        "handle": SelfTime(40, 1, 100), "SELECT": SelfTime(55, 2, 50), "connect": SelfTime(5, 1, 5),
        "late": SelfTime(30, 1, 30),
    }  # fmt: skip


def test_spans_beside_each_other_took_the_step_no_longer() -> None:
    beside = self_times([span(str(i), "step", "GET", 0, 30) for i in range(20)], {"step"})
    usual = [self_times([span(str(i), "step", "GET", 0, 10) for i in range(20)], {"step"})] * 5
    (first,) = excess(beside, usual)
    assert (first.self_ns, first.usual_ns, first.additional_ns, first.references) == (600, 200, 20, 5)


def test_cycles_and_spans_without_an_end_are_cut() -> None:
    spans = [span("a", "b", "x", 5, 10), span("b", "a", "x", 0, 10), span("a", "step", "x", 0, 10)]
    assert self_times(spans, {"step"})["x"].span_count <= 2
    assert self_times([span("a", "step", "open", 5, 0)], {"step"}) == {"open": SelfTime(0, 1, 0)}
    assert self_times([], {"step"}) == {}
    assert excess({}, []) == []
