"""What processes measure of themselves (``process.*``), read from OTLP metrics; the rest is counted and dropped.

Wire format: opentelemetry/proto/metrics/v1/metrics.proto. Names:
https://opentelemetry.io/docs/specs/semconv/system/process-metrics/
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric, ResourceMetrics

from tachograph.clock import NS
from tachograph.summary import summarise
from tachograph_exporter.ingest.spans import AHEAD_SECONDS, EARLIEST_NS, attributes_of, clean, service_of
from tachograph_exporter.store.process_rows import INCREASE

PREFIX: Final = "process."
GAUGE: Final = "gauge"
COUNTER: Final = "counter"
"""It grows from the start of the process on."""
NOT_PROCESS: Final = "not_process"
"""A point of a metric that is not about a process."""
NO_PROCESS: Final = "no_process"
"""A point whose resource does not say which process it is of."""
NOT_NUMBER: Final = "not_number"
"""A histogram or summary, or a point without a value."""
_MAX_ATTRIBUTES: Final = 400


class Process(NamedTuple):
    """A process, as its resource says. ``id`` is a digest of what identifies it."""

    id: str
    service: str
    instance_id: str
    host: str
    pid: int | None


class Measurement(msgspec.Struct, gc=False):
    """Points of one metric that is kept, or the number of those that are not, with the ``reason``.

    ``attributes`` is a JSON object; "" for none. ``trace_id`` groups what is stored together when storing fails.
    """

    reason: str
    count: int
    process: Process | None = None
    name: str = ""
    attributes: str = ""
    unit: str = ""
    kind: str = ""
    time_ns: int = 0
    value: float = 0.0

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return len(self.attributes) + 200

    @property
    def trace_id(self) -> str:
        """Empty: it belongs to a process."""
        return ""


def process_of(attributes: Mapping[str, Any]) -> Process | None:
    """The process with these resource attributes; None if they do not identify one.

    It is identified by ``service.instance.id``, which is unique within a service, else by host and ``process.pid``.
    """
    service = service_of(attributes)
    instance, pid = str(attributes.get("service.instance.id") or ""), attributes.get("process.pid")
    host = str(attributes.get("host.name") or attributes.get("host.id") or "")
    number = pid if isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 1 << 63 else None
    if instance:
        parts = ["instance", str(attributes.get("service.namespace") or ""), service, instance]
    elif number is not None:
        parts = ["pid", service, host, str(number), str(attributes.get("process.creation.time") or "")]
    else:
        return None
    digest = hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=16).hexdigest()
    return Process(digest, service, clean(instance)[:200], clean(host)[:200], number)


def measurements(group: ResourceMetrics, now_ns: int | None = None) -> Iterator[Measurement | str]:
    """Each point of a group; for one that is not valid, the reason as text."""
    now = time.time_ns() if now_ns is None else now_ns
    process = process_of(attributes_of(group.resource.attributes))
    for scope in group.scope_metrics:
        for metric in scope.metrics:
            kind, points = _points(metric)
            reason = NOT_PROCESS if not metric.name.startswith(PREFIX) else NO_PROCESS if process is None else ""
            if not reason and not kind:
                reason = NOT_NUMBER
            if reason:
                yield Measurement(reason, len(points))
                continue
            for point in points:
                yield _measurement(metric, kind, point, process, now)


def _points(metric: Metric) -> tuple[str, Any]:
    """The kind of a metric (empty: its points are no numbers), and its points."""
    data = metric.WhichOneof("data")
    if data == "gauge":
        return GAUGE, metric.gauge.data_points
    if data == "sum":
        is_delta = metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
        # A sum that may shrink is a state, as the memory in use is.
        kind = INCREASE if is_delta else COUNTER if metric.sum.is_monotonic else GAUGE
        return kind, metric.sum.data_points
    return "", getattr(metric, data).data_points if data is not None else ()


def _measurement(metric: Metric, kind: str, point: Any, process: Process | None, now: int) -> Measurement | str:
    field = point.WhichOneof("value")
    value = float(getattr(point, field)) if field is not None else math.nan
    if not math.isfinite(value):
        return Measurement(NOT_NUMBER, 1)
    at = point.time_unix_nano or now
    if not EARLIEST_NS <= at <= now + round(AHEAD_SECONDS * NS):
        return "the time of a point is before the year 2000 or more than a day from now: check the host's clock"
    attributes = summarise(dict(sorted(attributes_of(point.attributes).items())), _MAX_ATTRIBUTES) or ""
    return Measurement(
        "", 1, process, clean(metric.name)[:200], clean(attributes)[:500], clean(metric.unit)[:50], kind, at, value
    )
