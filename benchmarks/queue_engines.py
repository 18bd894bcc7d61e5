"""Task queues that run jobs which do nothing, without and with their hooks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from engine_cost import Clock, Cost, Engine


def switched(hooks: Any, play: Callable[[int], Coroutine[Any, Any, Cost]]) -> Engine:
    """An engine whose hooks are those of the whole process, on for one play at a time."""

    def run(jobs: int, is_on: bool) -> Cost:
        (hooks.instrument if is_on else hooks.uninstrument)()
        try:
            return asyncio.run(play(jobs))
        finally:
            hooks.uninstrument()

    return run


def celery(_: str) -> Engine:
    """Celery with a broker in memory and a worker in this thread."""
    from celery import Celery
    from celery.worker import state

    from tachograph.integrations import celery as hooks

    def run(jobs: int, is_on: bool) -> Cost:
        app = Celery("bench", broker="memory://", backend="cache+memory://")
        app.set_current()
        app.conf.update(worker_hijack_root_logger=False, worker_enable_remote_control=False, broker_pool_limit=1)
        left, clock = jobs, Clock(jobs)

        def nothing(number: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                state.should_stop = True

        task = app.task(nothing, name="nothing", shared=False)
        app.finalize()
        if is_on:
            hooks.instrument(app)
        with clock.timed():
            for number in range(jobs):
                task.delay(number)
        worker = app.WorkController(
            app=app, pool="solo", concurrency=1, without_gossip=True, without_mingle=True, without_heartbeat=True
        )
        with clock.timed(), contextlib.suppress(SystemExit):
            worker.start()
        state.should_stop = None
        hooks.uninstrument()
        assert not left
        return clock.cost

    return run


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

    return switched(hooks, play)


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

    return switched(hooks, play)
