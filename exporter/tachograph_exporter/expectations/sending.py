"""Sends messages to receivers: signed webhooks, and whatever apprise knows.

Nothing here shows an address or a secret: not in an error, not in a log.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import threading
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Final

import aiohttp
import msgspec

from tachograph.errors import TachographError
from tachograph_exporter.expectations.messages import NoticeMessage
from tachograph_exporter.expectations.routing import Target

WEBHOOK_SECONDS: Final = 10.0
"""How long a webhook has to answer."""
APPRISE_SECONDS: Final = 30.0
MAX_RETRY_AFTER_SECONDS: Final = 3600.0
"""Longer than this no receiver can put a message off."""
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105
NO_APPRISE: Final = "needs apprise: pip install 'tachograph[notify]'"


class NotSent(TachographError):
    """A message was not taken; the text says why, without the address.

    ``retry_seconds``: the receiver asks not to be tried again before.
    """

    def __init__(self, message: str, retry_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class MaybeSent(TachographError):
    """A receiver did not answer in time; it may have taken the message."""


def signature(secret: str, identifier: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``: HMAC-SHA256 of id, time and body.

    Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md. A secret that
    begins with ``whsec_`` is base64.
    """
    key = secret.encode("utf-8", "surrogateescape")
    if secret.startswith(_SECRET_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
        except binascii.Error:
            raise NotSent("its secret begins with whsec_ and is not base64") from None
    digest = hmac.new(key, f"{identifier}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def send(target: Target, message: NoticeMessage, message_id: str) -> None:
    """Send a message; blocks. ``message_id``: the same whenever it is sent again. Raises `NotSent`, `MaybeSent`."""
    if target.is_webhook:
        asyncio.run(_post(target, msgspec.json.encode(message), message_id))
    else:
        _notify(target, message)


async def _post(target: Target, body: bytes, message_id: str) -> None:
    timestamp = round(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "tachograph",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
    }
    if target.secret:
        headers["webhook-signature"] = signature(target.secret, message_id, timestamp, body)
    timeout = aiohttp.ClientTimeout(total=WEBHOOK_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.post(target.url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            if not 200 <= response.status < 300:
                raise NotSent(f"it answered {response.status}", retry_after(response.headers.get("Retry-After", "")))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        # What is raised may hold the address.
        if isinstance(error, TimeoutError):
            raise NotSent(f"no answer in {WEBHOOK_SECONDS:g} s") from None
        raise NotSent(f"it cannot be reached: {type(error).__name__}") from None


def retry_after(header: str, now: float | None = None) -> float:
    """Seconds of a header ``Retry-After``, a number or a date (RFC 9110, section 10.2.3); 0 for anything else.

    ``now``: unix seconds.
    """
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(text)
        seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - (time.time() if now is None else now)
    except (ValueError, OverflowError, OSError):
        return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


def _notify(target: Target, message: NoticeMessage) -> None:
    if find_spec("apprise") is None:
        raise NotSent(NO_APPRISE)
    outcome: list[bool | None] = []

    def work() -> None:
        # Only here: it takes a while to import.
        import apprise

        # Some of what it logs shows addresses.
        logging.getLogger("apprise").disabled = True
        kinds = {"critical": apprise.NotifyType.FAILURE, "warning": apprise.NotifyType.WARNING}
        kind = kinds.get(message.data.severity, apprise.NotifyType.INFO)
        if message.type == "notice.recovered":
            kind = apprise.NotifyType.SUCCESS
        sender = apprise.Apprise(asset=apprise.AppriseAsset(async_mode=False))
        try:
            if not sender.add(target.url):
                outcome.append(None)
                return
            # As text: where a service wants HTML or Markdown, apprise makes that of it, and names stay names.
            is_sent = sender.notify(
                title=message.title, body=message.text, notify_type=kind, body_format=apprise.NotifyFormat.TEXT
            )
            outcome.append(bool(is_sent))
        except Exception:
            outcome.append(False)

    # It may hang for as long as it likes: its thread is left behind.
    thread = threading.Thread(target=work, name="tachograph-apprise", daemon=True)
    thread.start()
    thread.join(APPRISE_SECONDS)
    if not outcome:
        raise MaybeSent(f"no answer in {APPRISE_SECONDS:g} s")
    if outcome[0] is None:
        raise NotSent("apprise does not understand its URL")
    if not outcome[0]:
        raise NotSent("apprise could not deliver it")
