"""The identity of the process that owns a running execution, and whether it is still alive.

An identity is ``host/boot/pid/start``. The boot id and the start time tell a reused pid from the old process. Liveness
is only known on the same host and boot; elsewhere an execution is lost when its lease expires.
"""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "-"


def _start_ticks(pid: int) -> str | None:
    """When the process started, in clock ticks since boot: field 22 of /proc/PID/stat, see proc(5). None: unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


_identities: dict[int, str] = {}


def identity() -> str:
    """This process's identity. A forked child gets its own."""
    pid = os.getpid()
    if (name := _identities.get(pid)) is None:
        name = f"{socket.gethostname()}/{_boot()}/{pid}/{_start_ticks(pid) or '-'}"
        _identities.clear()
        _identities[pid] = name
    return name


def is_alive(owner: str) -> bool | None:
    """Whether the process with this identity is alive; None when this machine cannot tell."""
    try:
        host, boot, pid_text, start = owner.rsplit("/", 3)
        pid = int(pid_text)
    except ValueError:
        return None
    if host != socket.gethostname() or boot == "-" or boot != _boot():
        return None
    ticks = _start_ticks(pid)
    if ticks is None:
        return False if Path("/proc/self/stat").exists() else None
    return ticks == start or start == "-"
