"""Memory of a service: with nothing to do, and at most while it runs one execution of 50,000 steps and shows it."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from summary import Line, against, scaled

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.local_service import LocalService, eventually

STEPS: Final = scaled(50_000, 100)
IDLE_SECONDS: Final = 5 * min(1, STEPS // 50_000)


def mebibytes(service: LocalService, name: str) -> float:
    """A figure of the service's memory as the kernel has it: ``VmRSS``, or ``VmHWM`` for its peak."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 1024


def main(console: Console) -> list[Line]:
    """Print the table."""
    steps: list[dict[str, Any]] = [{"name": f"s{i}", "config": {"handler": "noop"}} for i in range(STEPS)]
    with tempfile.TemporaryDirectory() as directory, LocalService(Path(directory)) as service:
        time.sleep(IDLE_SECONDS)
        idle = mebibytes(service, "VmRSS")
        service.post("/api/workflows", {"name": "wide", "steps": steps})
        execution = service.post("/api/workflows/wide/execute")["execution_id"]
        path = f"/api/workflows/executions/{execution}"
        eventually(lambda: service.get(f"{path}/status")["status"] == "completed", 600)
        ran = mebibytes(service, "VmHWM")
        assert service.get(f"{path}/timeline")["step_count"] == STEPS
        shown = mebibytes(service, "VmHWM")
    table = Table("a service", "MiB")
    table.add_row("idle", f"{idle:.0f}")
    table.add_row(f"peak, having run {STEPS:,} steps of one execution", f"{ran:.0f}")
    table.add_row("… and having sent their timeline", f"{shown:.0f}")
    console.print(table)
    return [
        against(f"memory of a service, peak of a run of {STEPS:,} steps", ran, "MiB", "idle", idle),
        against("… and of its timeline", shown, "MiB", "idle", idle),
    ]
