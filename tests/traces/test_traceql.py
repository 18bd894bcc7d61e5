"""TraceQL: what is supported finds what Tempo would find; what is not is refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.traces.trace_query import TraceSummary
from tachograph_exporter.traces.traceql import TraceQLError, parse

S = 1_000_000_000


def span(
    span_id: str,
    name: str,
    seconds: float,
    attributes: Mapping[str, Any] | None = None,
    *,
    parent: str = "",
    status: int = 0,
) -> SpanRecord:
    return SpanRecord(
        trace_id="t",
        span_id=span_id,
        parent_span_id=parent,
        name=name,
        kind=2,
        start_ns=S,
        end_ns=S + round(seconds * S),
        service="shop",
        scope="test",
        resource_id="",
        resource=b"",
        payload=b"",
        attributes=dict(attributes or {}),
        status_code=status,
        status_message="",
        links=(),
        resource_attributes={"service.name": "shop", "region": "eu"},
    )


SPANS = [
    span("1", "checkout", 5, {"http.status_code": 200, "user id": "7"}),
    span("2", "charge", 2, {"retried": True, "amount": 9.5, "region": "us"}, parent="1", status=2),
    span("3", "mail", 0.25, {"http.status_code": 503, "to": "a|b"}, parent="1"),
]
TRACE = TraceSummary("t", "checkout", "shop", 5 * S)


def matching(query: str) -> str | None:
    spans = parse(query).find(SPANS, TRACE)
    return "".join(sorted(span.span_id for span in spans)) if spans is not None else None


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("{}", "123"),
        ('{ name = "charge" }', "2"),
        ('{name!="charge"}', "13"),
        ("{ duration > 1s }", "12"),
        ("{ duration <= 250ms || status = error }", "23"),
        ("{ status = error && duration >= 2s }", "2"),
        ("{ (status = error || kind = client) && !(duration > 2s) }", "2"),
        ("{ span.http.status_code >= 500 }", "3"),
        ("{ .http.status_code = 200 }", "1"),
        ('{ .region = "eu" }', "13"),
        ('{ resource.region = "eu" }', "123"),
        ("{ span.region != nil }", "2"),
        ('{ span.region = nil && name != "mail" }', "1"),
        ('{ span."user id" = "7" }', "1"),
        ("{ span.retried }", "2"),
        ("{ span.retried = true && span.amount > 9 }", "2"),
        ("{ span.amount = -1 }", None),
        ('{ name =~ "ch.*" }', "12"),
        ('{ name !~ "ch.*|x" }', "3"),
        ('{ span.to =~ "a\\\\|b" }', "3"),
        ('{ rootName = "checkout" && nestedSetParent < 0 }', "1"),
        ('{ trace:rootService = "shop" && trace:duration > 4s && span:name = "mail" }', "3"),
        ('{ name = "charge" } && { name = "mail" }', "23"),
        ('{ name = "charge" } && { name = "no" }', None),
        ('{ name = "no" } || ({ name = "mail" } && {})', "123"),
        ("{ true }", "123"),
        ("{ false }", None),
        # Of another type: neither equal nor unequal.
        ('{ span.http.status_code != "200" }', None),
        ('{ span.status = "error" }', None),
    ],
)
def test_it_finds_the_spans(query: str, ids: str | None) -> None:
    assert matching(query) == ids


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", r"expected \{ at the end"),
        ("{", "expected a field"),
        ("{} | rate()", "pipelines are not supported"),
        ('{ name = "a" } >> { name = "b" }', "structural operators are not supported"),
        ("{ nome = 1 }", "expected a field: span.NAME.*at 3"),
        ('{ name ~ "x" }', "expected a comparison at 8"),
        ("{ duration > }", "expected a value at 14"),
        ('{ name =~ "(a+)+" }', r"only text, \., \.\*"),
        ("{ name =~ 5 }", 'expected a "pattern"'),
        ("{" + "(" * 100, "too deep"),
        ("{" + "!" * 5000, "too deep"),
        ("{ name = \x00 }", "not understood at"),
        ("{} " + "&& ({} || {}) " * 9, "too many spansets"),
        ("x" * 20_000, "longer than"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_place(query: str, says: str) -> None:
    with pytest.raises(TraceQLError, match=says):
        parse(query)


def test_what_every_match_must_have_is_known_beforehand() -> None:
    assert parse('{ resource.service.name = "a" && name = "b" }').only("resource.service.name") == "a"
    assert parse('{ name = "b" } || { name = "b" && duration > 1s }').only("name") == "b"
    assert parse('{ name = "b" } || { name = "c" }').only("name") is None
    assert parse('{ name = "b" || name = "c" }').only("name") is None
    assert parse('{ !(name = "b") }').only("name") is None


@given(st.text(alphabet='{}()&|=!<>~"`. abc:1s-\\*', max_size=60))
def test_every_query_has_an_answer_or_a_reason(query: str) -> None:
    with contextlib.suppress(TraceQLError):
        parse(query).find(SPANS, TRACE)
