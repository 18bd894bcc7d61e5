"""A real Hamilton driver: its nodes as steps, compared with what its graph says."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import Api

from tachograph.integrations import hamilton as integration

pytestmark = pytest.mark.filterwarnings("ignore")

SOURCE = """
from hamilton.htypes import Collect, Parallelizable

def extract(count: int) -> int:
    return count

def item(extract: int) -> Parallelizable[int]:
    yield from range(extract)

def work(item: int) -> int:
    return 2 * item

def merged(work: Collect[int]) -> int:
    return sum(work)

def broken(merged: int) -> int:
    raise ValueError("password=hunter2")

def never(broken: int, count: int) -> int:
    return broken
"""


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    module = types.ModuleType("hamilton_nodes")
    sys.modules[module.__name__] = module
    exec(compile(SOURCE, "hamilton_nodes.py", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


async def test_executions_of_a_graph_are_runs(
    api: Api, module: types.ModuleType, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hamilton import driver
    from hamilton.execution import executors

    dr = (
        driver.Builder()
        .enable_dynamic_execution(allow_experimental_mode=True)
        .with_local_executor(executors.SynchronousLocalTaskExecutor())
        .with_remote_executor(executors.MultiThreadingExecutor(2))
        .with_modules(module)
        .with_adapters(integration.adapter("nightly"))
        .build()
    )

    def play() -> None:
        assert dr.execute(["merged"], inputs={"count": 5}) == {"merged": 20}
        with pytest.raises(ValueError, match="hunter2"):
            dr.execute(["never"], inputs={"count": 5})

    await asyncio.to_thread(play)
    await asyncio.to_thread(api.service.recorder.flush, 60)
    page = await api.get("/api/workflows/executions")
    runs = {item["status"]: item["execution_id"] for item in page["items"]}
    assert sorted(runs) == ["completed", "failed"]
    assert {item["workflow_name"] for item in page["items"]} == {"nightly"}
    timeline: dict[str, Any] = await api.get(f"/api/workflows/executions/{runs['failed']}/timeline")
    assert "hunter2" not in str(timeline)
    steps = timeline["step_timeline"]
    assert sorted((s["step_name"], s["step_index"], s["status"]) for s in steps if s["step_name"] == "work") == [
        ("work", number, "completed") for number in range(5)
    ]
    others = {s["step_name"]: s["status"] for s in steps if s["step_name"] != "work"}
    assert others == {
        "extract": "completed", "item": "completed", "merged": "completed", "broken": "failed", "never": "skipped",
    }  # fmt: skip
    names = {s["step_id"]: s["step_name"] for s in steps}
    edges = {(names[other], s["step_name"]) for s in steps for other in s["depends_on"]}
    nodes = {node.name: node for node in dr.graph.get_nodes()}
    assert edges == {(d.name, n.name) for n in nodes.values() for d in n.dependencies if not d.user_defined}
    # Broken on purpose: the graph is executed, and the log says so.
    monkeypatch.setattr(integration, "run", None)
    assert await asyncio.to_thread(dr.execute, ["merged"], inputs={"count": 2}) == {"merged": 2}
    assert any("not reported" in record.message for record in caplog.records)
