"""A Celery application as users write it, instrumented only with opentelemetry-instrumentation-celery.

python celery_kinds.py redis://… [SCENE …]
python celery_kinds.py amqp://… redis://… [SCENE …]

Plays scenes with workers of its own. The truth is from the workers' events, the order in which the program asked for
tasks, and the result backend.
"""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from celery import Celery, chain, chord, group, uuid
from celery.result import GroupResult
from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from telling import at, execution, for_later, spawn, step, stop_at_sigterm, tell

BROKER = os.environ.get("BROKER") or os.environ.setdefault("BROKER", sys.argv[1])
# A process that the worker stops has time to send a span that it ends, only if it sends it at once.
AT_ONCE = os.environ.get("SPANS_AT_ONCE") == "1"
# Then each run is the root of a trace, with a link to the span that sent its message.
LINKS = os.environ.get("SPAN_LINKS") == "1"
# Then Tachograph's span processor says which tasks belong together.
LIVE = os.environ.get("LIVE_SPANS") == "1"
# Then the tasks are told of by Celery's signals instead of spans.
HOOKS = os.environ.get("HOOKS") == "1"
PREFIXES = {"celery_hooks": HOOKS, "celery_at_once": AT_ONCE, "celery_links": LINKS, "celery_live": LIVE}
PREFIX = next((prefix for prefix, chosen in PREFIXES.items() if chosen), "celery")
# RabbitMQ keeps no results.
RESULTS = os.environ.get("RESULTS") or os.environ.setdefault(
    "RESULTS", sys.argv[2] if BROKER.startswith("amqp") else BROKER
)
app = Celery("celery_kinds", broker=BROKER, backend=RESULTS)
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_extended=True,
    task_track_started=True,
    worker_prefetch_multiplier=1,
)
if HOOKS:
    import tachograph.integrations.celery

    tachograph.integrations.celery.instrument(app)


@worker_process_init.connect(weak=False)
def instrument(**_):
    if HOOKS and not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    provider = TracerProvider()
    exporter = OTLPSpanExporter()
    provider.add_span_processor(
        SimpleSpanProcessor(exporter) if AT_ONCE else BatchSpanProcessor(exporter, schedule_delay_millis=200)
    )
    if LIVE:
        from tachograph.spans import LiveSpanProcessor

        provider.add_span_processor(LiveSpanProcessor())
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument(use_span_links=LINKS)


@app.task
def fetch(number):
    time.sleep(0.1)
    return number


@app.task(bind=True, max_retries=2)
def price(self, number):
    time.sleep(0.05)
    if self.request.retries < 1:
        raise self.retry(exc=ValueError("no price yet"), countdown=0.5)
    return number


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=2, default_retry_delay=0)
def unreachable(self, number):
    raise ConnectionError("no route to the shop")


@app.task
def store(number):
    time.sleep(0.05)
    return number


@app.task(bind=True, max_retries=2)
def due(self, number):
    time.sleep(0.05)
    if self.request.retries < 1:
        raise self.retry(exc=ValueError("no price yet"), eta=datetime.now(UTC) + timedelta(seconds=1))
    return number


@app.task(bind=True)
def delegate(self, number):
    time.sleep(0.05)
    raise self.replace(store.s(number))


@app.task
def apologise(task_id):
    time.sleep(0.05)


@app.task
def total(numbers):
    time.sleep(0.05)
    return sum(numbers)


@app.task
def broken(number):
    raise RuntimeError(f"no item {number}")


@app.task
def hang(number):
    time.sleep(60)


@app.task
def die(number):
    # What the out-of-memory killer does.
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(acks_late=True, reject_on_worker_lost=True)
def survive(path):
    if not os.path.exists(path):
        with open(path, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)


@app.task(bind=True, max_retries=3)
def again_later(self, number):
    raise self.retry(exc=ValueError("no price yet"), countdown=30)


@app.task(bind=True)
def spread_out(self, number):
    raise self.replace(chord([fetch.s(i) for i in range(number)], total.s()))


@app.task
def inline(number):
    time.sleep(0.05)
    fetch.apply((number,))
    store.delay(number)


@app.task
def order(number):
    time.sleep(0.05)
    fetch.delay(number)
    store.delay(number)
    time.sleep(0.05)


@app.task
def spread(number):
    group(fetch.s(i) for i in range(number)).apply_async()


LAST = ("task-succeeded", "task-failed", "task-revoked")
ENDS = (*LAST, "task-retried")


class Events:
    """What the workers say of each task, by its id."""

    def __init__(self):
        self.by_task = {}
        self.changed = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": self.keep})
            receiver.capture(limit=None, timeout=None, wakeup=False)

    def keep(self, event):
        if "uuid" in event:
            with self.changed:
                self.by_task.setdefault(event["uuid"], []).append(event)
                self.changed.notify_all()

    def of(self, task_id, kind):
        with self.changed:
            return [event for event in self.by_task.get(task_id, []) if event["type"] == kind]

    def wait(self, task_id, *kinds, count=1, seconds=60):
        with self.changed:
            if not self.changed.wait_for(
                lambda: sum(e["type"] in kinds for e in self.by_task.get(task_id, [])) >= count, seconds
            ):
                raise TimeoutError(f"no {kinds} of {task_id}: {self.by_task.get(task_id)}")

    def wait_for_ends(self, task_id, lost):
        def have_come():
            kinds = [event["type"] for event in self.by_task.get(task_id, [])]
            ends = sum(kind in ENDS for kind in kinds)
            return ends + lost >= max(1, kinds.count("task-started")) and any(kind in LAST for kind in kinds)

        with self.changed:
            if not self.changed.wait_for(have_come, 60):
                raise TimeoutError(f"{task_id} has not ended: {self.by_task.get(task_id)}")

    def named(self, name, parent):
        """The id of the task of a name that another task sent."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.find(name, parent), 60):
                raise TimeoutError(f"{parent} sent no {name}")
            return self.find(name, parent)

    def find(self, name, parent):
        for task_id, events in self.by_task.items():
            for event in events:
                if event.get("name") == name and event.get("parent_id") == parent:
                    return task_id
        return None


STATUSES = {"SUCCESS": "completed", "FAILURE": "failed", "REVOKED": "cancelled", "STARTED": "lost", "RETRY": "lost"}


class Stage:
    """Workers, their events, and what is told of tasks."""

    def __init__(self):
        self.worker = None
        self.events = Events()

    @contextmanager
    def working(self):
        self.start()
        try:
            yield self
        finally:
            self.worker.terminate()
            self.worker.wait(20)

    def start(self):
        command = [sys.executable, "-m", "celery", "-A", "celery_kinds", "worker", "-E", "--concurrency", "3",
                   "--loglevel", "INFO", "--without-mingle", "--without-gossip"]  # fmt: skip
        self.worker = spawn(command, "worker.log")
        while not app.control.ping(timeout=0.3):
            if self.worker.poll() is not None:
                raise RuntimeError("the worker has ended")

    def kill(self):
        os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()

    def step(self, task_id, depends_on=(), *, index=None, status=None, lost=0, **more):
        """A step by the events and the result of a task.

        Without ``status`` it has ended, and all events that say so are waited for: the next task may start before them.
        ``lost`` tries end without an event.
        """
        if status is None:
            self.events.wait_for_ends(task_id, lost)
        tries = []
        for event in self.events.by_task.get(task_id, []):
            when, kind = at(event["timestamp"]), event["type"]
            if kind == "task-started":
                tries.append({"attempt": len(tries) + 1, "status": "lost", "started_at": when})
            elif kind in ENDS and tries:
                outcome = {"task-succeeded": "completed", "task-revoked": "cancelled"}.get(kind, "failed")
                last = tries[-1]
                if outcome == "failed":
                    # The next try may have started before the worker tells how this one ended.
                    last = next((attempt for attempt in tries if "ended_at" not in attempt), last)
                last.update(status=outcome, ended_at=when)
        result = app.AsyncResult(task_id)
        if tries and status and tries[-1]["status"] == "lost":
            tries[-1]["status"] = status
        error = f"{type(result.result).__name__}: {result.result}" if result.state == "FAILURE" else None
        return step(
            result.name or next(e["name"] for e in self.events.by_task[task_id] if "name" in e),
            status or STATUSES[result.state],
            len(tries),
            [*depends_on],
            index=index,
            started_at=tries[0]["started_at"] if tries else None,
            ended_at=tries[-1].get("ended_at") if tries else None,
            tries=tries,
            engine_status=result.state,
            error=error,
            **more,
        )


def run_name(span):
    """How a run is called that was sent within a span: hooks call it like its first task."""
    return NAME + "fetch" if HOOKS else span


def ids_of(result):
    """The ids of a chain's tasks, the first one first."""
    ids = []
    while result is not None:
        ids.insert(0, result.id)
        result = result.parent
    return ids


def spans_sent():
    if HOOKS:
        tachograph.integrations.celery.get_recorder().flush(60)
    if HOOKS and not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    trace.get_tracer_provider().force_flush()


NAME = "celery_kinds."


def chain_with_retry(stage):
    fetched, priced, stored = ids_of(chain(fetch.s(1), price.s(), store.s()).apply_async())
    stage.events.wait(stored, "task-succeeded")
    steps = [
        stage.step(fetched),
        stage.step(priced, [NAME + "fetch"]),
        stage.step(stored, [NAME + "price"]),
    ]
    return [execution(None, "completed", steps, workflow_also=[NAME + "fetch"])], ()


def chain_failed(stage):
    fetched, failing, stored = ids_of(chain(fetch.s(1), broken.s(), store.s()).apply_async())
    stage.events.wait(failing, "task-failed")
    steps = [
        stage.step(fetched),
        stage.step(failing, [NAME + "fetch"]),
        # Never sent: Celery has no record of it.
        step(NAME + "store", "skipped", 0, [NAME + "broken"], run_id=stored),
    ]
    run = execution(None, "failed", steps, workflow_also=[NAME + "fetch"], error="RuntimeError: no item 1")
    return [run], [{"step": NAME + "store"}]


def retries_exhausted(stage):
    result = unreachable.delay(1)
    stage.events.wait(result.id, "task-failed")
    run = execution(NAME + "unreachable", "failed", [stage.step(result.id)])
    return [run], ()


def group_bare(stage):
    results = group(fetch.s(i) for i in range(3)).apply_async().results
    for result in results:
        stage.events.wait(result.id, "task-succeeded")
    told = [stage.step(r.id, index=i, run_id=r.id) for i, r in enumerate(results)]
    return roots(stage, told) if not LIVE else [execution(NAME + "fetch", "completed", told)], ()


def groups_at_once(stage):
    """Two groups of the same tasks."""
    groups = [group(fetch.s(i) for i in range(2)).apply_async() for _ in range(2)]
    executions = []
    for result in groups:
        result.save()
        stored = GroupResult.restore(result.id)
        for task in stored.results:
            stage.events.wait(task.id, "task-succeeded")
        told = [stage.step(task.id, index=i, run_id=task.id) for i, task in enumerate(stored.results)]
        executions.append(execution(NAME + "fetch", "completed", told, run_id=stored.id))
    return executions, ()


def group_in_task(stage):
    """A task that sends a group: all of them come from it."""
    result = spread.delay(2)
    stage.events.wait(result.id, "task-succeeded")
    ids = [child.id for child in result.children[0].results]
    for task_id in ids:
        stage.events.wait(task_id, "task-succeeded")
    steps = [stage.step(result.id), *(stage.step(task_id, index=i) for i, task_id in enumerate(ids))]
    for told in steps[1:]:
        # They run beside the task that sent them, or after it.
        del told["depends_on"]
    return [execution(NAME + "spread", "completed", steps)], ()


def group_failed(stage):
    results = group([fetch.s(1), broken.s(2)]).apply_async().results
    stage.events.wait(results[0].id, "task-succeeded")
    stage.events.wait(results[1].id, "task-failed")
    steps = [stage.step(result.id) for result in results]
    run = execution(None, "failed", steps, workflow_also=[NAME + "fetch"], error="RuntimeError: no item 2")
    return [run], ()


def roots(stage, steps):
    """An execution for each root id that Celery gives: to each task that is sent on its own, so to each of a group."""
    if HOOKS:
        # What was sent together is one run.
        return [execution(steps[0]["name"], "completed", steps)]
    by_root = {}
    for told in steps:
        root = stage.events.of(told["run_id"], "task-received")[0]["root_id"]
        by_root.setdefault(root, []).append(told)
    executions = []
    for together in by_root.values():
        names = {f"{other['name']}#{other['index']}" for other in together}
        told = [{**one, "index": None, "depends_on": [n.partition("#")[0] for n in one["depends_on"] if n in names]}
                for one in together]  # fmt: skip
        executions.append(execution(told[0]["name"], "completed", told))
    return executions


def group_in_span(stage):
    with trace.get_tracer("shop").start_as_current_span("nightly fetch"):
        results = group(fetch.s(i) for i in range(3)).apply_async().results
    for result in results:
        stage.events.wait(result.id, "task-succeeded")
    steps = [stage.step(result.id, index=i) for i, result in enumerate(results)]
    return [execution(run_name("nightly fetch"), "completed", steps)], ()


def chord_steps(stage, result):
    header = [r.id for r in result.parent.results]
    stage.events.wait(result.id, "task-succeeded")
    steps = [stage.step(task_id, index=i, run_id=task_id) for i, task_id in enumerate(header)]
    names = [f"{NAME}fetch#{i}" for i in range(3)]
    return [*steps, stage.step(result.id, names, run_id=result.id)]


def chord_in_span(stage):
    with trace.get_tracer("shop").start_as_current_span("report"):
        result = chord([fetch.s(i) for i in range(3)], total.s()).apply_async()
    # The body's span hangs under the header's task that ended last.
    unknowable = () if LIVE else [{"execution": 0, "edge": f"{NAME}fetch#{i}->{NAME}total"} for i in range(3)]
    return [execution(run_name("report"), "completed", chord_steps(stage, result))], unknowable


def chord_bare(stage):
    result = chord([fetch.s(i) for i in range(3)], total.s()).apply_async()
    told = chord_steps(stage, result)
    return roots(stage, told) if not LIVE else [execution(NAME + "fetch", "completed", told)], ()


def countdown(stage):
    asked = at(time.time())
    result = store.apply_async((1,), countdown=1.5)
    stage.events.wait(result.id, "task-succeeded")
    received = stage.events.of(result.id, "task-received")[0]
    # By the hooks, a run starts with its first step; before, it is pending.
    more = {} if HOOKS else {"asked_at": asked, "scheduled_at": received["eta"]}
    told = stage.step(result.id, **more)
    return [execution(NAME + "store", "completed", [told])], ()


def nested(stage):
    result = order.delay(1)
    fetched = stage.events.named(NAME + "fetch", result.id)
    stored = stage.events.named(NAME + "store", result.id)
    for task_id in (result.id, fetched, stored):
        stage.events.wait(task_id, "task-succeeded")
    steps = [stage.step(result.id), stage.step(fetched), stage.step(stored)]
    for told in steps[1:]:
        # They run beside the task that sent them, or after it.
        del told["depends_on"]
    return [execution(NAME + "order", "completed", steps)], ()


def chain_with_group(stage):
    """A group in the middle of a chain: Celery makes a chord of it. One of its tasks is tried again."""
    with trace.get_tracer("shop").start_as_current_span("report"):
        result = chain(fetch.s(1), group(store.s(), price.s()), total.s()).apply_async()
    stored, priced = [task.id for task in result.parent.results]
    stage.events.wait(result.id, "task-succeeded")
    steps = [
        stage.step(result.parent.parent.id),
        stage.step(stored, [NAME + "fetch"]),
        stage.step(priced, [NAME + "fetch"]),
        stage.step(result.id, [NAME + "store", NAME + "price"]),
    ]
    edges = [] if LIVE else [{"edge": f"{NAME}store->{NAME}total"}, {"edge": f"{NAME}price->{NAME}total"}]
    return [execution(run_name("report"), "completed", steps)], edges


def chord_of_chains(stage):
    """A chord whose header has a chain and a group."""
    with trace.get_tracer("shop").start_as_current_span("report"):
        header = [chain(fetch.s(0), store.s()), group(fetch.s(1), fetch.s(2))]
        result = chord(header, total.s()).apply_async()
    stage.events.wait(result.id, "task-succeeded")
    told, names = [], []
    for count, task in enumerate(flat(result.parent.results)):
        if task.parent is not None:
            told.append(stage.step(task.parent.id, index=count))
            told.append(stage.step(task.id, [f"{NAME}fetch#{count}"]))
            names.append(NAME + "store")
        else:
            told.append(stage.step(task.id, index=count))
            names.append(f"{NAME}fetch#{count}")
    steps = [*told, stage.step(result.id, names)]
    edges = [] if LIVE else [{"edge": f"*->{NAME}total"}]
    return [execution(run_name("report"), "completed", steps)], edges


def flat(results):
    for result in results:
        if isinstance(result, GroupResult):
            yield from flat(result.results)
        else:
            yield result


def never_run(task_id):
    """The body of a chord that failed: the result backend has its failure, though it never ran."""
    if HOOKS:
        return step(NAME + "total", "skipped", 0, [NAME + "fetch", NAME + "broken"])
    return step(NAME + "total", "failed", 0, [], run_id=task_id)


def chord_failed(stage):
    """One task of a chord's header fails: its body never runs."""
    with trace.get_tracer("shop").start_as_current_span("report"):
        result = chord([fetch.s(1), broken.s(2)], total.s()).apply_async()
    good, bad = [task.id for task in result.parent.results]
    stage.events.wait(good, "task-succeeded")
    stage.events.wait(bad, "task-failed")
    steps = [stage.step(good), stage.step(bad), never_run(result.id)]
    run = execution(run_name("report"), "failed", steps, error="RuntimeError: no item 2")
    return [run], [{"step": NAME + "total"}]


def linked(stage):
    """A task that another one is linked to as its callback, and one that is told of an error."""
    fetched = fetch.apply_async((1,), link=store.s())
    stage.events.wait(fetched.id, "task-succeeded")
    stored = stage.events.named(NAME + "store", fetched.id)
    stage.events.wait(stored, "task-succeeded")
    failing = broken.apply_async((1,), link_error=apologise.s())
    stage.events.wait(failing.id, "task-failed")
    told = stage.events.named(NAME + "apologise", failing.id)
    stage.events.wait(told, "task-succeeded")
    return [
        execution(NAME + "fetch", "completed", [stage.step(fetched.id), stage.step(stored, [NAME + "fetch"])]),
        execution(NAME + "broken", "failed", [stage.step(failing.id), stage.step(told, [NAME + "broken"])],
                  error="RuntimeError: no item 1"),
    ], ()  # fmt: skip


def retry_with_eta(stage):
    """A countdown before the first try, and a time at which the second one is due."""
    asked = at(time.time())
    result = due.apply_async((1,), countdown=1)
    stage.events.wait(result.id, "task-succeeded")
    received = stage.events.of(result.id, "task-received")[0]
    # By the hooks, a run starts with its first step; before, it is pending.
    more = {} if HOOKS else {"asked_at": asked, "scheduled_at": received["eta"]}
    told = stage.step(result.id, **more)
    return [execution(NAME + "due", "completed", [told])], ()


def replaced(stage):
    """A task that replaces itself by another one, which has the same id."""
    result = delegate.delay(1)
    stage.events.wait(result.id, "task-succeeded")
    events = stage.events.by_task[result.id]
    began = [event for event in events if event["type"] == "task-started"]
    (end,) = [event for event in events if event["type"] == "task-succeeded"]
    # Of a task that replaces itself the worker does not tell how it ended.
    steps = [
        step(NAME + "delegate", "completed", 1, [], started_at=at(began[0]["timestamp"])),
        step(NAME + "store", "completed", 1, [NAME + "delegate"], started_at=at(began[1]["timestamp"]),
             ended_at=at(end["timestamp"])),
    ]  # fmt: skip
    return [execution(NAME + "delegate", "completed", steps)], ()


def soft_time_limit(stage):
    result = hang.apply_async((1,), soft_time_limit=1)
    stage.events.wait(result.id, "task-failed")
    told = stage.step(result.id)
    if HOOKS:
        told["status"] = told["tries"][-1]["status"] = "timeout"
    return [execution(NAME + "hang", "timeout" if HOOKS else "failed", [told])], ()


def chord_error_callback(stage):
    """One task of a chord's header fails, and a task is told of it in place of the body."""
    with trace.get_tracer("shop").start_as_current_span("report"):
        result = chord([fetch.s(1), broken.s(2)], total.s().on_error(apologise.s())).apply_async()
    good, bad = [task.id for task in result.parent.results]
    stage.events.wait(good, "task-succeeded")
    stage.events.wait(bad, "task-failed")
    told = stage.events.named(NAME + "apologise", result.id)
    stage.events.wait(told, "task-succeeded")
    steps = [stage.step(good), stage.step(bad), never_run(result.id), stage.step(told)]
    del steps[-1]["depends_on"]
    run = execution(run_name("report"), "failed", steps, error="RuntimeError: no item 2")
    return [run], [{"step": NAME + "total"}]


def chord_with_retry(stage):
    """A task of a chord's header is tried again: its body waits for that."""
    with trace.get_tracer("shop").start_as_current_span("report"):
        result = chord([fetch.s(1), price.s(2)], total.s()).apply_async()
    fetched, priced = [task.id for task in result.parent.results]
    stage.events.wait(result.id, "task-succeeded")
    steps = [stage.step(fetched), stage.step(priced), stage.step(result.id, [NAME + "fetch", NAME + "price"])]
    edges = [] if LIVE else [{"edge": f"{NAME}fetch->{NAME}total"}]
    return [execution(run_name("report"), "completed", steps)], edges


def chord_in_chord(stage):
    """A chord whose header has a chord."""
    with trace.get_tracer("shop").start_as_current_span("report"):
        inner = chord([fetch.s(0), fetch.s(1)], total.s())
        result = chord([inner, fetch.s(2)], total.s()).apply_async()
    stage.events.wait(result.id, "task-succeeded")
    summed, fetched = result.parent.results
    first = [task.id for task in summed.parent.results]
    # Hooks know the number in its own group.
    numbers, last = ([0, 1, 1], None) if HOOKS else ([0, 1, 2], 1)
    names = [f"{NAME}fetch#{i}" for i in numbers]
    steps = [stage.step(task_id, index=i) for i, task_id in zip(numbers, [*first, fetched.id], strict=True)]
    steps += [stage.step(summed.id, names[:2], index=0),
              stage.step(result.id, [NAME + "total#0", names[2]], index=last)]  # fmt: skip
    edges = [] if LIVE else [{"edge": f"*->{NAME}total#{i}"} for i in range(2)]
    return [execution(run_name("report"), "completed", steps)], edges


def replaced_by_chord(stage):
    """A task that replaces itself by a chord."""
    result = spread_out.delay(2)
    stage.events.wait_for_ends(result.id, 1)
    received = [event for events in stage.events.by_task.values() for event in events
                if event["type"] == "task-received" and event.get("root_id") == result.id]  # fmt: skip
    headers = [event["uuid"] for event in sorted(received, key=lambda event: event["timestamp"])
               if event["name"] == NAME + "fetch"]  # fmt: skip
    began = stage.events.of(result.id, "task-started")
    # Of a task that replaces itself the worker does not tell how it ended; what it is replaced by has its id.
    steps = [step(NAME + "spread_out", "completed", 1, [], started_at=at(began[0]["timestamp"]))]
    steps += [stage.step(task_id, [NAME + "spread_out"], index=i) for i, task_id in enumerate(headers)]
    end = stage.events.of(result.id, "task-succeeded")[-1]
    steps.append(step(NAME + "total", "completed", 1, [f"{NAME}fetch#{i}" for i in range(2)],
                      started_at=at(began[-1]["timestamp"]), ended_at=at(end["timestamp"])))  # fmt: skip
    edges = [] if LIVE else [{"edge": f"{NAME}fetch#{i}->{NAME}total"} for i in range(2)]
    return [execution(NAME + "spread_out", "completed", steps)], edges


def revoked_between_tries(stage):
    """A task that is revoked while it waits for its second try."""
    result = again_later.delay(1)
    stage.events.wait(result.id, "task-retried")
    stage.events.wait(result.id, "task-received", count=2)
    result.revoke()
    stage.events.wait(result.id, "task-revoked")
    told = stage.step(result.id, status="cancelled")
    told["status_or"] = ["lost", "failed", "retrying", "running", "pending"]
    name = NAME + "again_later"
    return [execution(name, "cancelled", [told], status_or=["running", "lost", "failed"])], [
        {"step": name, "field": field} for field in ("ended_at", "error", "tries")
    ]


def eager(stage):
    """A task that runs another one within itself, and sends a third."""
    result = inline.delay(1)
    stored = stage.events.named(NAME + "store", result.id)
    stage.events.wait(stored, "task-succeeded")
    steps = [stage.step(result.id), step(NAME + "fetch", "completed", 1, parent=NAME + "inline"), stage.step(stored)]
    del steps[-1]["depends_on"]
    return [execution(NAME + "inline", "completed", steps)], ()


def in_chunks(stage):
    """Six calls in three tasks."""
    with trace.get_tracer("shop").start_as_current_span("report"):
        result = fetch.chunks([(i,) for i in range(6)], 2).group().apply_async()
    for task in result.results:
        stage.events.wait(task.id, "task-succeeded")
    steps = [stage.step(task.id, index=i) for i, task in enumerate(result.results)]
    return [execution(steps[0]["name"] if HOOKS else "report", "completed", steps)], ()


def group_of_chains(stage):
    """Five chains that are sent as a group."""
    sent = group(chain(fetch.s(i), store.s()) for i in range(5)).apply_async()
    for task in sent.results:
        stage.events.wait(task.id, "task-succeeded")
    steps = [stage.step(task.parent.id, index=i) for i, task in enumerate(sent.results)]
    steps += [stage.step(task.id, [f"{NAME}fetch#{i}"], index=i) for i, task in enumerate(sent.results)]
    return [execution(NAME + "fetch", "completed", steps)], ()


def in_block(stage):
    """A chain that ends in a group, and a task, that are sent in a block."""
    with tachograph.integrations.celery.together("celery nightly"):
        result = chain(fetch.s(1), group(store.s(), store.s())).apply_async()
        alone = fetch.delay(2)
    for task in (*result.results, alone):
        stage.events.wait(task.id, "task-succeeded")
    steps = [stage.step(result.parent.id), stage.step(alone.id)]
    steps += [stage.step(task.id, [NAME + "fetch"], index=i) for i, task in enumerate(result.results)]
    return [execution("celery nightly", "completed", steps)], ()


def later_in_block(stage):
    """A task with a countdown, in a run that has begun."""
    with tachograph.integrations.celery.together("celery later"):
        soon, asked = fetch.delay(1), at(time.time())
        later = store.apply_async((1,), countdown=1.5)
    stage.events.wait(later.id, "task-succeeded")
    due = stage.events.of(later.id, "task-received")[0]["eta"]
    first, second = stage.step(soon.id), stage.step(later.id)
    return [execution("celery later", "completed", [first, for_later(second, asked, due, first["started_at"])])], ()


def group_partly_failed(stage):
    with trace.get_tracer("shop").start_as_current_span("nightly"):
        results = group(fetch.s(1), price.s(2), unreachable.s(3)).apply_async().results
    stage.events.wait(results[0].id, "task-succeeded")
    stage.events.wait(results[1].id, "task-succeeded")
    stage.events.wait(results[2].id, "task-failed")
    steps = [stage.step(result.id) for result in results]
    run = execution(run_name("nightly"), "failed", steps, error="ConnectionError: no route to the shop")
    return [run], ()


def never_told(name):
    """The process that has the run's span was killed: only that the task was sent is known from spans."""
    if HOOKS:
        return []
    fields = ("status", "attempts", "started_at", "ended_at", "error")
    return [{"execution": 0, "field": "status"}, *({"step": name, "field": field} for field in fields)]


def hard_time_limit(stage):
    result = hang.apply_async((1,), time_limit=1)
    result.get(timeout=60, propagate=False)
    told = stage.step(result.id, status="timeout")
    return [execution(NAME + "hang", "timeout", [told])], never_told(NAME + "hang")


def revoked(stage):
    task_id = uuid()
    app.control.revoke(task_id)
    while not any(task_id in ids for ids in (app.control.inspect().revoked() or {}).values()):
        time.sleep(0.1)
    result = store.apply_async((1,), task_id=task_id)
    stage.events.wait(result.id, "task-revoked")
    # The worker drops the message.
    return [execution(NAME + "store", "cancelled", [stage.step(result.id)])], never_told(NAME + "store")


def terminated(stage):
    result = hang.delay(1)
    stage.events.wait(result.id, "task-started")
    result.revoke(terminate=True)
    stage.events.wait(result.id, "task-revoked")
    return [execution(NAME + "hang", "cancelled", [stage.step(result.id)])], never_told(NAME + "hang")


def process_killed(stage):
    result = die.delay(1)
    stage.events.wait(result.id, "task-failed")
    return [execution(NAME + "die", "failed", [stage.step(result.id)])], never_told(NAME + "die")


def worker_killed(stage):
    fetched, hanging = ids_of(chain(fetch.s(1), hang.s()).apply_async())
    stage.events.wait(hanging, "task-started")
    steps = [stage.step(fetched), stage.step(hanging, [NAME + "fetch"], status="running", status_or=["pending"])]
    run = execution(None, "running", steps, workflow_also=[NAME + "fetch"])
    # The spans of `fetch` must be with the reader before the worker is killed.
    tell(f"{PREFIX}_worker_at_work", [run], unknowable=never_told(NAME + "hang")[1:], goes_on=True)
    stage.kill()
    stage.start()
    steps = [stage.step(fetched), stage.step(hanging, [NAME + "fetch"], status="lost")]
    run = execution(None, "lost", steps, workflow_also=[NAME + "fetch"])
    return [run], never_told(NAME + "hang")[1:]


def redelivered(stage):
    result = survive.delay(os.path.abspath(f"survived-{time.time_ns()}"))
    stage.events.wait(result.id, "task-succeeded")
    unknowable = [{"step": NAME + "survive", "field": field} for field in ("attempts", "started_at")]
    if HOOKS:
        # Its tries have one number.
        unknowable = unknowable[:1]
    return [execution(NAME + "survive", "completed", [stage.step(result.id, lost=1)])], unknowable


UNKNOWN = {
    "chain_failed": ["`store` was never sent: no span, and no record in Celery"],
    "chord_in_span": []
    if LIVE
    else ["which tasks of the header a chord's body waited for: its span hangs under the one that ended last"],
    "chain_with_group": []
    if LIVE
    else ["which tasks of the header a chord's body waited for: its span hangs under the one that ended last"],
    "chord_failed": ["the body of a chord whose header failed: it was never sent"],
    "hard_time_limit": ["that the time limit stopped the task: the process that had the span of its run was killed"],
    "revoked": ["that the task was revoked: the worker drops its message"],
    "terminated": ["that the task was revoked while it ran: the process that had its span was killed"],
    "process_killed": ["that the task's process was killed: its span died with it"],
    "worker_killed": ["that `hang` was started: its span died with the worker"],
    "redelivered": ["the first try: its span died with its process"],
}
"""What spans cannot tell of a scene, in words."""

ALONE = ["a group or chord that is sent without a span around it: each of its tasks is an execution of its own"]
if not LIVE:
    UNKNOWN |= {"group_bare": ALONE, "chord_bare": ALONE}
OF_LIVE = [
    chain_with_retry,
    group_bare,
    groups_at_once,
    group_in_task,
    group_failed,
    group_in_span,
    chord_bare,
    chord_in_span,
    nested,
    chain_with_group,
    chord_of_chains,
    chord_with_retry,
    chord_in_chord,
    replaced_by_chord,
    chord_error_callback,
]
"""What Tachograph's span processor makes a difference to, or must not."""

OTHERS = [
    chain_with_retry, chain_failed, retries_exhausted, group_bare, group_in_span, chord_bare, chord_in_span,
    countdown, nested, hard_time_limit, revoked, terminated, process_killed, worker_killed, redelivered,
]  # fmt: skip
BY_SPANS = [
    chain_with_group, chord_of_chains, chord_failed, linked, retry_with_eta, replaced, soft_time_limit,
    group_partly_failed, chord_error_callback, chord_with_retry, chord_in_chord, replaced_by_chord,
    revoked_between_tries, eager, in_chunks,
]  # fmt: skip
HOOKED = [group_of_chains, in_block, later_in_block]
"""What only the hooks can tell, and no span."""
SCENES = OF_LIVE if LIVE else [*OTHERS, *BY_SPANS, *(HOOKED if HOOKS else ())]


def main(names):
    stop_at_sigterm()
    instrument()
    with Stage().working() as stage:
        for scene in SCENES:
            if not names or scene.__name__ in names:
                executions, unknowable = scene(stage)
                spans_sent()
                tell(
                    f"{PREFIX}_{scene.__name__}",
                    executions,
                    unknowable=() if HOOKS and scene not in (redelivered, revoked_between_tries) else unknowable,
                    unknown=[] if HOOKS else UNKNOWN.get(scene.__name__, []),
                    index_from="order",
                    edges_from="recording",
                    truth_from="the workers' events and the result backend; edges from the program",
                )


if __name__ == "__main__":
    main(sys.argv[2 if RESULTS == BROKER else 3 :])
