"""RQ jobs as users write them, instrumented only with opentelemetry-instrumentation-rq.

python rq_kinds.py redis://… [SCENE …]      plays scenes, with a worker of its own
python rq_kinds.py redis://… --worker       that worker

The truth is from the jobs and their results as RQ keeps them in Redis.
"""

import contextlib
import os
import signal
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry_instrumentation_rq import RQInstrumentor
from redis import Redis
from rq import Callback, Queue, Repeat, Retry, Worker, get_current_job
from rq.command import send_stop_job_command
from rq.group import Group
from rq.job import Dependency, Job
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.results import Result
from telling import execution, for_later, spawn, step, stop_at_sigterm, tell, without_module

if os.environ.get("HOOKS") == "1":
    import tachograph
    import tachograph.integrations.rq


# Then the jobs are told of by RQ's own methods instead of spans.
HOOKS = os.environ.get("HOOKS") == "1"
PREFIX = "rq_hooks" if HOOKS else "rq"


def instrument():
    if HOOKS:
        tachograph.integrations.rq.instrument()
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    provider = TracerProvider()
    # RQ forks a process for each job, which leaves without running what is registered for its end.
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    RQInstrumentor().instrument()


def extract():
    time.sleep(0.1)


def work(number):
    time.sleep(0.05 + 0.05 * number)


def merge():
    time.sleep(0.05)


def flaky(path):
    if not os.path.exists(path):
        with open(path, "w"):
            raise ConnectionError("no route to the shop")
    time.sleep(0.05)


def broken():
    raise RuntimeError("no item 1")


def hang():
    time.sleep(60)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def order(number):
    queue = Queue(connection=get_current_job().connection)
    queue.enqueue("rq_kinds.work", number)
    queue.enqueue("rq_kinds.merge")
    time.sleep(0.05)


STATUSES = {
    "finished": "completed", "failed": "failed", "deferred": "pending", "canceled": "cancelled",
    "stopped": "cancelled", "started": "lost",
}  # fmt: skip
OUTCOMES = {Result.Type.SUCCESSFUL: "completed", Result.Type.FAILED: "failed", Result.Type.RETRIED: "failed"}


def wait(job, *statuses):
    deadline = time.monotonic() + 60
    while job.get_status(refresh=True).value not in statuses:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{job.func_name} is {job.get_status()}")
        time.sleep(0.05)


def told(job, names, *, index=None, retries=0, tried=None, **more):
    """A step by what RQ keeps of a job. ``names``: the steps of the jobs that it may depend on; ``retries``: how many
    it may have."""
    job.refresh()
    status = job.get_status().value
    if retries:
        retries -= int(job.connection.hget(job.key, "retries_left") or 0)
    tries = [{"attempt": number, "status": "failed"} for number in range(1, retries + 1)]
    if tried is not None:
        tries.append({"attempt": 1, "status": tried})
    elif job.latest_result() is not None:
        tries.append({"attempt": retries + 1, "status": OUTCOMES[job.latest_result().type]})
    times = {}
    if len(tries) == 1:
        # RQ keeps the start of the last try only.
        times = {"started_at": job.started_at, "ended_at": job.ended_at}
    result = job.latest_result()
    error = None
    if status == "failed":
        error = without_module(result.exc_string.strip().splitlines()[-1])
    name = f"__main__.{job.func_name.rpartition('.')[2]}"
    return step(
        "rq_kinds." + name.rpartition(".")[2],
        STATUSES[status],
        len(tries),
        sorted(
            names[key]
            for key in [getattr(key, "decode", lambda key=key: key)().rpartition(":")[2] for key in job.dependency_ids]
        ),
        index=index,
        tries=tries,
        engine_status=status,
        error=error,
        also=[name.rpartition(".")[2]],
        **{key: f"{value:%Y-%m-%dT%H:%M:%S.%f}Z" for key, value in times.items() if value},
        **more,
    )


@contextmanager
def together(name):
    """What is sent in the block is one run: by a span around it, or without any."""
    with contextlib.ExitStack() as stack:
        if HOOKS:
            stack.enter_context(tachograph.integrations.rq.together(name))
        if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            stack.enter_context(trace.get_tracer("shop").start_as_current_span(name))
        yield


def pipeline(queue):
    with together("rq nightly"):
        extracted = queue.enqueue("rq_kinds.extract")
        if HOOKS:
            data = [Queue.prepare_data("rq_kinds.work", (i,), depends_on=extracted) for i in range(3)]
            works = Group.create(queue.connection).enqueue_many(queue, data)
        else:
            works = [queue.enqueue("rq_kinds.work", i, depends_on=extracted) for i in range(3)]
        merged = queue.enqueue("rq_kinds.merge", depends_on=works)
        path = os.path.abspath(f"flaky-{time.time_ns()}")
        last = queue.enqueue("rq_kinds.flaky", path, depends_on=merged, retry=Retry(max=2))
    wait(last, "finished")
    names = {extracted.id: "rq_kinds.extract", merged.id: "rq_kinds.merge"}
    names |= {job.id: f"rq_kinds.work#{i}" for i, job in enumerate(works)}
    steps = [told(extracted, names), *(told(job, names, index=i) for i, job in enumerate(works)),
             told(merged, names), told(last, names, retries=2)]  # fmt: skip
    return [execution("rq nightly", "completed", steps)], []


def retry_later(queue):
    path = os.path.abspath(f"flaky-{time.time_ns()}")
    job = queue.enqueue("rq_kinds.flaky", path, retry=Retry(max=1, interval=1))
    wait(job, "finished")
    return [execution("rq_kinds.flaky", "completed", [told(job, {}, retries=1)], workflow_also=["flaky"])], []


def later(queue):
    asked = datetime.now(UTC)
    job = queue.enqueue_in(timedelta(seconds=2), "rq_kinds.extract")
    wait(job, "finished")
    job.refresh()
    # When its scheduler put it into the queue, which it looks for once a second.
    due = f"{job.enqueued_at:%Y-%m-%dT%H:%M:%S.%f}Z"
    # By the hooks, a run starts with its first step; before, it is pending.
    times = {} if HOOKS else {"asked_at": asked.isoformat(), "scheduled_at": due}
    told_of = told(job, {}, **times)
    return [execution("rq_kinds.extract", "completed", [told_of], workflow_also=["extract"])], []


def failed(queue):
    with together("rq failing"):
        extracted = queue.enqueue("rq_kinds.extract")
        failing = queue.enqueue("rq_kinds.broken", depends_on=extracted)
        after = queue.enqueue("rq_kinds.merge", depends_on=failing)
    wait(failing, "failed")
    names = {extracted.id: "rq_kinds.extract", failing.id: "rq_kinds.broken"}
    # RQ keeps a job whose dependency has failed as deferred for ever.
    steps = [told(extracted, names), told(failing, names), told(after, names, status_or=["skipped", "lost"])]
    return [execution("rq failing", "failed", steps, error="RuntimeError: no item 1")], []


def alone(queue):
    job = queue.enqueue("rq_kinds.extract")
    wait(job, "finished")
    return [execution("rq_kinds.extract", "completed", [told(job, {})], workflow_also=["extract"])], []


def timed_out(queue):
    job = queue.enqueue("rq_kinds.hang", job_timeout=1)
    wait(job, "failed")
    step_told = told(job, {}, status_or=["timeout"], tried="timeout" if HOOKS else None)
    run = execution("rq_kinds.hang", "failed", [step_told], workflow_also=["hang"], status_or=["timeout"])
    return [run], []


def killed(queue):
    job = queue.enqueue("rq_kinds.die")
    wait(job, "failed")
    entry = told(job, {}, status_or=["lost"])
    if HOOKS:
        entry["error"] = "WorkHorseKilled: waitpid returned 9 (signal 9)"
    run = execution("rq_kinds.die", "failed", [entry], workflow_also=["die"], status_or=["lost"])
    # The process that had the job's spans was killed; its parent makes spans of that it handled the failure.
    return [run], [
        {"step": "rq_kinds.die", "field": field} for field in ("started_at", "ended_at", "attempts", "error")
    ]


def group(queue):
    """Five of a kind, a job after all of them, one that is cancelled before it starts, and one after that."""
    data = [Queue.prepare_data("rq_kinds.work", (i,)) for i in range(5)]
    jobs = Group.create(queue.connection).enqueue_many(queue, data)
    merged = queue.enqueue("rq_kinds.merge", depends_on=jobs)
    never = queue.enqueue("rq_kinds.extract", depends_on=jobs)
    after = queue.enqueue("rq_kinds.work", 1, depends_on=never)
    never.cancel()
    wait(merged, "finished")
    names = {job.id: f"rq_kinds.work#{i}" for i, job in enumerate(jobs)} | {never.id: "rq_kinds.extract"}
    steps = [*(told(job, names, index=i) for i, job in enumerate(jobs)), told(merged, names), told(never, names),
             told(after, names, status_or=["skipped"])]  # fmt: skip
    return [execution("rq_kinds.work", "cancelled", steps)], []


def nested(queue):
    """A job that sends others: they belong to its run."""
    job = queue.enqueue("rq_kinds.order", 2)
    wait(job, "finished")
    ids = [key.decode().rpartition(":")[2] for key in queue.connection.keys("rq:job:*")]
    jobs = [
        each for each in Job.fetch_many(ids, connection=queue.connection) if each and each.created_at >= job.created_at
    ]
    for each in jobs:
        wait(each, "finished")
    steps = [told(each, {}) for each in jobs]
    if not HOOKS:
        for entry in steps:
            # They run after the job that sent them.
            if entry["name"] != "rq_kinds.order":
                del entry["depends_on"]
    return [execution("rq_kinds.order", "completed", steps)], []


def exhausted(queue):
    """A job that fails as often as it may, and one after it that may run all the same."""
    with together("rq exhausted"):
        failing = queue.enqueue("rq_kinds.broken", retry=Retry(max=2))
        after = queue.enqueue("rq_kinds.merge", depends_on=Dependency(failing, allow_failure=True))
    wait(after, "finished")
    names = {failing.id: "rq_kinds.broken"}
    run = execution("rq exhausted", "failed", [told(failing, names, retries=2), told(after, names)],
                    error="RuntimeError: no item 1")  # fmt: skip
    return [run], []


def note_failure(job, connection, kind, error, trace):
    time.sleep(0.05)


def repeated(queue):
    """A job that runs three times though it succeeds: no retry."""
    job = queue.enqueue("rq_kinds.extract", repeat=Repeat(times=2, interval=0))
    deadline = time.monotonic() + 60
    while len(job.results()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    wait(job, "finished")
    if HOOKS:
        # Each is a run of its own.
        once = execution("rq_kinds.extract", "completed", [step("rq_kinds.extract", "completed", 1, [])])
        return [once, once, once], []
    # RQ keeps a result of each run, all of them good.
    assert [result.type for result in job.results()] == [Result.Type.SUCCESSFUL] * 3
    name = "rq_kinds.extract"
    runs = [step(name, "completed", 1, [f"{name}#{number - 1}"] if number else [], index=number, also=["extract"])
            for number in range(3)]  # fmt: skip
    return [execution(name, "completed", runs, workflow_also=["extract"])], []


def with_callbacks(queue):
    """A job that fails has a callback and two that depend on it, of which one may run all the same."""
    with together("rq callbacks"):
        failing = queue.enqueue("rq_kinds.broken", on_failure=Callback("rq_kinds.note_failure"))
        after = queue.enqueue("rq_kinds.merge", depends_on=Dependency(failing, allow_failure=True))
        never = queue.enqueue("rq_kinds.extract", depends_on=failing)
        last = queue.enqueue("rq_kinds.work", 1, depends_on=after)
    wait(last, "finished")
    names = {failing.id: "rq_kinds.broken", after.id: "rq_kinds.merge"}
    steps = [told(failing, names), told(after, names), told(never, names, status_or=["skipped", "lost"]),
             told(last, names)]  # fmt: skip
    return [execution("rq callbacks", "failed", steps, error="RuntimeError: no item 1")], []


def later_in_block(queue):
    """A job for a later time, in a run that has begun."""
    with together("rq later"):
        soon = queue.enqueue("rq_kinds.extract")
        later = queue.enqueue_in(timedelta(seconds=3), "rq_kinds.merge")
    due = ScheduledJobRegistry(queue=queue).get_scheduled_time(later)
    wait(later, "finished")
    first, second = told(soon, {}), told(later, {})
    second = for_later(second, f"{later.created_at:%Y-%m-%dT%H:%M:%S.%fZ}", f"{due:%Y-%m-%dT%H:%M:%SZ}",
                       first["started_at"])  # fmt: skip
    return [execution("rq later", "completed", [first, second])], []


def stopped(queue):
    job = queue.enqueue("rq_kinds.hang")
    wait(job, "started")
    # RQ's worker listens for commands only once it has a work horse.
    while job.get_status(refresh=True).value == "started":
        send_stop_job_command(queue.connection, job.id)
        time.sleep(0.2)
    return [execution("rq_kinds.hang", "cancelled", [told(job, {}, tried="cancelled")])], []


def requeued(queue):
    """A job that failed, and was put back into its queue by hand: two runs, as RQ has two results."""
    path = os.path.abspath(f"flaky-{time.time_ns()}")
    job = queue.enqueue("rq_kinds.flaky", path)
    wait(job, "failed")
    failing = told(job, {})
    job.requeue()
    wait(job, "finished")
    again = [step("rq_kinds.flaky", "completed", 1, [])]
    return [execution("rq_kinds.flaky", "failed", [failing]), execution("rq_kinds.flaky", "completed", again)], []


def worker_killed(queue):
    job = queue.enqueue("rq_kinds.hang")
    wait(job, "started")
    # When its function began, RQ writes down only once it has ended.
    lost = step("rq_kinds.hang", "lost", 1, [])
    run = execution("rq_kinds.hang", "lost", [lost])
    # That it has started must be with the reader before the worker is killed.
    tell(f"{PREFIX}_worker_at_work", [run], goes_on=True)
    os.killpg(WORKER[0].pid, signal.SIGKILL)
    WORKER[0].wait()
    assert job.id in StartedJobRegistry(queue=queue).get_job_ids()
    return [run], []


WORKER = []
UNKNOWN = {
    "killed": ["when the job ran: the process that had its spans was killed"],
}
"""What spans cannot tell of a scene, in words."""

SCENES = [pipeline, retry_later, later, failed, alone, timed_out, killed, nested, exhausted]
BY_SPANS = [repeated, with_callbacks]
HOOKED = [group, later_in_block, stopped, requeued, worker_killed]
"""What only the hooks can tell, and no span."""


def main(address, names):
    instrument()
    connection = Redis.from_url(address)
    queue = Queue(connection=connection)
    if names == ["--worker"]:
        worker = tachograph.integrations.rq.Worker if HOOKS else Worker
        worker([queue], connection=connection).work(with_scheduler=True)
        return
    stop_at_sigterm()
    command = [sys.executable, __file__, address, "--worker"]
    worker = spawn(command, "worker.log")
    WORKER.append(worker)
    try:
        for scene in [*SCENES, *BY_SPANS, *(HOOKED if HOOKS else ())]:
            if not names or scene.__name__ in names:
                executions, unknowable = scene(queue)
                if HOOKS:
                    tachograph.get_recorder().flush(60)
                tell(
                    f"{PREFIX}_{scene.__name__}",
                    executions,
                    unknowable=[] if HOOKS else unknowable,
                    unknown=[] if HOOKS else UNKNOWN.get(scene.__name__, []),
                    index_from="order",
                    edges_from="recording",
                    truth_from="the jobs and their results in Redis",
                )
    finally:
        worker.kill()
        worker.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
