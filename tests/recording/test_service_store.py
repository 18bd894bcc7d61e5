"""Recording by HTTP: as if it were recorded locally, whatever the network does, and while the service is away."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests import programs
from tests.api.test_guard import SERVICE_TOKEN, bearer, token_for
from tests.conftest import Api, make_execution, make_run, running
from tests.recording.bad_network import KINDS, BadNetwork

from tachograph.clock import AnchoredClock
from tachograph.errors import SetupError
from tachograph.events import Event, ExecutionStatus, Failure, StepStatus
from tachograph.recording import service_store
from tachograph.recording.listener_queue import ListenerQueue
from tachograph.recording.open_execution import OpenExecution
from tachograph.recording.service_store import EventsRefused, ServiceStore, ServiceUnavailable, open_service
from tachograph.recording.spool import Spool, address
from tachograph.recording.spooled_store import SpooledStore
from tachograph.service_address import parse
from tachograph.workflow import HandlerRegistry
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.config import Config
from tachograph_exporter.store.writer import open_writer


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "spools"
    monkeypatch.setenv("TACHOGRAPH_SPOOL_DIR", str(directory))
    return directory


def long_run(steps: int) -> list[Event]:
    """The events of a run, three a step or more: some are retried, some fail, some report."""
    events: list[Event] = []
    run = OpenExecution(make_execution("long"), events.append, AnchoredClock(), None)
    for number in range(steps):
        step, ready_ns, _ = run.new_step(f"step {number % 7}", "task", None, run.clock())
        attempts = StepAttempts(step, run.started_ns)
        events.append(attempts.started(run.clock(), ready_ns=ready_ns))
        if number % 10 == 0:
            events.append(attempts.retrying(run.clock(), StepStatus.FAILED, 5, Failure("Oops", "again")))
            events.append(attempts.started(run.clock()))
        status = StepStatus.FAILED if number % 13 == 0 else StepStatus.COMPLETED
        events.append(attempts.finished(run.clock(), status, Failure("Oops", "no") if number % 13 == 0 else None))
        run.counts.add(status, attempts.run_ns)
        run.step_finished(step, attempts.started_ns, run.clock())
    run.finish(ExecutionStatus.COMPLETED, None)
    return events


async def timeline(api: Api, execution_id: str) -> Any:
    return await api.get(f"/api/workflows/executions/{execution_id}/timeline")


async def test_ten_thousand_events_through_a_bad_network_are_what_was_recorded(
    tmp_path: Path, database_url: str, empty_database: Path, handlers: HandlerRegistry
) -> None:
    events = long_run(4_600)
    assert len(events) > 10_000
    execution_id = events[0].execution.execution_id
    shutil.copy(empty_database, tmp_path / "far.db")
    async with running(Config(database=f"sqlite:///{tmp_path}/far.db", grace_seconds=0.1), handlers) as far:
        with BadNetwork(int(far.address.rpartition(":")[2])).running() as network:
            store = SpooledStore(f"http://127.0.0.1:{network.port}", open_service)
            queue = ListenerQueue("store", store)

            def record() -> None:
                for start in range(0, len(events), 200):
                    for event in events[start : start + 200]:
                        queue.put(event)
                    assert queue.flush(60)
                wait_until(lambda: not store.is_spooling)
                queue.close(60)
                store.close()

            await asyncio.to_thread(record)
        assert not queue.dropped
        assert min(network.fates[kind] for kind in KINDS) > 0, network.fates
        writer = open_writer(database_url)
        writer.apply(events)
        writer.close()
        sent = await timeline(far, execution_id)
    async with running(Config(database=database_url, grace_seconds=0.1), handlers) as near:
        recorded = await timeline(near, execution_id)
    assert sent == recorded
    assert len(sent["step_timeline"]) == 4_600


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not become true"
        time.sleep(0.05)


WORKER = """
import sys, time
import tachograph

@tachograph.step
def load():
    print("loading", flush=True)
    sys.stdin.readline()

@tachograph.workflow
def nightly():
    load()

nightly()
recorder = tachograph.get_recorder()
recorder.close()
print(dict(recorder.queues["store"].dropped), recorder.queues["store"].spooled)
"""


def worker(tmp_path: Path, **variables: str) -> subprocess.Popen[str]:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    kept = {k: v for k, v in os.environ.items() if k == "TACHOGRAPH_SPOOL_DIR" or not k.startswith("TACHOGRAPH_")}
    return programs.Popen(
        [sys.executable, "-W", "error", str(path)], env={**kept, **variables}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


async def runs(api: Api, **options: Any) -> list[Any]:
    items: list[Any] = (await api.get("/api/workflows/executions", **options))["items"]
    return items


async def status_of_step(api: Api, **options: Any) -> str:
    items = await runs(api, **options)
    if not items:
        return ""
    run = await api.get(f"/api/workflows/executions/{items[0]['execution_id']}/timeline", **options)
    return str([step["status"] for step in run["step_timeline"]])


async def until(read: Callable[[], Awaitable[Any]], expected: Any) -> None:
    async with asyncio.timeout(60):
        while await read() != expected:  # noqa: ASYNC110 - it is another process's doing
            await asyncio.sleep(0.05)


async def test_a_worker_needs_only_the_services_address_and_its_steps_are_seen_while_they_run(
    tmp_path: Path, database_url: str, handlers: HandlerRegistry
) -> None:
    config = Config(database=database_url, grace_seconds=0.1, token=SERVICE_TOKEN)
    async with running(config, handlers) as api:
        admin = bearer(SERVICE_TOKEN)
        await api.call("POST", "/api/workspaces", {"slug": "team"}, headers=admin)
        token = await token_for(api, scopes=["ingest"], workspace="team")
        process = worker(tmp_path, TACHOGRAPH_URL=api.address, TACHOGRAPH_TOKEN=token)
        team = {"headers": {**admin, "X-Workspace-Slug": "team"}}
        await until(lambda: status_of_step(api, **team), "['running']")
        out, err = await asyncio.to_thread(process.communicate, "\n")
        assert (process.returncode, out[:11], err) == (0, "loading\n{} ", "")
        assert await status_of_step(api, **team) == "['completed']"
        assert await runs(api, headers=admin) == []


async def test_what_a_service_could_not_take_waits_on_disk_also_of_a_process_that_was_killed(
    tmp_path: Path, database_url: str, handlers: HandlerRegistry, spools: Path
) -> None:
    # Nothing listens there; the service that comes later takes this for its own address.
    port = 1
    url = f"http://127.0.0.1:{port}"

    def journals() -> list[Path]:
        return sorted(spools.rglob("*.jsonl"))

    def while_it_is_away() -> str:
        killed = worker(tmp_path, TACHOGRAPH_URL=url)
        wait_until(lambda: bool(journals()) and len(journals()[0].read_bytes().splitlines()) > 1)
        # While its process lives, nobody else delivers it.
        assert Spool(url).deliver(lambda _: pytest.fail("delivered")) == 0
        killed.kill()
        killed.communicate()
        with journals()[0].open("ab") as file:
            file.write(b'deadbeef [{"event": "execution_st')
        ended = worker(tmp_path, TACHOGRAPH_URL=url)
        out, err = ended.communicate("\n")
        assert (ended.returncode, out[:11]) == (0, "loading\n{} ")
        assert len(journals()) == 2
        return err

    err = await asyncio.to_thread(while_it_is_away)
    assert "events go to the spool" in err
    assert "Traceback" not in err
    async with running(Config(database=database_url, grace_seconds=0.1, port=port), handlers) as api:
        # The service finds them by the address that it listens on.
        await until(lambda: asyncio.to_thread(journals), [])
        await until(lambda: statuses(api), ["completed", "lost"])


async def statuses(api: Api) -> list[str]:
    return sorted([run["status"] for run in await runs(api)])


def test_a_store_that_is_away_costs_no_memory_and_its_events_come_in_order(tmp_path: Path) -> None:
    taken: list[Event] = []
    is_away = True

    class Store:
        def apply(self, events: Any) -> None:
            if is_away:
                raise ServiceUnavailable("away", 0.1)
            taken.extend(events)

    store = SpooledStore("http://host:1", lambda url, *, wait_seconds: Store())
    queue = ListenerQueue("store", store)
    run = long_run(20)
    queue.put(run[0])
    wait_until(lambda: store.is_spooling)
    for event in run[1:-1]:
        queue.put(event)
    assert queue.flush(60)
    assert (taken, len(queue), queue.spooled, dict(queue.dropped)) == ([], 0, len(run) - 1, {})
    is_away = False
    # Nothing more is recorded, and they are delivered all the same.
    wait_until(lambda: not store.is_spooling)
    queue.put(run[-1])
    assert queue.flush(60)
    assert taken == run
    queue.close(1)
    store.close()


def test_what_is_spooled_while_the_courier_ends_is_delivered_though_nothing_more_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tachograph.recording.spooled_store.PATIENCE_SECONDS", 0.0)
    taken: list[Event] = []
    states = {"away": True, "again": False}

    class Store:
        def apply(self, events: Any) -> None:
            if states["away"]:
                raise ServiceUnavailable("away", 0.1)
            taken.extend(events)

    class Lock:
        """The store's lock; when the courier leaves it for the last time, the service is away once more."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._is_last = False

        def __enter__(self) -> None:
            self._lock.acquire()
            self._is_last = threading.current_thread().name == "tachograph-courier" and not store.is_spooling

        def __exit__(self, *_: object) -> None:
            is_last = self._is_last
            self._lock.release()
            if is_last and not states["again"]:
                states["again"] = states["away"] = True
                last = threading.Thread(target=store.apply, args=(run[2:],))
                last.start()
                last.join()
                states["away"] = False

    store = SpooledStore("http://host:1", lambda url, *, wait_seconds: Store())
    monkeypatch.setattr(store, "_lock", Lock())
    run = long_run(2)
    store.apply(run[:2])
    assert store.is_spooling
    states["away"] = False
    wait_until(lambda: len(taken) == len(run))
    assert (taken, states["again"]) == (run, True)
    store.close()


def test_a_full_spool_drops_the_oldest_and_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHOGRAPH_SPOOL_MAX_BYTES", "40000")
    spool = Spool("http://host:1")
    events = [event for _ in range(100) for event in make_run(make_execution())]
    dropped = sum(spool.append([event]) for event in events)
    assert 0 < dropped < 400
    left: list[Event] = []
    spool.close_journal()
    assert sum(path.stat().st_size for path in spool.directories[0].glob("*.jsonl")) <= 40_000
    assert spool.deliver(left.extend) == len(left) == 400 - dropped
    assert left == events[dropped:]
    assert (spool.take_dropped(), spool.is_empty) == (dropped, True)


def test_what_is_written_when_the_disk_is_full_costs_nothing_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool("http://host:1")
    run = make_run(make_execution())
    spool.append(run[:2])
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        spool.append(run[2:])
    monkeypatch.setattr(os, "write", write)
    spool.append(run[2:])
    spool.close_journal()
    taken: list[Event] = []
    assert spool.deliver(taken.extend) == 4
    assert taken == run


@pytest.mark.parametrize("url", ["http://", "ftp://host", "http://user:secret@host", "http://host?x=1", "http://h:x"])
def test_what_is_no_address_of_a_service_is_an_error_that_keeps_secrets(url: str) -> None:
    with pytest.raises(SetupError) as raised:
        parse(url)
    assert "secret" not in str(raised.value)


def test_spellings_of_a_service_are_one_spool() -> None:
    assert address("HTTP://me:secret@Host/") == address("http://host:80") == "http:host:80/"
    assert address("https://host/base/") == "https:host:443/base"


ANSWERS = [
    ("200 OK", b"<html>", ServiceUnavailable),
    ("301 Moved Permanently", b"", ServiceUnavailable),
    ("401 Unauthorized", b'{"detail": "send a token"}', ServiceUnavailable),
    ("404 Not Found", b"", ServiceUnavailable),
    ("429 Too Many Requests", b"", ServiceUnavailable),
    ("503 Service Unavailable", b"", ServiceUnavailable),
    ("413 Content Too Large", b"", EventsRefused),
    ("422 Unprocessable", b'{"detail": 3}', EventsRefused),
    ("200 OK", b'{"received":1,"stored":0,"refused":[{"index":0,"reason":"no"}]}', EventsRefused),
]


def test_what_a_service_may_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for status, body, _ in ANSWERS:
                connection, _address = server.accept()
                with connection:
                    while b"execution_started" not in connection.recv(65_536):
                        pass
                    head = f"HTTP/1.1 {status}\r\nRetry-After: 7\r\nContent-Length: {len(body)}\r\n"
                    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        store = ServiceStore(f"http://127.0.0.1:{server.getsockname()[1]}", "")
        for status, _, error in ANSWERS:
            with pytest.raises(error) as raised:
                store.apply(make_run(make_execution())[:1])
            if isinstance(raised.value, ServiceUnavailable) and not status.startswith("200"):
                assert raised.value.retry_after_seconds == 7
        thread.join(60)
        store.close()


def test_a_network_that_loses_half_of_the_requests_delivers_a_journal() -> None:
    taken: list[Event] = []
    calls = 0

    class Store:
        def apply(self, events: Any) -> None:
            nonlocal calls
            calls += 1
            if events and calls % 2:
                raise ServiceUnavailable("away")
            taken.extend(events)

    spool = Spool("http://host:1")
    run = long_run(20)
    for event in run:
        spool.append([event])
    spool.close_journal()
    store = Store()
    tries = 0
    while not spool.is_empty:
        spool.deliver(store.apply)
        tries += 1
        assert tries < 3 * len(run)
    assert taken == run


def test_a_process_forks_while_the_service_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_store, "TIMEOUT_SECONDS", 600.0)
    answer = b'{"received": 1, "stored": 1}'
    with socket.create_server(("127.0.0.1", 0)) as server:
        store = SpooledStore(f"http://127.0.0.1:{server.getsockname()[1]}", open_service)
        queue = ListenerQueue("store", store)
        for event in long_run(1)[:1]:
            queue.put(event)
        connection, _ = server.accept()
        with connection:
            assert b"POST" in connection.recv(1 << 16)
            queue.before_fork(60.0)
            assert queue._paused
            if (child := os.fork()) == 0:
                queue.reset()
                store.after_fork()
                os._exit(0 if not store._lock.locked() else 1)
            queue.after_fork_in_parent()
            assert os.waitpid(child, 0)[1] == 0
            # The child has closed its end, and left the parent's alone.
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            assert queue.flush(60)
            queue.close(1.0)
            store.close()
