"""Queues of engines: response types."""

from __future__ import annotations

from typing import Any, Final

import msgspec


class QueueInfo(msgspec.Struct, kw_only=True):
    """What waits in a queue. ``oldest_seconds``: for how long its oldest message does; null: there is none, or nobody
    can say.
    """

    queue: str
    length: int
    oldest_at: str | None
    oldest_seconds: float | None


class BrokerInfo(msgspec.Struct, kw_only=True):
    """What a broker said last. ``error``: why it did not answer; then nothing is known of its queues."""

    engine: str
    broker: str
    read_at: str
    error: str | None
    queues: list[QueueInfo]


class QueuesInfo(msgspec.Struct, kw_only=True):
    """The brokers that this service watches. ``is_watching``: false while another service on its database does."""

    is_watching: bool
    brokers: list[BrokerInfo]


EXAMPLE: Final[dict[str, Any]] = {
    "is_watching": True,
    "brokers": [
        {
            "engine": "rq",
            "broker": "redis:6379/0",
            "read_at": "2026-11-30T16:00:05.120000Z",
            "error": None,
            "queues": [
                {
                    "queue": "high",
                    "length": 3,
                    "oldest_at": "2026-11-30T15:59:41.500000Z",
                    "oldest_seconds": 23.62,
                }
            ],
        }
    ],
}
