"""Which broker is asked, and what it says."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

from tachograph.names import clean_name
from tachograph_exporter.config import ConfigError

QUEUES_VARIABLE: Final = "TACHOGRAPH_QUEUES"
"""Names brokers as ``tachograph serve --queue`` does, several with spaces between them."""
REDIS_ENGINES: Final = ("celery", "rq", "dramatiq", "huey", "arq", "taskiq")
POSTGRES_ENGINES: Final = ("procrastinate",)
AMQP_ENGINES: Final = ("celery",)
MAX_QUEUES: Final = 100
"""Queues of a broker that are shown."""
_URL: Final = re.compile(r"(?P<engine>[a-z]+)\+(?P<url>(?:rediss?|unix|amqps?|postgres(?:ql)?)://.*)", re.DOTALL)
_EXPECTED: Final = (
    f"expected ENGINE+redis://HOST:PORT/DB with {', '.join(REDIS_ENGINES)}, celery+amqp://…, or "
    "procrastinate+postgresql://…; ?queue=NAME, once or more, names queues"
)


_KINDS: Final = {
    "redis": "redis", "rediss": "redis", "unix": "redis", "amqp": "amqp", "amqps": "amqp", "postgres": "postgres",
    "postgresql": "postgres",
}  # fmt: skip
_ENGINES: Final = {"redis": REDIS_ENGINES, "amqp": AMQP_ENGINES, "postgres": POSTGRES_ENGINES}


class QueueState(NamedTuple):
    """What waits in a queue.

    Attributes:
        queue: its name, without the prefix that its engine gives it.
        length: messages that are due and that nobody has taken.
        oldest: since when the oldest of them waits, unix seconds; None: there is none, or nobody can say.
    """

    queue: str
    length: int
    oldest: float | None


class Broker(Protocol):
    """Reads the queues of an engine. Called by one thread at a time."""

    def read(self, now: float) -> list[QueueState]:
        """What waits at a moment, unix seconds. Raises whatever its client does if the broker is away."""
        ...

    def close(self) -> None:
        """Give up its connections."""
        ...


class BrokerAddress(NamedTuple):
    """Where an engine's broker is.

    Attributes:
        engine: its name.
        url: of the broker. May have a password.
        queues: names of queues; none: all that are found (of RabbitMQ, which tells of none, the engine's default).
    """

    engine: str
    url: str
    queues: tuple[str, ...]

    @property
    def place(self) -> str:
        """The address without what lets one in."""
        parts = urlsplit(self.url)
        return clean_name(f"{parts.hostname or ''}:{parts.port or ''}{parts.path}".replace(":/", "/"))

    @property
    def kind(self) -> str:
        """``redis``, ``amqp`` or ``postgres``."""
        return _KINDS[urlsplit(self.url).scheme]


def parse_broker(text: str) -> BrokerAddress:
    """The broker that a text such as ``rq+redis://localhost/0?queue=high`` names. Raises `ConfigError`."""
    match = _URL.fullmatch(text.strip())
    if match is None or match["engine"] not in (*REDIS_ENGINES, *POSTGRES_ENGINES):
        # The text may have a password.
        raise ConfigError(f"a queue is not the address of a broker: {_EXPECTED}")
    engine, url = match["engine"], match["url"]
    try:
        parts = urlsplit(url)
        _ = parts.port
        query = parse_qs(parts.query, max_num_fields=MAX_QUEUES + 20)
    except ValueError as error:
        raise ConfigError(f"the address of the broker of {engine} is not a URL: {error}") from None
    if engine not in _ENGINES[_KINDS[parts.scheme]]:
        raise ConfigError(f"the queues of {engine} are not read from {parts.scheme}://: {_EXPECTED}")
    queues = tuple(dict.fromkeys(query.pop("queue", [])))[:MAX_QUEUES]
    rest = "&".join(f"{name}={value}" for name, values in query.items() for value in values)
    return BrokerAddress(engine, parts._replace(query=rest).geturl(), queues)
