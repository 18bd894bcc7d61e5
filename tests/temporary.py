"""Where the tests' files are: in memory, where there is room for them.

A database is thousands of small writes and hundreds of small files. On a disk they take most of the time of a test,
and a third of its processor time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")
ROOM: Final = 4 << 30
"""Bytes that must be free: several times what the tests need at once. A container has 64 MB, unless told otherwise."""


def root() -> Path:
    """The directory in which directories for a test are made."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return Path(tempfile.gettempdir())
    # Tests run programs that they wrote. In a container, nothing there may be run.
    is_executable = not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    has_room = shutil.disk_usage(MEMORY).free >= ROOM
    return MEMORY if is_executable and has_room else Path(tempfile.gettempdir())
