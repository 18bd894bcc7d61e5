"""Taskiq tasks as users write them, instrumented with taskiq's own middleware, and with `HOOKS=1` with Tachograph's.

python taskiq_kinds.py redis://… [SCENE …]       plays scenes, with a worker of its own

The truth is from the result backend; how often a task was tried is from a journal that the tasks write.
"""

import asyncio
import os
import signal
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from taskiq import SimpleRetryMiddleware
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from telling import execution, spawn, step, stop_at_sigterm, tell

BROKER = os.environ.get("BROKER") or os.environ.setdefault("BROKER", sys.argv[1])
# Then Tachograph's middleware tells of the tasks, beside the spans.
HOOKS = os.environ.get("HOOKS") == "1"
JOURNAL = os.environ.setdefault("JOURNAL", os.path.abspath("taskiq.txt"))

PREFIX = "taskiq_hooks" if HOOKS else "taskiq"

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
trace.set_tracer_provider(provider)
broker = (
    ListQueueBroker(BROKER)
    .with_result_backend(RedisAsyncResultBackend(BROKER))
    .with_middlewares(OpenTelemetryMiddleware(), SimpleRetryMiddleware(default_retry_count=3))
)
if HOOKS:
    import tachograph
    import tachograph.integrations.taskiq

    tachograph.integrations.taskiq.instrument(broker)


def together(name):
    """A span around what is sent; or a block, if hooks tell."""
    if HOOKS:
        return tachograph.integrations.taskiq.together(name)
    return trace.get_tracer("shop").start_as_current_span(name)


def note(name):
    with open(JOURNAL, "a") as journal:
        journal.write(f"{name}\n")


def tries_of(name):
    with open(JOURNAL) as journal:
        return sum(line.strip() == name for line in journal)


@broker.task
async def extract():
    note("extract")
    await asyncio.sleep(0.1)


@broker.task(retry_on_error=True, max_retries=3)
async def flaky():
    note("flaky")
    if tries_of("flaky") == 1:
        raise ConnectionError("no route to the shop")
    await asyncio.sleep(0.05)


@broker.task(retry_on_error=True, max_retries=2)
async def broken():
    note("broken")
    raise RuntimeError("no item 1")


@broker.task(timeout=1)
async def hang():
    note("hang")
    await asyncio.sleep(60)


@broker.task
async def stuck():
    note("stuck")
    await asyncio.sleep(60)


@broker.task
async def order():
    note("order")
    await extract.kiq()
    await asyncio.sleep(0.05)
    await flaky.kiq()


async def told(name, task, **more):
    result = await task.wait_result(timeout=60, check_interval=0.05)
    count = tries_of(name)
    error = f"{type(result.error).__name__}: {result.error}" if result.is_err else None
    tries = [{"attempt": number, "status": "failed"} for number in range(1, count)]
    tries.append({"attempt": count, "status": "failed" if result.is_err else "completed"})
    return step(f"taskiq_kinds:{name}", tries[-1]["status"], count, [], tries=tries, run_id=task.task_id, error=error,
                also=[name, f"__main__:{name}"], **more)  # fmt: skip


async def two():
    with together("taskiq nightly"):
        tasks = [await extract.kiq(), await flaky.kiq()]
    steps = [await told("extract", tasks[0]), await told("flaky", tasks[1])]
    return [execution("taskiq nightly", "completed", steps)], []


async def five():
    """Five tasks of one name."""
    with together("taskiq five"):
        tasks = [await extract.kiq() for _ in range(5)]
    for task in tasks:
        await task.wait_result(timeout=60, check_interval=0.05)
    steps = [step("taskiq_kinds:extract", "completed", 1, [], run_id=task.task_id) for task in tasks]
    return [execution("taskiq five", "completed", steps)], []


async def worker_killed():
    task = await stuck.kiq()
    while not tries_of("stuck"):  # noqa: ASYNC110 - only the journal knows
        await asyncio.sleep(0.02)
    run = execution("taskiq_kinds:stuck", "lost", [step("taskiq_kinds:stuck", "lost", 1, [], run_id=task.task_id)])
    # That it has started must be with the reader before the worker is killed.
    await asyncio.to_thread(tell, "taskiq_hooks_worker_at_work", [run], goes_on=True)
    os.killpg(WORKER[0].pid, signal.SIGKILL)
    WORKER[0].wait()
    return [run], []


async def failed():
    task = await broken.kiq()
    # Where a task may be retried, a span has the message of a failure and not its type.
    unknowable = [{"step": "taskiq_kinds:broken", "field": "error"}]
    return [execution("taskiq_kinds:broken", "failed", [await told("broken", task)])], unknowable


async def timed_out():
    task = await hang.kiq()
    entry = await told("hang", task, status_or=["timeout"])
    if HOOKS:
        entry["tries"][-1]["status"] = "timeout"
    return [execution("taskiq_kinds:hang", "failed", [entry], status_or=["timeout"])], []


async def nested():
    """A task that sends two others."""
    os.truncate(JOURNAL, 0)
    task = await order.kiq()
    entry = await told("order", task)
    while tries_of("flaky") < 2 or tries_of("extract") < 1:  # noqa: ASYNC110 - only the journal knows
        await asyncio.sleep(0.05)
    steps = [entry]
    for name, count in (("extract", 1), ("flaky", 2)):
        # They run beside the task that sent them, or after it.
        steps.append(step(f"taskiq_kinds:{name}", "completed", count, also=[name, f"__main__:{name}"]))
    return [execution("taskiq_kinds:order", "completed", steps)], []


UNKNOWN = {
    "failed": ["the type of the error, where the task may be retried"],
}
"""What spans cannot tell of a scene, in words."""

WORKER = []
SCENES = [two, failed, timed_out, nested]
HOOKED = [five, worker_killed]
"""What only the middleware of Tachograph can tell, and no span."""


async def main(names):
    await broker.startup()
    command = [sys.executable, "-m", "taskiq", "worker", "taskiq_kinds:broker", "--workers", "1"]
    worker = spawn(command, "worker.log")
    WORKER.append(worker)
    try:
        for scene in [*SCENES, *(HOOKED if HOOKS else ())]:
            if not names or scene.__name__ in names:
                executions, unknowable = await scene()
                provider.force_flush()
                if HOOKS:
                    tachograph.get_recorder().flush(60)
                more = {"index_from": None, "edges_from": "recording", "unknowable": [] if HOOKS else unknowable,
                        "unknown": [] if HOOKS else UNKNOWN.get(scene.__name__, []),
                        "truth_from": "the result backend; how often a task ran from a journal"}  # fmt: skip
                await asyncio.to_thread(tell, f"{PREFIX}_{scene.__name__}", executions, **more)
    finally:
        worker.terminate()
        worker.wait()
        await broker.shutdown()


if __name__ == "__main__":
    # The worker knows the tasks by this name, and so must the sender.
    import taskiq_kinds

    stop_at_sigterm()
    asyncio.run(taskiq_kinds.main(sys.argv[2:]))
