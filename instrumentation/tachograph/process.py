"""Who owns a running execution, and whether that process still lives.

An identity is ``host/boot/pid/start``: the boot id and the process's start time keep a reused pid from passing as the
old process. Only the same host and boot can be judged; anything else must wait for its lease to run out.
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
    """When the process started, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); None: not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


_identities: dict[int, str] = {}


def identity() -> str:
    """This process's identity; a forked child has its own."""
    pid = os.getpid()
    if (known := _identities.get(pid)) is None:
        known = f"{socket.gethostname()}/{_boot()}/{pid}/{_start_ticks(pid) or '-'}"
        _identities.clear()
        _identities[pid] = known
    return known


def is_alive(owner: str) -> bool | None:
    """Whether the process with this identity lives; None when this machine cannot tell."""
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
