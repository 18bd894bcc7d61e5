"""What the hooks of engines cost them: their own time for jobs that do nothing, without and with the hooks, in pairs.

Each round runs the same jobs without and with, in turn; the difference is the median of the rounds' differences. Jobs
are sent in a block `together`, so that all of them have a place that is not their own. The service is a real one on
the same machine, which takes its share of the processors: what it does is no part of the engine's time, but where
they are busy, waiting for them is. The last columns say the same of the processor time of the engine's own thread.

    python benchmarks/engines.py [NAME …]
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table
from tools.local_service import LocalService, eventually, free_port

import tachograph

ROUNDS: Final = int(os.environ.get("TACHOGRAPH_BENCHMARK_ROUNDS", "9"))


class Cost(NamedTuple):
    """Of one job, in milliseconds: sending it and running it, by the clock and in the engine's own thread."""

    sent: float
    ran: float
    sent_cpu: float
    ran_cpu: float


class Clock:
    """Times two blocks that are about a number of jobs."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._costs: list[float] = []

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Time what is done in the block."""
        wall, own = time.perf_counter(), time.thread_time()
        yield
        self._costs += [(time.perf_counter() - wall) / self._jobs * 1e3, (time.thread_time() - own) / self._jobs * 1e3]

    @property
    def cost(self) -> Cost:
        """What both blocks took."""
        sent, sent_cpu, ran, ran_cpu = self._costs
        return Cost(sent, ran, sent_cpu, ran_cpu)


Engine = Callable[[int, bool], Cost]


def rq(address: str, forks: bool) -> Engine:
    """RQ with a process for each job, or without."""
    from redis import Redis
    from rq import Queue, SimpleWorker, Worker

    from tachograph.integrations import rq as hooks

    connection = Redis.from_url(address)

    def run(jobs: int, is_on: bool) -> Cost:
        (hooks.instrument if is_on else hooks.uninstrument)()
        queue, clock = Queue(connection=connection), Clock(jobs)
        with hooks.together("nightly"), clock.timed():
            for _ in range(jobs):
                queue.enqueue("operator.add", 1, 2)
        worker = (Worker if forks else SimpleWorker)([queue], connection=connection, log_job_description=False)
        with clock.timed():
            worker.work(burst=True, logging_level="CRITICAL")
        hooks.uninstrument()
        return clock.cost

    return run


def dramatiq(_: str) -> Engine:
    """Dramatiq with a broker in memory, which takes next to no time itself."""
    import dramatiq as engine
    from dramatiq.brokers.stub import StubBroker

    from tachograph.integrations import dramatiq as hooks

    def run(jobs: int, is_on: bool) -> Cost:
        broker, clock = StubBroker(), Clock(jobs)
        if is_on:
            hooks.instrument(broker)
        actor: Any = engine.actor(broker=broker, actor_name="nothing")(lambda number: None)
        with hooks.together("nightly"), clock.timed():
            for number in range(jobs):
                actor.send(number)
        worker = engine.Worker(broker, worker_timeout=10, worker_threads=1)
        with clock.timed():
            worker.start()
            broker.join("default")
            worker.join()
        worker.stop()
        broker.close()
        return clock.cost

    return run


def huey(address: str) -> Engine:
    """Huey, its tasks executed one after the other as its worker does."""
    from huey import RedisHuey

    from tachograph.integrations import huey as hooks

    def run(jobs: int, is_on: bool) -> Cost:
        instance, clock = RedisHuey("bench", url=address), Clock(jobs)
        if is_on:
            hooks.instrument(instance)

        def nothing(number: int) -> None:
            pass

        task = instance.task()(nothing)
        with hooks.together("nightly"), clock.timed():
            for number in range(jobs):
                task(number)
        with clock.timed():
            while (sent := instance.dequeue()) is not None:
                instance.execute(sent)
                if not len(instance):
                    break
        hooks.uninstrument(instance)
        return clock.cost

    return run


def arq(address: str) -> Engine:
    """arq with a worker in burst mode."""
    from arq import create_pool
    from arq.connections import RedisSettings
    from arq.worker import Worker

    from tachograph.integrations import arq as hooks

    async def nothing(ctx: Any, number: int) -> None:
        pass

    async def play(jobs: int) -> Cost:
        pool, clock = await create_pool(RedisSettings.from_dsn(address)), Clock(jobs)
        with hooks.together("nightly"), clock.timed():
            for number in range(jobs):
                await pool.enqueue_job("nothing", number)
        worker = Worker([nothing], redis_pool=pool, burst=True, handle_signals=False, poll_delay=0)
        with clock.timed():
            await worker.async_run()
        await worker.close()
        return clock.cost

    nothing.__qualname__ = "nothing"

    def run(jobs: int, is_on: bool) -> Cost:
        (hooks.instrument if is_on else hooks.uninstrument)()
        try:
            return asyncio.run(play(jobs))
        finally:
            hooks.uninstrument()

    return run


def taskiq(_: str) -> Engine:
    """Taskiq with a broker in memory, which runs a task where it is sent."""
    from taskiq import InMemoryBroker

    from tachograph.integrations import taskiq as hooks

    async def play(jobs: int, is_on: bool) -> Cost:
        broker, clock = InMemoryBroker(await_inplace=True), Clock(jobs)

        async def nothing(number: int) -> None:
            pass

        task = broker.register_task(nothing, "nothing")
        if is_on:
            hooks.instrument(broker)
        await broker.startup()
        with hooks.together("nightly"), clock.timed():
            for number in range(jobs):
                await task.kiq(number)
        with clock.timed():
            await broker.shutdown()
        return clock.cost

    return lambda jobs, is_on: asyncio.run(play(jobs, is_on))


def procrastinate(_: str) -> Engine:
    """procrastinate with its connector in memory."""
    import procrastinate as engine
    from procrastinate import testing

    from tachograph.integrations import procrastinate as hooks

    async def play(jobs: int) -> Cost:
        app, clock = engine.App(connector=testing.InMemoryConnector()), Clock(jobs)

        @app.task(name="nothing")
        async def nothing(number: int) -> None:
            pass

        async with app.open_async():
            with hooks.together("nightly"), clock.timed():
                for number in range(jobs):
                    await nothing.defer_async(number=number)
            with clock.timed():
                await app.run_worker_async(wait=False, install_signal_handlers=False)
        return clock.cost

    def run(jobs: int, is_on: bool) -> Cost:
        (hooks.instrument if is_on else hooks.uninstrument)()
        try:
            return asyncio.run(play(jobs))
        finally:
            hooks.uninstrument()

    return run


ENGINES: Final[dict[str, tuple[Callable[[str], Engine], int]]] = {
    "rq": (lambda address: rq(address, True), 30),
    "rq-simple": (lambda address: rq(address, False), 100),
    "dramatiq": (dramatiq, 300),
    "huey": (huey, 200),
    "arq": (arq, 100),
    "taskiq": (taskiq, 200),
    "procrastinate": (procrastinate, 100),
}
"""How an engine is made ready, and how many jobs a round has."""


def _is_listening(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[str]:
    """A real Redis on a free port; an empty address where it is not installed."""
    if shutil.which("redis-server") is None:
        yield ""
        return
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=directory)
    try:
        eventually(lambda: _is_listening(port))
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def measure(console: Console, names: list[str]) -> None:
    """Print what the hooks cost each engine that is installed."""
    table = Table("engine", "", "without, ms", "with, ms", "paired, ms", "own thread, ms", title="of one job")
    for column in table.columns[2:]:
        column.justify = "right"
    with tempfile.TemporaryDirectory() as name, redis(Path(name)) as address, LocalService(Path(name)) as service:
        os.environ["XDG_STATE_HOME"] = name
        tachograph.configure(url=service.address, registry=None, spans=False)
        for engine in names:
            prepare, jobs = ENGINES[engine]
            try:
                run = prepare(address)
                run(jobs, True)
            except (ImportError, ValueError) as error:
                console.print(f"{engine}: not measured: {error}")
                continue
            pairs = [(run(jobs, False), run(jobs, True)) for _ in range(ROUNDS)]
            for what in ("sent", "ran"):
                without, with_ = ([getattr(pair[i], what) for pair in pairs] for i in (0, 1))
                paired = statistics.median(b - a for a, b in zip(without, with_, strict=True))
                own = statistics.median(getattr(b, f"{what}_cpu") - getattr(a, f"{what}_cpu") for a, b in pairs)
                medians = [f"{statistics.median(values):.2f}" for values in (without, with_)]
                table.add_row(engine, what, *medians, f"{paired:+.2f}", f"{own:+.2f}")
    console.print(table)
    console.print(f"{ROUNDS} rounds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def main(console: Console) -> None:
    """Measure all engines."""
    logging.disable(logging.CRITICAL)
    measure(console, list(ENGINES))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    measure(Console(), sys.argv[1:] or list(ENGINES))
