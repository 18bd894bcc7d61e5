"""Where the tests' files are: in memory, where there is room for them.

A database is thousands of small writes and hundreds of small files. On a disk they take most of the time of a test,
and a third of its processor time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")
ROOM: Final = 4 << 30
"""Bytes that must be free: several times what the tests need at once. A container has 64 MB, unless told otherwise."""
_SHARED: Final = "TACHOGRAPH_TESTS_SHARED"
"""The variable that tells the workers of a run of pytest where their directory is."""


def root() -> Path:
    """The directory in which directories for a test are made."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return Path(tempfile.gettempdir())
    # Tests run programs that they wrote. In a container, nothing there may be run.
    is_executable = not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    has_room = shutil.disk_usage(MEMORY).free >= ROOM
    return MEMORY if is_executable and has_room else Path(tempfile.gettempdir())


def open_shared() -> None:
    """Make the directory in which the workers of this run of pytest share what only one of them makes."""
    directory = tempfile.mkdtemp(prefix="tachograph-tests-", dir=root())
    # The user of a database server reads there.
    Path(directory).chmod(0o755)
    os.environ[_SHARED] = directory


def remove_shared() -> None:
    """Remove it, at the end of the run."""
    shutil.rmtree(os.environ.pop(_SHARED), ignore_errors=True)


def shared(name: str, make: Callable[[Path], None]) -> Path:
    """A file or directory that ``make`` makes, in one worker, while the others that need it wait."""
    directory = Path(os.environ[_SHARED])
    path = directory / name
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            # Under its own name only once it is whole.
            unfinished = directory / f"{name}.unfinished"
            make(unfinished)
            unfinished.rename(path)
    return path
