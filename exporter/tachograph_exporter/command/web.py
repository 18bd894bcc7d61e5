"""HTTP as far as a command needs it: one request on one connection, without a library."""

from __future__ import annotations

import socket
from typing import NamedTuple

CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 10.0
_MAX_ANSWER = 1 << 20


class Address(NamedTuple):
    """Where an ``http`` or ``https`` URL leads. ``authority`` is its host and port as they are written."""

    is_secure: bool
    host: str
    port: int
    authority: str
    path: str


def address_of(url: str) -> Address | None:
    """The address of a URL; None if it is none. User and password are not accepted in one."""
    scheme, separator, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    host, colon, port = authority.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = authority, ""
    is_secure = scheme.lower() == "https"
    host = host.removeprefix("[").removesuffix("]")
    if scheme.lower() not in ("http", "https") or not separator or not host or "@" in authority or not url.isascii():
        return None
    if port and not port.isdecimal():
        return None
    if any(character.isspace() for character in url):
        return None
    return Address(is_secure, host, int(port) if port else (443 if is_secure else 80), authority, f"/{path}")


class Trust(NamedTuple):
    """Files of certificates (PEM): whom to trust, and who we are; "": the system's, and nobody."""

    authorities: str = ""
    certificate: str = ""
    key: str = ""


def post(
    address: Address,
    headers: list[str],
    body: bytes,
    *,
    connect_seconds: float = CONNECT_SECONDS,
    answer_seconds: float = ANSWER_SECONDS,
    trust: Trust = Trust(),  # noqa: B008 - a tuple
) -> tuple[int, bytes]:
    """(status, body) of the answer. Raises `OSError` or ValueError."""
    lines = [
        f"POST {address.path} HTTP/1.1", f"Host: {address.authority}", f"Content-Length: {len(body)}",
        "Connection: close", "User-Agent: tachograph", *headers,
    ]  # fmt: skip
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a variable of the environment has a line break")
    request = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body
    with socket.create_connection((address.host, address.port), connect_seconds) as plain:
        plain.settimeout(answer_seconds)
        connection = plain
        if address.is_secure:
            import ssl

            context = ssl.create_default_context(cafile=trust.authorities or None)
            if trust.certificate:
                context.load_cert_chain(trust.certificate, trust.key or None)
            connection = context.wrap_socket(plain, server_hostname=address.host)
        with connection:
            connection.sendall(request)
            answer = b""
            while len(answer) < _MAX_ANSWER and (data := connection.recv(65_536)):
                answer += data
    head, separator, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.") or not separator:
        raise ValueError("the answer is cut off")
    return int(head.split(None, 2)[1]), rest
