"""Dramatiq actors as users write them, instrumented only with opentelemetry-instrumentor-dramatiq.

python dramatiq_kinds.py redis://… [SCENE …]       plays scenes, with a worker of its own

The truth is from a middleware in the worker: Dramatiq keeps no record of messages.
"""

import contextlib
import json
import os
import signal
import sys
import time
from contextlib import contextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as RateLimits
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry_instrumentor_dramatiq import DramatiqInstrumentor
from telling import at, execution, for_later, spawn, step, stop_at_sigterm, tell

BROKER = os.environ.get("BROKER") or os.environ.setdefault("BROKER", sys.argv[1])
JOURNAL = os.environ.setdefault("JOURNAL", os.path.abspath("dramatiq.jsonl"))

# Then the messages are told of by a middleware instead of spans.
HOOKS = os.environ.get("HOOKS") == "1"
PREFIX = "dramatiq_hooks" if HOOKS else "dramatiq"

if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    DramatiqInstrumentor().instrument()


class Journal(dramatiq.Middleware):
    """Writes down when a message's processing starts and how it ends."""

    def write(self, message, kind, error=None):
        entry = {"id": message.message_id, "actor": message.actor_name, "kind": kind, "at": time.time(), "error": error}
        with open(JOURNAL, "a") as journal:
            journal.write(json.dumps(entry) + "\n")

    def before_process_message(self, broker, message):
        self.write(message, "started")

    def after_process_message(self, broker, message, *, result=None, exception=None):
        error = f"{type(exception).__name__}: {exception}" if exception else None
        self.write(message, "failed" if exception else "completed", error)


broker = RedisBroker(url=BROKER)
broker.add_middleware(Journal())
dramatiq.set_broker(broker)
if HOOKS:
    import tachograph
    import tachograph.integrations.dramatiq

    broker.add_middleware(GroupCallbacks(RateLimits(url=BROKER)))
    tachograph.integrations.dramatiq.instrument(broker)


@dramatiq.actor
def extract(*_):
    time.sleep(0.1)


@dramatiq.actor
def work(*_):
    time.sleep(0.1)


@dramatiq.actor(max_retries=3, min_backoff=300, max_backoff=300)
def flaky(path, *_):
    if not os.path.exists(path):
        with open(path, "w"):
            raise ConnectionError("no route to the shop")
    time.sleep(0.05)


@dramatiq.actor(max_retries=1, min_backoff=100, max_backoff=100)
def broken(*_):
    raise RuntimeError("no item 1")


@dramatiq.actor
def order(number):
    work.send(number)
    extract.send()
    time.sleep(0.05)


@dramatiq.actor(time_limit=500, max_retries=0)
def hang():
    while True:
        time.sleep(0.01)


@dramatiq.actor
def stuck():
    time.sleep(60)


@contextmanager
def together(name):
    """What is sent in the block is one run: by a span around it, or without any."""
    with contextlib.ExitStack() as stack:
        if HOOKS:
            stack.enter_context(tachograph.integrations.dramatiq.together(name))
        elif os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            stack.enter_context(trace.get_tracer("shop").start_as_current_span(name))
        yield


def entries(message):
    if not os.path.exists(JOURNAL):
        return []
    with open(JOURNAL) as journal:
        return [entry for entry in map(json.loads, journal) if entry["id"] == message.message_id]


def wait(message, kind, count=1):
    deadline = time.monotonic() + 60
    while sum(entry["kind"] == kind for entry in entries(message)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{message.actor_name}: {entries(message)}")
        time.sleep(0.05)


def told(message, depends_on=(), **more):
    # The next message may start before the end of this one is written down.
    wait(message, "started")
    starts = sum(entry["kind"] == "started" for entry in entries(message))
    deadline = time.monotonic() + 60
    while len(entries(message)) < 2 * starts and time.monotonic() < deadline:
        time.sleep(0.05)
    tries = []
    for entry in entries(message):
        if entry["kind"] == "started":
            tries.append({"attempt": len(tries) + 1, "started_at": at(entry["at"])})
        else:
            tries[-1].update(status=entry["kind"], ended_at=at(entry["at"]))
            error = entry["error"]
    return step(message.actor_name, tries[-1]["status"], len(tries), [*depends_on], tries=tries,
                run_id=message.message_id, started_at=tries[0]["started_at"], ended_at=tries[-1]["ended_at"],
                error=error, **more)  # fmt: skip


def pipeline():
    path = os.path.abspath(f"flaky-{time.time_ns()}")
    with together("dramatiq nightly"):
        messages = [extract.message(), work.message(), flaky.message_with_options(args=(path,), pipe_ignore=True)]
        dramatiq.pipeline(messages).run()
    wait(messages[-1], "completed")
    first, second, last = messages
    steps = [told(first), told(second, ["extract"]), told(last, ["work"])]
    # All messages are made by the sender before the first is sent.
    edges = [{"edge": "extract->work"}, {"edge": "work->flaky"}]
    return [execution("dramatiq nightly", "completed", steps)], edges


def group():
    with together("dramatiq group"):
        messages = [work.message() for _ in range(3)]
        dramatiq.group(messages).run()
    for message in messages:
        wait(message, "completed")
    steps = [told(message, index=i) for i, message in enumerate(messages)]
    # Without a completion callback nothing in a group's messages says that it is one.
    return [execution("dramatiq group", "completed", steps)], [{"step": "work", "field": "index"}] if HOOKS else []


def alone():
    message = extract.send()
    wait(message, "completed")
    return [execution("extract", "completed", [told(message)])], []


def delayed():
    message = extract.send_with_options(delay=1000)
    wait(message, "completed")
    asked, due = at(message.message_timestamp / 1000), at(message.options["eta"] / 1000)
    # By the hooks, a run starts with its first step; before, it is pending.
    told_of = told(message, **({} if HOOKS else {"asked_at": asked, "scheduled_at": due}))
    return [execution("extract", "completed", [told_of])], [{"step": "extract", "field": "scheduled_at"}]


def later_in_block():
    """A message that is delayed, in a run that has begun."""
    with together("dramatiq later"):
        soon = extract.send()
        later = work.send_with_options(delay=1500)
    wait(later, "completed")
    asked, due = at(later.message_timestamp / 1000), at((later.message_timestamp + 1500) / 1000)
    first, second = told(soon), told(later)
    second = for_later(second, asked, due, first["started_at"])
    return [execution("dramatiq later", "completed", [first, second])], []


def failed():
    message = broken.send()
    wait(message, "failed", 2)
    # The instrumentor says OK of every try. That one failed is told by the next of its message, so the last looks well.
    run = execution("broken", "failed", [told(message, status_or=["completed"])], status_or=["completed"])
    return [run], [{"step": "broken", "field": field} for field in ("error", "tries")]


def callback():
    """A group of five with a completion callback, sent bare."""
    messages = [work.message(i) for i in range(5)]
    last = extract.message()
    whole = dramatiq.group(messages)
    whole.add_completion_callback(last)
    whole.run()
    wait(last, "completed")
    steps = [*(told(message, index=i) for i, message in enumerate(messages)),
             told(last, [f"work#{i}" for i in range(5)])]  # fmt: skip
    return [execution("work", "completed", steps)], []


def pipeline_failed():
    """What comes after a message that failed is never sent: Dramatiq has no record of it."""
    messages = [extract.message(), broken.message(), work.message()]
    dramatiq.pipeline(messages).run()
    wait(messages[1], "failed", 2)
    steps = [told(messages[0]), told(messages[1], ["extract"]), step("work", "skipped", 0, ["broken"])]
    return [execution("extract", "failed", steps, error="RuntimeError: no item 1")], []


def nested():
    """An actor that sends others: they belong to its run."""
    message = order.send(1)
    wait(message, "completed")
    deadline = time.monotonic() + 60
    while True:
        with open(JOURNAL) as journal:
            lines = [entry for entry in map(json.loads, journal) if entry["at"] >= entries(message)[0]["at"]]
        ids = dict.fromkeys(entry["id"] for entry in lines)
        if len(lines) == 6 or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    names = {entry["id"]: entry["actor"] for entry in lines}
    # Not made by its actor: the instrumentor would make a span of it.
    messages = [dramatiq.Message("default", names[each], (), {}, {}, message_id=each) for each in ids]
    steps = [told(each) for each in messages]
    if not HOOKS:
        for entry in steps:
            # They run beside the message that sent them, or after it.
            if entry["name"] != "order":
                del entry["depends_on"]
    return [execution("order", "completed", steps)], []


def timed_out():
    message = hang.send()
    wait(message, "failed")
    entry = told(message)
    entry["status"] = entry["tries"][0]["status"] = "timeout"
    return [execution("hang", "timeout", [entry])], []


def worker_killed():
    message = stuck.send()
    wait(message, "started")
    run = execution("stuck", "lost", [step("stuck", "lost", 1, [], started_at=at(entries(message)[0]["at"]))])
    # That it has started must be with the reader before the worker is killed.
    tell(f"{PREFIX}_worker_at_work", [run], goes_on=True)
    os.killpg(WORKER[0].pid, signal.SIGKILL)
    WORKER[0].wait()
    return [run], []


WORKER = []
UNKNOWN = {
    "delayed": ["that a message was delayed: the delay counts as queue"],
    "pipeline": ["what waits for what: all messages are made before the first is sent"],
    "failed": ["that the last try failed: the span of every try says OK"],
}
"""What spans cannot tell of a scene, in words."""

SCENES = [pipeline, group, alone, delayed, failed, nested]
HOOKED = [callback, later_in_block, pipeline_failed, timed_out, worker_killed]
"""What only the middleware can tell, and no span."""


def main(names):
    stop_at_sigterm()
    command = [sys.executable, "-m", "dramatiq", "dramatiq_kinds", "--processes", "1", "--threads", "4"]
    worker = spawn(command, "worker.log")
    WORKER.append(worker)
    try:
        for scene in [*SCENES, *(HOOKED if HOOKS else ())]:
            if not names or scene.__name__ in names:
                executions, unknowable = scene()
                if HOOKS:
                    tachograph.get_recorder().flush(60)
                tell(
                    f"{PREFIX}_{scene.__name__}",
                    executions,
                    unknowable=unknowable if not HOOKS or scene is group else [],
                    unknown=[] if HOOKS else UNKNOWN.get(scene.__name__, []),
                    index_from="order",
                    edges_from="order",
                    truth_from="a middleware in the worker; edges from the program",
                )
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main(sys.argv[2:])
