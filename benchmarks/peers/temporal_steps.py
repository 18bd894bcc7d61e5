"""100 activities through Temporal's development server; prints milliseconds as JSON."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from temporal_workflow import STEPS, Chain, Wide, nothing
from temporalio.client import Client
from temporalio.worker import Worker

ROUNDS = int(sys.argv[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


async def main() -> None:
    installed = Path(sys.executable).parent / "temporal"
    binary = str(installed) if installed.exists() else shutil.which("temporal")
    port = free_port()
    server = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        [binary, "server", "start-dev", "--ip", "127.0.0.1", "--port", str(port), "--http-port", str(free_port()),
         "--ui-port", str(free_port()), "--log-level", "error"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            try:
                client = await Client.connect(f"127.0.0.1:{port}")
                break
            except RuntimeError:
                await asyncio.sleep(0.1)
        steps, side_by_side, queries = [], [], []
        async with Worker(client, task_queue="bench", workflows=[Chain, Wide], activities=[nothing]):
            for number in range(ROUNDS + 1):
                start = time.perf_counter()
                await client.execute_workflow(Wide.run, id=f"wide-{number}", task_queue="bench")
                side_by_side.append((time.perf_counter() - start) / STEPS * 1e3)
                start = time.perf_counter()
                handle = await client.start_workflow(Chain.run, id=f"chain-{number}", task_queue="bench")
                await handle.result()
                steps.append((time.perf_counter() - start) / STEPS * 1e3)
                for _ in range(5):
                    start = time.perf_counter()
                    history = await handle.fetch_history()
                    queries.append((time.perf_counter() - start) * 1e3)
        done = sum(event.HasField("activity_task_completed_event_attributes") for event in history.events)
        assert done == STEPS, done
        print(json.dumps({"step": steps[1:], "wide": side_by_side[1:], "query": queries[5:]}))
    finally:
        server.terminate()
        server.wait(20)


asyncio.run(main())
