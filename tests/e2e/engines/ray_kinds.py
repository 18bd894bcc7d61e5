"""Ray tasks as users write them; Ray traces them itself with a start-up hook. python ray_kinds.py [SCENE …]

The truth is from Ray's state API (each attempt of each task); what waits for what is from the program.
"""

import contextlib
import os
import signal
import sys
import time

import ray
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from ray.util.state import list_tasks
from telling import at, execution, step, stop_at_sigterm, tell


def setup_tracing():
    provider = TracerProvider()
    # Ray ends its workers without running what is registered for their end.
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@ray.remote
def extract():
    time.sleep(0.1)
    return 3


@ray.remote
def work(number, index):
    time.sleep(0.1 + 0.1 * index)
    return index


@ray.remote
def merge(*numbers):
    time.sleep(0.05)
    return sum(numbers)


@ray.remote(max_retries=2, retry_exceptions=True)
def flaky(number, path):
    time.sleep(0.05)
    if not os.path.exists(path):
        with open(path, "w"):
            raise ConnectionError("no route to the shop")
    return number


@ray.remote(max_retries=1)
def survive(path):
    if not os.path.exists(path):
        with open(path, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)


@ray.remote
class Counter:
    def __init__(self):
        self.total = 0

    def add(self, number):
        time.sleep(0.05)
        self.total += number
        return self.total


@ray.remote
def broken(number):
    raise RuntimeError("no item 1")


def function_of(task):
    """The function's name, or class and method, without the module."""
    return task.func_or_class_name if task.type.startswith("ACTOR") else task.func_or_class_name.rpartition(".")[2]


def told_of(names, edges, **more):
    """The steps of the tasks of these functions, by the state API."""
    deadline, last = time.monotonic() + 60, None
    while True:
        # The state API learns of the tasks' ends a second later.
        tasks = [task for task in list_tasks(detail=True, limit=1000) if function_of(task) in names]
        ended = [task for task in tasks if task.state in ("FINISHED", "FAILED") and task.end_time_ms]
        if tasks and len(ended) == len(tasks) and len(tasks) == last:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(str(tasks))
        last = len(tasks)
        time.sleep(1)
    by_task = {}
    for task in sorted(tasks, key=lambda task: (task.creation_time_ms, task.task_id, task.attempt_number)):
        by_task.setdefault(task.task_id, []).append(task)
    counts, steps = {}, []
    for attempts in by_task.values():
        name = function_of(attempts[0])
        several = sum(task[0].func_or_class_name == attempts[0].func_or_class_name for task in by_task.values()) > 1
        index = counts.get(name, 0) if several else None
        counts[name] = counts.get(name, 0) + 1
        tries = [
            {"attempt": number, "status": "completed" if task.state == "FINISHED" else "failed",
             **({"started_at": at(task.start_time_ms / 1000)} if task.start_time_ms else {}),
             "ended_at": at(task.end_time_ms / 1000)}
            for number, task in enumerate(attempts, 1)
        ]  # fmt: skip
        steps.append(
            step(f"ray_kinds.{name}", tries[-1]["status"], len(tries), edges[name], index=index, tries=tries,
                 also=[name], engine_status=attempts[-1].state, ended_at=tries[-1]["ended_at"],
                 started_at=tries[0].get("started_at"), **more)
        )  # fmt: skip
    return steps


def pipeline():
    with trace.get_tracer("shop").start_as_current_span("ray nightly"):
        extracted = extract.remote()
        works = [work.remote(extracted, i) for i in range(3)]
        total = merge.remote(*works)
        last = flaky.remote(total, os.path.abspath(f"flaky-{time.time_ns()}"))
        ray.get(last)
    edges = {"extract": [], "work": ["ray_kinds.extract"], "merge": [f"ray_kinds.work#{i}" for i in range(3)],
             "flaky": ["ray_kinds.merge"]}  # fmt: skip
    # All tasks are asked for at once; nothing tells which of them waited for what.
    return [execution("ray nightly", "completed", told_of(edges, edges))], [{"edge": "*"}]


def actor():
    with trace.get_tracer("shop").start_as_current_span("ray actor"):
        counter = Counter.remote()
        ray.get([counter.add.remote(i) for i in range(2)])
    edges = {"Counter.__init__": [], "Counter.add": []}
    steps = told_of(edges, edges)
    for told in steps:
        # An actor does one thing after the other.
        del told["depends_on"]
        told["also"].append(told["name"].rpartition(".")[2])
    return [execution("ray actor", "completed", steps)], []


def failed():
    reference = broken.remote(1)
    with contextlib.suppress(ray.exceptions.RayTaskError):
        ray.get(reference)
    steps = told_of({"broken"}, {"broken": []}, error="RuntimeError: no item 1")
    return [execution("ray_kinds.broken", "failed", steps, workflow_also=["broken"])], []


def process_killed():
    with trace.get_tracer("shop").start_as_current_span("ray killed"):
        ray.get(survive.remote(os.path.abspath(f"survive-{time.time_ns()}")))
    # The process that had the span of the first try was killed.
    unknowable = [{"step": "ray_kinds.survive", "field": field} for field in ("attempts", "started_at")]
    return [execution("ray killed", "completed", told_of({"survive"}, {"survive": []}))], unknowable


UNKNOWN = {
    "pipeline": ["what waits for what: all tasks are asked for at once"],
    "process_killed": ["the first try: its span died with its process"],
}
"""What spans cannot tell of a scene, in words."""

SCENES = [pipeline, actor, failed, process_killed]


def main(names):
    stop_at_sigterm()
    ray.init(num_cpus=3, include_dashboard=True, _tracing_startup_hook="ray_kinds:setup_tracing", log_to_driver=False)
    try:
        for scene in SCENES:
            if not names or scene.__name__ in names:
                executions, unknowable = scene()
                tell(
                    f"ray_{scene.__name__}",
                    executions,
                    unknowable=unknowable,
                    unknown=UNKNOWN.get(scene.__name__, []),
                    index_from="order",
                    edges_from="order",
                    truth_from="the state API; edges from the program",
                )
    finally:
        ray.shutdown()


if __name__ == "__main__":
    # Workers know the functions by this name.
    import ray_kinds

    ray_kinds.main(sys.argv[1:])
