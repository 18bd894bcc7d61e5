"""Who follows the stream in this process, and what each of them is still to be told.

The hub reads the `Feed` once, makes each message once, and puts it to those who want it. A follower that does not keep
up is coalesced: of each step and execution it gets the newest state and not what came before; if even that is too much,
or nothing leaves for `STALL_SECONDS`, it is let go. Nobody waits for anybody.
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
from tachograph_exporter.store import event_log as event_log
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.event_log import Logged, Missed
from tachograph_exporter.stream.feed import Feed
from tachograph_exporter.stream.messages import MORE_TYPES, STATE_TYPES, Message, control, message_of

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 15.0
STALL_SECONDS: Final = 20.0
"""How long a follower may take nothing before it is let go."""
COALESCE: Final = 256
"""Messages that may wait for a follower before it is coalesced."""
MAX_WAITING: Final = 4096
"""Steps and executions whose newest state may wait for a follower before it is let go."""
LINGER_SECONDS: Final = 600.0
"""How long the hub goes on reading when nobody follows any more: whoever comes back misses nothing."""
_TOGETHER_SECONDS: Final = 0.015
_REPORTS: Final = frozenset(MORE_TYPES) - {"workflow_queued"}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower wants to hear of: one workspace, and there of one workflow, execution or step, or of all."""

    workspace_id: str
    workflow_id: str | None = None
    execution_id: str | None = None
    step_id: str | None = None
    types: frozenset[str] = frozenset(STATE_TYPES)

    def fits(self, message: Message) -> bool:
        """Whether it wants to hear of this."""
        return (
            message.event_type in self.types
            and message.workspace_id == self.workspace_id
            and self.workflow_id in (None, message.workflow_id)
            and self.execution_id in (None, message.execution_id)
            and self.step_id in (None, message.step_id)
        )


class TooSlow(Exception):
    """A follower that cannot keep up, and is let go."""


class Closing(Exception):
    """The service stops."""


class Follower:
    """What waits for one follower."""

    __slots__ = ("_newest", "_pending", "_wake", "after", "coalesced", "failure", "wanted")

    def __init__(self, wanted: Wanted, after: int) -> None:
        self.wanted = wanted
        self.after = after
        self.coalesced = 0
        self.failure: Exception | None = None
        self._pending: list[Message] = []
        # By (execution, step), once it has fallen behind.
        self._newest: dict[tuple[str, str], Message] | None = None
        self._wake = asyncio.Event()

    def offer(self, message: Message) -> None:
        """Put a message to it."""
        newest = self._newest
        if newest is None:
            self._pending.append(message)
            if len(self._pending) > COALESCE:
                waiting, self._pending, self._newest = self._pending, [], {}
                for one in waiting:
                    self._coalesce(self._newest, one)
        else:
            self._coalesce(newest, message)
            if len(newest) > MAX_WAITING:
                self.fail(TooSlow(f"the newest states of {MAX_WAITING} steps wait to be read"))
        self._wake.set()

    def _coalesce(self, newest: dict[tuple[str, str], Message], message: Message) -> None:
        if message.event_type in _REPORTS:
            self.coalesced += 1
            return
        key = (message.execution_id, message.step_id)
        # Behind the others, for messages go out in the order of their numbers.
        self.coalesced += newest.pop(key, None) is not None
        newest[key] = message

    def fail(self, why: Exception) -> None:
        """End it: `take` raises this."""
        self.failure = self.failure or why
        self._wake.set()

    async def take(self) -> list[Message]:
        """What waits, once something does."""
        while True:
            if self.failure is not None:
                raise self.failure
            if self._newest is not None:
                found = list(self._newest.values())
                self._newest = None
                note = f"{self.coalesced} messages were left out; these are the newest states"
                told = control("coalesced", time.time_ns(), self.after, note, left_out=self.coalesced)
                self.coalesced = 0
                return [told, *found]
            if self._pending:
                found, self._pending = self._pending, []
                return found
            self._wake.clear()
            await self._wake.wait()


class Hub:
    """Puts what is committed to followers.

    Args:
        feed: where events come from.
        database: where those that a follower missed are read.
        dispatched: told how many messages were put to followers.
    """

    def __init__(self, feed: Feed, database: Database, dispatched: Callable[[int], None] | None = None) -> None:
        self._feed = feed
        self._database = database
        self._dispatched = dispatched
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._of_workspace: dict[str, set[Follower]] = defaultdict(set)
        self._count = 0
        self._position = -1
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._alone_since = time.monotonic()
        self.is_closed = False

    @property
    def followers(self) -> int:
        """How many follow."""
        return self._count

    @property
    def position(self) -> int:
        """The sequence number of the last event that followers were told."""
        return self._position

    async def follow(self, wanted: Wanted, after: int | None = None) -> AsyncGenerator[list[Message], None]:
        """Messages in groups, the first group beginning with ``connected``.

        ``after``: go on behind this sequence number; where that is no longer possible, the first message is ``reload``
        and what follows is from now on. Raises `TooSlow` or `Closing` when it ends.
        """
        if self.is_closed:
            raise Closing
        self._count += 1
        follower: Follower | None = None
        try:
            await self._running()
            connected = control(
                "connected", time.time_ns(), self._position if after is None else after,
                heartbeat_seconds=HEARTBEAT_SECONDS, window_seconds=event_log.KEEP_SECONDS,
            )  # fmt: skip
            if after is None:
                follower = self._join(wanted, self._position)
                yield [connected]
            else:
                yield [connected]
                at = after
                try:
                    await self._database.read(lambda c: event_log.check(c, after))
                    while at < self._position:
                        logged = await self._database.read(lambda c, at=at: event_log.read(c, at))  # type: ignore[misc]
                        if not logged:
                            break
                        at = logged[-1].sequence
                        if found := [one for one in map(_message, logged) if one is not None and wanted.fits(one)]:
                            yield found
                    at = max(at, self._position)
                except Missed as why:
                    at = self._position
                    yield [control("reload", time.time_ns(), at, f"{why}: read the state anew")]
                follower = self._join(wanted, at)
            while True:
                yield await follower.take()
        finally:
            self._count -= 1
            if follower is not None:
                self._leave(follower)
            self._alone_since = time.monotonic()

    def _join(self, wanted: Wanted, after: int) -> Follower:
        follower = Follower(wanted, after)
        self._index(wanted).add(follower)
        return follower

    def _index(self, wanted: Wanted) -> set[Follower]:
        key = wanted.step_id or wanted.execution_id or wanted.workflow_id
        return self._followers[key] if key is not None else self._of_workspace[wanted.workspace_id]

    def _leave(self, follower: Follower) -> None:
        wanted = follower.wanted
        found = self._index(wanted)
        found.discard(follower)
        if not found:
            self._followers.pop(wanted.step_id or wanted.execution_id or wanted.workflow_id or "", None)

    def _all(self) -> list[Follower]:
        return [one for index in (self._followers, self._of_workspace) for some in index.values() for one in some]

    async def _running(self) -> None:
        if not self._tasks:
            self._ready.clear()
            self._tasks = [
                asyncio.create_task(self._read(), name="tachograph stream"),
                asyncio.create_task(self._beat(), name="tachograph stream heartbeat"),
            ]
        await self._ready.wait()
        if self.is_closed:
            raise Closing

    async def _read(self) -> None:
        """Read the feed for as long as somebody follows, and a while longer."""
        while True:
            try:
                if self._position < 0:
                    self._position = await self._feed.now()
                self._ready.set()
                async with contextlib.aclosing(self._feed.follow(self._position)) as groups:
                    async for group in groups:
                        self._dispatch(group)
                        # Many events in one write to each follower cost little more than one.
                        await asyncio.sleep(_TOGETHER_SECONDS)
            except Missed as why:
                self._position = await self._feed.now()
                self._tell_all("reload", f"{why}: read the state anew")
            except Exception:
                log.exception("the stream could not be read; trying again")
                await asyncio.sleep(1)

    def _dispatch(self, group: Sequence[Logged]) -> None:
        put = 0
        for logged in group:
            event = logged.event
            execution = event.execution
            step = getattr(event, "step", None)
            concerned = [
                *self._of_workspace.get(workspace_id(execution.workspace), ()),
                *self._followers.get(execution.workflow_id, ()),
                *self._followers.get(execution.execution_id, ()),
                *(self._followers.get(step.step_id, ()) if step is not None else ()),
            ]
            # Nobody pays for what nobody follows.
            message = _message(logged) if concerned else None
            if message is None:
                continue
            for follower in concerned:
                if logged.sequence > follower.after and follower.wanted.fits(message):
                    follower.offer(message)
                    put += 1
        if group:
            self._position = group[-1].sequence
        if put and self._dispatched is not None:
            self._dispatched(put)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._tell_all("heartbeat")
            if not self._count and time.monotonic() - self._alone_since > LINGER_SECONDS:
                reader, _ = self._tasks
                self._tasks = []
                # Who comes next begins at what is then now.
                self._position = -1
                reader.cancel()
                return

    def _tell_all(self, event_type: str, text: str = "") -> None:
        told = control(event_type, time.time_ns(), self._position, text)
        for follower in self._all():
            follower.offer(told)

    async def close(self) -> None:
        """Let everybody go."""
        self.is_closed = True
        self._ready.set()
        for follower in self._all():
            follower.fail(Closing())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


def _message(logged: Logged) -> Message | None:
    return message_of(logged.event, logged.sequence)
