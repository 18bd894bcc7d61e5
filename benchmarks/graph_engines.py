"""Engines of graphs and schedules that run steps which do nothing, without and with their hooks."""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

from engine_cost import Clock, Cost, Engine


def apscheduler(_: str) -> Engine:
    """APScheduler with jobs that are due at once."""
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    from tachograph.integrations import apscheduler as hooks

    def run(jobs: int, is_on: bool) -> Cost:
        scheduler, clock = (
            BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone="UTC"),
            Clock(jobs),
        )
        if is_on:
            hooks.instrument(scheduler)
        ended, left = threading.Event(), [jobs]

        def nothing() -> None:
            left[0] -= 1
            if not left[0]:
                ended.set()

        for number in range(jobs):
            scheduler.add_job(nothing, name="nothing", id=str(number), misfire_grace_time=None)
        with clock.timed():
            scheduler.start()
            ended.wait()
            scheduler.shutdown()
        hooks.uninstrument(scheduler)
        return clock.cost

    return run


def dask(_: str) -> Engine:
    """Dask with a scheduler and a worker in this process: the scheduler's hooks run in its own thread."""
    import dask as engine
    import distributed as untyped

    from tachograph.integrations import dask as hooks

    distributed: Any = untyped
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    client = distributed.Client(cluster)

    def run(jobs: int, is_on: bool) -> Cost:
        clock = Clock(jobs)
        if is_on:
            hooks.instrument(client)
        graph: Any = engine
        tasks = [graph.delayed(abs, pure=False)(number) for number in range(jobs - 1)]
        with clock.timed():
            client.compute(graph.delayed(sum)(tasks)).result()
        if is_on:
            hooks.uninstrument(client)
        return clock.cost

    return run


def luigi(_: str) -> Engine:
    """Luigi with a scheduler and a worker in this thread."""
    import luigi as engine

    from tachograph.integrations import luigi as hooks

    engine.configuration.get_config().set("worker", "no_install_shutdown_handler", "true")
    task_class: Any = engine.Task
    done: set[int] = set()

    class Nothing(task_class):  # type: ignore[misc]
        number = engine.IntParameter()

        def complete(self) -> bool:
            return self.number in done

        def run(self) -> None:
            done.add(self.number)

    def run(jobs: int, is_on: bool) -> Cost:
        clock = Clock(jobs)
        done.clear()
        if is_on:
            hooks.instrument()
        with clock.timed():
            engine.build(
                [Nothing(number=number) for number in range(jobs)], local_scheduler=True, no_lock=True,
                log_level="CRITICAL",
            )  # fmt: skip
        hooks.uninstrument()
        assert len(done) == jobs
        return clock.cost

    return run


def kedro(_: str) -> Engine:
    """Kedro's runner with nodes that pass a number on."""
    from kedro.framework.hooks.manager import _create_hook_manager, _register_hooks
    from kedro.io import DataCatalog, MemoryDataset
    from kedro.pipeline import node, pipeline
    from kedro.runner import SequentialRunner

    from tachograph.integrations.kedro_hooks import TachographHooks

    def run(jobs: int, is_on: bool) -> Cost:
        clock, manager = Clock(jobs), _create_hook_manager()
        if is_on:
            _register_hooks(manager, (TachographHooks(),))
        nodes = pipeline([node(abs, f"n{i}", f"n{i + 1}", name=f"node{i}") for i in range(jobs)])
        catalog = DataCatalog({"n0": MemoryDataset(1)})
        told: Any = {"run_id": tempfile.mktemp(), "pipeline_name": "nightly", "pipeline_names": ["nightly"],
                     "project_path": str(Path.cwd()), "runtime_params": {}}  # fmt: skip
        with clock.timed():
            manager.hook.before_pipeline_run(run_params=told, pipeline=nodes, catalog=catalog)
            results = SequentialRunner().run(nodes, catalog, manager, told["run_id"])
            manager.hook.after_pipeline_run(run_params=told, run_result=results, pipeline=nodes, catalog=catalog)
        return clock.cost

    return run


def hamilton(_: str) -> Engine:
    """Hamilton's driver with nodes that pass a number on."""
    from hamilton import driver

    from tachograph.integrations import hamilton as hooks

    def run(jobs: int, is_on: bool) -> Cost:
        module, clock = types.ModuleType("nodes"), Clock(jobs)
        source = "".join(f"def n{i + 1}(n{i}: int) -> int:\n    return n{i}\n" for i in range(jobs))
        sys.modules["nodes"] = module
        exec(source, module.__dict__)
        built = (
            driver.Builder().with_modules(module).with_adapters(*([hooks.adapter("nightly")] if is_on else [])).build()
        )
        with clock.timed():
            built.execute([f"n{jobs}"], inputs={"n0": 1})
        return clock.cost

    return run
