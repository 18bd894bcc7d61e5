"""100 Dagster ops in a job, in one process with a local instance; prints milliseconds as JSON."""

import json
import os
import sys
import tempfile
import time

os.environ["DAGSTER_HOME"] = home = tempfile.mkdtemp()
with open(f"{home}/dagster.yaml", "w") as settings:
    settings.write("telemetry:\n  enabled: false\n")

import logging

from dagster import DagsterInstance, job, op

ROUNDS, STEPS = int(sys.argv[1]), 100
logging.disable(logging.CRITICAL)


@op
def first() -> int:
    return 0


@op
def nothing(before: int) -> int:
    return before


@job
def chain() -> None:
    value = first()
    for i in range(STEPS - 1):
        value = nothing.alias(f"step_{i}")(value)


@job
def wide() -> None:
    for i in range(STEPS):
        first.alias(f"wide_{i}")()


steps, side_by_side, queries = [], [], []
with DagsterInstance.get() as instance:
    chain.execute_in_process(instance=instance)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        wide.execute_in_process(instance=instance)
        side_by_side.append((time.perf_counter() - start) / STEPS * 1e3)
        start = time.perf_counter()
        run = chain.execute_in_process(instance=instance)
        steps.append((time.perf_counter() - start) / STEPS * 1e3)
        for _ in range(5):
            start = time.perf_counter()
            rows = instance.get_run_step_stats(run.run_id)
            queries.append((time.perf_counter() - start) * 1e3)
    assert len(rows) == STEPS, len(rows)
print(json.dumps({"step": steps, "wide": side_by_side, "query": queries}))
