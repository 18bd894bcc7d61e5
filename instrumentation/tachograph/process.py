"""The identity of the process that owns a running execution, and whether it is still alive.

An identity is ``host/boot.namespace/pid/start``. The boot id and the start time tell a reused pid from the old process;
the PID namespace says where the pid means something: containers of one pod share the host's name and the boot id, but
each has pids of its own. Liveness is only known on the same host, boot and namespace; elsewhere an execution is lost
when its lease expires.
"""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "-"


def _namespace() -> str:
    """The number of this process's PID namespace, see pid_namespaces(7). ``-``: unknown."""
    try:
        return os.readlink(PROC / "self/ns/pid").rpartition("[")[2].rstrip("]") or "-"
    except OSError:
        return "-"


def _stat(pid: str) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, from field 3 on; see proc(5). None: not readable."""
    try:
        fields = (PROC / pid / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > 19 else None


def _has_our_pids() -> bool:
    """Whether /proc was mounted in this process's PID namespace: only then its pids are those that we know."""
    try:
        return os.readlink(PROC / "self") == str(os.getpid())
    except OSError:
        return False


_identities: dict[int, str] = {}
if hasattr(os, "register_at_fork"):
    # A child in a new PID namespace may have its parent's pid.
    os.register_at_fork(after_in_child=_identities.clear)


def identity() -> str:
    """This process's identity. A forked child gets its own."""
    pid = os.getpid()
    if (name := _identities.get(pid)) is None:
        stat = _stat("self")
        name = f"{socket.gethostname()}/{_boot()}.{_namespace()}/{pid}/{stat[19] if stat else '-'}"
        _identities.clear()
        _identities[pid] = name
    return name


def is_alive(owner: str) -> bool | None:
    """Whether the process with this identity is alive; None when that cannot be known here, so that a lease decides."""
    if owner == identity():
        return True
    try:
        host, place, pid_text, start = owner.rsplit("/", 3)
        pid = int(pid_text)
    except ValueError:
        return None
    boot, _, namespace = place.partition(".")
    if host != socket.gethostname() or boot == "-" or boot != _boot() or pid <= 0:
        return None
    if not namespace:
        # Written before identities had a namespace: the pid may be one of another namespace.
        return True if _is_running(pid, start) else None
    if namespace == "-" or namespace != _namespace():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It exists, and belongs to another user.
    except (OSError, OverflowError):
        return None
    return _is_running(pid, start)


def _is_running(pid: int, start: str) -> bool | None:
    """Whether an existing process is the one that started at ``start``; None when /proc does not show it."""
    fields = _stat(str(pid)) if _has_our_pids() else None
    if fields is None:
        return None
    threads = int(fields[17])
    if fields[0] in "Xx" or (fields[0] == "Z" and threads <= 1):
        return False  # A zombie. With other threads, only its first thread has ended.
    if start == "-":
        return None
    # The pid may have gone to another process, or to a thread, which started at another time.
    return fields[19] == start
