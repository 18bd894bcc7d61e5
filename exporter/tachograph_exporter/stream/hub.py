"""The hub: the followers of the stream in this process, and each one's queue of messages.

The hub reads the `Feed` once, builds each message once, and queues it for the followers whose filter matches. A slow
follower is coalesced: it gets only the newest state of each step and execution. If even those are too many, or it reads
nothing for `STALL_SECONDS`, it is disconnected. No follower waits for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

import msgspec

from tachograph.identity import workspace_id
from tachograph.quiet_log import QuietLog
from tachograph_exporter.store import event_log
from tachograph_exporter.store.database import Database, Lane
from tachograph_exporter.store.event_log import EventsMissed, Logged
from tachograph_exporter.stream.feed import Feed
from tachograph_exporter.stream.messages import DETAIL_TYPES, STATE_TYPES, Message, build_message, control_message

quiet = QuietLog(logging.getLogger(__name__))

HEARTBEAT_SECONDS: Final = 15.0
CONNECT_SECONDS: Final = 5.0
"""How long a follower may wait until following is effective."""
STALL_SECONDS: Final = 20.0
"""How long a follower may read nothing before it is disconnected."""
MAX_QUEUED: Final = 256
"""Messages queued for a follower before it is coalesced."""
MAX_COALESCED: Final = 4096
"""Newest states queued for a coalesced follower before it is disconnected."""
LINGER_SECONDS: Final = 600.0
"""How long the hub keeps reading after the last follower has left, so that one that reconnects misses nothing."""
_BATCH_SECONDS: Final = 0.015
_DROPPABLE: Final = frozenset(DETAIL_TYPES) - {"workflow_queued"}
"""Types that say nothing about state; a coalesced follower does not get them."""


class StreamFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower subscribes to: one workspace, optionally narrowed to a workflow, an execution, a step."""

    workspace_id: str
    workflow_id: str | None = None
    execution_id: str | None = None
    step_id: str | None = None
    types: frozenset[str] = frozenset(STATE_TYPES)

    def matches(self, message: Message) -> bool:
        """Whether the message passes the filter."""
        return (
            message.event_type in self.types
            and message.workspace_id == self.workspace_id
            and self.workflow_id in (None, message.workflow_id)
            and self.execution_id in (None, message.execution_id)
            and self.step_id in (None, message.step_id)
        )


class TooSlow(Exception):
    """The follower does not keep up and is disconnected."""


class Closing(Exception):
    """The service is stopping."""


class Follower:
    """The queue of one follower."""

    __slots__ = ("_newest", "_pending", "_wake", "after", "coalesced", "failure", "filter")

    def __init__(self, stream_filter: StreamFilter, after: int) -> None:
        self.filter = stream_filter
        self.after = after
        self.coalesced = 0
        self.failure: Exception | None = None
        self._pending: list[Message] = []
        # By (execution, step); None while the follower keeps up.
        self._newest: dict[tuple[str, str], Message] | None = None
        self._wake = asyncio.Event()

    def offer(self, message: Message) -> None:
        """Queue a message."""
        newest = self._newest
        if newest is None:
            self._pending.append(message)
            if len(self._pending) > MAX_QUEUED:
                waiting, self._pending, self._newest = self._pending, [], {}
                for queued in waiting:
                    self._coalesce(self._newest, queued)
        else:
            self._coalesce(newest, message)
            if len(newest) > MAX_COALESCED:
                self.fail(TooSlow(f"more than {MAX_COALESCED} newest states are queued"))
        self._wake.set()

    def _coalesce(self, newest: dict[tuple[str, str], Message], message: Message) -> None:
        if message.event_type in _DROPPABLE:
            self.coalesced += 1
            return
        key = (message.execution_id, message.step_id)
        # Removed first, so that it is last: messages go out in the order of their sequence numbers.
        self.coalesced += newest.pop(key, None) is not None
        newest[key] = message

    def fail(self, error: Exception) -> None:
        """Disconnect the follower: `take` raises ``error``."""
        self.failure = self.failure or error
        self._wake.set()

    async def take(self) -> list[Message]:
        """Wait for messages and return them all, in order."""
        while True:
            if self.failure is not None:
                raise self.failure
            if self._newest is not None:
                messages = list(self._newest.values())
                self._newest = None
                text = f"{self.coalesced} messages were left out; these are the newest states"
                notice = control_message("coalesced", time.time_ns(), self.after, text, left_out=self.coalesced)
                self.coalesced = 0
                return [notice, *messages]
            if self._pending:
                messages, self._pending = self._pending, []
                return messages
            self._wake.clear()
            await self._wake.wait()


class Hub:
    """Delivers committed events to followers.

    Args:
        feed: the source of events.
        database: where the events that a resuming follower missed are read.
        dispatched: called with the number of messages queued for followers.
    """

    def __init__(self, feed: Feed, database: Database, dispatched: Callable[[int], None] | None = None) -> None:
        self._feed = feed
        self._database = database
        self._dispatched = dispatched
        # Followers of one workflow, execution or step by its id; all others by their workspace's.
        self._by_id: dict[str, set[Follower]] = defaultdict(set)
        self._by_workspace: dict[str, set[Follower]] = defaultdict(set)
        self._count = 0
        self._position = -1
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._idle_since = time.monotonic()
        self.is_closed = False

    @property
    def follower_count(self) -> int:
        """The number of connected followers."""
        return self._count

    async def follow(
        self, stream_filter: StreamFilter, after: int | None = None
    ) -> AsyncGenerator[list[Message], None]:
        """Yield messages in groups; the first group is ``connected``.

        Once it is there, following is effective: every event that any process commits from then on will be yielded.
        With ``after`` it resumes after that sequence number. If that is no longer possible, it sends ``reload`` and
        continues from the current position. Ends by raising `TooSlow` or `Closing`; raises `TimeoutError` if the
        database does not respond within `CONNECT_SECONDS`.
        """
        if self.is_closed:
            raise Closing
        self._count += 1
        follower: Follower | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._ensure_running()
            connected = control_message(
                "connected", time.time_ns(), self._position if after is None else after,
                heartbeat_seconds=HEARTBEAT_SECONDS, window_seconds=event_log.KEEP_SECONDS,
            )  # fmt: skip
            if after is None:
                follower = self._join(stream_filter, self._position)
                yield [connected]
            else:
                yield [connected]
                position = after
                try:
                    while True:
                        # Taken before reading: what is dispatched during the read is not in it.
                        dispatched = self._position
                        logged = await self._database.read(
                            lambda c, at=position: event_log.resume(c, at),  # type: ignore[misc]
                            Lane.STREAM,
                        )
                        position = logged[-1].sequence if logged else max(position, dispatched)
                        messages = [m for m in map(_message, logged) if m is not None and stream_filter.matches(m)]
                        if messages:
                            yield messages
                        if position >= self._position:
                            break
                except EventsMissed as error:
                    # Before the message is taken, so that nothing that arrives meanwhile is missed.
                    position = self._position
                    follower = self._join(stream_filter, position)
                    yield [control_message("reload", time.time_ns(), position, _reload_text(error))]
                if follower is None:
                    follower = self._join(stream_filter, position)
            while True:
                yield await follower.take()
        finally:
            self._count -= 1
            if follower is not None:
                self._leave(follower)
            self._idle_since = time.monotonic()

    def _join(self, stream_filter: StreamFilter, after: int) -> Follower:
        follower = Follower(stream_filter, after)
        self._peers(stream_filter).add(follower)
        return follower

    def _peers(self, stream_filter: StreamFilter) -> set[Follower]:
        key = stream_filter.step_id or stream_filter.execution_id or stream_filter.workflow_id
        return self._by_id[key] if key is not None else self._by_workspace[stream_filter.workspace_id]

    def _leave(self, follower: Follower) -> None:
        stream_filter = follower.filter
        peers = self._peers(stream_filter)
        peers.discard(follower)
        if not peers:
            key = stream_filter.step_id or stream_filter.execution_id or stream_filter.workflow_id
            self._by_id.pop(key or "", None)

    def _all(self) -> list[Follower]:
        return [f for index in (self._by_id, self._by_workspace) for followers in index.values() for f in followers]

    async def _ensure_running(self) -> None:
        if not self._tasks:
            self._ready.clear()
            self._tasks = [
                asyncio.create_task(self._read(), name="tachograph stream"),
                asyncio.create_task(self._send_heartbeats(), name="tachograph stream heartbeat"),
            ]
        await self._ready.wait()
        if self.is_closed:
            raise Closing
        # The reader renews the registration, but may have failed to for a while.
        await self._feed.listen()

    async def _read(self) -> None:
        """Read the feed while there are followers, and for `LINGER_SECONDS` after the last one has left."""
        while True:
            try:
                if self._position < 0:
                    self._position = await self._feed.position()
                self._ready.set()
                async with contextlib.aclosing(self._feed.follow(self._position)) as groups:
                    async for group in groups:
                        self._dispatch(group)
                        # Batched: writing many events to a follower costs little more than writing one.
                        await asyncio.sleep(_BATCH_SECONDS)
            except EventsMissed as error:
                self._position = error.position
                self._broadcast("reload", _reload_text(error))
            except Exception as error:
                quiet.exception(type(error), "cannot read the event feed; retrying")
                await asyncio.sleep(1)

    def _dispatch(self, group: Sequence[Logged]) -> None:
        queued = 0
        for logged in group:
            event = logged.event
            execution = event.execution
            step = getattr(event, "step", None)
            candidates = [
                *self._by_workspace.get(workspace_id(execution.workspace), ()),
                *self._by_id.get(execution.workflow_id, ()),
                *self._by_id.get(execution.execution_id, ()),
                *(self._by_id.get(step.step_id, ()) if step is not None else ()),
            ]
            # Messages are built only while someone is subscribed.
            message = _message(logged) if candidates else None
            if message is None:
                continue
            for follower in candidates:
                if logged.sequence > follower.after and follower.filter.matches(message):
                    follower.offer(message)
                    queued += 1
        if group:
            self._position = group[-1].sequence
        if queued and self._dispatched is not None:
            self._dispatched(queued)

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._broadcast("heartbeat")
            if not self._count and time.monotonic() - self._idle_since > LINGER_SECONDS:
                reader, _ = self._tasks
                self._tasks = []
                # The next follower starts at the current position.
                self._position = -1
                reader.cancel()
                return

    def _broadcast(self, event_type: str, text: str = "") -> None:
        message = control_message(event_type, time.time_ns(), self._position, text)
        for follower in self._all():
            follower.offer(message)

    async def close(self) -> None:
        """Disconnect all followers and stop reading."""
        self.is_closed = True
        self._ready.set()
        for follower in self._all():
            follower.fail(Closing())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


def _message(logged: Logged) -> Message | None:
    return build_message(logged.event, logged.sequence)


def _reload_text(error: EventsMissed) -> str:
    return f"{error}: read the current state again"
