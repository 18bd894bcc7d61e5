"""100 steps through a Tachograph service on SQLite; prints milliseconds as JSON."""

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

ROUNDS, STEPS = int(sys.argv[1]), 100

with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
address = f"http://127.0.0.1:{port}"
directory = tempfile.mkdtemp()
server = subprocess.Popen(
    [sys.executable, "-m", "tachograph_exporter", "serve", "--listen", f"127.0.0.1:{port}",
     "--database", f"sqlite:///{directory}/bench.db"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)  # fmt: skip


def call(path: str, body: object = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read())


try:
    for _ in range(300):
        try:
            call("/-/ready")
            break
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    chain = [
        {"name": f"step-{i}", "depends_on_steps": [f"step-{i - 1}"] if i else [], "config": {"handler": "noop"}}
        for i in range(STEPS)
    ]
    call("/api/workflows", {"name": "chain", "steps": chain})
    call("/api/workflows", {"name": "wide", "steps": [{**step, "depends_on_steps": []} for step in chain]})
    steps: list[float] = []
    side_by_side: list[float] = []
    queries: list[float] = []
    for _ in range(ROUNDS + 1):
        for name, times in (("wide", side_by_side), ("chain", steps)):
            start = time.perf_counter()
            execution = call(f"/api/workflows/{name}/execute", {})["execution_id"]
            # completed_at is set once the end is on disk.
            while call(f"/api/workflows/executions/{execution}/status")["completed_at"] is None:
                time.sleep(0.002)
            times.append((time.perf_counter() - start) / STEPS * 1e3)
        for _ in range(5):
            start = time.perf_counter()
            timeline = call(f"/api/workflows/executions/{execution}/timeline")
            queries.append((time.perf_counter() - start) * 1e3)
    assert timeline["completed_step_count"] == STEPS
    print(json.dumps({"step": steps[1:], "wide": side_by_side[1:], "query": queries[5:]}))
finally:
    server.terminate()
    server.wait(20)
