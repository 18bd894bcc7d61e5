"""Plays a Metaflow flow whose runs are told of by Metaflow's hooks. python metaflow_hooks_kinds.py [SCENE …]

The truth is from Metaflow's client: runs, tasks, their parents, and the metadata of each attempt. What it cannot say of
a process that was killed is from the tasks.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
JOURNAL = os.environ.setdefault("JOURNAL", os.path.abspath("metaflow.jsonl"))
os.environ |= {"METAFLOW_DATASTORE_SYSROOT_LOCAL": os.path.abspath("metaflow"), "METAFLOW_USER": "app"}
SPANS = {
    "METAFLOW_OTEL_ENDPOINT": f"{os.environ['SPANS_TO']}/v1/traces",
    # Without headers Metaflow sends nothing.
    "METAFLOW_SERVICE_HEADERS": '{"x-shop": "1"}',
}

# Metaflow reads its settings when it is imported.
from metaflow import Flow, namespace  # noqa: E402
from telling import at, execution, play_scenes, spawn, step, stop_at_sigterm, tell, without_module  # noqa: E402

CAUGHT = {"caught"}


def entries():
    if not os.path.exists(JOURNAL):
        return []
    with open(JOURNAL) as journal:
        return [json.loads(line) for line in journal]


def command(*arguments, program="metaflow_shop.py"):
    if os.path.exists(JOURNAL):
        os.unlink(JOURNAL)
    return [sys.executable, str(HERE / program), "--no-pylint", *arguments]


def play(*arguments, program="metaflow_shop.py", **variables):
    with open("flow.log", "ab") as log:
        subprocess.run(
            command(*arguments, program=program), env=os.environ | variables, stdout=log, stderr=log, timeout=400,
            check=False,
        )  # fmt: skip


def index_of(task):
    """Which instance a task is, one number for each foreach around it."""
    stack = task["_foreach_stack"].data if "_foreach_stack" in task else ()
    indices = [frame.index for frame in stack]
    return indices[0] if len(indices) == 1 else ".".join(map(str, indices)) or None


def reference(task):
    index = index_of(task)
    return task.parent.id if index is None else f"{task.parent.id}#{index}"


def times_of(task):
    """When each attempt began and ended; None: the process did not get to its end."""
    began, ended = [], {}
    for entry in sorted(task.metadata, key=lambda entry: entry.created_at):
        if entry.name == "attempt":
            began.append(entry.created_at / 1000)
        if entry.name == "attempt_ok":
            ended[len(began)] = (entry.created_at / 1000, entry.value == "True")
    return began, ended


def told_of(name, status, *, ends=None, **more):
    """``ends``: how tasks ended that Metaflow shows as running, or that it knows nothing of."""
    namespace(None)
    run = Flow(name).latest_run
    ends, steps = dict(ends or {}), []
    for flow_step in run.steps():
        for task in flow_step.tasks():
            # Of a task whose process was killed, the client knows no parents.
            end, above = ends.pop(flow_step.id, (None, None))
            if above is None:
                parents = [parent for parent in task.parent_tasks if parent.parent.id != "_parameters"]
                above = sorted({reference(parent) for parent in parents})
            if "origin-task-id" in task.metadata_dict:
                steps.append(step(flow_step.id, "skipped", 0, above, index=index_of(task)))
                continue
            began, ended = times_of(task)
            tries = []
            for number, start in enumerate(began, 1):
                told = {"attempt": number, "started_at": at(start)}
                if number in ended:
                    when, is_ok = ended[number]
                    tries.append({**told, "status": "completed" if is_ok else "failed", "ended_at": at(when)})
                elif number < len(began):
                    tries.append({**told, "status": "failed"})
            last = ended.get(len(began))
            end = end or ("completed" if last is not None and last[1] else "failed")
            error = task.exception if end == "failed" and last is not None else None
            steps.append(
                step(flow_step.id, end, len(began), above, index=index_of(task), tries=tries,
                     started_at=at(began[0]), ended_at=None if last is None else at(last[0]),
                     error=None if error is None else without_module(f"{error.type}: {error.exception}"))
            )  # fmt: skip
    steps += [step(name, end, 0, above) for name, (end, above) in ends.items()]
    return execution(name, status, steps, run_id=run.id, **more)


def nightly():
    play("run", "--max-workers", "3")
    return [told_of("Shop", "completed")]


def traced():
    """Spans and hooks tell of one run."""
    play("run", program="metaflow_flow.py", **SPANS)
    return [told_of("Nightly", "completed")]


def failed():
    play("run", "--max-workers", "1", KIND="failed")
    skipped = {
        "spell": ("skipped", ["square#0"]), "say": ("skipped", ["spell"]), "letters_done": ("skipped", ["say"]),
        "merge": ("skipped", ["letters_done"]), "flaky": ("skipped", ["merge"]), "caught": ("skipped", ["flaky"]),
        "join": ("skipped", ["branch", "caught"]), "fragile": ("skipped", ["join"]), "end": ("skipped", ["fragile"]),
    }  # fmt: skip
    return [told_of("Shop", "failed", ends=skipped, error="RuntimeError: no item 1")]


def resumed():
    play("resume", "--max-workers", "3", KIND="")
    return [told_of("Shop", "completed")]


def killed_once():
    play("run", "--max-workers", "3", KIND="killed_once")
    return [told_of("Shop", "completed")]


def killed_twice():
    play("run", "--max-workers", "3", KIND="killed_twice")
    return [told_of("Shop", "failed", ends={"fragile": ("failed", ["join"]), "end": ("skipped", ["fragile"])})]


def stuck():
    shutil.rmtree("stuck.log", ignore_errors=True)
    process = spawn(command("run", "--max-workers", "3"), "stuck.log", env={**os.environ, "KIND": "stuck"})
    while not any(entry["step"] == "fragile" for entry in entries()):
        time.sleep(0.1)
    return process


def cancelled():
    process = stuck()
    os.kill(process.pid, signal.SIGINT)
    process.wait(60)
    return [told_of("Shop", "cancelled", ends={"fragile": ("cancelled", ["join"]), "end": ("skipped", ["fragile"])})]


def killed():
    process = stuck()
    lost = told_of("Shop", "lost", ends={"fragile": ("lost", ["join"])})
    tell("metaflow_at_work", [lost], goes_on=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [lost]


SCENES = [nightly, traced, failed, resumed, killed_once, killed_twice, cancelled, killed]


def main(names):
    stop_at_sigterm()
    play_scenes(
        "metaflow_hooks", SCENES, names, index_from="engine", edges_from="engine", truth_from="Metaflow's client"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
