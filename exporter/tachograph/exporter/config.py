"""How the service is set up: from the command line and the environment, checked in one place."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final

import msgspec

DEFAULT_LISTEN: Final = "127.0.0.1:9923"
DEFAULT_DATABASE: Final = "sqlite:///tachograph.db"
TOKEN_VARIABLE: Final = "TACHOGRAPH_TOKEN"  # noqa: S105 - its name
MIN_TOKEN: Final = 16


class ConfigError(Exception):
    """The service cannot be set up as asked; says what to change."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The service's settings.

    ``token``: whoever calls must send it (``Authorization: Bearer …``); beyond loopback there must be one.
    ``grace_seconds``: how long running steps may go on when the service is stopped. ``series_limit``: label sets of one
    metric; ``series_expire_seconds``: drop those that have not changed for so long.
    """

    host: str = "127.0.0.1"
    port: int = 9923
    database: str = DEFAULT_DATABASE
    token: str | None = None
    grace_seconds: float = 10.0
    max_body_bytes: int = 10_000_000
    max_executions: int = 100
    max_queued_executions: int = 10_000
    workspace: str = "default"
    series_limit: int = 10_000
    series_expire_seconds: float | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """The service's own URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def check(self) -> None:
        """Raises `ConfigError` where the settings would be unsafe or cannot work."""
        if self.token is not None and len(self.token) < MIN_TOKEN:
            raise ConfigError(f"the token has {len(self.token)} characters; use at least {MIN_TOKEN}")
        if not self.is_loopback and self.token is None:
            raise ConfigError(
                f"listening on {self.host} lets others in, so a token is needed: set {TOKEN_VARIABLE} "
                "(for instance to the output of `openssl rand -hex 24`), or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of ``127.0.0.1:9923``, ``[::1]:9923``, ``:9923`` (all addresses) or ``9923`` (loopback)."""
    host, colon, port_text = text.rpartition(":")
    if not colon:
        host = "127.0.0.1"
    try:
        port = int(port_text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65_535:
        raise ConfigError(f"{text!r} is no address to listen on; expected HOST:PORT, for instance {DEFAULT_LISTEN}")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", port  # noqa: S104 - refused without a token


def read_token(path: Path) -> str:
    """The token in a file. Raises `ConfigError`."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token from {path}: {error}") from None
