"""What waits in queues, as metrics. The service that asks the brokers shows them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tachograph.metrics.families import label_value
from tachograph.metrics.specs import QUEUE_LENGTH, QUEUE_OLDEST
from tachograph_exporter.queues.watch import QueueWatch


class QueueMetrics(Collector):
    """A prometheus_client collector of what a watch last heard. A queue whose broker is away has no series.

    Args:
        watch: what asks the brokers.
        limit: the maximum of queues that are shown.
    """

    def __init__(self, watch: QueueWatch, limit: int) -> None:
        self._watch = watch
        self._limit = limit

    def collect(self) -> Iterator[Metric]:
        """The families; without series where nothing is known."""
        lengths: dict[tuple[str, ...], float] = {}
        oldest: dict[tuple[str, ...], float] = {}
        for address, read in self._watch.reads.items():
            for state in read.queues:
                labels = (address.engine, label_value(address.place), label_value(state.queue))
                if labels not in lengths and len(lengths) >= self._limit:
                    break
                # Long names are cut, and may then be the same.
                lengths[labels] = lengths.get(labels, 0) + state.length
                if state.oldest is not None:
                    oldest[labels] = min(oldest.get(labels, state.oldest), state.oldest)
        for spec, values in ((QUEUE_LENGTH, lengths), (QUEUE_OLDEST, oldest)):
            family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
            for key, value in values.items():
                family.add_metric(key, value)
            yield family

    def describe(self) -> list[Metric]:
        """No names: they come and go with the lease."""
        return []
