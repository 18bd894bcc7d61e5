"""Which addresses the handler ``http`` may reach, and connections to those that were checked."""

from __future__ import annotations

import io
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

ALLOW_VARIABLE: Final = "TACHOGRAPH_HTTP_ALLOW"
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_RULE: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)(?P<bits>/\d+)?(?::(?P<port>\d+))?"
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")
_METADATA: Final = (
    # Link-local, where most clouds describe a machine and hand out its credentials; then those that chose otherwise.
    ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"), ipaddress.ip_network("fd00:ec2::/32"),
    ipaddress.ip_network("100.100.100.200/32"), ipaddress.ip_network("168.63.129.16/32"),
)  # fmt: skip


class RefusedAddress(Exception):
    """The policy allows none of a host's addresses; the message says which it has."""


def _plain(address: str) -> _Address:
    """An address, or the IPv4 address inside an IPv6 one that carries it to IPv4 (mapped, NAT64, 6to4, Teredo)."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed
    if parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    if parsed.sixtofour is not None:
        return parsed.sixtofour
    if parsed.teredo is not None:
        return parsed.teredo[1]
    if parsed in _NAT64 or (parsed in _COMPATIBLE and int(parsed) > 0xFFFF):
        return ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return parsed


class _Rule:
    """One allowed target: a host name, an address or a network, on one port or on all."""

    def __init__(self, text: str) -> None:
        match = _RULE.fullmatch(text)
        self.network: _Network | None = None
        self.host = ""
        self.port = int(match["port"]) if match is not None and match["port"] else None
        is_valid = match is not None and (self.port is None or 0 < self.port < 65_536)
        if match is not None and is_valid:
            host = match["host"].removeprefix("[").removesuffix("]")
            try:
                self.network = ipaddress.ip_network(host + (match["bits"] or ""), strict=False)
            except ValueError:
                self.host = host.lower().removesuffix(".")
                is_valid = not match["bits"] and ":" not in host and re.search("[a-zA-Z]", host) is not None
        if not is_valid:
            raise ValueError(
                f"{text!r} is not a target: expected a host name, an address or a network (10.0.0.0/8), each with a "
                "port or without, or *"
            )

    def covers(self, host: str, port: int, address: _Address) -> bool:
        if self.port is not None and port != self.port:
            return False
        if self.network is not None:
            return address in self.network
        return host.lower().removesuffix(".") == self.host


class AddressPolicy:
    """Which hosts may be reached: public addresses, and those that a rule allows.

    Args:
        allow: host names, addresses or networks, each with ``:PORT`` or without; ``*`` is everything.
        is_open: the addresses of this machine and its networks may be reached too; only link-local and metadata
            addresses need a rule.

    Raises ValueError for a rule that is none of these.
    """

    def __init__(self, allow: Sequence[str] = (), *, is_open: bool = False) -> None:
        self._allows_all = "*" in allow
        self._rules = [_Rule(text) for text in allow if text != "*"]
        self._is_open = is_open
        self.how_to_allow = (
            f"set {ALLOW_VARIABLE}" if is_open else f"start the service with --http-allow or {ALLOW_VARIABLE}"
        )

    def may_reach(self, host: str, port: int, address: str) -> bool:
        """Whether a request for ``host`` may go to ``address``, which it resolved to."""
        plain = _plain(address)
        if self._allows_all or any(rule.covers(host, port, plain) for rule in self._rules):
            return True
        if any(plain in network for network in _METADATA):
            return False
        return self._is_open or (plain.is_global and not plain.is_multicast and not plain.is_reserved)

    def addresses(self, host: str, port: int, deadline: float) -> list[tuple[int, Any]]:
        """The (family, address) pairs of a host that may be reached; it is resolved once.

        Raises `RefusedAddress`, OSError when the name does not resolve, and TimeoutError at the deadline
        (`time.monotonic`).
        """
        resolved = _resolve(host, port, deadline)
        allowed = [(family, address) for family, address in resolved if self.may_reach(host, port, address[0])]
        if not allowed:
            shown = ", ".join(dict.fromkeys(address[0] for _, address in resolved))
            raise RefusedAddress(
                f"{host} ({shown}) is not an address that documents may reach; to allow it, {self.how_to_allow}"
            )
        return allowed


@lru_cache(maxsize=16)
def _own_policy(allow: str) -> AddressPolicy:
    return AddressPolicy(tuple(allow.replace(",", " ").split()), is_open=True)


def own_policy() -> AddressPolicy:
    """The policy of a program that runs its own workflows. Raises ValueError for a bad TACHOGRAPH_HTTP_ALLOW."""
    return _own_policy(os.environ.get(ALLOW_VARIABLE, ""))


def _resolve(host: str, port: int, deadline: float) -> list[tuple[int, Any]]:
    answers: list[tuple[int, Any]] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                answers.append((family, address))
        except (OSError, UnicodeError, ValueError) as error:
            errors.append(error)

    # A lookup cannot be interrupted, so it is left behind when it takes too long.
    thread = threading.Thread(target=ask, name="tachograph-lookup", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]
    return answers


def _connect(family: int, address: Any, seconds: float) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        connection.close()
        raise
    return connection


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class _Reading(io.RawIOBase):
    """What arrives on a connection, until its deadline."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._connection.receive(buffer)


class Connection:
    """A connection to an address that was checked, all of whose operations together end at a deadline.

    It has what `http.client` asks of a socket.
    """

    def __init__(self, policy: AddressPolicy, host: str, port: int, deadline: float, *, is_secure: bool) -> None:
        self._deadline = deadline
        targets = policy.addresses(host, port, deadline)
        for i, (family, address) in enumerate(targets):
            try:
                self._socket = _connect(family, address, self._left() / (len(targets) - i))
                break
            except OSError:
                if i == len(targets) - 1:
                    raise
        if is_secure:
            plain = self._socket
            try:
                plain.settimeout(self._left())
                self._socket = _tls().wrap_socket(plain, server_hostname=host)
            except BaseException:
                plain.close()
                raise

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def receive(self, buffer: Any) -> int:
        """Read into a buffer; 0 at the end. Raises TimeoutError at the deadline."""
        self._socket.settimeout(self._left())
        return self._socket.recv_into(buffer)

    def sendall(self, data: Any) -> None:
        """Send all of ``data``. Raises TimeoutError at the deadline."""
        self._socket.settimeout(self._left())
        self._socket.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """A reader of what arrives."""
        return io.BufferedReader(_Reading(self))

    def close(self) -> None:
        """Nothing: `http.client` calls this while a response is still being read. See `end`."""

    def end(self) -> None:
        """Close the connection."""
        self._socket.close()
