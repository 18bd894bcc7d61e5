"""Luigi tasks as users write them, told of by Luigi's own events.

python luigi_kinds.py [SCENE …]       plays scenes

The truth is what Luigi's scheduler and its summary say of a build; times are from the program.
"""

import json
import os
import signal
import sys
import tempfile
import time

import luigi
from luigi.scheduler import Scheduler
from telling import at, execution, play_scenes, spawn, step, tell

import tachograph
import tachograph.integrations.luigi

tachograph.integrations.luigi.instrument()
DIRECTORY = os.environ.setdefault("LUIGI_DIRECTORY", tempfile.mkdtemp(prefix="luigi-"))
JOURNAL = os.path.join(DIRECTORY, "journal.jsonl")


def write_down(task, kind):
    with open(JOURNAL, "a") as journal:
        journal.write(json.dumps({"id": task.task_id, "kind": kind, "at": time.time()}) + "\n")


class Base(luigi.Task):
    day = luigi.Parameter()

    def output(self):
        return luigi.LocalTarget(os.path.join(DIRECTORY, f"{self.task_id}.txt"))

    def run(self):
        write_down(self, "started")
        try:
            yield from self.do() or ()
        finally:
            write_down(self, "ended")
        with self.output().open("w") as file:
            file.write("done")

    def do(self):
        time.sleep(0.05)


class Extract(Base):
    pass


class Work(Base):
    number = luigi.IntParameter()

    def requires(self):
        return Extract(self.day)


class Merge(Base):
    def requires(self):
        return [Work(self.day, number) for number in range(5)]


class Broken(Base):
    def requires(self):
        return Extract(self.day)

    def do(self):
        raise RuntimeError("no item 1")


class After(Base):
    def requires(self):
        return [Broken(self.day), Extract(self.day)]


class Flaky(Base):
    retry_count = 3

    def do(self):
        path = os.path.join(DIRECTORY, f"tried-{self.day}")
        if not os.path.exists(path):
            with open(path, "w"):
                raise ConnectionError("no route to the shop")
        time.sleep(0.05)


class Hopeless(Base):
    retry_count = 2
    disable_window = 60

    def do(self):
        raise ConnectionError("no route to the shop")


class AfterHopeless(Base):
    def requires(self):
        return Hopeless(self.day)


class AfterFlaky(Base):
    def requires(self):
        return Flaky(self.day)


class Dynamic(Base):
    def do(self):
        # Longer than times may be apart: what it asks for ends well after it began.
        time.sleep(0.8)
        yield [Work(self.day, number) for number in range(2)]


class Slow(Base):
    worker_timeout = 1

    def do(self):
        time.sleep(60)


class Dying(Base):
    def do(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Stuck(Base):
    def do(self):
        time.sleep(60)


class Missing(luigi.ExternalTask):
    def output(self):
        return luigi.LocalTarget(os.path.join(DIRECTORY, "missing"))


class NeedsMissing(Base):
    def requires(self):
        return Missing()


def entries(task):
    if not os.path.exists(JOURNAL):
        return []
    with open(JOURNAL) as journal:
        return [entry for entry in map(json.loads, journal) if entry["id"] == task.task_id]


STATUSES = {"DONE": "completed", "FAILED": "failed", "PENDING": "skipped", "DISABLED": "failed"}


def told(scheduler, task, depends_on=(), *, tries=None, status=None, **more):
    """A step by what the scheduler says of a task."""
    known = scheduler.task_list("", "", limit=False)
    engine = STATUSES[known[task.task_id]["status"]] if task.task_id in known else "completed"
    starts = [entry["at"] for entry in entries(task) if entry["kind"] == "started"]
    ends = [entry["at"] for entry in entries(task) if entry["kind"] == "ended"]
    times = {"started_at": at(starts[0]) if starts else None, "ended_at": at(ends[-1]) if ends else None}
    return step(task.task_family, status or engine, len(starts) if tries is None else tries, [*depends_on],
                **times, **more)  # fmt: skip


def build(task, retry_delay=0.5, **options):
    class Factory:
        def create_local_scheduler(self):
            self.scheduler = Scheduler(prune_on_get_work=True, record_task_history=False, retry_delay=retry_delay)
            return self.scheduler

        def create_worker(self, scheduler, worker_processes, assistant=False):
            return luigi.worker.Worker(
                scheduler=scheduler, worker_processes=worker_processes, wait_interval=0.05, wait_jitter=0.05, **more
            )

    workers = options.pop("workers", 1)
    more = options
    factory = Factory()
    result = luigi.build([task], workers=workers, local_scheduler=True, worker_scheduler_factory=factory,
                         detailed_summary=True, log_level="WARNING")  # fmt: skip
    return result, factory.scheduler


def day():
    return f"d{time.time_ns()}"


def fan(workers=1):
    root = Merge(day())
    result, scheduler = build(root, workers=workers)
    assert result.status is luigi.LuigiStatusCode.SUCCESS
    works = [Work(root.day, number) for number in range(5)]
    steps = [
        told(scheduler, Extract(root.day)),
        *(told(scheduler, work, ["Extract"], index=number) for number, work in enumerate(works)),
        told(scheduler, root, [f"Work#{number}" for number in range(5)]),
    ]
    return [execution("Merge", "completed", steps)]


def processes():
    """The same with a process for each task."""
    return fan(workers=2)


def failed():
    root = After(day())
    result, scheduler = build(root)
    assert result.status is luigi.LuigiStatusCode.FAILED
    steps = [told(scheduler, Extract(root.day)),
             told(scheduler, Broken(root.day), ["Extract"], error="RuntimeError: no item 1"),
             told(scheduler, root, ["Broken", "Extract"])]  # fmt: skip
    return [execution("After", "failed", steps, error="RuntimeError: no item 1")]


def again():
    """What is complete already is not run."""
    root = After(day())
    build(Extract(root.day))
    result, scheduler = build(root)
    assert result.status is luigi.LuigiStatusCode.FAILED
    steps = [step("Extract", "skipped", 0, []),
             told(scheduler, Broken(root.day), ["Extract"]), told(scheduler, root, ["Broken", "Extract"])]  # fmt: skip
    first = execution("Extract", "completed", [told(scheduler, Extract(root.day))])
    return [first, execution("After", "failed", steps, error="RuntimeError: no item 1")]


def retried():
    root = AfterFlaky(day())
    result, scheduler = build(root, keep_alive=True)
    assert result.status is luigi.LuigiStatusCode.SUCCESS_WITH_RETRY
    steps = [told(scheduler, Flaky(root.day)), told(scheduler, root, ["Flaky"])]
    return [execution("AfterFlaky", "completed", steps)]


def retried_processes():
    root = AfterFlaky(day())
    result, scheduler = build(root, keep_alive=True, workers=2)
    assert result.status is luigi.LuigiStatusCode.SUCCESS_WITH_RETRY
    steps = [told(scheduler, Flaky(root.day)), told(scheduler, root, ["Flaky"])]
    return [execution("AfterFlaky", "completed", steps)]


def exhausted(workers=1):
    """Luigi gives a task up for a while that has failed too often."""
    root = AfterHopeless(day())
    _result, scheduler = build(root, keep_alive=True, workers=workers)
    steps = [told(scheduler, Hopeless(root.day), error="ConnectionError: no route to the shop"),
             told(scheduler, root, ["Hopeless"])]  # fmt: skip
    return [execution("AfterHopeless", "failed", steps)]


def exhausted_processes():
    return exhausted(workers=2)


def dynamic():
    """A task that asks for others while it runs; it begins anew once they are done."""
    root = Dynamic(day())
    result, scheduler = build(root)
    assert result.status is luigi.LuigiStatusCode.SUCCESS
    works = [Work(root.day, number) for number in range(2)]
    steps = [told(scheduler, Extract(root.day), index=0),
             *(told(scheduler, work, ["Extract#0"], index=number) for number, work in enumerate(works)),
             told(scheduler, root, ["Work#0", "Work#1"], tries=1)]  # fmt: skip
    return [execution("Dynamic", "completed", steps)]


def timed_out():
    root = Slow(day())
    _result, scheduler = build(root, retry_delay=60, force_multiprocessing=True)
    return [execution("Slow", "failed", [told(scheduler, root, status="timeout")], status_or=["timeout"])]


def killed():
    root = Dying(day())
    _result, scheduler = build(root, retry_delay=60, force_multiprocessing=True)
    return [execution("Dying", "failed", [told(scheduler, root)])]


def missing():
    root = NeedsMissing(day())
    result, _scheduler = build(root)
    assert result.status is luigi.LuigiStatusCode.MISSING_EXT
    steps = [step("Missing", "skipped", 0, []), step("NeedsMissing", "skipped", 0, ["Missing"])]
    return [execution("NeedsMissing", "failed", steps)]


def cancelled():
    """Ctrl-C."""
    name = day()
    process = spawn([sys.executable, __file__, "--stuck", name], "cancelled.log")
    task = Stuck(name)
    deadline = time.monotonic() + 60
    while not entries(task) and time.monotonic() < deadline:
        time.sleep(0.05)
    begun = at(entries(task)[0]["at"])
    os.kill(process.pid, signal.SIGINT)
    process.wait(60)
    return [execution("Stuck", "cancelled", [step("Stuck", "cancelled", 1, [], started_at=begun,
                                                  ended_at=at(entries(task)[-1]["at"]))])]  # fmt: skip


def worker_killed():
    name = day()
    process = spawn([sys.executable, __file__, "--stuck", name], "worker.log")
    task = Stuck(name)
    deadline = time.monotonic() + 60
    while not entries(task) and time.monotonic() < deadline:
        time.sleep(0.05)
    begun = at(entries(task)[0]["at"])
    run = execution("Stuck", "lost", [step("Stuck", "lost", 1, [], started_at=begun)])
    # That it has started must be with the reader before it is killed.
    tell("luigi_at_work", [run], goes_on=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [run]


SCENES = [fan, processes, failed, again, retried, retried_processes, exhausted,
          exhausted_processes, dynamic, timed_out, killed, missing, cancelled,
          worker_killed]  # fmt: skip


def main(names):
    if names[:1] == ["--stuck"]:
        build(Stuck(names[1]))
        return
    play_scenes("luigi", SCENES, names, flush=lambda: tachograph.get_recorder().flush(60), index_from="order",
         edges_from="the tasks", truth_from="Luigi's scheduler and summary; times from the tasks")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
