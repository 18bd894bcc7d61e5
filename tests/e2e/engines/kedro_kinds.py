"""Kedro pipelines as users write them; Kedro finds the hooks by itself.

python kedro_kinds.py [SCENE …]       plays scenes

The truth is from the pipelines' own graphs; times are from the nodes.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from kedro.framework.project import configure_project, pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner
from telling import at, execution, play_scenes, spawn, step, stop_at_sigterm, tell

import tachograph

PROJECT = Path(__file__).with_name("kedro_shop")
JOURNAL = os.environ.setdefault("JOURNAL", os.path.abspath("kedro.jsonl"))


def entries():
    if not os.path.exists(JOURNAL):
        return []
    with open(JOURNAL) as journal:
        return [json.loads(line) for line in journal]


def play(name, runner, fails=False):
    if os.path.exists(JOURNAL):
        os.unlink(JOURNAL)
    with KedroSession.create(project_path=PROJECT, save_on_close=False) as session:
        try:
            session.run(pipeline_names=[name], runner=runner)
        except Exception:
            if not fails:
                raise
    pipeline = pipelines[name]
    starts = {entry["node"]: entry["at"] for entry in entries() if entry["kind"] == "started"}
    ends = {entry["node"]: entry for entry in entries() if entry["kind"] != "started"}
    steps = []
    for node in pipeline.nodes:
        above = sorted(other.name for other in pipeline.node_dependencies[node])
        times = {}
        if node.name in starts:
            times = {"started_at": at(starts[node.name]), "ended_at": at(ends[node.name]["at"])}
        status = ends[node.name]["kind"] if node.name in ends else "skipped"
        steps.append(step(node.name, status, int(node.name in starts), above, **times))
    return execution(f"kedro_shop {name}", "failed" if fails else "completed", steps)


def sequential():
    return [play("fan", SequentialRunner())]


def threads():
    return [play("fan", ThreadRunner(max_workers=3))]


def processes():
    return [play("fan", ParallelRunner(max_workers=2))]


def failed():
    run = play("failing", SequentialRunner(), fails=True)
    run["error"] = "RuntimeError: no item 1"
    return [run]


def failed_processes():
    return [play("failing", ParallelRunner(max_workers=2), fails=True)]


def cancelled():
    """Ctrl-C."""
    if os.path.exists(JOURNAL):
        os.unlink(JOURNAL)
    process = spawn([sys.executable, __file__, "--stuck"], "cancelled.log", env={**os.environ, "JOURNAL": JOURNAL})
    while not any(entry["node"] == "stuck" for entry in entries()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.wait(60)
    begun = at(entries()[0]["at"])
    os.unlink(JOURNAL)
    # No hook hears of it: the end is that of the process.
    told = step("stuck", "cancelled", 1, [], started_at=begun)
    return [execution("kedro_shop stuck", "cancelled", [told])]


def killed():
    process = spawn([sys.executable, __file__, "--stuck"], "killed.log", env={**os.environ, "JOURNAL": JOURNAL})
    while not any(entry["node"] == "stuck" for entry in entries()):
        time.sleep(0.05)
    begun = next(entry["at"] for entry in entries() if entry["node"] == "stuck")
    run = execution("kedro_shop stuck", "lost", [step("stuck", "lost", 1, [], started_at=at(begun))])
    tell("kedro_at_work", [run], goes_on=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.unlink(JOURNAL)
    return [run]


SCENES = [sequential, threads, processes, failed, failed_processes, cancelled, killed]


def main(names):
    stop_at_sigterm()
    bootstrap_project(PROJECT)
    configure_project("kedro_shop")
    if names == ["--stuck"]:
        play("stuck", SequentialRunner())
        return
    play_scenes("kedro", SCENES, names, flush=lambda: tachograph.get_recorder().flush(60), index_from=None,
                edges_from="the pipelines", truth_from="the pipelines; times from the nodes")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
