"""Large blocks that a service has freed do not stay its own because smaller ones came after them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from tachograph_exporter.freed_memory import give_back

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

if sys.argv[1] == "give back":
    assert give_back()
# The first ones that are freed teach the C library to keep such blocks in its heap.
for size in (1, 4, 16, 30):
    block = bytes(size << 20)
    del block
before = resident()
blocks, small = [], []
for _ in range(40):
    blocks.append(b"x" * (2 << 20))
    small.append(b"x" * 3_000)  # More than Python's own allocator takes.
del blocks
print(resident() - before)
"""


def kept(how: str) -> float:
    """MiB that a program keeps of 80 that it has freed."""
    return float(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, stdout=subprocess.PIPE).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such options")
def test_what_is_freed_goes_back_to_the_system() -> None:
    assert kept("give back") < 5 < kept("as ever")
