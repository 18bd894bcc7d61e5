"""Text equals prometheus_client's byte for byte, protobuf agrees, scrapes are consistent, label sets are bounded."""

from __future__ import annotations

import gzip
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Summary,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from tachograph.histogram import ExponentialHistogram
from tachograph.metrics.exposition import render, render_gzip
from tachograph.metrics.families import OTHER
from tachograph.metrics.negotiation import Escaping, Format, choose_format, negotiate
from tachograph.metrics.series_registry import SeriesRegistry


def generate_openmetrics(registry: Collector) -> bytes:
    text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    return text


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda n: not n.startswith("__") and n != "le")
values = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1e6, 999_999.0, 1e21, 123456789.5, float("inf")])
amounts = st.floats(0, 1e9)


@st.composite
def ours(draw: st.DrawFn) -> CollectorRegistry:
    """A registry of our families with some values."""
    registry = CollectorRegistry()
    series = SeriesRegistry()
    registry.register(series)
    labels = draw(st.lists(names, unique=True, max_size=3))
    label_values = st.tuples(*[texts for _ in labels])
    counter = series.counter("c_total", draw(texts), labels)
    gauge = series.gauge("g", draw(texts), labels)
    histogram = series.histogram("h_seconds", draw(texts), labels, buckets=(0.5, 1.0, 2.5e6))
    for some in draw(st.lists(label_values, max_size=4)):
        counter.labels(*some).inc(draw(amounts))
        gauge.labels(*some).set(draw(values))
        for amount in draw(st.lists(amounts, max_size=3)):
            exemplar = Exemplar(draw(st.dictionaries(names, texts, max_size=2)), amount, draw(st.none() | amounts))
            histogram.labels(*some).observe(amount, exemplar if draw(st.booleans()) else None)
    return registry


@given(ours())
def test_our_families_are_written_as_prometheus_client_writes_them(registry: CollectorRegistry) -> None:
    for _ in range(2):  # The second time from the cache.
        assert render(registry, Format.TEXT) == generate_latest(registry)
        assert render(registry, Format.OPENMETRICS) == generate_openmetrics(registry)


class Fixed(Collector):
    """A collector of given metrics."""

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self.metrics)


@st.composite
def theirs(draw: st.DrawFn) -> list[Metric]:
    """Metrics of every prometheus_client type, with hostile names and values."""
    metrics: list[Metric] = []
    labels = draw(st.lists(names, unique=True, max_size=2))
    label_values = draw(st.lists(st.lists(texts, min_size=len(labels), max_size=len(labels)), max_size=2))
    metric_name = draw(names | st.sampled_from(["näme", "dotted.name", "with space"]))
    help_text = draw(texts)
    timestamp = draw(st.none() | st.floats(0, 2e9))
    for kind in (CounterMetricFamily, GaugeMetricFamily, UntypedMetricFamily):
        family: Any = kind(f"{metric_name}_{kind.__name__[0].lower()}", help_text, labels=labels)
        for some in label_values:
            family.add_metric(some, draw(values), timestamp=timestamp)
        metrics.append(family)
    counter = CounterMetricFamily("born", help_text, labels=labels)
    for some in label_values:
        counter.add_metric(some, draw(values), created=draw(amounts))
    metrics.append(counter)
    summary = SummaryMetricFamily("summary", help_text, labels=labels)
    histogram: Any = HistogramMetricFamily("histogram", help_text, labels=labels)
    gauge_histogram: Any = GaugeHistogramMetricFamily("gauge_histogram", help_text, labels=labels)
    for some in label_values:
        summary.add_metric(some, 3, draw(amounts))
        histogram.add_metric(some, [("1.0", 2), ("+Inf", 3)], draw(amounts))
        gauge_histogram.add_metric(some, [("1.0", 2), ("+Inf", 3)], draw(amounts))
    return [*metrics, summary, histogram, gauge_histogram]


@given(theirs())
def test_other_metrics_are_written_as_prometheus_client_writes_them(metrics: list[Metric]) -> None:
    collector = Fixed(metrics)
    assert render(collector, Format.TEXT) == generate_latest(collector)
    assert render(collector, Format.OPENMETRICS) == generate_openmetrics(collector)
    decode(render(collector, Format.PROTOBUF))


def test_a_registry_of_prometheus_clients_own_metrics() -> None:
    registry = CollectorRegistry()
    Counter("c", "help", ["a"], registry=registry).labels("x").inc(3, exemplar={"trace_id": "abc"})
    Gauge("g", "help", registry=registry).set(7)
    Summary("s", "help", registry=registry).observe(2)
    Histogram("h", "help", registry=registry).observe(0.3, exemplar={"trace_id": "abc"})
    Info("i", "help", registry=registry).info({"version": "1"})
    Enum("e", "help", states=["on", "off"], registry=registry).state("off")
    assert render(registry) == generate_latest(registry)
    assert render(registry, Format.OPENMETRICS) == generate_openmetrics(registry)
    families = decode(render(registry, Format.PROTOBUF))
    assert [(f["name"], f["type"]) for f in families] == [
        ("c_total", 0), ("g", 1), ("s", 2), ("h", 4), ("i_info", 1), ("e", 1)
    ]  # fmt: skip
    histogram = families[3]["metrics"][0]["histogram"]
    assert (histogram["count"], histogram["sum"]) == (1, 0.3)
    assert histogram["buckets"][-1] == (1, float("inf"))


# The functions below decode protobuf by the field numbers of metrics.proto.


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
        elif wire == 1:
            yield number, struct.unpack("<d", data[at : at + 8])[0]
            at += 8
        else:
            assert wire == 2
            length = varint()
            assert at + length <= len(data)
            yield number, data[at : at + length]
            at += length


def signed(value: int) -> int:
    return value >> 1 if value % 2 == 0 else -(value + 1 >> 1)


def varints(data: bytes) -> list[int]:
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(signed(value))
            value = shift = 0
    return numbers


def messages(data: bytes) -> Iterator[bytes]:
    """The messages in a delimited stream, each after its length as a varint."""
    at = 0
    while at < len(data):
        length = shift = 0
        while True:
            byte = data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield data[at : at + length]
        at += length
    assert at == len(data)


def decode(data: bytes) -> list[dict[str, Any]]:
    """The families in a delimited stream."""
    return [family(message) for message in messages(data)]


def family(data: bytes) -> dict[str, Any]:
    decoded: dict[str, Any] = {"metrics": []}
    for number, value in fields(data):
        if number in (1, 2):
            decoded["name" if number == 1 else "help"] = value.decode()
        elif number == 3:
            decoded["type"] = value
        else:
            assert number == 4
            decoded["metrics"].append(metric(value))
    return decoded


def metric(data: bytes) -> dict[str, Any]:
    decoded: dict[str, Any] = {"labels": {}}
    for number, value in fields(data):
        if number == 1:
            pair = dict(fields(value))
            decoded["labels"][pair[1].decode()] = pair[2].decode()
        elif number in (2, 3, 5):
            decoded["value"] = dict(fields(value))[1]
        elif number == 7:
            decoded["histogram"] = histogram(value)
    return decoded


def histogram(data: bytes) -> dict[str, Any]:
    decoded: dict[str, Any] = {"buckets": [], "exemplars": [], "positive": {}, "negative": {}}
    spans: dict[str, list[tuple[int, int]]] = {"positive": [], "negative": []}
    for number, value in fields(data):
        if number in (1, 2, 6, 7):
            decoded[{1: "count", 2: "sum", 6: "zero_threshold", 7: "zero_count"}[number]] = value
        elif number == 3:
            bucket = dict(fields(value))
            decoded["buckets"].append((bucket[1], bucket[2]))
            if 3 in bucket:
                exemplar = dict(fields(bucket[3]))
                decoded["exemplars"].append(exemplar[2])
        elif number == 5:
            decoded["schema"] = signed(value)
        elif number in (9, 12):
            span = dict(fields(value))
            spans["positive" if number == 12 else "negative"].append((signed(span[1]), span[2]))
        elif number in (10, 13):
            side = "positive" if number == 13 else "negative"
            index, count, counts = 0, 0, iter(varints(value))
            for gap, length in spans[side]:
                index += gap
                for _ in range(length):
                    count += next(counts)
                    decoded[side][index] = count
                    index += 1
    return decoded


@settings(max_examples=150)
@given(st.lists(st.floats(0, 1e9) | st.floats(1e-9, 1e-3), min_size=1, max_size=80))
def test_native_buckets_survive_the_wire(observed: list[float]) -> None:
    registry = SeriesRegistry()
    child = registry.histogram("h_seconds", "help", ["a"], buckets=(0.5, 1.0)).labels('x"\n☃')
    for value in observed:
        child.observe(value, Exemplar({"trace_id": "t"}, value, 12.5))
    (decoded,) = decode(render(registry, Format.PROTOBUF))
    (child,) = decoded["metrics"]
    assert child["labels"] == {"a": 'x"\n☃'}
    seen = child["histogram"]
    exact = ExponentialHistogram.of(observed)
    assert (seen["schema"], seen["zero_count"], seen["positive"]) == (exact.schema, exact.zero_count, exact.positive)
    assert (seen["count"], seen["sum"]) == (len(observed), pytest.approx(sum(observed)))
    assert [count for count, _ in seen["buckets"]] == [
        sum(v <= bound for v in observed) for bound in (0.5, 1.0, float("inf"))
    ]
    assert set(seen["exemplars"]) <= set(observed)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/plain", Format.TEXT),
        ("application/json", Format.TEXT),
        ("application/openmetrics-text", Format.OPENMETRICS),
        # What Prometheus 2.42 sends, without and with native histograms.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format.OPENMETRICS,
        ),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
            "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format.PROTOBUF,
        ),
        ("application/vnd.google.protobuf;proto=other;encoding=delimited,text/plain;q=0.1", Format.TEXT),
        ("application/openmetrics-text;version=9.0.0,text/plain;q=0.2", Format.TEXT),
        ("text/plain;q=nonsense,application/openmetrics-text;q=0.1", Format.OPENMETRICS),
    ],
)
def test_the_scraper_gets_the_format_it_likes_best(accept: str, form: Format) -> None:
    assert choose_format(accept) is form


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;"
    "version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends without native histograms."""
PROTOBUF_3 = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;"
    "escaping=allow-utf-8;q=0.7,"
)


@pytest.mark.parametrize(
    ("accept", "ends"),
    [
        (PROMETHEUS_3, "version=1.0.0; charset=utf-8; escaping=allow-utf-8"),
        (PROTOBUF_3 + PROMETHEUS_3, "encoding=delimited; escaping=allow-utf-8"),
        (PROMETHEUS_3.replace("allow-utf-8", "values"), "charset=utf-8; escaping=values"),
        (PROMETHEUS_3.replace("allow-utf-8", "dots"), "charset=utf-8; escaping=underscores"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", "version=1.0.0; charset=utf-8; escaping=allow-utf-8"),
        ("text/plain;version=1.0.0", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        ("text/plain;version=0.0.4;escaping=allow-utf-8", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", "version=1.0.0; charset=utf-8; escaping=underscores"),
    ],
)
def test_names_are_written_as_the_scraper_asks(accept: str, ends: str) -> None:
    negotiated = negotiate(accept)
    assert negotiated.content_type.endswith(ends)
    registry = CollectorRegistry()
    gauge = Gauge("my.gauge", "Dots", ["my.label"], registry=registry)
    gauge.labels("x").set(1)
    body = render(registry, negotiated.form, escaping=negotiated.escaping)
    if negotiated.escaping is Escaping.ALLOW_UTF_8:
        assert b"my.gauge" in body
        assert b"my.label" in body
    else:
        assert b"my." not in body
    if negotiated.form is Format.PROTOBUF:
        return
    # The client's own writer says the same.
    writer = openmetrics.generate_latest if negotiated.form is Format.OPENMETRICS else generate_latest
    assert body == writer(registry, negotiated.escaping.value)


def test_a_scrape_can_be_narrowed_to_names_and_compressed() -> None:
    registry = SeriesRegistry()
    registry.counter("a_total", "a").labels().inc()
    registry.gauge("b", "b").labels().set(1)
    registry.histogram("c_seconds", "c", buckets=(1.0,)).labels().observe(1)

    def rendered(*selected: str) -> set[str]:
        text = render(registry, names=selected).decode()
        return {family.name for family in text_string_to_metric_families(text) if not family.name.endswith("_created")}

    assert rendered("a_total") == {"a"}
    assert rendered("c_seconds_bucket", "b") == {"b", "c_seconds"}
    assert rendered("nothing") == set()
    assert gzip.decompress(render_gzip(registry, Format.TEXT)) == render(registry)


def test_a_scrape_under_writers_sees_whole_histograms() -> None:
    registry = SeriesRegistry()
    family = registry.histogram("h_seconds", "help", ["a"], buckets=(1.0, 2.0))
    children = [family.labels(str(i)) for i in range(20)]
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for child in children:
                child.observe(1.5)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for form in (Format.TEXT, Format.OPENMETRICS, Format.PROTOBUF) * 15:
            if form is Format.PROTOBUF:
                for decoded in decode(render(registry, form))[0]["metrics"]:
                    seen = decoded["histogram"]
                    assert seen["count"] == seen["buckets"][-1][0] == sum(seen["positive"].values())
                    assert seen["sum"] == seen["count"] * 1.5
                continue
            samples: dict[tuple[str, str], dict[str, float]] = {}
            for line in render(registry, form).decode().splitlines():
                if not line.startswith("#") and "_created" not in line:
                    name, value = line.rsplit(" ", 1)
                    series, _, labels = name.partition("{")
                    key = labels.split('"')[1]
                    kind = "inf" if "+Inf" in labels else series.rpartition("_")[2]
                    samples.setdefault(("", key), {})[kind] = float(value)
            for values_ in samples.values():
                assert values_["count"] == values_["inf"]
                assert values_["sum"] == values_["count"] * 1.5
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sum(child.native.count for child in children) == sum(sum(child.counts) for child in children)


def test_beyond_the_limit_label_sets_share_one_series_and_are_counted() -> None:
    registry = SeriesRegistry(family_limit=3, total_limit=5)
    first = registry.counter("a_total", "a", ["x", "y"])
    for i in range(10):
        first.labels(str(i), "y").inc()
    assert len(first) == 4
    assert first.labels(OTHER, OTHER).value == 7
    assert first.limited == 7
    second = registry.counter("b_total", "b", ["x"])
    for i in range(10):
        second.labels(str(i)).inc()
    assert registry.label_sets == 5
    assert second.labels(OTHER).value == 8
    assert sum(sample.value for sample in first.samples() if sample.name == "a_total") == 10


def test_long_label_values_are_cut() -> None:
    registry = SeriesRegistry()
    registry.gauge("g", "g", ["x"]).labels("y" * 10_000).set(1)
    assert len(render(registry)) < 400


def test_label_sets_that_have_not_changed_for_long_are_dropped() -> None:
    registry = SeriesRegistry(expire_seconds=0.05)
    family = registry.counter("a_total", "a", ["x"])
    family.labels("old").inc()
    kept = family.labels("kept")
    render(registry)
    time.sleep(0.08)
    kept.inc()
    text = render(registry).decode()
    assert 'x="old"' not in text
    assert 'x="kept"' in text
    assert registry.label_sets == 1
    assert registry.generation == 1
    family.remove("kept")
    assert registry.label_sets == 0
    assert registry.generation == 1  # Only expiry counts: the caller of `remove` knows.


def test_the_other_series_does_not_count_against_the_limit() -> None:
    registry = SeriesRegistry(family_limit=1)
    family = registry.counter("a_total", "a", ["x"])
    family.labels("first")
    family.labels("second")
    assert registry.label_sets == 1
    family.remove(OTHER)
    assert registry.label_sets == 1


def test_misuse_is_refused() -> None:
    registry = SeriesRegistry()
    counter = registry.counter("a_total", "a", ["x"])
    with pytest.raises(ValueError, match="only grows"):
        counter.labels("1").inc(-1)
    with pytest.raises(ValueError, match="2 values given"):
        counter.labels("1", "2")
    with pytest.raises(ValueError, match="already"):
        registry.counter("a_total", "a")
    with pytest.raises(ValueError, match="not in order"):
        registry.histogram("h", "h", buckets=(2.0, 1.0))
    with pytest.raises(ValueError, match="finite"):
        registry.histogram("i", "i", buckets=(1.0,)).labels().observe(float("nan"))
