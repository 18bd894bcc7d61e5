"""Metrics in OpenMetrics 2.0: one line a label set, histograms with classic and native buckets, start times in place.

Written only for a scraper that asks for version 2.0.0, which is a release candidate.

Wire format: https://prometheus.io/docs/specs/om/open_metrics_spec_2_0/ (2.0.0-rc0)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar, Sample

from tachograph.histogram import ZERO_THRESHOLD, ExponentialHistogram, runs
from tachograph.metrics.children import Child, CounterChild, HistogramChild
from tachograph.metrics.families import Family, HistogramFamily
from tachograph.metrics.negotiation import LEGACY_NAME
from tachograph.metrics.text import escape, exemplar_text, number

_SUFFIXES: Final = {"counter": "_total", "info": "_info"}
"""Of the types whose names lose a suffix in prometheus_client."""


def family_header(family: Family) -> str:
    """The lines that describe a family."""
    return _header(family.name, family.kind, family.help)


def child_text(family: Family, child: Child) -> str:
    """The line of a label set."""
    if isinstance(child, HistogramChild) and isinstance(family, HistogramFamily):
        return f"{family.prefix(child)} {_histogram(family, child)}\n"
    text = family.text_of(child)
    # In text format 0.0.4 it is the same line, without the time since when it counts.
    return f"{text[:-1]}{_start(child.created)}\n" if isinstance(child, CounterChild) else text


def _histogram(family: HistogramFamily, child: HistogramChild) -> str:
    counts = list(accumulate(child.counts))
    classic = ",".join([f"{le}:{count}" for le, count in zip(family.bound_texts, counts, strict=True)])
    exemplars = [] if child.exemplars is None else [child.exemplar(i) for i in range(len(counts))]
    value = f"count:{counts[-1]},sum:{number(child.total)},{_native(child.native)},bucket:[{classic}]"
    return f"{{{value}}}{_start(child.created)}{_exemplars(exemplars)}"


def _native(histogram: ExponentialHistogram) -> str:
    zero = f"zero_threshold:{number(ZERO_THRESHOLD)},zero_count:{histogram.zero_count}"
    negative, positive = _buckets("negative", histogram.negative), _buckets("positive", histogram.positive)
    return f"schema:{histogram.schema},{zero}{negative}{positive}"


def _buckets(side: str, buckets: Mapping[int, int]) -> str:
    if not buckets:
        return ""
    spans = ",".join([f"{gap}:{length}" for gap, length in runs(buckets)])
    counts = ",".join([str(buckets[index]) for index in sorted(buckets)])
    return f",{side}_spans:[{spans}],{side}_buckets:[{counts}]"


def metric_text(metric: Metric) -> Iterator[str]:
    """Any prometheus_client metric, line by line."""
    name = metric.name + _SUFFIXES.get(metric.type, "")
    yield _header(name, metric.type, metric.documentation, metric.unit)
    if metric.type in _COMPOSITE:
        yield from _composite_lines(metric)
        return
    created = {_key(sample): sample.value for sample in metric.samples if sample.name == f"{metric.name}_created"}
    for sample in metric.samples:
        if sample.name == name:
            end = _time(sample) + _start(created.get(_key(sample))) + _exemplars([sample.exemplar])
            yield f"{_series(name, sample.labels)} {number(sample.value)}{end}\n"


_COMPOSITE: Final = {
    "histogram": ("le", "count", "sum", "bucket"),
    "gaugehistogram": ("le", "gcount", "gsum", "bucket"),
    "summary": ("quantile", "count", "sum", "quantile"),
}
"""By type: the label of a part, and the fields of the count, the sum and the parts."""


def _composite_lines(metric: Metric) -> Iterator[str]:
    label, count_field, sum_field, parts_field = _COMPOSITE[metric.type]
    groups: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in metric.samples:
        groups.setdefault(_key(sample, label), []).append(sample)
    for labels, samples in groups.items():
        parts = sorted([sample for sample in samples if label in sample.labels], key=lambda s: float(s.labels[label]))
        whole = {sample.name.removeprefix(metric.name): sample for sample in samples if label not in sample.labels}
        native = next((sample.native_histogram for sample in samples if sample.native_histogram), None)
        count, total = _whole(whole, count_field, parts), _whole(whole, sum_field, ())
        if native is not None:
            count, total = number(native.count_value), number(native.sum_value)
        fields = [f"{count_field}:{count}", f"{sum_field}:{total}"]
        if native is not None:
            fields += _foreign_native(native)
        if parts or native is None:
            listed = ",".join([f"{_bound(part.labels[label])}:{number(part.value)}" for part in parts])
            fields.append(f"{parts_field}:[{listed or _no_parts(metric.type, count)}]")
        created = whole.get("_created")
        end = _time(samples[0]) + _start(None if created is None else created.value)
        exemplars = _exemplars([sample.exemplar for sample in samples])
        yield f"{_series(metric.name, dict(labels))} {{{','.join(fields)}}}{end}{exemplars}\n"


def _whole(whole: Mapping[str, Sample], field: str, parts: Sequence[Sample]) -> str:
    """A field that the format wants. Where it is missing, the count is that of the last bucket, and the sum is NaN."""
    sample = whole.get(f"_{field}")
    if sample is not None:
        return number(sample.value)
    return number(parts[-1].value) if parts else "NaN" if field.endswith("sum") else "0"


def _no_parts(kind: str, count: str) -> str:
    return "" if kind == "summary" else f"+Inf:{count}"


def _foreign_native(native: Any) -> list[str]:
    """The fields of prometheus_client's ``NativeHistogram``, whose buckets are differences."""
    fields = [f"schema:{native.schema}", f"zero_threshold:{number(native.zero_threshold)}"]
    fields.append(f"zero_count:{number(native.zero_count)}")
    for side, spans, deltas in (
        ("negative", native.neg_spans, native.neg_deltas),
        ("positive", native.pos_spans, native.pos_deltas),
    ):
        if spans:
            listed = ",".join([f"{span.offset}:{span.length}" for span in spans])
            counts = ",".join([number(count) for count in accumulate(deltas or ())])
            fields += [f"{side}_spans:[{listed}]", f"{side}_buckets:[{counts}]"]
    return fields


def _header(name: str, kind: str, help_text: str, unit: str = "") -> str:
    own_name = name if LEGACY_NAME.fullmatch(name) else f'"{escape(name)}"'
    unit_line = f"# UNIT {own_name} {unit}\n" if unit else ""
    return f"# TYPE {own_name} {kind}\n{unit_line}# HELP {own_name} {escape(help_text)}\n"


def _series(name: str, labels: Mapping[str, str]) -> str:
    pairs = [f'{_label_name(key)}="{escape(value)}"' for key, value in sorted(labels.items())]
    if not LEGACY_NAME.fullmatch(name):
        return f"{{{','.join([f'{chr(34)}{escape(name)}{chr(34)}', *pairs])}}}"
    return f"{name}{{{','.join(pairs)}}}" if pairs else name


def _label_name(name: str) -> str:
    return name if LEGACY_NAME.fullmatch(name) and ":" not in name else f'"{escape(name)}"'


def _key(sample: Sample, without: str = "") -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in sample.labels.items() if name != without))


def _bound(text: str) -> str:
    return number(float(text))


def _time(sample: Sample) -> str:
    return "" if sample.timestamp is None else f" {sample.timestamp}"


def _start(created: float | None) -> str:
    """The time since when a value counts. Not in Go's notation: an exponent would cost its fraction."""
    return "" if created is None else f" st@{created!r}"


def _exemplars(exemplars: Iterable[Exemplar | None]) -> str:
    """Those with a time; the format wants one."""
    return "".join([exemplar_text(e) for e in exemplars if e is not None and e.timestamp is not None])
