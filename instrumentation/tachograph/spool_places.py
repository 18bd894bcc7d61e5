"""Where spools are: their directories, by the address of a database or service.

Imports little, because `tachograph exec` must start at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

DIRECTORY_VARIABLE: Final = "TACHOGRAPH_SPOOL_DIR"
BYTES_VARIABLE: Final = "TACHOGRAPH_SPOOL_MAX_BYTES"
JOURNAL_MAGIC: Final = b"tachograph journal 1\n"
"""The first line of a journal, see `tachograph.recording.journal`."""
JOURNAL_ENDING: Final = ".jsonl"
SPOOL_BYTES: Final = 256 << 20
"""How large the files for one destination may grow together, unless ``TACHOGRAPH_SPOOL_MAX_BYTES`` says otherwise."""


def spool_name(url: str) -> str:
    """The name of the directory of a destination's spool."""
    return hashlib.sha256(address(url).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def limit_from_environment() -> int:
    """``TACHOGRAPH_SPOOL_MAX_BYTES``, else `SPOOL_BYTES`."""
    text = os.environ.get(BYTES_VARIABLE, "").strip()
    return int(text[:15]) if text.isascii() and text.isdecimal() and int(text[:15]) > 0 else SPOOL_BYTES


def default_directories() -> list[Path]:
    """The parents of all spools: ``TACHOGRAPH_SPOOL_DIR``, else the user's state directory and one in ``/tmp``."""
    if chosen := os.environ.get(DIRECTORY_VARIABLE, "").strip():
        return [Path(chosen)]
    import tempfile

    user = os.getuid() if hasattr(os, "getuid") else 0
    parents = [Path(tempfile.gettempdir()) / f"tachograph-spool-{user}"]
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # The specification says to ignore a relative one.
        home = Path(os.path.expanduser("~"))
        state = home / ".local" / "state"
        with contextlib.suppress(OSError):
            # Under sudo the home may be another user's, who could not write there any more.
            if not home.is_absolute() or (hasattr(os, "getuid") and home.stat().st_uid != user):
                return parents
    return [state / "tachograph" / "spool", *parents]


def address(url: str) -> str:
    """What tells a database or a service from others: its URL without user, password, driver and options.

    The same for every spelling of a SQLite file's path.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return "?"  # It may be anything, a password too.
    scheme = scheme.partition("+")[0].lower()
    if scheme == "sqlite":
        path = rest.partition("?")[0].removeprefix("/")
        return f"sqlite:{os.path.realpath(path)}" if path and "\0" not in path else "sqlite:"
    authority, _, path = rest.partition("/")
    if scheme in _WEB_PORTS:
        return f"{scheme}:{_host(authority.rpartition('@')[2], '', _WEB_PORTS[scheme])}/{path.strip('/')}"
    import urllib.parse

    path, _, query = path.partition("?")
    options = urllib.parse.parse_qs(query)
    named = ",".join(options.get("host", [authority.rpartition("@")[2]])).split(",")
    ports = options.get("port", [""])[-1].split(",")
    hosts = {_host(host, ports[i] if len(ports) == len(named) else ports[0]) for i, host in enumerate(named)}
    return f"{scheme.replace('postgresql', 'postgres')}:{','.join(sorted(hosts))}:{path}"


_WEB_PORTS: Final = {"http": "80", "https": "443"}


def _host(text: str, port: str, default_port: str = "5432") -> str:
    """A host with its port, which may be given elsewhere."""
    host, _, own_port = text.rpartition(":")
    if (not host and not own_port.isdecimal()) or own_port.endswith("]"):
        host, own_port = (f"{host}:{own_port}" if host else own_port), ""
    return f"{host.lower() or 'localhost'}:{port or own_port or default_port}"


def make_private(directory: Path) -> None:
    """Make a directory for this user alone. Raises `OSError`, also if it is another user's."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(directory):
        raise PermissionError("it belongs to another user")


def is_private(directory: Path) -> bool:
    """Whether it is a directory, and no other user's."""
    status = os.lstat(directory)
    return stat.S_ISDIR(status.st_mode) and is_trusted(status)


def is_trusted(status: os.stat_result) -> bool:
    """Whether a file is this user's, or this user is root."""
    return not hasattr(os, "getuid") or status.st_uid == os.getuid() or os.getuid() == 0
