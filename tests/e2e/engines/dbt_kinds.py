"""Plays dbt projects. python dbt_kinds.py [SCENE …]

The truth is from the files that dbt writes: run_results.json and manifest.json, and its log where it was killed.
"""

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from telling import at, execution, step, stop_at_sigterm, tell

PROJECT = Path(__file__).parent / "dbt_shop"
BIN = Path(sys.executable).parent
STATUSES = {"success": "completed", "pass": "completed", "warn": "completed", "no-op": "completed",
            "error": "failed", "fail": "failed", "skipped": "skipped"}  # fmt: skip
SETTINGS = {
    "SHOP_DATABASE": os.path.abspath("shop.duckdb"),
    "DBT_PROJECT_DIR": str(PROJECT),
    "DBT_PROFILES_DIR": str(PROJECT),
    "DBT_TARGET_PATH": os.path.abspath("target"),
    "DBT_LOG_PATH": os.path.abspath("logs"),
    "DBT_LOG_FORMAT_FILE": "json",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
}
COMMAND = [BIN / "opentelemetry-instrument", BIN / "dbt", "build"]


def start(**variables):
    Path("logs/dbt.log").unlink(missing_ok=True)
    with open("dbt.out", "ab") as log:
        return subprocess.Popen(COMMAND, env=os.environ | SETTINGS | variables, stdout=log, stderr=log)


def logged():
    """The events in dbt's log."""
    with open("logs/dbt.log", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]


def seconds(text):
    """A time in dbt's files, which is UTC with or without saying so."""
    return datetime.fromisoformat(text.removesuffix("Z") + "+00:00").timestamp()


def told_step(node, status, waits_for, **more):
    """A node of the manifest as a step. A model waits for tests of what it selects from, too, which is its parent."""
    attempts = 0 if status == "skipped" else 1
    return step(node["name"], status, attempts, waits_for, run_id=node["unique_id"], **more)


def told_of(status):
    """The last run, by what dbt wrote after it."""
    results = json.loads(Path("target/run_results.json").read_text())
    manifest = json.loads(Path("target/manifest.json").read_text())
    nodes = manifest["nodes"]
    ran = [result["unique_id"] for result in results["results"]]
    steps = []
    for result in results["results"]:
        node = nodes[result["unique_id"]]
        timing = {entry["name"]: entry for entry in result["timing"]}
        times = {}
        if "execute" in timing:
            times["started_at"] = at(seconds(timing["compile"]["started_at"]))
            times["ended_at"] = at(seconds(timing["execute"]["completed_at"]))
        waits_for = None
        if node["resource_type"] != "operation":
            waits_for = [nodes[i]["name"] for i in node.get("depends_on", {}).get("nodes", ()) if i in ran]
        steps.append(told_step(node, STATUSES[result["status"]], waits_for, engine_status=result["status"], **times))
    run_id = results["metadata"]["invocation_id"]
    return execution(None, status, steps, run_id=run_id, workflow_also=["dbt build"], workflow_not=["dbt.invocation"])


def nightly():
    assert start().wait(300) == 0
    tell("dbt112_nightly", [told_of("completed")], unknown=[NO_PROJECT], **FIELDS)


def failing():
    # dbt exits with 1 if a node failed.
    assert start(SHOP_BROKEN="1").wait(300) == 1
    tell("dbt112_failing", [told_of("failed")], unknown=[NO_PROJECT, "what a node failed with"], **FIELDS)


def killed():
    process = start(SHOP_SLOW="1")
    try:
        wait_for("NodeStart", "slow")
        wait_for("NodeFinished", "revenue")
        # The exporter sends every 0.2 s.
        time.sleep(2)
    finally:
        process.kill()
        process.wait()
    nodes = json.loads(Path("target/manifest.json").read_text())["nodes"]
    steps = []
    for entry in logged():
        if entry["info"]["name"] == "NodeFinished":
            info = entry["data"]["node_info"]
            node = nodes[info["unique_id"]]
            waits_for = [nodes[i]["name"] for i in node.get("depends_on", {}).get("nodes", ())]
            status = entry["data"]["run_result"]["status"]
            steps.append(told_step(node, STATUSES[status], waits_for, engine_status=status,
                                   started_at=at(seconds(info["node_started_at"])),
                                   ended_at=at(seconds(info["node_finished_at"]))))  # fmt: skip
        elif entry["info"]["name"] == "LogHookEndLine":
            node = nodes[entry["data"]["node_info"]["unique_id"]]
            steps.append(told_step(node, "completed", None))
    slow = next(node for node in nodes.values() if node["name"] == "slow")
    steps.append(told_step(slow, "lost", ["customers"]))
    tell(
        "dbt112_killed", [execution(None, "lost", steps)],
        unknown=["a run that was killed: its own span, with the command, and that of the node that ran never came"],
        unknowable=[{"execution": 0, "step": "slow"}, {"execution": 0, "field": "workflow"}], **FIELDS,
    )  # fmt: skip


def wait_for(name, node):
    """Wait until dbt has logged an event of a node."""
    limit = time.monotonic() + 100
    while time.monotonic() < limit:
        if Path("logs/dbt.log").exists() and any(
            entry["info"]["name"] == name and entry["data"]["node_info"]["node_name"] == node for entry in logged()
        ):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{name} of {node}")


NO_PROJECT = "the name of the project, but for the ids of its nodes; that a model waits for the tests of what it reads"
FIELDS = {"index_from": "none", "edges_from": "recording",
          "truth_from": "run_results.json, manifest.json and the log that dbt writes"}  # fmt: skip


def main(names):
    stop_at_sigterm()
    for scene in (nightly, failing, killed):
        if not names or scene.__name__ in names:
            scene()


if __name__ == "__main__":
    main(sys.argv[1:])
