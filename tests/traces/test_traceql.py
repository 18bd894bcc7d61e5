"""TraceQL: what is supported finds what Tempo would find; what is not is refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.store.span_criteria import SpanCriteria
from tachograph_exporter.traces.reading import Trace
from tachograph_exporter.traces.traceql.fields import TraceView
from tachograph_exporter.traces.traceql.parser import TraceQLError, parse
from tachograph_exporter.traces.traceql.pipelines import Spanset, stage
from tachograph_exporter.traces.traceql.requirements import criteria_of
from tachograph_exporter.traces.traceql.syntax import duration_text, text_of

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


def view(spans: list[SpanRecord]) -> TraceView:
    return Trace("t", spans).view()


def spansets(query: str) -> list[str]:
    found = stage(parse(query).pipeline)([Spanset(SPANS)], view(SPANS))
    return ["".join(sorted(span.span_id for span in spanset.spans)) for spanset in found]


def matching(query: str) -> str | None:
    found = spansets(query)
    assert len(found) <= 1
    return found[0] if found else None


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
        ('{ name =~ "(charge|mail)" && name =~ "[a-r]+" }', "23"),
        ('{ name =~ "harg" }', None),
        ('{ rootName = "checkout" && nestedSetParent < 0 }', "1"),
        ('{ trace:rootService = "shop" && trace:duration > 4s && span:name = "mail" }', "3"),
        ('{ name = "charge" } && { name = "mail" }', "23"),
        ('{ name = "charge" } && { name = "no" }', None),
        ('{ name = "no" } || ({ name = "mail" } && {})', "123"),
        ("{ true }", "123"),
        ("{ false }", None),
        # && and || are of one level, as in Tempo: from left to right.
        ("{ true || true && false }", None),
        ('{ name = "mail" } || { name = "charge" } && { name = "no" }', None),
        ("{ span.amount * 2 + 1 = 20 }", "2"),
        ("{ -span.amount < 2 - 3 ^ 2 }", "2"),
        ("{ 7 / 2 = 3 && -7 / 2 = -3 && -7 % 3 = -1 && 7 / 2.0 = 3.5 && 1 / 0 != 1 }", None),
        ("{ 7 / 2 = 3 && -7 / 2 = -3 && -7 % 3 = -1 && 7 / 2.0 = 3.5 }", "123"),
        ("{ duration > 1s * 3 }", "1"),
        ("{ 5 < span.amount }", "2"),
        ("{ !.retried }", None),
        ('{ name = "checkout" } > { status = error }', "2"),
        ("{ status = error } < { }", "1"),
        ("{ status = error } ~ { }", "3"),
        ("{ status = error } !~ { }", "12"),
        ('{ name = "checkout" } &>> { span.to != nil }', "13"),
        ("{ nestedSetParent < 0 } >> { span:childCount = 0 }", "23"),
        ("{ } | count() > 2", "123"),
        ("{ } | avg(duration) > 3s", None),
        ("{ duration > 1s } | max(duration) = 5s | { status = error }", "2"),
        ("count() = 3 | { nestedSetLeft > 1 }", "23"),
        ("{ } | by(resource.region) | coalesce() | select(span.to) | { span.to != nil }", "3"),
        ('({ name = "mail" } | count() = 1) && ({ name = "charge" })', "23"),
        ('{ status = "error" }', "2"),
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
        ("", "expected a spanset"),
        ("{", "expected a field or a value at 2, the end"),
        ("{ } | rate() + 1", "arithmetic with metrics .* is not supported; expected the end at 14"),
        ("({ } | rate()) / 2", "arithmetic with metrics is not supported.* at 8"),
        ("{ } | count() > count()", "comparing aggregates with each other is not supported; expected a number at 17"),
        ("{ } | count() + 1 > 2", "arithmetic with aggregates is not supported"),
        ("{ parent.a = 1 }", "attributes of the parent are not supported at 3"),
        ("{ parent = nil }", "parent is not supported"),
        ("({ } | by(name)) > { }", r"> takes one spanset a side; expected coalesce\(\) after by\(\) at 18"),
        ("{ } | rate() by (.a, .b, .c, .d, .e, .f)", "by more than 5 fields is not supported"),
        ("{ } | compare({ status = error }) | topk(5)", r"compare\(\) is the last stage"),
        ("{ } | topk(5)", "expected a spanset"),
        ("{ nome = 1 }", "expected a field or a value: span.NAME.*at 3"),
        ('{ name ~ "x" }', "expected }, && or || at 8"),
        ("{ duration > }", "expected a field or a value.* at 14"),
        ('{ name =~ "(a+" }', "not a valid pattern .*at 11"),
        ("{ name =~ 5 }", 'expected a "pattern" at 11'),
        ('{ duration = "5s" }', "a number and a text cannot be compared or combined at 12"),
        ("{ 1 + true = 2 }", r"\+ does not take a boolean at 5"),
        ("{ name }", "expected a condition that is true or false at 3"),
        ("{ name = nil }", "never nil at 8"),
        ('{ name = "\\q" }', "not a valid escape at 11"),
        ("{ } | by(1)", "needs a field of the span at 10"),
        ("{ } | max(name) > 1", "needs a number of the span at 11"),
        ("{" + "(" * 100, "too deep"),
        ("{" + "!" * 5000, "too deep"),
        ("(" * 5000, "too deep"),
        ("{ 1 > " + "-" * 5000, "too deep|more than 100 operators"),
        ("{ name = \x00 }", "not understood at 10"),
        ("{} " + "&& {} " * 200, "more than 100 operators"),
        ("{} | count() > " + "1+" * 200 + "1", "more than 100 operators"),
        ("x" * 20_000, "longer than"),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused_with_its_place(query: str, says: str) -> None:
    with pytest.raises(TraceQLError, match=says):
        parse(query)


def test_groups_are_spansets_with_their_values() -> None:
    assert sorted(spansets("{ } | by(status)")) == ["13", "2"]
    assert spansets("{ } | by(status) | count() = 1") == ["2"]
    # 1, true and "1" are different values, and a missing one is one, too.
    assert sorted(spansets("{ } | by(span.retried)")) == ["13", "2"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('{ resource.service.name = "a" && name = "b" }', [SpanCriteria(service="a", name="b")]),
        ('{ name = "b" } || { name = "b" && duration >= 1s }',
         [SpanCriteria(name="b"), SpanCriteria(name="b", min_ns=S)]),
        ('{ name = "b" || `c` = name }', [SpanCriteria(name="b"), SpanCriteria(name="c")]),
        ('{ name =~ "b|c" }', [SpanCriteria(name="b"), SpanCriteria(name="c")]),
        ('{ name =~ "b.*" }', [SpanCriteria()]),
        ('{ name = "b" || duration < 1s }', [SpanCriteria()]),
        ('{ !(name = "b") }', [SpanCriteria()]),
        ('{ name = "b" } !>> { kind = server }', [SpanCriteria(kind=2)]),
        ('{ } > { status = error }', [SpanCriteria(status=2)]),
        ("{ } | count() > 1 | { nestedSetParent<0 && rootName = `r` }", [SpanCriteria(is_root=True, root_name="r")]),
        ("({nestedSetParent<0 && true && status = error} &>> {status = error})"
         " || ({nestedSetParent<0 && status = error})",
         [SpanCriteria(is_root=True, status=2)]),
    ],
)  # fmt: skip
def test_what_every_match_must_have_is_known_beforehand(query: str, expected: list[SpanCriteria]) -> None:
    assert list(criteria_of(parse(query))) == expected


def test_expressions_and_durations_are_written_as_tempo_writes_them() -> None:
    pipeline = parse("{ } | by(1 + .a) | avg(duration) > 1s").pipeline
    assert [text_of(pipeline.stages[1]), text_of(pipeline.stages[2].aggregate)] == ["by(1 + .a)", "avg(duration)"]  # type: ignore[arg-type,union-attr]
    assert text_of(parse('{ span."a b" != nil }').pipeline.stages[0].condition) == 'span."a b" != nil'  # type: ignore[union-attr]
    durations = {0: "0s", 15: "15ns", 1500: "1.5µs", 250_000_000: "250ms", 90 * S: "1m30s", 3600 * S: "1h0m0s",
                 -1_500_000_000: "-1.5s"}  # fmt: skip
    assert {number: duration_text(number) for number in durations} == durations


@given(
    st.lists(
        st.sampled_from([*'{}()&|=!<>~"`.:1s-*^', "{ ", " }", "span.a", "name", "count()", "by(", "rate()", "nil"]),
        max_size=25,
    ).map("".join)
)  # fmt: skip
def test_every_query_has_an_answer_or_a_reason(query: str) -> None:
    with contextlib.suppress(TraceQLError):
        stage(parse(query).pipeline)([Spanset(SPANS)], view(SPANS))
