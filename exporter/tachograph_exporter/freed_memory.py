"""Memory that a service has freed goes back to the system.

A large body, a definition or the text of a timeline takes tens of megabytes for a moment. The C library of Linux learns
from the first one that is freed to take the next ones from its own heap, where what is allocated later keeps them from
being given back; and each thread gets heaps of its own (https://man7.org/linux/man-pages/man3/mallopt.3.html). A run of
50,000 steps took 100 MiB more for that.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
LARGE_BYTES: Final = 256 << 10
"""Blocks of this size are the system's own, and go back to it at once."""
HEAPS: Final = 2


def give_back() -> bool:
    """Let the C library give freed memory back, for the rest of the process; false where it knows no such thing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # The program itself has the symbol where its C library has it.
        set_option = ctypes.CDLL(None).mallopt
        options = {_MMAP_THRESHOLD: LARGE_BYTES, _TRIM_THRESHOLD: LARGE_BYTES, _ARENA_MAX: HEAPS}
        return all(set_option(option, value) for option, value in options.items())
    return False
