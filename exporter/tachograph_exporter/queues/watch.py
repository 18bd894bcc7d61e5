"""Asks brokers now and then what waits in their queues."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tachograph.quiet_log import QuietLog
from tachograph_exporter.config import ConfigError
from tachograph_exporter.queues.amqp_queues import AmqpBroker
from tachograph_exporter.queues.broker import MAX_QUEUES, Broker, BrokerAddress, QueueState, parse_broker
from tachograph_exporter.queues.postgres_queues import PostgresBroker
from tachograph_exporter.queues.redis_queues import RedisBroker

quiet = QuietLog(logging.getLogger(__name__))

INTERVAL_SECONDS: Final = 10.0
READ_SECONDS: Final = 15.0
"""How long reading one broker may take; what it says later is not shown."""


class Read(NamedTuple):
    """What a broker said, and when (unix seconds); ``error``: why it did not."""

    at: float
    queues: tuple[QueueState, ...]
    error: str | None = None


_BROKERS: Final[Mapping[str, Callable[[BrokerAddress], Broker]]] = {
    "redis": RedisBroker, "amqp": AmqpBroker, "postgres": PostgresBroker,
}  # fmt: skip


def open_broker(address: BrokerAddress) -> Broker:
    """A client of a broker. Raises `ConfigError` if its library is not installed, or the address is none."""
    try:
        return _BROKERS[address.kind](address)
    except ImportError:
        raise ConfigError(f"reading the queues of {address.engine} needs pip install 'tachograph[queues]'") from None
    except ValueError as error:
        raise ConfigError(f"the address of the broker of {address.engine} is none: {error}") from None


class QueueWatch:
    """What waits in the queues of some brokers, as they said last. The service that is asked to evaluates.

    Args:
        addresses: texts such as ``rq+redis://localhost/0``.
        is_leader: whether this service is the one that asks; the others show nothing.

    Raises `ConfigError` for what is no such text.
    """

    def __init__(self, addresses: Sequence[str], is_leader: Callable[[], bool]) -> None:
        parsed = dict.fromkeys(parse_broker(text) for text in addresses)
        self._brokers = [(address, open_broker(address)) for address in parsed]
        self._is_leader = is_leader
        self._reads: dict[BrokerAddress, Read] = {}
        self._pending: dict[BrokerAddress, asyncio.Task[None]] = {}

    @property
    def reads(self) -> Mapping[BrokerAddress, Read]:
        """What each broker said last; nothing while another service asks them."""
        if not self._is_leader():
            return {}
        return {address: self._reads[address] for address, _ in self._brokers if address in self._reads}

    @property
    def is_watching(self) -> bool:
        """Whether this service is the one that asks brokers, and has some to ask."""
        return bool(self._brokers) and self._is_leader()

    async def run(self) -> None:
        """Ask until cancelled; each broker by itself, so that one that hangs holds up no other."""
        if not self._brokers:
            await asyncio.Event().wait()
        try:
            while True:
                await self.look()
                await asyncio.sleep(INTERVAL_SECONDS)
        finally:
            for _, broker in self._brokers:
                broker.close()

    async def look(self) -> None:
        """Ask each broker once, unless it has not answered yet, and wait a while for the answers."""
        if not self._is_leader():
            self._reads.clear()
            return
        for address, broker in self._brokers:
            if address not in self._pending:
                self._pending[address] = asyncio.create_task(self._ask(address, broker))
        if self._pending:
            await asyncio.wait(self._pending.values(), timeout=READ_SECONDS)
        for address, task in list(self._pending.items()):
            if task.done():
                del self._pending[address]
            else:
                self._away(address, "it does not answer")

    async def _ask(self, address: BrokerAddress, broker: Broker) -> None:
        now = time.time()
        try:
            queues = await asyncio.to_thread(broker.read, now)
        except Exception as error:
            self._away(address, type(error).__name__)
        else:
            self._reads[address] = Read(now, tuple(queues[:MAX_QUEUES]))

    def _away(self, address: BrokerAddress, error: str) -> None:
        """Whoever does not know shows nothing: no queue is empty because its broker is away."""
        self._reads[address] = Read(time.time(), (), error)
        quiet.warning((address.engine, address.place), "the queues of %s at %s cannot be read: %s", address.engine,
                      address.place, error)  # fmt: skip
