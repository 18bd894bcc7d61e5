"""Dask graphs as users write them, on a cluster of its own with a process for each worker.

python dask_kinds.py [SCENE …]       plays scenes

The truth is from a plugin in the scheduler, which writes down what the scheduler says of each task.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import time

import distributed
from distributed.diagnostics.plugin import SchedulerPlugin
from telling import at, execution, play_scenes, step, stop_at_sigterm, tell

import tachograph
import tachograph.integrations.dask

JOURNAL = os.environ.setdefault("JOURNAL", os.path.abspath("dask.jsonl"))


class Journal(SchedulerPlugin):
    """Writes down each task's dependencies, attempts and end."""

    name = "journal"

    def write(self, **entry):
        with open(JOURNAL, "a") as journal:
            journal.write(json.dumps(entry) + "\n")

    def update_graph(self, scheduler, *, tasks, **_):
        for key in tasks:
            if key in scheduler.tasks:
                above = sorted(str(other.key) for other in scheduler.tasks[key].dependencies)
                self.write(key=str(key), above=above)

    def transition(self, key, start, finish, *args, startstops=(), exception_text=None, **_):
        if start == "processing":
            times = next(([s["start"], s["stop"]] for s in startstops or () if s["action"] == "compute"), None)
            self.write(key=str(key), end=finish, times=times, error=exception_text)


def entries(key):
    if not os.path.exists(JOURNAL):
        return []
    with open(JOURNAL) as journal:
        return [entry for entry in map(json.loads, journal) if entry["key"] == key]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def told(name, future, names=None, *, index=None, status=None, **more):
    """A step by what the scheduler said of a task. ``names``: of those that it may depend on, by their keys."""
    known = entries(future.key)
    above = sorted((names or {})[key] for key in next(entry["above"] for entry in known if "above" in entry))
    ends = [entry for entry in known if "end" in entry]
    times = ends[-1]["times"] if ends else None
    if times and len(ends) == 1:
        more = {"started_at": at(times[0]), "ended_at": at(times[1]), **more}
    elif times:
        more = {"ended_at": at(times[1]), **more}
    end = status or {"memory": "completed", "erred": "failed"}[ends[-1]["end"]]
    return step(name, end, len(ends), above, index=index, **more)


def extract():
    time.sleep(0.1)
    return 3


def work(number, base):
    time.sleep(0.05)
    return number + base


def flaky(number, path):
    time.sleep(0.05)
    if not os.path.exists(path):
        with open(path, "w"):
            raise ConnectionError("no route to the shop")
    return number


def broken(number):
    raise RuntimeError("no item 1")


def die_once(path):
    if not os.path.exists(path):
        with open(path, "w"):
            time.sleep(1)  # What a worker has not told of before it is killed, nobody knows.
            os.kill(os.getpid(), signal.SIGKILL)
    return 1


def stuck(path):
    open(path, "w").close()
    time.sleep(600)


def path_of(name):
    return os.path.abspath(f"{name}-{time.time_ns()}")


def fan(client):
    with tachograph.integrations.dask.together("dask nightly"):
        first = client.submit(extract, key="extract", pure=False)
        works = client.map(work, range(5), base=first, key="work", pure=False)
        merged = client.submit(sum, works, key="merge", pure=False)
        last = client.submit(flaky, merged, path_of("flaky"), key="flaky", retries=2, pure=False)
        assert last.result(timeout=60) == 25
    names = {first.key: "extract", merged.key: "merge"} | {future.key: f"work#{i}" for i, future in enumerate(works)}
    steps = [told("extract", first), *(told("work", future, names, index=i) for i, future in enumerate(works)),
             told("merge", merged, names), told("flaky", last, names)]  # fmt: skip
    assert steps[-1]["attempts"] == 2
    return [execution("dask nightly", "completed", steps)]


def failed(client):
    failing = client.submit(broken, 1, key="broken", pure=False)
    after = client.submit(int, failing, key="after", pure=False)
    with contextlib.suppress(RuntimeError):
        after.result(timeout=60)
    never = step("after", "skipped", 0, ["broken"])
    error = "RuntimeError: no item 1"
    return [execution("broken", "failed", [told("broken", failing, error=error), never], error=error)]


def worker_process_killed(client):
    """The process of a worker dies, and another worker has the task again."""
    future = client.submit(die_once, path_of("die"), key="die", pure=False)
    assert future.result(timeout=60) == 1
    return [execution("die", "completed", [told("die", future)])]


def cancelled(client):
    path = path_of("stuck")
    future = client.submit(stuck, path, key="stuck", pure=False)
    wait_for(lambda: os.path.exists(path))
    future.cancel()
    client.run_on_scheduler(lambda: None)
    wait_for(lambda: [entry for entry in entries("stuck") if "end" in entry])
    run = execution("stuck", "cancelled", [told("stuck", future, status="cancelled")])
    tell("dask_cancelling", [run], goes_on=True)
    client.restart()  # The thread that runs it cannot be stopped.
    return [run]


SCENES = [fan, failed, worker_process_killed, cancelled]


def main(names):
    stop_at_sigterm()
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        cluster.scheduler.add_plugin(Journal())
        tachograph.integrations.dask.instrument(client)
        played = [functools.wraps(scene)(functools.partial(scene, client)) for scene in SCENES]
        play_scenes("dask", played, names, flush=lambda: tachograph.get_recorder().flush(60), index_from="order",
                    edges_from="the scheduler", truth_from="a plugin of the scheduler")  # fmt: skip


if __name__ == "__main__":
    # Workers know the functions by this name.
    import dask_kinds

    dask_kinds.main(sys.argv[1:])
