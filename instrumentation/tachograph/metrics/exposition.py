"""Rendering a registry for a scrape: text 0.0.4, OpenMetrics 1.0.0 and protobuf, as the ``Accept`` header asks.

`render` takes any prometheus_client registry. Families of `series` are rendered from what has changed since the last
scrape; others sample by sample. Text is equal to what prometheus_client itself writes for the same registry, byte for
byte. Protobuf (``io.prometheus.client.MetricFamily``, each message behind its length as a varint) is what Prometheus
asks for first when native histograms are on, and the only format that carries them.

Wire format: https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from prometheus_client import exposition as theirs
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as their_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from tachograph.metrics.children import Child
from tachograph.metrics.families import Family
from tachograph.metrics.negotiation import LEGACY_NAME, Format
from tachograph.metrics.protobuf import PIECE, family_message, metric_message
from tachograph.metrics.series_registry import FamilyMetric
from tachograph.metrics.text import escape, number


def render(
    registry: Collector,
    form: Format = Format.TEXT,
    *,
    names: Sequence[str] = (),
    wait: Callable[[], None] | None = None,
) -> bytes:
    """What a scrape of ``registry`` answers.

    Args:
        registry: any prometheus_client registry or collector.
        form: the format.
        names: only metrics and samples of these names (a metric's name stands for all its samples).
        wait: called between pieces of work, for instance to let other threads go on.
    """
    return b"".join(pieces(registry, form, names=names, wait=wait))


def render_gzip(
    registry: Collector, form: Format, *, names: Sequence[str] = (), wait: Callable[[], None] | None = None
) -> bytes:
    """`render`, compressed as it is made."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    packed = [packer.compress(piece) for piece in pieces(registry, form, names=names, wait=wait)]
    return b"".join([*packed, packer.flush()])


def pieces(
    registry: Collector, form: Format, *, names: Sequence[str] = (), wait: Callable[[], None] | None = None
) -> Iterator[bytes]:
    """The answer to a scrape, piece by piece."""
    wanted = frozenset(names)
    for metric in registry.collect():
        if wanted and not _is_wanted(metric, wanted):
            continue
        if isinstance(metric, FamilyMetric):
            found = family_message(metric.family) if form is Format.PROTOBUF else _family_text(metric.family, form)
            for piece in found:
                yield piece
                if wait is not None:
                    wait()
        elif form is Format.PROTOBUF:
            yield metric_message(metric)
        elif form is Format.OPENMETRICS:
            yield _openmetrics_metric(metric)
        else:
            yield _text_metric(metric)
    if form is Format.OPENMETRICS:
        yield b"# EOF\n"


def _is_wanted(metric: Metric, wanted: frozenset[str]) -> bool:
    name = metric.name
    return any(name == one or (one.startswith(name) and one[len(name) :] in _SUFFIXES) for one in wanted)


_SUFFIXES: Final = frozenset({"_total", "_created", "_bucket", "_count", "_sum", "_info", "_gcount", "_gsum"})


def _family_text(family: Family, form: Format) -> Iterator[bytes]:
    version, children = family.version, family.children()
    is_openmetrics = form is Format.OPENMETRICS
    name = family.family_name if is_openmetrics or family.kind != "counter" else family.name
    about = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if is_openmetrics:
        about = about.replace('"', r"\"")
    yield f"# HELP {name} {about}\n# TYPE {name} {family.kind}\n".encode()
    render_child = family.openmetrics_of if is_openmetrics else family.text_of
    for begin in range(0, len(children), PIECE):
        lines: list[str] = []
        for child in children[begin : begin + PIECE]:
            if child.is_changed:
                with child.lock:
                    # Cleared first: a gauge that is asked every time says so again.
                    child.is_changed = False
                    child.text = child.openmetrics = child.wire = None
                    text = render_child(child)
            else:
                known = child.openmetrics if is_openmetrics else child.text
                if known is not None:
                    lines.append(known)
                    continue
                with child.lock:
                    text = render_child(child)
            if is_openmetrics:
                child.openmetrics = text
            else:
                child.text = text
            lines.append(text)
        yield "".join(lines).encode()
    if not is_openmetrics and family.kind != "gauge" and children:
        yield _created(family, version, children, about)


def _created(family: Family, version: int, children: Sequence[Child], about: str) -> bytes:
    """When every label set was made: the same text until one comes or goes."""
    if family.created_text is None or family.created_text[0] != version:
        name = f"{family.family_name}_created"
        lines = [f"{family.prefix(child, '_created')} {number(child.created)}\n" for child in children]
        text = f"# HELP {name} {about}\n# TYPE {name} gauge\n{''.join(lines)}"
        family.created_text = (version, text.encode())
    return family.created_text[1]


class _One(Collector):
    """A collector of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


def _is_plain(metric: Metric) -> bool:
    return LEGACY_NAME.fullmatch(metric.name) is not None


def _text_metric(metric: Metric) -> bytes:
    if not _is_plain(metric):
        text: bytes = theirs.generate_latest(_One(metric))
        return text
    name, kind = metric.name, metric.type
    if kind == "counter":
        name += "_total"
    elif kind == "info":
        name, kind = f"{name}_info", "gauge"
    kind = {"stateset": "gauge", "gaugehistogram": "histogram", "unknown": "untyped"}.get(kind, kind)
    about = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    lines = [f"# HELP {name} {about}\n# TYPE {name} {kind}\n"]
    late: dict[str, list[str]] = {}
    late_names = {metric.name + suffix: suffix for suffix in ("_created", "_gsum", "_gcount")}
    for sample in metric.samples:
        stamp = "" if sample.timestamp is None else f" {int(float(sample.timestamp) * 1000):d}"
        line = f"{_sample_name(sample)} {_value(sample.value)}{stamp}\n"
        suffix = late_names.get(sample.name)
        (lines if suffix is None else late.setdefault(suffix, [])).append(line)
    for suffix, found in sorted(late.items()):
        lines.append(f"# HELP {metric.name}{suffix} {about}\n# TYPE {metric.name}{suffix} gauge\n")
        lines += found
    return "".join(lines).encode()


def _sample_name(sample: Sample) -> str:
    if not sample.labels:
        return sample.name
    inside = ",".join([_label(key, value) for key, value in sorted(sample.labels.items())])
    return f"{sample.name}{{{inside}}}"


@lru_cache(maxsize=65_536)
def _label(name: str, value: str) -> str:
    """``name="value"``; most labels of a registry come again and again."""
    if not LEGACY_NAME.fullmatch(name) or ":" in name:
        name = their_openmetrics.escape_label_name(name)
    return f'{name}="{escape(value)}"'


def _value(value: float) -> str:
    # Zero and minus zero are the same key.
    return _known_value(value) if value else number(value)


_known_value: Final = lru_cache(maxsize=65_536)(number)


def _their_openmetrics(metric: Metric) -> bytes:
    text: bytes = their_openmetrics.generate_latest(_One(metric))  # type: ignore[no-untyped-call]
    return text.removesuffix(b"# EOF\n")


def _openmetrics_metric(metric: Metric) -> bytes:
    if not _is_plain(metric) or any(sample.native_histogram for sample in metric.samples):
        return _their_openmetrics(metric)
    about = escape(metric.documentation)
    lines = [f"# HELP {metric.name} {about}\n# TYPE {metric.name} {metric.type}\n"]
    if metric.unit:
        lines.append(f"# UNIT {metric.name} {metric.unit}\n")
    for sample in metric.samples:
        if sample.exemplar:
            # Their own way refuses exemplars where they must not be.
            return _their_openmetrics(metric)
        stamp = "" if sample.timestamp is None else f" {sample.timestamp}"
        lines.append(f"{_sample_name(sample)} {_value(sample.value)}{stamp}\n")
    return "".join(lines).encode()
