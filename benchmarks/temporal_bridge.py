"""What `tachograph bridge temporal` costs a Temporal server that runs workflows of activities which do nothing.

Without and with it, in pairs; the last rows are the processor time of the server and of the bridge. The worker is this
process, which the bridge does not know.

    python benchmarks/temporal_bridge.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from tools.local_service import LocalService, free_port

ROUNDS: Final = int(os.environ.get("TACHOGRAPH_BENCHMARK_ROUNDS", "5"))
WORKFLOWS: Final = 20
ACTIVITIES: Final = 5
REST_SECONDS: Final = 3.0
"""After the last workflow: the bridge reads the rest."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@activity.defn
async def nothing(number: int) -> int:
    """Take no time."""
    return number


@workflow.defn
class Nightly:
    """Activities, one after the other."""

    @workflow.run
    async def run(self) -> int:
        """Return how many there were."""
        for number in range(ACTIVITIES):
            await workflow.execute_activity(nothing, number, start_to_close_timeout=timedelta(seconds=60))
        return ACTIVITIES


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextlib.contextmanager
def running(command: list[str], directory: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended in the end."""
    with (directory / "processes.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory, env=os.environ | variables)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def connected(address: str) -> Client:
    """A client, once the server answers."""
    while True:
        with contextlib.suppress(RuntimeError):
            return await Client.connect(address)
        await asyncio.sleep(0.2)


async def play(client: Client, name: str) -> float:
    """Seconds that the workflows take."""
    start = time.perf_counter()
    runs = [
        client.execute_workflow(Nightly.run, id=f"{name}-{number}", task_queue="bench") for number in range(WORKFLOWS)
    ]
    await asyncio.gather(*runs)
    return time.perf_counter() - start


async def rounds(directory: Path, address: str, server: subprocess.Popen[bytes], url: str) -> list[tuple[Any, Any]]:
    """(seconds, the server's, the bridge's processor seconds) without and with the bridge, in turn."""
    client, pairs = await connected(address), []
    command = [str(Path(sys.executable).with_name("tachograph")), "bridge", "temporal", address]
    async with Worker(
        client, task_queue="bench", workflows=[Nightly], activities=[nothing],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):  # fmt: skip
        await play(client, "first")
        for number in range(ROUNDS):
            before = processor_seconds(server)
            seconds = await play(client, f"without-{number}")
            await asyncio.sleep(REST_SECONDS)
            without = (seconds, processor_seconds(server) - before, 0.0)
            with running(command, directory, TACHOGRAPH_URL=url) as bridge:
                await asyncio.sleep(5.0)  # It has caught up.
                before, own = processor_seconds(server), processor_seconds(bridge)
                seconds = await play(client, f"with-{number}")
                await asyncio.sleep(REST_SECONDS)
                pairs.append((without, (seconds, processor_seconds(server) - before, processor_seconds(bridge) - own)))
    return pairs


def main(console: Console) -> None:
    """Print what the bridge costs, for each workflow."""
    command = shutil.which("temporal") or str(Path(sys.executable).with_name("temporal"))
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as name, LocalService(Path(name)) as service:
        server = [command, "server", "start-dev", "--ip", "127.0.0.1", "--port", address.rpartition(":")[2],
                  "--http-port", str(free_port()), "--headless", "--log-level", "error"]  # fmt: skip
        with running(server, Path(name)) as process:
            pairs = asyncio.run(rounds(Path(name), address, process, service.address))
    table = Table("", "without, ms", "with, ms", "paired, ms", title=f"a workflow of {ACTIVITIES} activities")
    for i, what in enumerate(("time", "server's processor time", "bridge's processor time")):
        without, with_ = ([pair[side][i] / WORKFLOWS * 1e3 for pair in pairs] for side in (0, 1))
        paired = statistics.median(b - a for a, b in zip(without, with_, strict=True))
        medians = [f"{statistics.median(values):.1f}" for values in (without, with_)]
        table.add_row(what, *medians, f"{paired:+.1f}")
    console.print(table)
    console.print(f"{ROUNDS} rounds of {WORKFLOWS} workflows; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(Console())
