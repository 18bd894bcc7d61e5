"""A client of a service's stream that reconnects and resumes where it left off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
import msgspec

from tachograph_exporter.stream.messages import StreamMessage

MIN_WAIT_SECONDS: Final = 0.5
MAX_WAIT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 40.0
"""Without even a heartbeat for this long, the connection is considered dead."""
_decode: Final = msgspec.json.Decoder(StreamMessage).decode


class Refused(Exception):
    """The service refuses this subscription; the message says why."""


async def follow(
    session: aiohttp.ClientSession, url: str, parameters: Mapping[str, str], *, after: int | None = None
) -> AsyncIterator[StreamMessage]:
    """Yield the messages of a stream (a ``ws://`` URL), forever.

    They include ``connected`` (after every connect), ``reload`` (events were missed: read the current state again) and
    ``waiting``, which this client adds while the service does not answer. Raises `Refused` when retrying cannot help.
    """
    wait = MIN_WAIT_SECONDS
    tries = 0
    while True:
        query = {**parameters, **({"after": str(after)} if after is not None else {})}
        try:
            async with session.ws_connect(url, params=query, protocols=("tachograph",), max_msg_size=1 << 20) as socket:
                while True:
                    text = await asyncio.wait_for(socket.receive_str(), SILENCE_SECONDS)
                    message = _decode(text)
                    if message.event_type == "connected":
                        wait, tries = MIN_WAIT_SECONDS, 0
                        after = max(after or 0, message.sequence)
                    elif message.event_type == "reload":
                        after = message.sequence
                    else:
                        after = max(after or 0, message.sequence)
                    yield message
        except aiohttp.WSServerHandshakeError as error:
            if error.status < 500:
                raise Refused(_reason(error.status, url)) from None
        except (aiohttp.ClientError, OSError, TimeoutError, TypeError, aiohttp.WSMessageTypeError):
            # A close frame is a message of another type, so `receive_str` raises TypeError.
            pass
        tries += 1
        text = f"the service does not answer; reconnecting (try {tries})"
        yield StreamMessage(event_type="waiting", timestamp="", message=text, data={"tries": tries})
        # Jitter, so that clients do not all reconnect at once when the service comes back.
        await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311
        wait = min(MAX_WAIT_SECONDS, wait * 1.7)


def _reason(status: int, url: str) -> str:
    reasons = {
        401: "a token is required: set TACHOGRAPH_TOKEN",
        403: "the token does not allow this",
        404: "no such workflow or execution, or no Tachograph service at this address",
    }
    return f"{url}: {reasons.get(status, f'answered {status}')}"
