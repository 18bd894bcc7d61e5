"""Real receivers of notices: a webhook, an SMTP server, and an address that takes connections and never answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.header import decode_header, make_header
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()


class Webhook:
    """A webhook receiver. ``bodies`` are what it got, ``statuses`` what it answers next, 204 when there is none.

    ``headers`` go with every answer.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers.items()), body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks/T0P-S3CRET-PATH?token=T0P-S3CRET-QUERY"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]

    @property
    def told(self) -> list[tuple[str, str, str]]:
        """(type, workflow, kind) of what it got."""
        return [(b["type"].removeprefix("notice."), b["data"]["workflow"], b["data"]["kind"]) for b in self.bodies]

    def verify(self) -> None:
        """Every request is signed as https://www.standardwebhooks.com has it."""
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        for headers, body in self.requests:
            lower = {name.lower(): value for name, value in headers.items()}
            signed = f"{lower['webhook-id']}.{lower['webhook-timestamp']}.".encode() + body
            expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
            assert lower["webhook-signature"] == f"v1,{expected}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Mailbox:
    """A real SMTP server.

    Args:
        markup: what mails are asked for: text, or html as where nothing is said.
    """

    def __init__(self, markup: str = "text") -> None:
        self.mails: list[tuple[str, str]] = []
        """(subject, text)."""
        self.recipients: list[list[str]] = []
        self._type = "text/html" if markup == "html" else "text/plain"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._controller = Controller(self, hostname="127.0.0.1", port=port, ready_timeout=60)
        self._controller.start()
        self.url = f"mailto://127.0.0.1:{port}?from=tachograph@example.com&to=on-call@example.com&format={markup}"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        mail = message_from_bytes(envelope.content)
        parts = [part for part in mail.walk() if part.get_content_type() == self._type]
        text = parts[0].get_payload(decode=True)
        assert isinstance(text, bytes)
        self.recipients.append(list(envelope.rcpt_tos))
        self.mails.append((str(make_header(decode_header(mail["Subject"]))), text.decode()))
        return "250 OK"

    def close(self) -> None:
        self._controller.stop()


@contextmanager
def hanging_address() -> Iterator[str]:
    """A webhook that takes requests and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/T0P-S3CRET-PATH"


async def eventually(condition: Callable[[], Any], timeout: float = 60) -> Any:
    """What the condition says once that is true."""
    async with asyncio.timeout(timeout):
        while not (value := condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return value
