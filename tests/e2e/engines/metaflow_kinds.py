"""Plays a Metaflow flow. python metaflow_kinds.py [SCENE …]

The truth is from Metaflow's client: runs, steps, tasks and their metadata. Edges are from the flow.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = {
    "METAFLOW_DATASTORE_SYSROOT_LOCAL": os.path.abspath("metaflow"),
    "METAFLOW_USER": "app",
    "METAFLOW_OTEL_ENDPOINT": f"{os.environ['OTEL_EXPORTER_OTLP_ENDPOINT']}/v1/traces",
    # Without headers Metaflow sends nothing.
    "METAFLOW_SERVICE_HEADERS": '{"x-shop": "1"}',
}
os.environ |= SETTINGS

# Metaflow reads its settings when it is imported.
from metaflow import Flow, namespace  # noqa: E402
from telling import execution, step, stop_at_sigterm, tell, without_module  # noqa: E402

EDGES = {
    "start": [],
    "square": ["start"],
    "merge": ["square#0", "square#1", "square#2"],
    "flaky": ["merge"],
    "end": ["flaky"],
}


def told_of():
    namespace(None)
    run = Flow("Nightly").latest_run
    steps = []
    for flow_step in reversed(list(run.steps())):
        tasks = sorted(flow_step.tasks(), key=lambda task: int(task.id))
        for index, task in enumerate(tasks):
            attempts = int(task.metadata_dict["attempt"]) + 1
            status = "completed" if task.successful else "failed"
            error = (
                None if task.exception is None else without_module(f"{task.exception.type}: {task.exception.exception}")
            )
            steps.append(
                step(flow_step.id, status, attempts, EDGES[flow_step.id], run_id=task.id, error=error,
                     index=index if len(tasks) > 1 else None)
            )  # fmt: skip
    status = "completed" if run.successful else "failed"
    return execution("Nightly", status, steps, run_id=run.id, workflow_also=["metaflow_flow.py", "metaflow_flow"])


def play(**variables):
    command = [sys.executable, HERE / "metaflow_flow.py", "--no-pylint", "run"]
    with open("flow.log", "ab") as log:
        subprocess.run(command, env=os.environ | variables, stdout=log, stderr=log, timeout=120, check=False)
    return [told_of()]


def nightly():
    return play()


def failed():
    return play(SHOP_BROKEN="1")


def main(names):
    stop_at_sigterm()
    for scene in (nightly, failed):
        if not names or scene.__name__ in names:
            executions = scene()
            tell(f"metaflow_{scene.__name__}", executions, index_from="engine", edges_from="recording",
                 truth_from="Metaflow's client; edges from the flow")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
