"""Memory of a service: with nothing to do, and at most while it runs one execution of 50,000 steps and shows it; and of
a program that runs as many steps itself and records them into a database.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table
from summary import Line, against, scaled

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.local_service import LocalService, environment, eventually

STEPS: Final = scaled(50_000, 100)
IDLE_SECONDS: Final = 5 * min(1, STEPS // 50_000)
GOAL_MIB: Final = 300.0
PROGRAM: Final = """
import asyncio, sys
from pathlib import Path
from tachograph.recording.setup import build_recorder
from tachograph.workflow import Executor, parse
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter

database = Database(sys.argv[1])
recorder = build_recorder(store=StoreWriter(database))
steps = [{"name": f"s{i}", "config": {"handler": "noop"}} for i in range(int(sys.argv[2]))]
workflow = parse({"name": "wide", "steps": steps})


async def main():
    executor = Executor(recorder)
    result = await executor.run(workflow)
    assert str(result.status) == "completed", result
    await executor.drain(0)


asyncio.run(main())
assert recorder.flush(600)
recorder.close()
database.close()
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


def mebibytes(service: LocalService, name: str) -> float:
    """A figure of the service's memory as the kernel has it: ``VmRSS``, or ``VmHWM`` for its peak."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 1024


def of_program(directory: str) -> float:
    """MiB at most of a program that runs the steps itself."""
    command = [sys.executable, "-c", PROGRAM, f"sqlite:///{directory}/program.db", str(STEPS)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment()).stdout) / 1024


def main(console: Console) -> list[Line]:
    """Print the table."""
    steps: list[dict[str, Any]] = [{"name": f"s{i}", "config": {"handler": "noop"}} for i in range(STEPS)]
    with tempfile.TemporaryDirectory() as directory, LocalService(Path(directory)) as service:
        time.sleep(IDLE_SECONDS)
        idle = mebibytes(service, "VmRSS")
        program = of_program(directory)
        service.post("/api/workflows", {"name": "wide", "steps": steps})
        registered = mebibytes(service, "VmHWM")
        execution = service.post("/api/workflows/wide/execute")["execution_id"]
        path = f"/api/workflows/executions/{execution}"
        eventually(lambda: service.get(f"{path}/status")["status"] == "completed", 600)
        ran = mebibytes(service, "VmHWM")
        with urlopen(f"{service.address}/metrics") as answer:
            answer.read()
        scraped = mebibytes(service, "VmHWM")
        assert service.get(f"{path}/timeline")["step_count"] == STEPS
        shown = mebibytes(service, "VmHWM")
        # It would first store the new series.
        assert service.process is not None
        service.process.kill()
    table = Table("", "MiB")
    table.add_row("a service, idle", f"{idle:.0f}")
    table.add_row(f"… at most, a definition of {STEPS:,} steps having been registered", f"{registered:.0f}")
    table.add_row("… and having been run", f"{ran:.0f}")
    table.add_row("… and its metrics having been scraped", f"{scraped:.0f}")
    table.add_row("… and its timeline having been sent", f"{shown:.0f}")
    table.add_row(f"a program that runs {STEPS:,} steps itself and records them, at most", f"{program:.0f}")
    console.print(table)
    return [
        against(
            f"memory of a program that runs {STEPS:,} steps and records them", program, "MiB", "the goal", GOAL_MIB,
            goal=1.0,
        ),
        against(
            f"memory of a service that runs {STEPS:,} steps of one definition", ran, "MiB", "the goal", GOAL_MIB,
            goal=1.0,
        ),
        against("… and shows their metrics", scraped, "MiB", "idle", idle),
        against("… and their timeline", shown, "MiB", "idle", idle),
    ]  # fmt: skip
