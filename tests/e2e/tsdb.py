"""What a Prometheus would have stored before it is started."""

from __future__ import annotations

import subprocess
from pathlib import Path


def create_block(openmetrics: str, tsdb: Path) -> None:
    """Write samples into the directory of a Prometheus, as one block.

    Blocks are of two hours, unless told otherwise: the file would be read once for each, and each query would open
    all of them.
    """
    file = tsdb.with_suffix(".openmetrics")
    file.write_text(openmetrics)
    command = ("promtool", "tsdb", "create-blocks-from", "--max-block-duration=744h", "openmetrics")
    created = subprocess.run([*command, str(file), str(tsdb)], capture_output=True, text=True, check=False)
    assert created.returncode == 0, created.stderr
