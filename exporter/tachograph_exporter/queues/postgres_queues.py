"""The queues of engines in PostgreSQL."""

from __future__ import annotations

from tachograph_exporter.queues.broker import MAX_QUEUES, BrokerAddress, QueueState
from tachograph_exporter.store.procrastinate_queues import read_queues


class PostgresBroker:
    """Reads the queues of procrastinate, by a connection for each reading."""

    def __init__(self, address: BrokerAddress) -> None:
        import asyncpg  # noqa: F401 - so that a missing library shows when the service starts

        self._address = address

    def read(self, now: float) -> list[QueueState]:
        """What waits in each queue."""
        states = [QueueState(*row) for row in read_queues(self._address.url, MAX_QUEUES)]
        named = self._address.queues
        return [state for state in states if state.queue in named] if named else states

    def close(self) -> None:
        """It keeps none."""
