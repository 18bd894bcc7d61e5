"""Ray tasks whose runs are told of by the state API. python ray_hooks_kinds.py [SCENE …]

The truth is from the same API, read after the end; what waits for what it does not say.
"""

import contextlib
import os
import sys
import time

import ray
from ray_kinds import Counter, broken, extract, flaky, merge, survive, told_of, work
from telling import execution, play_scenes, stop_at_sigterm

import tachograph
from tachograph.integrations import ray as integration


@ray.remote
def inner(number):
    time.sleep(0.1)
    return number


@ray.remote
def outer():
    return ray.get([inner.remote(number) for number in range(2)])


@ray.remote
def stuck():
    time.sleep(2)


def seen(names, status="completed", workflow="ray nightly", **more):
    steps = told_of(names, {name: [] for name in names})
    for told in steps:
        told["name"] = told["name"].removeprefix("ray_kinds.")
        del told["depends_on"]
    return [execution(workflow, status, steps, **more)]


def pipeline():
    with integration.run("ray nightly"):
        works = [work.remote(extract.remote(), i) for i in range(5)]
        last = flaky.remote(merge.remote(*works), os.path.abspath(f"flaky-{time.time_ns()}"))
        ray.get(last)
    return seen({"work", "extract", "merge", "flaky"})


def actor():
    with integration.run("ray actor"):
        counter = Counter.remote()
        ray.get([counter.add.remote(i) for i in range(2)])
    return seen({"Counter.__init__", "Counter.add"}, workflow="ray actor")


def failed():
    with contextlib.suppress(ray.exceptions.RayTaskError), integration.run("ray failed"):
        ray.get(broken.remote(1))
    executions = seen({"broken"}, "failed", "ray failed")
    executions[0]["steps"][0]["error"] = "RuntimeError: no item 1"
    return executions


def process_killed():
    with integration.run("ray killed"):
        ray.get(survive.remote(os.path.abspath(f"survive-{time.time_ns()}")))
    return seen({"survive"}, workflow="ray killed")


def nested():
    """A task that asks for others: they are parts of it."""
    with integration.run("ray nested"):
        ray.get(outer.remote())
    executions = seen({"outer", "inner"}, workflow="ray nested")
    for told in executions[0]["steps"]:
        if told["name"] == "inner":
            told["parent"] = "outer"
    return executions


def cancelled():
    """A task that is cancelled before it starts. One that runs then is finished, by Ray's own word."""
    with integration.run("ray cancelled"):
        first = stuck.remote()
        never = work.options(num_cpus=3).remote(1, 1)
        time.sleep(0.5)
        ray.cancel(never)
        with contextlib.suppress(ray.exceptions.TaskCancelledError):
            ray.get(never)
        ray.get(first)
    executions = seen({"stuck", "work"}, workflow="ray cancelled")
    (told,) = [each for each in executions[0]["steps"] if each["engine_status"] == "FAILED"]
    told |= {"status": "cancelled", "attempts": 0}
    for name in ("tries", "started_at", "ended_at"):
        told.pop(name, None)
    executions[0]["steps"] = [each for each in executions[0]["steps"] if each["name"] == "stuck"] + [told]
    return executions


SCENES = [pipeline, actor, failed, process_killed, nested, cancelled]


def main(names):
    stop_at_sigterm()
    ray.init(num_cpus=3, include_dashboard=True, log_to_driver=False)
    try:
        play_scenes("ray_hooks", SCENES, names, flush=lambda: tachograph.get_recorder().flush(60), index_from="order",
             truth_from="the state API")  # fmt: skip
    finally:
        ray.shutdown()


if __name__ == "__main__":
    # Workers know the functions by this name.
    import ray_hooks_kinds

    ray_hooks_kinds.main(sys.argv[1:])
