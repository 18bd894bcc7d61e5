"""OpenMetrics 2.0: every line follows the specification's grammar, and says what the registry says.

The grammar is that of https://prometheus.io/docs/specs/om/open_metrics_spec_2_0/ (2.0.0-rc0), written down again here:
no parser of it is released for Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from prometheus_client import CollectorRegistry, Counter, Enum, Info, Summary
from prometheus_client.core import GaugeHistogramMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.samples import BucketSpan, Exemplar, NativeHistogram, Sample
from tests.metrics.test_exposition import Fixed, ours, theirs

from tachograph.histogram import ExponentialHistogram
from tachograph.metrics.exposition import render
from tachograph.metrics.families import HistogramFamily
from tachograph.metrics.negotiation import Escaping, Format, negotiate
from tachograph.metrics.series_registry import SeriesRegistry

REAL = r"[+-]?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)"
NUMBER = rf"(?:{REAL}|[+-]?inf(?:inity)?|nan)"
STRING = r'"(?:[^"\\\n]|\\[^\n])*"'
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = rf"(?:[a-zA-Z_][a-zA-Z0-9_]*|{STRING})={STRING}"
LABELS = rf"\{{(?:{LABEL}(?:,{LABEL})*)?\}}"
SERIES = rf"(?:{NAME}(?:{LABELS})?|\{{{STRING}(?:,{LABEL})*\}})"
SPANS = r"-?\d+:\d+(?:,\d+:\d+)*"
BUCKETS = rf"{NUMBER}(?:,{NUMBER})*"
SIDES = "".join([rf"(?:,{side}_spans:\[{SPANS}\],{side}_buckets:\[{BUCKETS}\])?" for side in ("negative", "positive")])
NATIVE = rf"schema:-?\d+,zero_threshold:{REAL},zero_count:{NUMBER}{SIDES}"
CLASSIC = rf"bucket:\[(?:{NUMBER}:{NUMBER},)*\+Inf:{NUMBER}\]"
HISTOGRAM = rf"g?count:{NUMBER},g?sum:{NUMBER},(?:{CLASSIC}|{NATIVE}(?:,{CLASSIC})?)"
SUMMARY = rf"count:{NUMBER},sum:{NUMBER},quantile:\[(?:{REAL}:{NUMBER}(?:,{REAL}:{NUMBER})*)?\]"
EXEMPLAR = rf" # {LABELS} {NUMBER} {REAL}"
LINE = re.compile(
    rf"(?P<series>{SERIES}) (?P<value>{NUMBER}|\{{(?:{HISTOGRAM}|{SUMMARY})\}})(?P<time> {REAL})?(?P<start> st@{REAL})?"
    rf"(?P<exemplars>(?:{EXEMPLAR})*)",
    re.IGNORECASE,
)
TYPES = "counter|gauge|histogram|gaugehistogram|stateset|info|summary|unknown"
DESCRIPTOR = re.compile(rf"# (?:TYPE (?:{NAME}|{STRING}) (?:{TYPES})|(?:HELP|UNIT) (?:{NAME}|{STRING}) .*)")


class Line(NamedTuple):
    series: str
    value: str
    start: float | None
    exemplars: str

    @property
    def fields(self) -> dict[str, str]:
        """Of a composite value."""
        return dict(re.findall(r"(\w+):(\[[^]]*\]|[^,]+)", self.value[1:-1]))


def parse(body: bytes) -> dict[str, Line]:
    """The lines by series. Fails where the text does not follow the grammar."""
    lines: dict[str, Line] = {}
    # Only line feeds end lines; texts may hold other characters that Python takes for ends.
    *rest, eof, after = body.decode().split("\n")
    assert (eof, after) == ("# EOF", "")
    for line in rest:
        if line.startswith("#"):
            assert DESCRIPTOR.fullmatch(line), line
            continue
        match = LINE.fullmatch(line)
        assert match, line
        start = float(match["start"].removeprefix(" st@")) if match["start"] else None
        lines[match["series"]] = Line(match["series"], match["value"], start, match["exemplars"])
    return lines


def native_of(fields: dict[str, str], side: str) -> dict[int, int]:
    """Counts by index."""
    counts = iter([int(count) for count in fields.get(f"{side}_buckets", "[]")[1:-1].split(",") if count])
    buckets: dict[int, int] = {}
    index = 0
    for span in fields.get(f"{side}_spans", "[]")[1:-1].split(","):
        if span:
            gap, length = map(int, span.split(":"))
            index += gap
            for _ in range(length):
                buckets[index] = next(counts)
                index += 1
    assert next(counts, None) is None
    return buckets


@given(ours())
def test_our_families_say_what_their_label_sets_hold(registry: CollectorRegistry) -> None:
    for _ in range(2):  # The second time from the cache.
        lines = parse(render(registry, Format.OPENMETRICS_2))
    (series,) = [collector for collector in registry._collector_to_names if isinstance(collector, SeriesRegistry)]
    number = 0
    for family in series.families:
        for child in family.children():
            number += 1
            prefix = family.prefix(child, "_total" if family.kind == "counter" else "")
            line = lines[prefix]
            if not isinstance(family, HistogramFamily):
                assert float(line.value) == child.value  # type: ignore[attr-defined]
                assert line.start == (child.created if family.kind == "counter" else None)
                continue
            histogram: Any = child
            native: ExponentialHistogram = histogram.native
            fields = line.fields
            assert (int(fields["count"]), float(fields["sum"])) == (native.count, histogram.total)
            assert (int(fields["schema"]), int(fields["zero_count"])) == (native.schema, native.zero_count)
            assert native_of(fields, "positive") == native.positive
            assert fields["bucket"] == "[" + ",".join(
                f"{le}:{count}" for le, count in zip(family.bound_texts, accumulate(histogram.counts), strict=True)
            ) + "]"  # fmt: skip
            assert line.start == child.created
            exemplars = [histogram.exemplar(i) for i in range(len(histogram.counts))] if histogram.exemplars else []
            assert line.exemplars.count(" # {") >= sum(e is not None and e.timestamp is not None for e in exemplars)
    assert number == len(lines)


@given(theirs())
def test_other_metrics_follow_the_grammar_whatever_their_names_and_values(metrics: list[Metric]) -> None:
    for escaping in (Escaping.ALLOW_UTF_8, Escaping.UNDERSCORES):
        parse(render(Fixed(metrics), Format.OPENMETRICS_2, escaping=escaping))


def test_each_type_is_written_as_the_specification_shows() -> None:
    registry = CollectorRegistry()
    Counter("jobs", "Jobs.", ["queue"], registry=registry).labels('a"\n').inc(3, {"trace_id": "1"})
    Info("build", "The build.", registry=registry).info({"version": "1"})
    Enum("state", "The state.", states=["on", "off"], registry=registry).state("off")
    Summary("size_bytes", "Sizes.", registry=registry).observe(2)
    text = render(registry, Format.OPENMETRICS_2).decode()
    lines = parse(text.encode())
    counter = r'^jobs_total\{queue="a\\"\\n"\} 3\.0 st@\d+\.\d+ # \{trace_id="1"\} 3\.0 \d+\.\d+$'
    assert re.search(counter, text, re.MULTILINE)
    assert "# TYPE build_info info\n" in text
    assert lines['build_info{version="1"}'].value == "1.0"
    assert (lines['state{state="on"}'].value, lines['state{state="off"}'].value) == ("0.0", "1.0")
    assert lines["size_bytes"].value == "{count:1.0,sum:2.0,quantile:[]}"
    assert lines["size_bytes"].start is not None
    assert "_created" not in text


def families() -> Iterator[tuple[Metric, str]]:
    histogram = HistogramMetricFamily("h", "Help", labels=["a"])
    histogram.add_metric(["x"], [("0.5", 1, Exemplar({"t": "1"}, 0.2, 12.5)), ("+Inf", 3)], 4.5)
    yield histogram, 'h{a="x"} {count:3.0,sum:4.5,bucket:[0.5:1.0,+Inf:3.0]} # {t="1"} 0.2 12.5'
    gauge_histogram = GaugeHistogramMetricFamily("g", "Help", buckets=[("1", 2), ("+Inf", 2)], gsum_value=1.5)
    yield gauge_histogram, "g {gcount:2.0,gsum:1.5,bucket:[1.0:2.0,+Inf:2.0]}"
    summary = SummaryMetricFamily("s", "Help")
    summary.samples = [Sample("s", {"quantile": "0.9"}, 2.0), Sample("s", {"quantile": "0.5"}, 1.0),
                       Sample("s_count", {}, 4.0), Sample("s_sum", {}, 6.0)]  # fmt: skip
    yield summary, "s {count:4.0,sum:6.0,quantile:[0.5:1.0,0.9:2.0]}"
    native = Metric("n", "Help", "histogram")
    value = NativeHistogram(4, 6.0, 3, 2.0**-128, 1, [BucketSpan(-2, 2), BucketSpan(3, 1)], None, [1, 1, -1], None)
    native.samples = [Sample("n", {}, 0.0, None, None, value)]
    yield (
        native,
        (
            "n {count:4.0,sum:6.0,schema:3,zero_threshold:2.938735877055719e-39,zero_count:1.0,"
            "positive_spans:[-2:2,3:1],positive_buckets:[1.0,2.0,1.0]}"
        ),
    )


@pytest.mark.parametrize(("metric", "line"), list(families()), ids=["histogram", "gaugehistogram", "summary", "native"])
def test_a_collectors_parts_become_one_line(metric: Metric, line: str) -> None:
    body = render(Fixed([metric]), Format.OPENMETRICS_2)
    parse(body)
    assert body.decode().split("\n")[2] == line


def test_negative_values_have_their_buckets() -> None:
    series = SeriesRegistry()
    histogram = series.histogram("delta_seconds", "Differences.", buckets=(0.0, 1.0))
    for value in (-2.0, -2.0, 0.0, 0.7):
        histogram.labels().observe(value)
    fields = parse(render(series, Format.OPENMETRICS_2))["delta_seconds"].fields
    native = ExponentialHistogram.of([-2.0, -2.0, 0.0, 0.7])
    assert native_of(fields, "negative") == native.negative
    assert native_of(fields, "positive") == native.positive
    assert fields["bucket"] == "[0.0:3,1.0:4,+Inf:4]"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/openmetrics-text;version=2.0.0", Format.OPENMETRICS_2),
        (
            "application/openmetrics-text;version=2.0.0,application/openmetrics-text;version=1.0.0;q=0.75,*/*;q=0.1",
            Format.OPENMETRICS_2,
        ),
        (
            "application/openmetrics-text;version=2.0.0;q=0.5,application/openmetrics-text;version=1.0.0",
            Format.OPENMETRICS,
        ),
        # A scraper that names no version gets the oldest.
        ("application/openmetrics-text", Format.OPENMETRICS),
    ],
)  # fmt: skip
def test_it_is_written_only_for_who_asks(accept: str, form: Format) -> None:
    negotiated = negotiate(accept)
    assert negotiated.form is form
    if form is Format.OPENMETRICS_2:
        assert negotiated.content_type.startswith("application/openmetrics-text; version=2.0.0; charset=utf-8")
