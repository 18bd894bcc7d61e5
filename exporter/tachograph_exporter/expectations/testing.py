"""Test messages, to see that receivers are reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tachograph_exporter.expectations.messages import message_of_test
from tachograph_exporter.expectations.routing import Target
from tachograph_exporter.expectations.sending import MaybeSent, NotSent, send
from tachograph_exporter.views.schemas.expectations import ReceiverTest


def tell_of_test(target: Target, link: str) -> ReceiverTest:
    """Send a test message now; blocks. ``link``: the address under which people see the service."""
    message = message_of_test(link, time.time_ns())
    reason = None
    try:
        send(target, message, message.data.id)
    except (NotSent, MaybeSent) as error:
        reason = str(error)
    return ReceiverTest(receiver=target.name, address=target.shown, is_taken=reason is None, reason=reason)


async def tell_all_of_test(targets: Sequence[Target], link: str) -> list[ReceiverTest]:
    """Send a test message to all receivers at once: one that hangs delays no other."""
    if not targets:
        return []
    with ThreadPoolExecutor(len(targets), "tachograph-notify-test") as pool:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, tell_of_test, target, link) for target in targets))
