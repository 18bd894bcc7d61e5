"""Rendering a registry for a scrape: text 0.0.4, OpenMetrics 1.0.0 and 2.0.0, and protobuf.

`render` accepts any prometheus_client registry. Tachograph's own families (`SeriesRegistry`) are rendered
incrementally, from what has changed since the last scrape; other metrics sample by sample. Text and OpenMetrics 1.0.0
equal, byte for byte, what prometheus_client writes for the same registry. Protobuf (delimited
``io.prometheus.client.MetricFamily`` messages) is what Prometheus prefers when native histograms are on; OpenMetrics
2.0.0 carries them, too.

Wire format: https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from prometheus_client import exposition as client_text
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as client_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from tachograph.metrics import openmetrics2
from tachograph.metrics.children import Child
from tachograph.metrics.families import Family
from tachograph.metrics.negotiation import LEGACY_NAME, Escaping, Format
from tachograph.metrics.protobuf import CHUNK, family_message, metric_message
from tachograph.metrics.series_registry import FamilyMetric
from tachograph.metrics.text import escape, number


def render(
    registry: Collector,
    form: Format = Format.TEXT,
    *,
    escaping: Escaping = Escaping.UNDERSCORES,
    names: Sequence[str] = (),
    wait: Callable[[], None] | None = None,
) -> bytes:
    """The body of a scrape's response.

    Args:
        registry: any prometheus_client registry or collector.
        form: the format.
        escaping: how names with unusual characters are written.
        names: render only these metrics, each by its name or that of one of its samples.
        wait: called between chunks, for instance to let other threads run.
    """
    return b"".join(_chunks(registry, form, escaping, names=names, wait=wait))


def render_gzip(
    registry: Collector,
    form: Format,
    *,
    escaping: Escaping = Escaping.UNDERSCORES,
    names: Sequence[str] = (),
    wait: Callable[[], None] | None = None,
) -> bytes:
    """`render` with gzip, compressing chunk by chunk."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    compressed = [compressor.compress(chunk) for chunk in _chunks(registry, form, escaping, names=names, wait=wait)]
    return b"".join([*compressed, compressor.flush()])


def _chunks(
    registry: Collector,
    form: Format,
    escaping: Escaping,
    *,
    names: Sequence[str] = (),
    wait: Callable[[], None] | None = None,
) -> Iterator[bytes]:
    selected = frozenset(names)
    for metric in registry.collect():
        if selected and not _is_selected(metric, selected):
            continue
        if isinstance(metric, FamilyMetric):
            family = metric.family
            chunks = family_message(family) if form is Format.PROTOBUF else _family_text(family, form)
            for chunk in chunks:
                yield chunk
                if wait is not None:
                    wait()
        elif form is Format.PROTOBUF:
            yield metric_message(_escaped(metric, escaping))
        elif form is Format.OPENMETRICS:
            yield _openmetrics_metric(_escaped(metric, escaping))
        elif form is Format.OPENMETRICS_2:
            yield "".join(openmetrics2.metric_text(_escaped(metric, escaping))).encode()
        else:
            yield _text_metric(_escaped(metric, escaping))
    if form in (Format.OPENMETRICS, Format.OPENMETRICS_2):
        yield b"# EOF\n"


def _is_selected(metric: Metric, names: frozenset[str]) -> bool:
    own_name = metric.name
    return any(name == own_name or (name.startswith(own_name) and name[len(own_name) :] in _SUFFIXES) for name in names)


_SUFFIXES: Final = frozenset({"_total", "_created", "_bucket", "_count", "_sum", "_info", "_gcount", "_gsum"})


class _Writing(NamedTuple):
    """How a text format writes a family: its header, the text of a label set, and the attribute that caches that."""

    header: Callable[[Family], str]
    child_text: Callable[[Family, Child], str]
    cache: str


def _text_header(family: Family) -> str:
    help_text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {family.name} {help_text}\n# TYPE {family.name} {family.kind}\n"


def _openmetrics_header(family: Family) -> str:
    return f"# HELP {family.family_name} {escape(family.help)}\n# TYPE {family.family_name} {family.kind}\n"


_WRITING: Final = {
    Format.TEXT: _Writing(_text_header, lambda family, child: family.text_of(child), "text"),
    Format.OPENMETRICS: _Writing(
        _openmetrics_header, lambda family, child: family.openmetrics_of(child), "openmetrics"
    ),
    Format.OPENMETRICS_2: _Writing(openmetrics2.family_header, openmetrics2.child_text, "openmetrics2"),
}


def _family_text(family: Family, form: Format) -> Iterator[bytes]:
    version, children = family.version, family.children()
    header, child_text, cache = _WRITING[form]
    yield header(family).encode()
    for begin in range(0, len(children), CHUNK):
        lines: list[str] = []
        for child in children[begin : begin + CHUNK]:
            text: str | None = None if child.is_changed else getattr(child, cache)
            if text is None:
                with child.lock:
                    if child.is_changed:
                        # Cleared first: rendering a gauge that has a source sets it again.
                        child.is_changed = False
                        child.text = child.openmetrics = child.openmetrics2 = child.wire = None
                    text = child_text(family, child)
                    # Under the lock: another scrape could clear it between, and this would put an old text back.
                    setattr(child, cache, text)
            lines.append(text)
        yield "".join(lines).encode()
    if form is Format.TEXT and family.kind != "gauge" and children:
        yield _created(family, version, children)


def _created(family: Family, version: int, children: Sequence[Child]) -> bytes:
    """The ``_created`` samples, cached until a label set comes or goes."""
    if family.created_text is None or family.created_text[0] != version:
        name = f"{family.family_name}_created"
        lines = [f"{family.prefix(child, '_created')} {number(child.created)}\n" for child in children]
        help_text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        text = f"# HELP {name} {help_text}\n# TYPE {name} gauge\n{''.join(lines)}"
        family.created_text = (version, text.encode())
    return family.created_text[1]


class _SingleMetric(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


def _is_plain(metric: Metric) -> bool:
    return LEGACY_NAME.fullmatch(metric.name) is not None


def _escaped(metric: Metric, escaping: Escaping) -> Metric:
    """The metric with names that every scraper reads, unless it asks for the names as they are."""
    labels = {name for sample in metric.samples for name in sample.labels}
    is_plain = _is_plain(metric) and all(_is_plain_label(name) for name in labels)
    if is_plain or escaping is Escaping.ALLOW_UTF_8:
        return metric
    scheme = escaping.value
    own_name = client_openmetrics.escape_metric_name(metric.name, scheme)
    escaped = Metric(own_name, metric.documentation, metric.type)
    escaped.unit = metric.unit
    label_names = {name: client_openmetrics.escape_label_name(name, scheme) for name in labels}
    escaped.samples = [
        sample._replace(
            name=own_name + sample.name.removeprefix(metric.name),
            labels={label_names[name]: value for name, value in sample.labels.items()},
        )
        for sample in metric.samples
    ]
    return escaped


def _is_plain_label(name: str) -> bool:
    return LEGACY_NAME.fullmatch(name) is not None and ":" not in name


def _text_metric(metric: Metric) -> bytes:
    if not _is_plain(metric):
        text: bytes = client_text.generate_latest(_SingleMetric(metric), Escaping.ALLOW_UTF_8.value)
        return text
    name, kind = metric.name, metric.type
    if kind == "counter":
        name += "_total"
    elif kind == "info":
        name, kind = f"{name}_info", "gauge"
    kind = {"stateset": "gauge", "gaugehistogram": "histogram", "unknown": "untyped"}.get(kind, kind)
    help_text = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    lines = [f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n"]
    late: dict[str, list[str]] = {}
    late_names = {metric.name + suffix: suffix for suffix in ("_created", "_gsum", "_gcount")}
    for sample in metric.samples:
        timestamp = "" if sample.timestamp is None else f" {int(float(sample.timestamp) * 1000):d}"
        line = f"{_sample_name(sample)} {_value(sample.value)}{timestamp}\n"
        suffix = late_names.get(sample.name)
        (lines if suffix is None else late.setdefault(suffix, [])).append(line)
    for suffix, late_lines in sorted(late.items()):
        lines.append(f"# HELP {metric.name}{suffix} {help_text}\n# TYPE {metric.name}{suffix} gauge\n")
        lines += late_lines
    return "".join(lines).encode()


def _sample_name(sample: Sample) -> str:
    if not sample.labels:
        return sample.name
    inside = ",".join([_label(key, value) for key, value in sorted(sample.labels.items())])
    return f"{sample.name}{{{inside}}}"


@lru_cache(maxsize=65_536)
def _label(name: str, value: str) -> str:
    """``name="value"``, cached: most labels of a registry repeat."""
    if not _is_plain_label(name):
        name = client_openmetrics.escape_label_name(name, Escaping.ALLOW_UTF_8.value)
    return f'{name}="{escape(value)}"'


def _value(value: float) -> str:
    # Not cached if zero: 0.0 and -0.0 are the same key.
    return _cached_number(value) if value else number(value)


_cached_number: Final = lru_cache(maxsize=65_536)(number)


def _client_openmetrics(metric: Metric) -> bytes:
    text: bytes = client_openmetrics.generate_latest(  # type: ignore[no-untyped-call]
        _SingleMetric(metric), Escaping.ALLOW_UTF_8.value
    )
    return text.removesuffix(b"# EOF\n")


def _openmetrics_metric(metric: Metric) -> bytes:
    if not _is_plain(metric) or any(sample.native_histogram for sample in metric.samples):
        return _client_openmetrics(metric)
    help_text = escape(metric.documentation)
    lines = [f"# HELP {metric.name} {help_text}\n# TYPE {metric.name} {metric.type}\n"]
    if metric.unit:
        lines.append(f"# UNIT {metric.name} {metric.unit}\n")
    for sample in metric.samples:
        if sample.exemplar:
            # prometheus_client refuses exemplars where the format does not allow them.
            return _client_openmetrics(metric)
        timestamp = "" if sample.timestamp is None else f" {sample.timestamp}"
        lines.append(f"{_sample_name(sample)} {_value(sample.value)}{timestamp}\n")
    return "".join(lines).encode()
