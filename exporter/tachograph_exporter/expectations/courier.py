"""Delivers messages from the database to receivers, each receiver in a thread of its own.

So one that hangs delays no other, and nothing else. A message is claimed before it is sent. It is sent again only if
its receiver said no, or if a webhook did not answer: such a one gets the same id again, by which it can tell. What
apprise did not finish in time, or whose sender died, may have arrived: it is not sent again, and counted as unknown.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tachograph.clock import NS
from tachograph.quiet_log import QuietLog
from tachograph_exporter.expectations.messages import NoticeMessage, message_of
from tachograph_exporter.expectations.routing import Target
from tachograph_exporter.expectations.sending import MaybeSent, NotSent, send
from tachograph_exporter.store import notices
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.notices import Key

log = logging.getLogger(__name__)
quiet = QuietLog(log)

LOOK_SECONDS: Final = 5.0
FIRST_RETRY_SECONDS: Final = 10.0
LAST_RETRY_SECONDS: Final = 900.0
GIVE_UP_NS: Final = 86_400 * NS
"""So long a receiver is tried."""

Send = Callable[[Target, NoticeMessage, str], None]


class Courier:
    """Delivers messages to receivers until it is closed.

    Args:
        database: where the messages are.
        targets: the receivers.
        link: the address under which people see the service.
        is_leader: whether this service sends now.
        counted: called with what became of each message (see `store.notices`).
        send: sends one.
        clock: unix nanoseconds.
    """

    def __init__(
        self,
        database: Database,
        targets: Sequence[Target],
        link: str,
        is_leader: Callable[[], bool],
        counted: Callable[[str], None],
        send: Send = send,
        *,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._database = database
        self._targets = targets
        self._link = link
        self._is_leader = is_leader
        self._counted = counted
        self._send = send
        self._clock = clock or time.time_ns
        self._closed = threading.Event()
        self._news = {target.name: threading.Event() for target in targets}

    def start(self) -> None:
        """Start a thread for each receiver."""
        for target in self._targets:
            threading.Thread(
                target=self._run, args=(target,), name=f"tachograph-notify-{target.name}", daemon=True
            ).start()

    def wake(self) -> None:
        """There are new messages."""
        for event in self._news.values():
            event.set()

    def close(self) -> None:
        """Send nothing more. A message that is being sent is not waited for."""
        self._closed.set()
        self.wake()

    def _run(self, target: Target) -> None:
        news = self._news[target.name]
        while not self._closed.is_set():
            try:
                while self._is_leader() and not self._closed.is_set() and self.deliver(target):
                    pass
            except Exception as error:
                quiet.warning(type(error), "notices have to wait: %s", type(error).__name__)
            news.wait(LOOK_SECONDS)
            news.clear()

    def deliver(self, target: Target) -> bool:
        """Send the message that is due next, if any. Returns whether there was one."""
        now_ns = self._clock()
        row: Any = self._database.look(lambda c: notices.due(c, target.name, now_ns))
        if row is None:
            return False
        key = Key(row.notice_id, row.phase, row.target)
        if not self._database.run(lambda c: notices.take(c, row, now_ns)):
            return True
        state, next_ns, reason = notices.SENT, 0, ""
        try:
            self._send(target, message_of(row, self._link, now_ns), f"{row.notice_id}.{row.phase}")
        except MaybeSent as error:
            state, reason = notices.UNKNOWN, str(error)
        except NotSent as error:
            wait_seconds = max(_retry_seconds(row.tries), error.retry_seconds)
            reason, next_ns = str(error), self._clock() + round(wait_seconds * NS)
            state = notices.FAILED if next_ns - row.created_ns > GIVE_UP_NS else notices.PENDING
        except Exception as error:
            state, reason = notices.UNKNOWN, f"sending failed: {type(error).__name__}"
        self._database.run(lambda c: notices.settle(c, key, state, self._clock(), next_ns, reason))
        self._counted("retried" if state == notices.PENDING else state)
        if state != notices.SENT:
            quiet.warning(target.name, "the receiver %s (%s): %s", target.name, target.shown, reason)
        return True


def _retry_seconds(tries: int) -> float:
    return float(min(FIRST_RETRY_SECONDS * 2 ** min(tries, 20), LAST_RETRY_SECONDS))
