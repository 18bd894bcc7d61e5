"""Steps are done by Celery workers: one task for all handlers, acknowledged late, revoked when the step is cancelled.

An attempt is one message. Celery's own retries are off: when a worker dies, its attempt has failed with that reason,
and the definition says whether there is another one. Three things can happen to a worker:

- One of its child processes dies: Celery itself says so (``WorkerLostError``).
- Its broker gives the message to another worker (RabbitMQ at once, Redis after its visibility timeout): that one sees
  that the work had begun, and answers that the first worker is gone.
- It is gone, and the broker keeps the message: it does not answer to pings any more.

Results are polled by one thread for all steps. https://docs.celeryq.dev/en/stable/userguide/tasks.html
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from tachograph.errors import SetupError
from tachograph.quiet_log import QuietLog
from tachograph.runners.celery_stacks import AskedTasks, answering
from tachograph.runners.work import finish, lost, perform, work_of
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import Handler, HandlerRegistry
from tachograph.workflow.worker_threads import DaemonThreads

if TYPE_CHECKING:
    from celery import Celery

quiet = QuietLog(logging.getLogger(__name__))

TASK: Final = "tachograph.step"
QUEUE: Final = "tachograph"
FIRST_POLL_SECONDS: Final = 0.01
MAX_POLL_SECONDS: Final = 0.2
"""How often results are looked for: as often as this while none come."""
PING_SECONDS: Final = 5.0
"""How often workers that have work are asked whether they are there, and how long they may take to answer."""
MAX_MISSED: Final = 3
"""A worker that missed so many pings in a row is gone."""
_VISIBILITY_SECONDS: Final = 7 * 86_400
"""After this time Redis gives a message to another worker, though the first one may be working on it."""
_RESULT_SECONDS: Final = 86_400


def app_of(url: str) -> Celery:
    """The Celery application of a runner and its workers.

    ``url``: ``celery+redis://HOST:PORT/DB`` (also ``celery://HOST:PORT/DB``), or any other broker that Celery knows, as
    ``celery+amqp://…?backend=redis://…``: results need a backend that keeps them by key. Raises `SetupError`.
    """
    try:
        from celery import Celery
    except ImportError:
        raise SetupError("steps on Celery need it: pip install 'tachograph[celery]'") from None
    broker, backend = _places(url)
    app = Celery("tachograph", broker=broker, backend=backend)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        result_serializer="json",
        result_expires=_RESULT_SECONDS,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_track_started=True,
        worker_prefetch_multiplier=1,
        # The workers' own log is theirs; what a step prints is not Celery's.
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": _VISIBILITY_SECONDS} if _is_redis(broker) else {},
    )
    if not hasattr(app.backend, "get_many"):
        raise SetupError(
            "the result backend of Celery has to keep results by key, such as redis:// does; name one with "
            "?backend=redis://HOST:PORT/DB after the broker"
        )
    return app


def _places(url: str) -> tuple[str, str]:
    """The URLs of the broker and the result backend in that of a runner."""
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[2] or "redis"
    query = dict(parse_qsl(parts.query))
    backend = query.pop("backend", None)
    broker = urlunsplit((scheme, parts.netloc or "localhost", parts.path, urlencode(query), ""))
    if backend is None and not _is_redis(broker):
        raise SetupError(
            "where do the results of steps go? Name a backend that keeps them by key: …?backend=redis://HOST:PORT/DB"
        )
    return broker, backend or broker


def _is_redis(url: str) -> bool:
    return urlsplit(url).scheme in ("redis", "rediss", "sentinel")


class CeleryRunner:
    """Has the work of steps done by Celery workers (``tachograph worker URL``). See `tachograph.workflow.Runner`."""

    is_local = False

    def __init__(self, url: str) -> None:
        self._app = app_of(url)
        self._threads = DaemonThreads()
        self._results = _Results(self._app)
        self._asked = AskedTasks(self._app.backend)

    async def run(self, handler: Handler, context: StepContext) -> Any:
        """See `Runner.run`. A cancelled step's task is revoked, and its process terminated."""
        body = work_of(handler, context).decode()
        task_id = str(uuid.uuid4())
        answer = self._results.expect(task_id)
        try:
            await self._threads.run(lambda: self._send(task_id, body))
            with self._asked.asking(task_id, context):
                return finish(await answer, context)
        except asyncio.CancelledError:
            self._results.forget(task_id)
            threading.Thread(target=self._revoke, args=(task_id,), name="tachograph-revoke", daemon=True).start()
            raise
        finally:
            self._results.forget(task_id)

    async def close(self) -> None:
        """See `Runner.close`."""
        await self._threads.run(self._app.close)

    def _send(self, task_id: str, body: str) -> None:
        self._app.send_task(TASK, (body,), task_id=task_id, queue=QUEUE, retry=True, retry_policy={"max_retries": 3})

    def _revoke(self, task_id: str) -> None:
        try:
            self._app.control.revoke(task_id, terminate=True)
        except Exception:
            quiet.exception("revoke", "a cancelled step could not be revoked; its worker goes on with it")


class _Results:
    """Looks for the results of tasks and for their workers, in one thread that runs while any are expected."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._expected: dict[str, _Expected] = {}
        self._thread: threading.Thread | None = None

    def expect(self, task_id: str) -> asyncio.Future[str]:
        """What the task answers, later."""
        loop = asyncio.get_running_loop()
        expected = _Expected(loop, loop.create_future())
        with self._lock:
            self._expected[task_id] = expected
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="tachograph-celery", daemon=True)
                self._thread.start()
        return expected.answer

    def forget(self, task_id: str) -> None:
        """It is not expected any more."""
        with self._lock:
            self._expected.pop(task_id, None)

    def _look(self) -> None:
        pause, pinged, missed = FIRST_POLL_SECONDS, time.monotonic(), dict[str, int]()
        while True:
            with self._lock:
                ids = list(self._expected)
                if not ids:
                    self._thread = None
                    return
            try:
                ready = self._ready(ids)
                if time.monotonic() - pinged > PING_SECONDS:
                    self._check(missed)
                    pinged = time.monotonic()
            except Exception:
                quiet.exception("results", "the results of steps on Celery cannot be read; trying again")
                ready, pause = 0, 1.0
            pause = FIRST_POLL_SECONDS if ready else min(MAX_POLL_SECONDS, pause * 1.5)
            time.sleep(pause)

    def _ready(self, ids: Iterable[str]) -> int:
        count = 0
        # One round, without its own pause.
        for task_id, meta in self._app.backend.get_many(list(ids), interval=0, max_iterations=1):
            count += 1
            if meta["status"] == "SUCCESS":
                self._answer(task_id, meta["result"])
            else:
                self._answer(task_id, lost("", f"Celery: {_reason(meta)}").decode())
            self._app.backend.forget(task_id)
        return count

    def _check(self, missed: dict[str, int]) -> None:
        """Ask whether somebody still has the work; the attempts that nobody has any more have failed.

        ``missed``: by worker, and by task that no worker has begun, how often it was not there in a row.
        """
        with self._lock:
            now = time.monotonic()
            ids = [task_id for task_id, expected in self._expected.items() if now - expected.since > PING_SECONDS]
        workers: dict[str, list[str]] = {}
        waiting: list[str] = []
        for task_id in ids:
            meta = self._app.backend.get_task_meta(task_id)
            if meta["status"] == "STARTED" and isinstance(meta["result"], dict):
                workers.setdefault(str(meta["result"].get("hostname")), []).append(task_id)
            elif meta["status"] == "PENDING":
                waiting.append(task_id)
        there = self._answering(list(workers)) if workers else set[str]()
        absent = {worker: f"worker {worker} has not answered for {PING_SECONDS * MAX_MISSED:g} s" for worker in workers}
        lost_ids = dict(workers)
        for worker in there:
            absent.pop(worker, None)
        for task_id in self._nowhere(waiting) if waiting else ():
            absent[task_id] = "its message is neither in the queue nor with a worker: the broker has lost it"
            lost_ids[task_id] = [task_id]
        for key in missed.keys() - absent.keys():
            del missed[key]
        for key, reason in absent.items():
            missed[key] = missed.get(key, 0) + 1
            if missed[key] >= MAX_MISSED:
                for task_id in lost_ids[key]:
                    self._answer(task_id, lost(key, reason).decode())
                    # Should it come to a worker after all.
                    self._app.control.revoke(task_id)

    def _answering(self, workers: list[str]) -> set[str]:
        replies = self._app.control.ping(destination=workers, timeout=PING_SECONDS, limit=len(workers))
        return {str(worker) for reply in replies for worker in reply}

    def _nowhere(self, ids: Sequence[str]) -> Sequence[str]:
        """Those of the tasks that no worker has, when none waits in the queue."""
        with self._app.connection_for_read() as connection:
            try:
                in_queue = connection.default_channel.queue_declare(QUEUE, passive=True).message_count
            except connection.channel_errors:
                return ()  # There is no such queue, so there is no worker either.
        if in_queue:
            return ()
        held: set[str] = set()
        inspect = self._app.control.inspect(timeout=PING_SECONDS)
        for by_worker in (inspect.reserved(), inspect.active()):
            if by_worker is None:  # Nobody answers: whether a worker has them is not known.
                return ()
            held |= {str(task["id"]) for tasks in by_worker.values() for task in tasks}
        return [task_id for task_id in ids if task_id not in held]

    def _answer(self, task_id: str, body: str) -> None:
        with self._lock:
            expected = self._expected.pop(task_id, None)
        if expected is not None:
            expected.settle(body)


class _Expected:
    __slots__ = ("_loop", "answer", "since")

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[str]) -> None:
        self._loop = loop
        self.answer = answer
        self.since = time.monotonic()

    def settle(self, body: str) -> None:
        def set_result() -> None:
            if not self.answer.done():
                self.answer.set_result(body)

        with suppress(RuntimeError):  # The loop is closed: nobody waits.
            self._loop.call_soon_threadsafe(set_result)


def _reason(meta: dict[str, Any]) -> str:
    result = meta.get("result")
    name = type(result).__name__ if isinstance(result, BaseException) else str(meta["status"])
    return f"{name}: {result}"[:500]


def register(app: Any, handlers: HandlerRegistry) -> Callable[..., str]:
    """Make the task that does steps known to a worker's application."""

    def step(self: Any, body: str) -> str:
        request = self.request
        key = f"tachograph-begun-{request.id}"
        backend = self.app.backend
        if (request.delivery_info or {}).get("redelivered") and (before := backend.get(key)) is not None:
            first = before.decode() if isinstance(before, bytes) else str(before)
            return lost(first, f"worker {first} was lost while it did the step").decode()
        backend.set(key, str(request.hostname))
        try:
            with answering(request.id, backend) as box:
                return perform(body, handlers, str(request.hostname), _is_termination, box=box).decode()
        finally:
            backend.delete(key)

    task = app.task(name=TASK, bind=True, acks_late=True, track_started=True, ignore_result=False)
    return cast("Callable[..., str]", task(step))


def _is_termination(error: BaseException) -> bool:
    """Whether it is raised because the process was asked to end: a revoked task's, or all of a worker that stops."""
    # The code that `billiard.common` exits with when it gets the signal.
    return isinstance(error, SystemExit) and error.code == signal.SIGTERM - 256


def work(url: str, handlers: HandlerRegistry, concurrency: int, name: str | None = None) -> int:
    """Be a worker, until the process is asked to stop, or until Celery gives up. Returns the exit code.

    Raises `SetupError`.
    """
    app = app_of(url)
    register(app, handlers)
    options = ["worker", "--loglevel=WARNING", f"--concurrency={concurrency}", f"--queues={QUEUE}", "--without-gossip"]
    # Several of one machine are told apart.
    name = name or f"tachograph-{uuid.uuid4().hex[:8]}"
    try:
        app.worker_main([*options, f"--hostname={name}@%h"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
