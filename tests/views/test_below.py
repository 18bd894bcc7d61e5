"""What lies below a step: self time by name."""

from __future__ import annotations

import pytest

from tachograph_exporter.store.samples import SpanTime
from tachograph_exporter.views.causes.below import SelfTime, excess, self_times
from tachograph_exporter.views.span_times import folded_name


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


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("SELECT orders", "SELECT orders"),
        ("GET /users/17/orders/9", "GET /users/<*>/orders/<*>"),
        ("GET /v1/items/550e8400-e29b-41d4-a716-446655440000", "GET /v1/items/<*>"),
        ("GET rates.example", "GET rates.example"),
        ("chat gpt-4o", "chat gpt-4o"),
        ("chat claude-3-5-sonnet", "chat claude-3-5-sonnet"),
        ("process job-1234", "process job-<*>"),
        ("read export_20241103", "read export_<*>"),
        ("load 2024-01-02", "load <*>"),
        ("s3.GetObject", "s3.GetObject"),
        ("fetch 9f86d081884c7d65", "fetch <*>"),
        ("connect password=hunter2", "connect password=[masked]"),
        ("x" * 5_000, "x" * 199 + "…"),
    ],
)
def test_names_are_folded(name: str, folded: str) -> None:
    assert folded_name(name) == folded
    assert folded_name(folded) == folded
