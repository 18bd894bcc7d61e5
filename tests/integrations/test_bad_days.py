"""Engines go on whatever becomes of what they report: the service is down, hangs, is full, or the hooks are broken."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph.integrations import dramatiq as dramatiq_integration
from tachograph.integrations import huey as huey_integration
from tachograph.integrations import luigi as luigi_integration
from tachograph.integrations import luigi_builds, overriding, places
from tachograph.integrations import procrastinate as procrastinate_integration
from tachograph.integrations import taskiq as taskiq_integration
from tachograph.quiet_log import QuietLog

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def play_dramatiq(_: Path) -> list[int]:
    import dramatiq
    from dramatiq.brokers.stub import StubBroker

    broker, results = StubBroker(), list[int]()
    dramatiq_integration.instrument(broker)
    decorate: Any = dramatiq.actor
    actor = decorate(results.append, actor_name="work", broker=broker)
    with dramatiq_integration.together("nightly"):
        for number in range(3):
            actor.send(number)
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    broker.join("default", timeout=60_000)
    worker.join()
    worker.stop(timeout=60_000)
    broker.close()
    return results


def play_huey(_: Path) -> list[int]:
    from huey import MemoryHuey

    huey, results = MemoryHuey("shop"), list[int]()
    huey_integration.instrument(huey)

    def work(number: int) -> None:
        results.append(number)

    task = huey.task()(work)
    with huey_integration.together("nightly"):
        huey.enqueue(task.s(0).then(task, 1))
        task(2)
    while (sent := huey.dequeue()) is not None:
        huey.execute(sent)
    huey_integration.uninstrument(huey)
    return sorted(results)


def play_taskiq(_: Path) -> list[int]:
    from taskiq import InMemoryBroker

    async def play() -> list[int]:
        broker = InMemoryBroker(await_inplace=True)
        taskiq_integration.instrument(broker)

        async def work(number: int) -> int:
            return number

        task = broker.register_task(work, "work")
        await broker.startup()
        results = [(await (await task.kiq(number)).wait_result(timeout=60)).return_value for number in range(3)]
        await broker.shutdown()
        return results

    return asyncio.run(play())


def play_procrastinate(_: Path) -> list[int]:
    import procrastinate
    from procrastinate import testing

    async def play() -> list[int]:
        app, results = procrastinate.App(connector=testing.InMemoryConnector()), list[int]()

        @app.task(name="work")
        async def work(number: int) -> None:
            results.append(number)

        async with app.open_async():
            batch: list[Any] = [{"number": number} for number in range(3)]
            await work.batch_defer_async(*batch)
            await app.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False)
        return results

    procrastinate_integration.instrument()
    try:
        return asyncio.run(play())
    finally:
        procrastinate_integration.uninstrument()


def play_luigi(directory: Path) -> list[int]:
    import luigi

    class Work(luigi.Task):
        number = luigi.IntParameter()

        def requires(self) -> list[luigi.Task]:
            return [Work(number=self.number - 1)] if self.number else []

        def output(self) -> luigi.LocalTarget:
            return luigi.LocalTarget(str(directory / f"work-{self.number}"))

        def run(self) -> None:
            Path(self.output().path).touch()

    luigi.configuration.get_config().set("worker", "no_install_shutdown_handler", "true")
    luigi_integration.instrument()
    try:
        assert luigi.build([Work(number=2)], local_scheduler=True, no_lock=True, log_level="CRITICAL")
    finally:
        luigi_integration.uninstrument()
    return [number for number in range(3) if (directory / f"work-{number}").exists()]


ENGINES: dict[str, Callable[[Path], list[int]]] = {
    "dramatiq": play_dramatiq, "huey": play_huey, "taskiq": play_taskiq, "procrastinate": play_procrastinate,
    "luigi": play_luigi,
}  # fmt: skip


HOOKS = (
    dramatiq_integration,
    huey_integration,
    taskiq_integration,
    procrastinate_integration,
    luigi_integration,
    overriding,
)


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """A service that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def full() -> Iterator[str]:
    """A service whose disk is full."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(507)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def down() -> Iterator[str]:
    """No service."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def broken() -> Iterator[str]:
    """Hooks that fail wherever they ask for a run; beside them, no service."""
    with pytest.MonkeyPatch.context() as patched, down() as address:
        patched.setattr(places, "run", None)
        patched.setattr(luigi_builds, "run", None)
        for module in HOOKS:
            # What is logged here would be left out where other tests look for it.
            patched.setattr(module, "quiet", QuietLog(logging.getLogger("tests")))
        yield address


@pytest.mark.parametrize("day", [down, hanging, full, broken], ids=lambda day: day.__name__)
def test_engines_on_a_bad_day(
    day: Callable[[], contextlib.AbstractContextManager[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    logging.disable(logging.CRITICAL)
    try:
        with day() as address:
            recorder = tachograph.configure(url=address, registry=None, spans=False)
            for name, play in ENGINES.items():
                assert play(tmp_path) == [0, 1, 2], name
            # Nothing is lost: what nobody takes waits on the disk.
            recorder.close(2.0)
            queue = recorder.queues["store"]
            assert not queue.dropped
            assert recorder.events == 0 if day is broken else recorder.events > 40
    finally:
        logging.disable(logging.NOTSET)
        tachograph.configure(database="", url="", registry=None, spans=False)
