"""Follows a service's stream from another process: comes back by itself, and goes on where it was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from tachograph_exporter.stream.messages import StreamMessage

FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 10.0
SILENCE_SECONDS: Final = 40.0
"""So long without even a heartbeat: the connection is gone."""
_decode: Final = msgspec.json.Decoder(StreamMessage).decode


class Refused(Exception):
    """The service does not let this be followed; says why."""


async def follow(
    session: aiohttp.ClientSession, url: str, parameters: Mapping[str, str], *, after: int | None = None
) -> AsyncIterator[StreamMessage]:
    """Messages of a stream (a ``ws://`` URL), for ever.

    Among them ``connected`` (each time it is), ``reload`` (what came before is to be read anew) and ``waiting``, made
    here, while the service does not answer. Raises `Refused` for what will not get better by trying again.
    """
    wait = FIRST_WAIT
    while True:
        query = {**parameters, **({"after": str(after)} if after is not None else {})}
        try:
            async with session.ws_connect(url, params=query, protocols=("tachograph",), max_msg_size=1 << 20) as socket:
                while True:
                    text = await asyncio.wait_for(socket.receive_str(), SILENCE_SECONDS)
                    message = _decode(text)
                    if message.event_type == "connected":
                        wait = FIRST_WAIT
                        after = max(after or 0, message.sequence)
                    elif message.event_type == "reload":
                        after = message.sequence
                    else:
                        after = max(after or 0, message.sequence)
                    yield message
        except aiohttp.WSServerHandshakeError as error:
            if error.status < 500:
                raise Refused(_why(error.status, url)) from None
        except (aiohttp.ClientError, OSError, TimeoutError, TypeError, aiohttp.WSMessageTypeError):
            # A close arrives as a message of another type.
            pass
        yield StreamMessage(event_type="waiting", timestamp="", message="the service does not answer; trying again")
        # Not all at once, when it comes back and many wait for it.
        await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311
        wait = min(LONGEST_WAIT, wait * 1.7)


def _why(status: int, url: str) -> str:
    known: dict[int, Any] = {
        401: "a token is needed: set TACHOGRAPH_TOKEN",
        403: "the token does not allow it",
        404: "there is no such workflow or execution, or nothing of Tachograph's at this address",
    }
    return f"{url}: {known.get(status, f'answered {status}')}"
