"""100 Celery tasks over Redis, on one worker; prints milliseconds as JSON. Celery keeps no timeline to ask for."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

ROUNDS, STEPS = int(sys.argv[1]), 100

with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
directory = tempfile.mkdtemp()
redis = subprocess.Popen(
    ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)  # fmt: skip

os.environ["BENCH_REDIS"] = f"redis://127.0.0.1:{port}/0"

from celery import chain, group  # noqa: E402
from celery_tasks import nothing  # noqa: E402

worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--loglevel", "ERROR", "--concurrency", "2"],
    cwd=Path(__file__).resolve().parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)  # fmt: skip
try:
    nothing.delay(0).get(timeout=60)
    steps, side_by_side = [], []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        assert len(group(nothing.s(i) for i in range(STEPS))().get(timeout=60)) == STEPS
        side_by_side.append((time.perf_counter() - start) / STEPS * 1e3)
        start = time.perf_counter()
        assert chain(nothing.s(7), *[nothing.s() for _ in range(STEPS - 1)])().get(timeout=60) == 7
        steps.append((time.perf_counter() - start) / STEPS * 1e3)
    print(json.dumps({"step": steps[1:], "wide": side_by_side[1:]}))
finally:
    worker.terminate()
    worker.wait(20)
    redis.terminate()
    redis.wait(20)
