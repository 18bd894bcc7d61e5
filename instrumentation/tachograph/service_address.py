"""The address of a service, as users write it."""

from __future__ import annotations

import urllib.parse

from tachograph.errors import SetupError
from tachograph.variables import TOKEN_VARIABLE


def parse(url: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path without a slash at its end) of a service's URL. Raises `SetupError`."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = None, 0
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii():
        raise SetupError("not the URL of a service: expected one like http://host:9923")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise SetupError(f"the URL of a service has a host and a path only; the token goes into {TOKEN_VARIABLE}")
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")
