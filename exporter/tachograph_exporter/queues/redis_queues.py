"""The queues of engines in Redis: read by the keys that each of them keeps, never changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from tachograph_exporter.queues.broker import MAX_QUEUES, BrokerAddress, QueueState

TIMEOUT_SECONDS: Final = 5.0
MAX_KEYS: Final = 10_000
"""Keys that are looked through for names of queues."""
MAX_JOBS: Final = 10_000
"""Jobs of arq, some of which may run, that are looked at one by one."""
_PRIORITIES: Final = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""What Celery adds to a queue's name for messages of a priority."""
_SEPARATOR: Final = "\x06\x16"
_NO_QUEUES: Final = (".pidbox", "celeryev")
"""Exchanges of Celery's own that are no queues of tasks."""


class RedisBroker:
    """Reads the queues of an engine from Redis.

    Queues that are empty have no key in Redis: a name that was seen once is remembered, with nothing in it.
    """

    def __init__(self, address: BrokerAddress) -> None:
        from redis import Redis

        connect: Any = Redis.from_url
        self._redis: Any = connect(
            address.url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, decode_responses=True,
            encoding_errors="replace",
        )  # fmt: skip
        self._named = address.queues
        self._names, self._state = _ENGINES[address.engine]
        self._seen: dict[str, None] = dict.fromkeys(self._named)

    def read(self, now: float) -> list[QueueState]:
        """What waits in each queue."""
        if not self._named:
            for name in self._names(self._redis):
                if len(self._seen) < MAX_QUEUES:
                    self._seen.setdefault(name)
        return [self._state(self._redis, name, now) for name in self._seen]

    def close(self) -> None:
        """Give up the connections."""
        self._redis.close()


def _scan(redis: Any, pattern: str) -> list[str]:
    keys: dict[str, None] = {}
    cursor = 0
    for _ in range(MAX_KEYS // 1000):
        cursor, some = redis.scan(cursor, match=pattern, count=1000)
        keys.update(dict.fromkeys(some))
        if cursor == 0:
            break
    return sorted(keys)


def _ends(redis: Any, keys: Iterable[str], first: int) -> list[Any]:
    """For each list, how long it is and its first message; ``first``: where that is, 0 or -1."""
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.llen(key)
            pipe.lindex(key, first)
        told: list[Any] = pipe.execute()
    return told


# Celery: lists that are pushed to at the left, one for each priority; bindings name the queues.


def _celery_names(redis: Any) -> list[str]:
    names = {"celery"}
    for key in _scan(redis, "_kombu.binding.*"):
        if not key.endswith(_NO_QUEUES):
            names |= {member.split(_SEPARATOR)[-1] for member in redis.sscan_iter(key, count=MAX_QUEUES)}
    return sorted(names)


def _celery_state(redis: Any, name: str, now: float) -> QueueState:
    keys = [name + priority for priority in _PRIORITIES]
    told = _ends(redis, keys, -1)
    since = [_celery_since(message) for message in told[1::2] if message]
    known = [moment for moment in since if moment is not None]
    return QueueState(name, sum(told[::2]), min(known, default=None))


def _celery_since(message: str) -> float | None:
    """When a task was sent: Celery does not say, its headers do where the sender is instrumented."""
    try:
        place = json.loads(json.loads(message)["headers"]["tachograph"])
        return float(place[7]) or None
    except (ValueError, TypeError, LookupError):
        return None


# RQ: lists of ids of jobs, and a hash for each job.


def _rq_names(redis: Any) -> list[str]:
    return sorted(member.removeprefix("rq:queue:") for member in redis.sscan_iter("rq:queues", count=MAX_QUEUES))


def _rq_state(redis: Any, name: str, now: float) -> QueueState:
    key = f"rq:queue:{name}"
    length, first = _ends(redis, [key], 0)
    enqueued = redis.hget(f"rq:job:{first}", "enqueued_at") if first else None
    try:
        since = datetime.fromisoformat(enqueued).replace(tzinfo=UTC).timestamp() if enqueued else None
    except ValueError:
        since = None
    return QueueState(name, length, since)


# Dramatiq: lists of ids of messages that are pushed to at the right, and a hash of messages for each queue.


def _dramatiq_names(redis: Any) -> list[str]:
    names = [key.removeprefix("dramatiq:").removesuffix(".msgs") for key in _scan(redis, "dramatiq:*.msgs")]
    return [name for name in names if not name.endswith((".DQ", ".XQ"))]


def _dramatiq_state(redis: Any, name: str, now: float) -> QueueState:
    key = f"dramatiq:{name}"
    length, first = _ends(redis, [key], 0)
    message = redis.hget(f"{key}.msgs", first) if first else None
    try:
        since = json.loads(message)["message_timestamp"] / 1000 if message else None
    except (ValueError, TypeError, LookupError):
        since = None
    return QueueState(name, length, since)


# Huey: a list of pickled messages for each instance. They say no time, and are never unpickled.


def _huey_names(redis: Any) -> list[str]:
    return [key.removeprefix("huey.redis.") for key in _scan(redis, "huey.redis.*")]


def _huey_state(redis: Any, name: str, now: float) -> QueueState:
    return QueueState(name, redis.llen(f"huey.redis.{name}"), None)


# arq: a sorted set of ids of jobs by the moment they are due, where they stay while they run.


def _arq_names(redis: Any) -> list[str]:
    return ["arq:queue"]


def _arq_state(redis: Any, name: str, now: float) -> QueueState:
    due = redis.zrangebyscore(name, "-inf", now * 1000, start=0, num=MAX_JOBS, withscores=True)
    rest = max(0, redis.zcount(name, "-inf", now * 1000) - len(due))
    with redis.pipeline(transaction=False) as pipe:
        for job_id, _ in due:
            pipe.exists(f"arq:in-progress:{job_id}")
        runs = pipe.execute() if due else []
    waiting = [score / 1000 for (_, score), is_running in zip(due, runs, strict=True) if not is_running]
    return QueueState(name, len(waiting) + rest, min(waiting, default=None))


# Taskiq: a list, or a stream whose ids begin with the millisecond in which a message came.


def _taskiq_names(redis: Any) -> list[str]:
    return ["taskiq"]


def _taskiq_state(redis: Any, name: str, now: float) -> QueueState:
    if redis.type(name) != "stream":
        return QueueState(name, redis.llen(name), None)
    groups = redis.xinfo_groups(name)
    behind = [_behind(redis, name, group.get("last-delivered-id") or "0-0") for group in groups] or [
        _behind(redis, name, "0-0")
    ]
    return max(behind, key=lambda state: state.length)


def _behind(redis: Any, name: str, delivered: str) -> QueueState:
    waiting = redis.xrange(name, min=f"({delivered}", count=MAX_JOBS)
    return QueueState(name, len(waiting), int(waiting[0][0].partition("-")[0]) / 1000 if waiting else None)


_Names = Callable[[Any], Iterable[str]]
_State = Callable[[Any, str, float], QueueState]
_ENGINES: Final[dict[str, tuple[_Names, _State]]] = {
    "celery": (_celery_names, _celery_state),
    "rq": (_rq_names, _rq_state),
    "dramatiq": (_dramatiq_names, _dramatiq_state),
    "huey": (_huey_names, _huey_state),
    "arq": (_arq_names, _arq_state),
    "taskiq": (_taskiq_names, _taskiq_state),
}
