"""A real Dask cluster: its tasks as steps, compared with what its scheduler says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import dask
import distributed as untyped
import pytest
from distributed.diagnostics.plugin import SchedulerPlugin
from tests.conftest import Api

from tachograph.integrations import dask as integration
from tachograph.integrations.dask_plugins import NAME, _error

distributed: Any = untyped
pytestmark = pytest.mark.filterwarnings("ignore")  # Of Dask's own, when a cluster in this process is closed.


class Truth(SchedulerPlugin):
    """What the scheduler says of its tasks, by key."""

    name = "truth"

    def __init__(self) -> None:
        self.compute: dict[str, dict[str, float]] = {}
        self.edges: dict[str, set[str]] = {}

    def update_graph(self, scheduler: Any, **_: Any) -> None:
        self.edges |= {key: {other.key for other in task.dependencies} for key, task in scheduler.tasks.items()}

    def transition(self, key: Any, start: str, finish: str, *args: Any, startstops: Any = (), **_: Any) -> None:
        for entry in startstops or ():
            self.compute[key] = entry


@pytest.fixture
def client() -> Iterator[Any]:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        dask.config.set({"distributed.admin.log-format": "%(message)s"}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_errors_of_dask() -> None:
    assert _error("ValueError('no item')") == "ValueError: no item"
    assert _error("KeyError(1, 'a')") == "KeyError: 1, a"
    assert _error("Odd(<object object at 0x7f>)") == "Odd: <object object at 0x7f>"
    assert _error("kaboom") == "kaboom"
    assert _error("ValueError()") == "ValueError: "


async def test_graphs_are_runs(api: Api, client: Any) -> None:
    scheduler = client.cluster.scheduler
    truth = Truth()
    scheduler.add_plugin(truth)
    integration.instrument(client)
    integration.instrument(client)
    assert [name for name in scheduler.plugins if name == NAME] == [NAME]
    tries: list[int] = []
    keys: dict[str, str] = {}

    def flaky(number: int) -> int:
        tries.append(number)
        if len(tries) == 1:
            raise ConnectionError("no route")
        return number

    def fail(_: int) -> None:
        raise ValueError("no item 1")

    def hold(_: int) -> None:
        distributed.Event("held").set()
        assert distributed.Event("release").wait(60)

    def play() -> None:
        with integration.together("nightly", run_id="2027-01-15"):
            extract = client.submit(int, 7, key="extract")
            works = client.map(lambda number, base: number + base, range(5), base=extract, key="work")
            keys.update({future.key: f"work-{i}" for i, future in enumerate(works)})
            merged = client.submit(sum, works, key="merge")
            merged.result(timeout=60)  # What comes after it belongs to its run, though nothing of it is open now.
            last = client.submit(flaky, merged, key="load", retries=1)
            assert last.result(timeout=60) == 45
        failing = client.submit(fail, 1, key="fail")
        after = client.submit(int, failing, key="never")
        with pytest.raises(ValueError, match="no item 1"):
            after.result(timeout=60)
        held = client.submit(hold, 1, key="hold")
        queued = client.submit(int, held, key="queued")
        assert distributed.Event("held", client=client).wait(60)
        queued.cancel()
        held.cancel()
        distributed.Event("release", client=client).set()
        client.run_on_scheduler(lambda: None)

    await asyncio.to_thread(play)
    runs: dict[str, Any] = {}
    for _ in range(600):
        await asyncio.to_thread(api.service.recorder.flush, 60)
        page = await api.get("/api/workflows/executions")
        runs = {item["workflow_name"]: item for item in page["items"]}
        if len(runs) == 3 and all(item["status"] not in ("pending", "running") for item in runs.values()):
            break
        await asyncio.sleep(0.1)
    assert {name: item["status"] for name, item in runs.items()} == {
        "nightly": "completed", "fail": "failed", "hold": "cancelled",
    }  # fmt: skip
    timelines = {
        name: (await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline"))["step_timeline"]
        for name, item in runs.items()
    }
    shown = {
        name: sorted((s["step_name"], s["step_index"], s["status"], len(s["attempts"])) for s in steps)
        for name, steps in timelines.items()
    }
    assert shown["fail"] == [("fail", None, "failed", 1), ("never", None, "skipped", 0)]
    assert [entry[0] for entry in shown["hold"]] == ["hold", "queued"]
    by_id = {step["step_id"]: step for step in timelines["nightly"]}
    names = {
        step_id: step["step_name"] if step["step_index"] is None else f"work-{step['step_index']}"
        for step_id, step in by_id.items()
    }
    edges = {names[i]: {names[other] for other in step["depends_on"]} for i, step in by_id.items()}
    known = ("extract", "merge", "load", *keys)
    assert edges == {keys.get(key, key): {keys.get(other, other) for other in truth.edges[key]} for key in known}
    assert edges["merge"] == {f"work-{i}" for i in range(5)}
    computed = {keys.get(key, key): times for key, times in truth.compute.items()}
    for step_id, step in by_id.items():
        ended = datetime.fromisoformat(step["completed_at"]).timestamp()
        assert abs(ended - computed[names[step_id]]["stop"]) < 0.001
    load = next(step for step in timelines["nightly"] if step["step_name"] == "load")
    assert [attempt["status"] for attempt in load["attempts"]] == ["failed", "completed"]
    integration.uninstrument(client)
    assert NAME not in scheduler.plugins
    assert all(NAME not in worker.plugins for worker in client.cluster.workers.values())
