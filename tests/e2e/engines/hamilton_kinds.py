"""A Hamilton driver as users write it. python hamilton_kinds.py [SCENE …]

The truth is from Hamilton's own graph, and from an adapter of the program that writes down when nodes run.
"""

import contextlib
import os
import signal
import sys
import time

import hamilton_nodes
from hamilton import driver, lifecycle
from hamilton.execution import executors
from telling import at, execution, play_scenes, spawn, step, stop_at_sigterm, tell

import tachograph
import tachograph.integrations.hamilton


class Journal(lifecycle.NodeExecutionHook):
    """Writes down when nodes begin and end."""

    def __init__(self):
        self.entries = []

    def run_before_node_execution(self, *, node_name, task_id, **_):
        self.entries.append({"node": node_name, "task": task_id, "started_at": at(time.time())})

    def run_after_node_execution(self, *, node_name, task_id, success, error, **_):
        entry = next(e for e in self.entries if (e["node"], e["task"]) == (node_name, task_id))
        entry |= {"ended_at": at(time.time()), "status": "completed" if success else "failed"}
        entry["error"] = f"{type(error).__name__}: {error}" if error is not None else None


def built(journal):
    return (
        driver.Builder()
        .enable_dynamic_execution(allow_experimental_mode=True)
        .with_local_executor(executors.SynchronousLocalTaskExecutor())
        .with_remote_executor(executors.MultiThreadingExecutor(2))
        .with_modules(hamilton_nodes)
        .with_adapters(journal, tachograph.integrations.hamilton.adapter("hamilton nightly"))
        .build()
    )


def play(*wanted):
    """Execute what leads to these nodes; returns the steps, by the graph and the journal."""
    journal = Journal()
    shop = built(journal)
    with contextlib.suppress(RuntimeError):
        shop.execute([*wanted], inputs={"count": 5})
    chosen = {node.name: node for node in shop.graph.get_nodes() if not node.user_defined}
    nodes, waiting = {}, [*wanted]
    while waiting:
        name = waiting.pop()
        nodes[name] = sorted(other.name for other in chosen[name].dependencies if other.name in chosen)
        waiting += [other for other in nodes[name] if other not in nodes]
    steps, works = [], 0
    for name, above in nodes.items():
        ran = [entry for entry in journal.entries if entry["node"] == name]
        if not ran:
            steps.append(step(name, "skipped", 0, above))
        for number, entry in enumerate(sorted(ran, key=lambda entry: str(entry["task"]))):
            told = {key: entry.get(key) for key in ("started_at", "ended_at", "error")}
            index = number if name == "work" else None
            works += name == "work"
            steps.append(step(name, entry.get("status", "failed"), 1, above, index=index, **told))
    for told in steps:
        if "work" in told["depends_on"]:
            told["depends_on"] = [f"work#{number}" for number in range(works)]
    return steps


def nightly():
    return [execution("hamilton nightly", "completed", play("merged"))]


def failed():
    steps = play("never")
    return [execution("hamilton nightly", "failed", steps, error="RuntimeError: no item 1")]


def killed():
    process = spawn([sys.executable, __file__, "--stuck"], "killed.log")
    while not os.path.exists("stuck"):
        time.sleep(0.02)
    run = execution("hamilton nightly", "lost", [step("stuck", "lost", 1, [])])
    # That it has started must be with the reader before it is killed.
    time.sleep(1)
    tell("hamilton_at_work", [run], goes_on=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [run]


SCENES = [nightly, failed, killed]


def main(names):
    stop_at_sigterm()
    if names == ["--stuck"]:
        built(Journal()).execute(["stuck"], inputs={"count": 1})
        return
    play_scenes("hamilton", SCENES, names, flush=lambda: tachograph.get_recorder().flush(60), index_from="order",
                edges_from="the graph", truth_from="an adapter of the program")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
