"""Connecting to PostgreSQL on one host or on several, of which the primary is used.

A URL may name several hosts, and take every option, as libpq's do:
``postgresql://user@host1:5432,host2:5432/name?sslmode=require``. See
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
import urllib.parse
from functools import cache
from typing import Any, Final

from sqlalchemy.engine import URL

Hosts = tuple[tuple[str, int], ...]
"""(name, port) of each; empty: one host, which the URL names as usual."""

CONNECT_SECONDS: Final = 5.0
"""How long opening a connection to PostgreSQL may take, all hosts together, unless there are more than five."""
_MIN_HOST_SECONDS: Final = 1.0
_DEFAULT_PORT: Final = 5432
_SEVERAL: Final = re.compile(
    r"(?P<scheme>postgres(?:ql)?(?:\+\w+)?://)(?P<user>(?:[^:/@]*(?::[^@]*)?@)?+)(?P<hosts>[^/?@]*,[^/?@]*)(?P<rest>.*)"
)
_HOST: Final = re.compile(r"(?:\[(?P<literal>[^\]]+)\]|(?P<name>[^:]*))(?::(?P<port>\d+))?")
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
"""A peer that vanished is noticed after 25 seconds of silence, or when sent data was not acknowledged for 20."""

_primaries: Final[dict[Hosts, tuple[str, int]]] = {}
"""Where the last connection was opened: the next one is tried there first."""


def with_hosts_as_options(url: str) -> str:
    """A URL that SQLAlchemy parses: several hosts become its option ``host``."""
    match = _SEVERAL.fullmatch(url)
    if match is None:
        return url
    path, _, query = match["rest"].partition("?")
    hosts = f"host={urllib.parse.quote(match['hosts'], safe='')}"
    return f"{match['scheme']}{match['user']}{path or '/'}?{query + '&' if query else ''}{hosts}"


def split(url: URL) -> tuple[URL, Hosts]:
    """A URL without its hosts if there are several, and these. Raises `ValueError` for what is no host."""
    named = url.query.get("host", ())
    names = named.split(",") if isinstance(named, str) else list(named)
    if len(names) < 2:
        return url, ()
    given = url.query.get("port", ())
    ports = given.split(",") if isinstance(given, str) else list(given)
    hosts = []
    for i, name in enumerate(names):
        match = _HOST.fullmatch(name)
        if match is None or not (match["literal"] or match["name"]):
            raise ValueError(f"{name!r} is not a host")
        port = match["port"] or (ports[i] if len(ports) == len(names) else ports[0] if ports else _DEFAULT_PORT)
        hosts.append((match["literal"] or match["name"], int(port)))
    return url.difference_update_query(["host", "port"]), tuple(hosts)


def display(url: URL) -> str:
    """A URL without its password, with several hosts as they are usually written."""
    rest, hosts = split(url)
    text = rest.render_as_string(hide_password=True)
    if not hosts:
        return text
    scheme, _, after = text.partition("://")
    user, _, path = after.partition("/")
    if user and not user.endswith("@"):
        user += "@"
    named = ",".join(f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name, port in hosts)
    return f"{scheme}://{user}{named}/{path}"


async def connect_to(url: URL) -> Any:
    """Open a connection as an engine for ``url`` does. Raises what `connect` raises."""
    rest, hosts = split(url)
    _, options = rest.get_dialect()().create_connect_args(rest)
    own = ("prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback")
    return await connect(hosts, timeout=CONNECT_SECONDS, **{k: v for k, v in options.items() if k not in own})


async def connect(hosts: Hosts, **options: Any) -> Any:
    """Open a connection; ``options`` are those of ``asyncpg.connect``, and any of a URL.

    Of several hosts, the first one that is what ``target_session_attrs`` asks for (default: the primary). The one that
    was used last comes first. When none is, raises the error that says most.
    """
    import asyncpg

    options = _arguments(options)
    if not hosts:
        return _kept_alive(await asyncpg.connect(**options))
    options.setdefault("target_session_attrs", "primary")
    options["timeout"] = max(_MIN_HOST_SECONDS, options.get("timeout", CONNECT_SECONDS) / len(hosts))
    errors: list[Exception] = []
    for name, port in sorted(hosts, key=lambda host: host != _primaries.get(hosts)):
        try:
            connection = await asyncpg.connect(**{**options, "host": name, "port": port})
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            errors.append(error)
        else:
            _primaries[hosts] = (name, port)
            return _kept_alive(connection)
    raise min(errors, key=_vagueness)


def _vagueness(error: Exception) -> int:
    """What a server says about the database tells more than that another one is a standby, or does not answer."""
    state = getattr(error, "sqlstate", None)
    return 0 if state else 1 if isinstance(error, OSError) and not isinstance(error, asyncio.TimeoutError) else 2


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``asyncpg.connect``; options that only a URL may have go into a URL."""
    known = _known_arguments()
    arguments = {name: value for name, value in options.items() if name in known}
    if others := {name: value for name, value in options.items() if name not in known and value != ""}:
        arguments["dsn"] = f"postgresql://?{urllib.parse.urlencode(others)}"
    return arguments


@cache
def _known_arguments() -> frozenset[str]:
    import asyncpg

    return frozenset(inspect.signature(asyncpg.connect).parameters)


def _kept_alive(connection: Any) -> Any:
    transport = getattr(connection, "_transport", None)
    connected = transport.get_extra_info("socket") if transport is not None else None
    if connected is not None and connected.family != getattr(socket, "AF_UNIX", None):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                connected.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
