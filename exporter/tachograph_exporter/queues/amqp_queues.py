"""The queues of engines in RabbitMQ, by AMQP."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote, urlsplit

from tachograph_exporter.queues.broker import BrokerAddress, QueueState
from tachograph_exporter.queues.redis_queues import TIMEOUT_SECONDS

_DEFAULT_QUEUES: Final = {"celery": "celery"}


class AmqpBroker:
    """Reads how many messages wait in the queues of an engine, by a connection for each reading.

    It declares them passively, which changes nothing. AMQP can neither list queues nor show a message without taking
    it: so others than the default queue must be named, and nobody can say since when the oldest waits.
    """

    def __init__(self, address: BrokerAddress) -> None:
        import amqp

        parts = urlsplit(address.url)
        is_secure = parts.scheme == "amqps"
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or "localhost"
        self._amqp: Any = amqp
        self._options: dict[str, Any] = {
            "host": f"{host}:{parts.port or (5671 if is_secure else 5672)}",
            "userid": unquote(parts.username or "guest"),
            "password": unquote(parts.password or "guest"),
            "virtual_host": unquote(parts.path[1:]) or "/",
            "ssl": is_secure,
            "connect_timeout": TIMEOUT_SECONDS,
            "read_timeout": TIMEOUT_SECONDS,
            "write_timeout": TIMEOUT_SECONDS,
        }
        self._names = address.queues or (_DEFAULT_QUEUES[address.engine],)

    def read(self, now: float) -> list[QueueState]:
        """What waits in each queue; one that does not exist is empty."""
        with self._amqp.Connection(**self._options) as connection:
            return [QueueState(name, self._length(connection, name), None) for name in self._names]

    def _length(self, connection: Any, name: str) -> int:
        channel = connection.channel()
        try:
            length = int(channel.queue_declare(name, passive=True).message_count)
        except self._amqp.NotFound:
            return 0  # Which closes the channel.
        channel.close()
        return length

    def close(self) -> None:
        """It keeps none."""
