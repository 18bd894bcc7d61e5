"""Metric families as delimited ``io.prometheus.client.MetricFamily`` messages, with native histograms and exemplars.

Each message is prefixed by its length as a varint. Encoded by hand for speed: a scrape has thousands of messages, and
the format is frozen. Wire format: https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar, Sample

from tachograph.histogram import ZERO_THRESHOLD, ExponentialHistogram, runs
from tachograph.metrics.children import Child, CounterChild, HistogramChild
from tachograph.metrics.families import Family, GaugeFamily, HistogramFamily

CHUNK: Final = 256
"""Label sets that are rendered between two calls of ``wait``."""

_COUNTER, _GAUGE, _SUMMARY, _UNTYPED, _HISTOGRAM = 0, 1, 2, 3, 4
_DOUBLE: Final = struct.Struct("<d").pack


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _field(tag: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(tag << 3 | 2) + _varint(len(payload)) + payload


def _double(tag: int, value: float) -> bytes:
    return _varint(tag << 3 | 1) + _DOUBLE(value)


def _uint(tag: int, value: int) -> bytes:
    return _varint(tag << 3) + _varint(value)


def _label_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    return b"".join([_field(1, _field(1, name.encode()) + _field(2, value.encode())) for name, value in sorted(pairs)])


def _timestamp(seconds: float) -> bytes:
    whole = int(seconds)
    return _uint(1, whole) + _uint(2, int((seconds - whole) * 1e9))


def _exemplar(exemplar: Exemplar) -> bytes:
    timestamp = _field(3, _timestamp(float(exemplar.timestamp))) if exemplar.timestamp is not None else b""
    return _label_pairs(exemplar.labels.items()) + _double(2, exemplar.value) + timestamp


def _header(name: str, help_text: str, kind: int) -> bytes:
    return _field(1, name.encode()) + _field(2, help_text.encode()) + _uint(3, kind)


def family_message(family: Family) -> Iterator[bytes]:
    """A family as chunks of one message."""
    kinds = {"counter": _COUNTER, "gauge": _GAUGE, "histogram": _HISTOGRAM}
    parts = [_header(family.name, family.help, kinds[family.kind])]
    bounds: Sequence[bytes] = ()
    if isinstance(family, HistogramFamily):
        bounds = [_double(2, bound) for bound in (*family.bounds, math.inf)]
    for child in family.children():
        wire = child.wire
        if child.is_changed or wire is None:
            with child.lock:
                if child.is_changed:
                    child.is_changed = False
                    child.text = child.openmetrics = child.openmetrics2 = None
                wire = child.wire = _child_wire(family, child, bounds)
        parts.append(wire)
    if len(parts) > 1:
        yield _varint(sum(map(len, parts)))
        for begin in range(0, len(parts), CHUNK):
            yield b"".join(parts[begin : begin + CHUNK])


def _child_wire(family: Family, child: Child, bounds: Sequence[bytes]) -> bytes:
    labels = child.wire_labels
    if labels is None:
        labels = child.wire_labels = _label_pairs(zip(family.label_names, child.labels, strict=True))
    if isinstance(child, HistogramChild):
        body = _field(7, _histogram(child, bounds))
    elif isinstance(child, CounterChild):
        body = _field(3, _double(1, child.value) + _field(3, _timestamp(child.created)))
    elif isinstance(family, GaugeFamily):
        body = _field(2, _double(1, family.value_of(child)))
    else:
        raise TypeError(f"no protobuf encoding of a {type(child).__name__}")
    return _field(4, labels + body)


def _histogram(child: HistogramChild, bounds: Sequence[bytes]) -> bytes:
    parts = [_uint(1, child.native.count), _double(2, child.total)]
    if child.exemplars is None:
        for count, bound in zip(accumulate(child.counts), bounds, strict=True):
            # Field 3 is a Bucket: its count and its bound (nine bytes).
            inside = b"\x08" + _varint(count) + bound
            parts.append(b"\x1a" + bytes((len(inside),)) + inside)
    else:
        for i, (count, bound) in enumerate(zip(accumulate(child.counts), bounds, strict=True)):
            bucket, exemplar = _uint(1, count) + bound, child.exemplar(i)
            parts.append(_field(3, bucket if exemplar is None else bucket + _field(3, _exemplar(exemplar))))
    parts.append(_native(child.native))
    parts.append(_field(15, _timestamp(child.created)))
    return b"".join(parts)


def _native(histogram: ExponentialHistogram) -> bytes:
    parts = [
        _uint(5, _zigzag(histogram.schema)),
        _double(6, ZERO_THRESHOLD),
        _uint(7, histogram.zero_count),
        _spans(histogram.negative, 9, 10),
    ]
    if histogram.positive:
        parts.append(_spans(histogram.positive, 12, 13))
    elif not histogram.negative:
        # An empty span marks a native histogram without observations.
        parts.append(_field(12, _uint(1, 0) + _uint(2, 0)))
    return b"".join(parts)


def _spans(buckets: dict[int, int], span_field: int, delta_field: int) -> bytes:
    """Runs of filled buckets as (gap to the previous run, length), and counts as differences."""
    if not buckets:
        return b""
    deltas: list[bytes] = []
    previous = 0
    for index in sorted(buckets):
        deltas.append(_varint(_zigzag(buckets[index] - previous)))
        previous = buckets[index]
    encoded = b"".join([_field(span_field, _uint(1, _zigzag(gap)) + _uint(2, run)) for gap, run in runs(buckets)])
    return encoded + _field(delta_field, b"".join(deltas))


def metric_message(metric: Metric) -> bytes:
    """Any prometheus_client metric as a message. Types that the format lacks become gauges, as in text."""
    kind, name = metric.type, metric.name
    if kind == "histogram":
        body = _histograms(metric)
        header = _header(name, metric.documentation, _HISTOGRAM)
    elif kind == "summary":
        body = _summaries(metric)
        header = _header(name, metric.documentation, _SUMMARY)
    elif kind == "gaugehistogram":
        return _untyped(metric)
    else:
        suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
        code, field = {"counter": (_COUNTER, 3), "unknown": (_UNTYPED, 5)}.get(kind, (_GAUGE, 2))
        body = b"".join(
            [
                _field(4, _label_pairs(s.labels.items()) + _field(field, _double(1, float(s.value))) + _timestamp_ms(s))
                for s in metric.samples
                if s.name == name + suffix
            ]
        )
        header = _header(name + suffix, metric.documentation, code)
    return _message(header, body)


def _message(header: bytes, body: bytes) -> bytes:
    return _varint(len(header) + len(body)) + header + body if body else b""


def _timestamp_ms(sample: Sample) -> bytes:
    return b"" if sample.timestamp is None else _uint(6, int(float(sample.timestamp) * 1000) & 0xFFFFFFFFFFFFFFFF)


def _grouped(metric: Metric, drop: str) -> dict[tuple[tuple[str, str], ...], list[Sample]]:
    groups: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in metric.samples:
        key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != drop))
        groups.setdefault(key, []).append(sample)
    return groups


def _histograms(metric: Metric) -> bytes:
    out: list[bytes] = []
    for labels, samples in _grouped(metric, "le").items():
        totals = {s.name.removeprefix(metric.name): s.value for s in samples if "le" not in s.labels}
        parts = [_uint(1, int(totals.get("_count", 0))), _double(2, float(totals.get("_sum", 0.0)))]
        for sample in samples:
            if "le" in sample.labels:
                bucket = _uint(1, int(sample.value)) + _double(2, float(sample.labels["le"]))
                exemplar = _field(3, _exemplar(sample.exemplar)) if sample.exemplar else b""
                parts.append(_field(3, bucket + exemplar))
        out.append(_field(4, _label_pairs(labels) + _field(7, b"".join(parts))))
    return b"".join(out)


def _summaries(metric: Metric) -> bytes:
    out: list[bytes] = []
    for labels, samples in _grouped(metric, "quantile").items():
        totals = {s.name.removeprefix(metric.name): s.value for s in samples if "quantile" not in s.labels}
        parts = [_uint(1, int(totals.get("_count", 0))), _double(2, float(totals.get("_sum", 0.0)))]
        parts += [
            _field(3, _double(1, float(sample.labels["quantile"])) + _double(2, float(sample.value)))
            for sample in samples
            if "quantile" in sample.labels
        ]
        out.append(_field(4, _label_pairs(labels) + _field(4, b"".join(parts))))
    return b"".join(out)


def _untyped(metric: Metric) -> bytes:
    by_name: dict[str, list[Any]] = {}
    for sample in metric.samples:
        by_name.setdefault(sample.name, []).append(sample)
    return b"".join(
        [
            _message(
                _header(name, metric.documentation, _UNTYPED),
                b"".join(
                    [_field(4, _label_pairs(s.labels.items()) + _field(5, _double(1, float(s.value)))) for s in samples]
                ),
            )
            for name, samples in by_name.items()
        ]
    )
