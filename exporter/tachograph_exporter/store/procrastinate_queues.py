"""The queues of procrastinate: its own tables in PostgreSQL, read and never changed."""

from __future__ import annotations

import asyncio
from typing import Any, Final

CONNECT_SECONDS: Final = 5.0
QUERY_SECONDS: Final = 10.0

# A job is due from its `scheduled_at` on; without one, from when it was deferred or tried again.
_WAITING: Final = """
SELECT job.queue_name AS queue, count(*) AS length,
  extract(epoch FROM min(coalesce(job.scheduled_at, event.at))) AS oldest
FROM procrastinate_jobs AS job
LEFT JOIN LATERAL (
  SELECT max(at) AS at FROM procrastinate_events WHERE job_id = job.id AND type IN ('deferred', 'deferred_for_retry')
) AS event ON true
WHERE job.status = 'todo' AND (job.scheduled_at IS NULL OR job.scheduled_at <= now())
GROUP BY job.queue_name ORDER BY job.queue_name LIMIT $1
"""
_ALL: Final = "SELECT DISTINCT queue_name FROM procrastinate_jobs ORDER BY queue_name LIMIT $1"


def read_queues(url: str, limit: int) -> list[tuple[str, int, float | None]]:
    """Name, number of waiting jobs and since when the oldest of them waits (unix seconds), for each queue.

    Raises what asyncpg raises. Not to be called where an event loop runs.
    """
    return asyncio.run(_read(url, limit))


async def _read(url: str, limit: int) -> list[tuple[str, int, float | None]]:
    import asyncpg

    connection: Any = await asyncpg.connect(url, timeout=CONNECT_SECONDS, command_timeout=QUERY_SECONDS)
    try:
        rows = {row["queue"]: row for row in await connection.fetch(_WAITING, limit)}
        names = [row["queue_name"] for row in await connection.fetch(_ALL, limit)]
    finally:
        await connection.close(timeout=CONNECT_SECONDS)
    empty: dict[str, Any] = {"length": 0, "oldest": None}
    states = [(name, rows.get(name, empty)) for name in names]
    return [(name, int(row["length"]), None if row["oldest"] is None else float(row["oldest"])) for name, row in states]
