"""100 Prefect tasks in a flow against its own server; prints milliseconds as JSON."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROUNDS = int(sys.argv[1])
STEPS = 100

with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
home = tempfile.mkdtemp()
os.environ |= {
    "PREFECT_HOME": home,
    "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
server = subprocess.Popen(
    [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
try:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=1).read()
            break
        except OSError:
            time.sleep(0.1)
    from prefect import flow, task
    from prefect.runtime import flow_run

    @task
    def nothing(before: int) -> int:
        return before

    @flow
    def chain() -> str:
        value = 0
        for _ in range(STEPS):
            value = nothing(value)
        return str(flow_run.id)

    @flow
    def wide() -> str:
        for future in [nothing.submit(i) for i in range(STEPS)]:
            future.result()
        return str(flow_run.id)

    chain()
    wide()
    steps, side_by_side, queries = [], [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        wide()
        side_by_side.append((time.perf_counter() - start) / STEPS * 1e3)
        start = time.perf_counter()
        run = chain()
        steps.append((time.perf_counter() - start) / STEPS * 1e3)
        body = json.dumps({"flow_runs": {"id": {"any_": [run]}}, "limit": 200}).encode()
        times: list[float] = []
        for _ in range(200):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/task_runs/filter", body, {"Content-Type": "application/json"}
            )
            start = time.perf_counter()
            rows = json.loads(urllib.request.urlopen(request).read())
            if len(rows) < STEPS:
                # The server stores the records shortly after the run.
                time.sleep(0.1)
                continue
            times.append((time.perf_counter() - start) * 1e3)
            if len(times) == 5:
                break
        queries += times
    assert len(rows) == STEPS, len(rows)
    print(json.dumps({"step": steps, "wide": side_by_side, "query": queries}))
finally:
    server.terminate()
    server.wait(20)
