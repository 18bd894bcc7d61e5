"""What each engine does in this process: three pieces of work, with its hooks on and taken back in the end.

Each returns what the engine's own work left behind, `WORK` if all went well.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
import types
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tests.engines import processes

from tachograph.integrations import apscheduler as apscheduler_hooks
from tachograph.integrations import arq as arq_hooks
from tachograph.integrations import celery as celery_hooks
from tachograph.integrations import dask as dask_hooks
from tachograph.integrations import dramatiq as dramatiq_hooks
from tachograph.integrations import hamilton as hamilton_hooks
from tachograph.integrations import huey as huey_hooks
from tachograph.integrations import kedro as kedro_hooks
from tachograph.integrations import luigi as luigi_hooks
from tachograph.integrations import overriding
from tachograph.integrations import procrastinate as procrastinate_hooks
from tachograph.integrations import rq as rq_hooks
from tachograph.integrations import taskiq as taskiq_hooks

WORK: Final = [0, 1, 2]
HOOKS: Final = (
    apscheduler_hooks, arq_hooks, celery_hooks, dask_hooks, dramatiq_hooks, hamilton_hooks, huey_hooks, kedro_hooks,
    luigi_hooks, overriding, procrastinate_hooks, rq_hooks, taskiq_hooks,
)  # fmt: skip
_numbers: Final = itertools.count()


class Stage:
    """What plays need: a directory, and what is started once for all of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        self._redis = ""
        self._client: Any = None

    @property
    def redis(self) -> str:
        """The URL of a real Redis."""
        self._redis = self._redis or self._stack.enter_context(processes.redis(self.directory))
        return self._redis

    @property
    def client(self) -> Any:
        """A client of a Dask cluster in this process."""
        if self._client is None:
            import dask
            import distributed

            dask_: Any = dask
            distributed_: Any = distributed
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            self._stack.enter_context(dask_.config.set({"distributed.admin.log-format": "%(message)s"}))
            cluster = distributed_.LocalCluster(
                n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
            )
            self._stack.enter_context(cluster)
            self._client = self._stack.enter_context(distributed_.Client(cluster))
        return self._client

    def close(self) -> None:
        """Stop what was started."""
        self._stack.close()


def play_celery(_: Stage) -> list[int]:
    from celery import Celery, signals
    from celery.contrib.testing.worker import start_worker

    name = f"plays{next(_numbers)}"  # The broker is one for all tests.
    app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_default_queue=name, broker_transport_options={"polling_interval": 0.01})

    def work(number: int) -> int:
        return number

    def leave_logging(**_settings: Any) -> None:
        """Where something listens, a worker does not change the levels of this process's loggers."""

    task = app.task(name=f"{name}.work", shared=False)(work)
    celery_hooks.instrument(app)
    signals.setup_logging.connect(leave_logging)
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
            results = [task.delay(number) for number in range(3)]
            return [result.get(timeout=60, interval=0.02) for result in results]
    finally:
        signals.setup_logging.disconnect(leave_logging)
        celery_hooks.uninstrument(app)
        app.close()


def play_rq(stage: Stage) -> list[int]:
    from redis import Redis
    from rq import Queue, SimpleWorker

    rq_hooks.instrument()
    try:
        with Redis.from_url(stage.redis) as connection:
            queue = Queue(f"plays{next(_numbers)}", connection=connection)
            with rq_hooks.together("nightly"):
                jobs = [queue.enqueue("operator.abs", number) for number in range(2)]
                jobs.append(queue.enqueue("operator.abs", 2, depends_on=jobs))
            SimpleWorker([queue], connection=connection, log_job_description=False).work(burst=True)
            return [int(job.return_value() or 0) for job in jobs]
    finally:
        rq_hooks.uninstrument()


def play_dramatiq(_: Stage) -> list[int]:
    import dramatiq
    from dramatiq.brokers.stub import StubBroker

    broker, results = StubBroker(), list[int]()
    dramatiq_hooks.instrument(broker)
    decorate: Any = dramatiq.actor
    actor = decorate(results.append, actor_name="work", broker=broker)
    with dramatiq_hooks.together("nightly"):
        for number in range(3):
            actor.send(number)
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    broker.join("default", timeout=60_000)
    worker.join()
    worker.stop(timeout=60_000)
    dramatiq_hooks.uninstrument(broker)
    broker.close()
    return results


def play_huey(_: Stage) -> list[int]:
    from huey import MemoryHuey

    huey, results = MemoryHuey("shop"), list[int]()
    huey_hooks.instrument(huey)

    def work(number: int) -> None:
        results.append(number)

    task = huey.task(name=f"work{next(_numbers)}")(work)
    with huey_hooks.together("nightly"):
        huey.enqueue(task.s(0).then(task, 1))
        task(2)
    while (sent := huey.dequeue()) is not None:
        huey.execute(sent)
    huey_hooks.uninstrument(huey)
    # What was asked of its storage is there no more.
    assert not huey.storage.result_items()
    return sorted(results)


def play_taskiq(_: Stage) -> list[int]:
    from taskiq import InMemoryBroker

    async def play() -> list[int]:
        broker = InMemoryBroker(await_inplace=True)
        taskiq_hooks.instrument(broker)

        async def work(number: int) -> int:
            return number

        task = broker.register_task(work, "work")
        await broker.startup()
        results = [(await (await task.kiq(number)).wait_result(timeout=60)).return_value for number in range(3)]
        await broker.shutdown()
        taskiq_hooks.uninstrument(broker)
        return results

    return asyncio.run(play())


def play_procrastinate(_: Stage) -> list[int]:
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

    procrastinate_hooks.instrument()
    try:
        return asyncio.run(play())
    finally:
        procrastinate_hooks.uninstrument()


def play_apscheduler(_: Stage) -> list[int]:
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler, results, ended = BackgroundScheduler(timezone="UTC"), list[int](), threading.Event()
    apscheduler_hooks.instrument(scheduler)

    def work(number: int) -> None:
        results.append(number)
        if len(results) == 3:
            ended.set()

    for number in range(3):
        scheduler.add_job(work, args=(number,), name="work", misfire_grace_time=None)
    scheduler.start()
    assert ended.wait(60)
    scheduler.shutdown()
    apscheduler_hooks.uninstrument(scheduler)
    return sorted(results)


def play_luigi(stage: Stage) -> list[int]:
    import luigi

    directory = stage.directory / f"luigi{next(_numbers)}"
    directory.mkdir()

    class Work(luigi.Task):
        number = luigi.IntParameter()

        def requires(self) -> list[luigi.Task]:
            return [Work(number=self.number - 1)] if self.number else []

        def output(self) -> luigi.LocalTarget:
            return luigi.LocalTarget(str(directory / f"work-{self.number}"))

        def run(self) -> None:
            Path(self.output().path).touch()

    luigi.configuration.get_config().set("worker", "no_install_shutdown_handler", "true")
    luigi_hooks.instrument()
    try:
        assert luigi.build([Work(number=2)], local_scheduler=True, no_lock=True, log_level="CRITICAL")
    finally:
        luigi_hooks.uninstrument()
    return [number for number in range(3) if (directory / f"work-{number}").exists()]


def play_dask(stage: Stage) -> list[int]:
    dask_hooks.instrument(stage.client)
    try:
        with dask_hooks.together("nightly"):
            futures = stage.client.map(abs, range(3), pure=False)
            return list(stage.client.gather(futures))
    finally:
        dask_hooks.uninstrument(stage.client)


def play_hamilton(_: Stage) -> list[int]:
    from hamilton import driver

    module = types.ModuleType("played_nodes")
    source = "def one(zero: int) -> int:\n    return zero + 1\ndef two(one: int) -> int:\n    return one + 1\n"
    sys.modules[module.__name__] = module
    try:
        exec(source, module.__dict__)
        built = driver.Builder().with_modules(module).with_adapters(hamilton_hooks.adapter("nightly")).build()
        results = built.execute(["zero", "one", "two"], inputs={"zero": 0})
    finally:
        del sys.modules[module.__name__]
    return [int(results[name]) for name in ("zero", "one", "two")]


def play_kedro(_: Stage) -> list[int]:
    from kedro.framework.hooks.manager import _create_hook_manager, _register_hooks
    from kedro.io import DataCatalog, MemoryDataset
    from kedro.pipeline import node, pipeline
    from kedro.runner import SequentialRunner

    from tachograph.integrations.kedro_hooks import TachographHooks

    manager = _create_hook_manager()
    _register_hooks(manager, (TachographHooks(),))
    results: list[int] = []

    def work(number: int) -> int:
        results.append(number)
        return number + 1

    nodes = pipeline([node(work, f"n{i}", f"n{i + 1}", name=f"work{i}") for i in range(3)])
    catalog, run_id = DataCatalog({"n0": MemoryDataset(0)}), f"plays{next(_numbers)}"
    told: dict[str, Any] = {"run_id": run_id, "pipeline_names": ["nightly"], "project_path": "/shop"}
    hooks: Any = manager.hook
    hooks.before_pipeline_run(run_params=told, pipeline=nodes, catalog=catalog)
    ran = SequentialRunner().run(nodes, catalog, manager, run_id)
    hooks.after_pipeline_run(run_params=told, run_result=ran, pipeline=nodes, catalog=catalog)
    return results


PLAYS: Final[dict[str, Callable[[Stage], list[int]]]] = {
    "celery": play_celery, "rq": play_rq, "dramatiq": play_dramatiq, "huey": play_huey, "taskiq": play_taskiq,
    "procrastinate": play_procrastinate, "apscheduler": play_apscheduler, "luigi": play_luigi, "dask": play_dask,
    "hamilton": play_hamilton, "kedro": play_kedro,
}  # fmt: skip
