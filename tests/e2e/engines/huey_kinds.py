"""Huey tasks as users write them, told of by Huey's own signals and hooks.

python huey_kinds.py redis://… [SCENE …]       plays scenes, with a consumer of its own

The truth is from signals in the consumer, written down by the program, and from the results that Huey keeps.
"""

import json
import os
import signal
import sys
import time
from datetime import UTC

from huey import CancelExecution, RedisHuey, chord, signals
from telling import at, execution, for_later, play_scenes, spawn, step, stop_at_sigterm, tell

import tachograph
import tachograph.integrations.huey

BROKER = os.environ.get("BROKER") or os.environ.setdefault("BROKER", sys.argv[1])
JOURNAL = os.environ.setdefault("JOURNAL", os.path.abspath("huey.jsonl"))
huey = RedisHuey("shop", url=BROKER)
tachograph.integrations.huey.instrument(huey)

ENDS = {
    signals.SIGNAL_COMPLETE: "completed", signals.SIGNAL_ERROR: "failed", signals.SIGNAL_CANCELED: "cancelled",
    signals.SIGNAL_REVOKED: "cancelled", signals.SIGNAL_TIMEOUT: "timeout", signals.SIGNAL_EXPIRED: "cancelled",
}  # fmt: skip


@huey.signal(signals.SIGNAL_EXECUTING, *ENDS)
def write_down(kind, task, error=None):
    entry = {"id": task.id, "task": task.name, "kind": ENDS.get(kind, "started"), "at": time.time(),
             "error": f"{type(error).__name__}: {error}" if error is not None else None}  # fmt: skip
    with open(JOURNAL, "a") as journal:
        journal.write(json.dumps(entry) + "\n")


@huey.task()
def extract(*_):
    time.sleep(0.1)
    return 3


@huey.task()
def work(number, *_):
    time.sleep(0.05)
    return number


@huey.task()
def merge(*numbers):
    time.sleep(0.05)


@huey.task(retries=2, retry_delay=1)
def flaky(path, *_):
    if not os.path.exists(path):
        with open(path, "w"):
            raise ConnectionError("no route to the shop")
    time.sleep(0.05)


@huey.task(retries=1)
def broken(*_):
    raise RuntimeError("no item 1")


@huey.task()
def mend(error):
    time.sleep(0.05)


@huey.task()
def order(number):
    work(number)
    merge()
    time.sleep(0.05)


@huey.task(timeout=1, context=True)
def hang(task=None):
    # Of threads Huey asks for no more than that they look at the time.
    while True:
        time.sleep(0.01)
        task.check_timeout()


@huey.task()
def stuck():
    time.sleep(60)


@huey.task()
def picky():
    raise CancelExecution(retry=False)


def entries(task_id):
    if not os.path.exists(JOURNAL):
        return []
    with open(JOURNAL) as journal:
        return [entry for entry in map(json.loads, journal) if entry["id"] == task_id]


def wait(task_id, *kinds, count=1):
    deadline = time.monotonic() + 60
    while sum(entry["kind"] in kinds for entry in entries(task_id)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{task_id}: {entries(task_id)}")
        time.sleep(0.02)


def told(task_id, depends_on=(), **more):
    """A step by what the signals of a task said."""
    tries, error = [], None
    for entry in entries(task_id):
        if entry["kind"] == "started":
            tries.append({"attempt": len(tries) + 1, "started_at": at(entry["at"])})
        elif tries:
            tries[-1].update(status=entry["kind"], ended_at=at(entry["at"]))
        if entry["error"]:
            error = entry["error"]
    name = f"huey_kinds.{entries(task_id)[0]['task']}"
    times = {"started_at": tries[0]["started_at"], "ended_at": tries[-1]["ended_at"]} if tries else {}
    status = tries[-1]["status"] if tries else entries(task_id)[-1]["kind"]
    if status == "completed":
        error = None
    return step(name, status, len(tries), [*depends_on], tries=tries, error=error, **times, **more)


def pipeline():
    path = os.path.abspath(f"flaky-{time.time_ns()}")
    with tachograph.integrations.huey.together("huey nightly"):
        results = huey.enqueue(extract.s().then(work).then(flaky, path))
    ids = [result.id for result in results]
    # What the one before returned comes first.
    wait(ids[0], "completed")
    wait(ids[1], "completed")
    wait(ids[2], "completed", "failed", count=1)
    wait(ids[2], "completed")
    first, second, last = ids
    steps = [told(first), told(second, ["huey_kinds.extract"]), told(last, ["huey_kinds.work"])]
    return [execution("huey nightly", "completed", steps)]


def callback():
    """A chord of five, sent bare."""
    sent = huey.enqueue(chord([work.s(i) for i in range(5)], merge.s()))
    ids = [result.id for result in sent.results]
    wait(sent.callback.id, "completed")
    members = [f"huey_kinds.work#{i}" for i in range(5)]
    steps = [*(told(each, index=i) for i, each in enumerate(ids)), told(sent.callback.id, members)]
    return [execution("huey_kinds.work", "completed", steps)]


def failed():
    """The rest of a pipeline whose task fails is never sent: Huey has no record of it."""
    results = list(huey.enqueue(extract.s().then(broken).then(work, 1)))
    wait(results[1].id, "failed", count=2)
    steps = [told(results[0].id), told(results[1].id, ["huey_kinds.extract"]),
             step("huey_kinds.work", "skipped", 0, ["huey_kinds.broken"])]  # fmt: skip
    return [execution("huey_kinds.extract", "failed", steps, error="RuntimeError: no item 1")]


def handled():
    """A task that handles the errors of another one: it is sent for each attempt that failed."""
    sent = huey.enqueue(broken.s().error(mend))
    handler = sent.task.on_error
    wait(handler.id, "completed", count=2)
    first, second = [entry["at"] for entry in entries(handler.id) if entry["kind"] == "started"]
    mended = [step("huey_kinds.mend", "completed", 1, ["huey_kinds.broken"], started_at=at(moment))
              for moment in (first, second)]  # fmt: skip
    return [execution("huey_kinds.broken", "failed", [told(sent.id), *mended])]


def nested():
    """A task that sends others: they belong to its run."""
    sent = order(2)
    wait(sent.id, "completed")
    deadline = time.monotonic() + 60
    while True:
        with open(JOURNAL) as journal:
            lines = [entry for entry in map(json.loads, journal) if entry["at"] >= entries(sent.id)[0]["at"]]
        if len(lines) == 6 or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    steps = [told(task_id) for task_id in dict.fromkeys(entry["id"] for entry in lines)]
    return [execution("huey_kinds.order", "completed", steps)]


def later():
    sent = extract.schedule(delay=1)
    wait(sent.id, "completed")
    return [execution("huey_kinds.extract", "completed", [told(sent.id)])]


def later_in_block():
    """A task with a delay, in a run that has begun."""
    with tachograph.integrations.huey.together("huey later"):
        soon, asked = extract(), time.time()
        sent = work.schedule((1,), delay=2)
    wait(sent.id, "completed")
    first, second = told(soon.id), told(sent.id)
    due = at(sent.task.eta.replace(tzinfo=UTC).timestamp())
    return [execution("huey later", "completed", [first, for_later(second, at(asked), due, first["started_at"])])]


def revoked():
    sent = extract.schedule(delay=2)
    sent.revoke()
    wait(sent.id, "cancelled")
    return [execution("huey_kinds.extract", "cancelled", [told(sent.id)])]


def cancelled():
    sent = picky()
    wait(sent.id, "cancelled")
    return [execution("huey_kinds.picky", "cancelled", [told(sent.id)])]


def timed_out():
    sent = hang()
    wait(sent.id, "timeout")
    return [execution("huey_kinds.hang", "timeout", [told(sent.id)])]


def worker_killed():
    sent = stuck()
    wait(sent.id, "started")
    begun = at(entries(sent.id)[0]["at"])
    run = execution("huey_kinds.stuck", "lost", [step("huey_kinds.stuck", "lost", 1, [], started_at=begun)])
    # That it has started must be with the reader before the consumer is killed.
    tell("huey_worker_at_work", [run], goes_on=True)
    os.killpg(CONSUMER[0].pid, signal.SIGKILL)
    CONSUMER[0].wait()
    return [run]


CONSUMER = []
SCENES = [
    pipeline,
    callback,
    failed,
    handled,
    nested,
    later,
    later_in_block,
    revoked,
    cancelled,
    timed_out,
    worker_killed,
]


def main(names):
    stop_at_sigterm()
    command = [sys.executable, "-m", "huey.bin.huey_consumer", "huey_kinds.huey", "-w", "4", "-k", "thread", "-n",
               "-d", "0.02", "-m", "0.1", "-s", "1"]  # fmt: skip
    CONSUMER.append(spawn(command, "worker.log"))
    try:
        play_scenes("huey", SCENES, names, flush=lambda: tachograph.get_recorder().flush(60), index_from="order",
             edges_from="order", truth_from="signals in the consumer; edges from the program")  # fmt: skip
    finally:
        CONSUMER[0].terminate()
        CONSUMER[0].wait()


if __name__ == "__main__":
    # The tasks belong to the module that the consumer imports.
    import huey_kinds

    huey_kinds.main(sys.argv[2:])
