"""What tests of several rooms need."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from tachograph.events import Event, ExecutionRef, StepRef, new_execution_ref, new_span_id, step_id, workflow_id
from tachograph.exporter import examples
from tachograph.exporter.config import Config
from tachograph.exporter.service import Service
from tachograph.exporter.store.database import Database
from tachograph.instrumentation.recorder import Recorder
from tachograph.workflow import HandlerRegistry, registry

ROOT = Path(__file__).resolve().parent.parent


class Api:
    """A running service and a client that speaks JSON with it."""

    def __init__(self, service: Service, session: aiohttp.ClientSession, address: str) -> None:
        self.service = service
        self.session = session
        self.address = address

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """(status, decoded body)."""
        async with self.session.request(method, self.address + path, json=body, **options) as response:
            if response.content_type.endswith("json"):
                return response.status, await response.json()
            return response.status, await response.text()

    async def get(self, path: str, **options: Any) -> Any:
        """The decoded body of a GET that must be answered with 200."""
        status, body = await self.call("GET", path, **options)
        assert status == 200, body
        return body

    async def run(self, workflow: str, inputs: dict[str, Any] | None = None) -> str:
        """Execute a registered workflow and wait for its end; the execution's id."""
        status, body = await self.call("POST", f"/api/workflows/{workflow}/execute", {"input_variables": inputs or {}})
        assert status == 202, body
        await self.finished(body["execution_id"])
        return str(body["execution_id"])

    async def finished(self, execution_id: str, timeout: float = 20) -> Any:
        """The status once the execution has ended."""
        async with asyncio.timeout(timeout):
            while True:
                state = await self.get(f"/api/workflows/executions/{execution_id}/status")
                if state["status"] not in ("pending", "running"):
                    return state
                await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, made once: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def database_url(tmp_path: Path, empty_database: Path) -> str:
    shutil.copy(empty_database, tmp_path / "test.db")
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture
def handlers() -> HandlerRegistry:
    examples.load_handlers()
    return registry.copy()


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for found in serve(Config(database=database_url, grace_seconds=0.2), handlers):
        yield found


async def serve(config: Config, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    service = Service(config, handlers)
    server = TestServer(service.application())
    await server.start_server()
    async with aiohttp.ClientSession() as session:
        yield Api(service, session, str(server.make_url("")).rstrip("/"))
    await server.close()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.close(5)


@pytest.fixture
def events(recorder: Recorder) -> list[Event]:
    """Everything the recorder was told, in order, after `recorder.flush()`."""
    found: list[Event] = []
    recorder.add("test", found.append)
    return found


def make_execution(workflow: str = "etl", **fields: Any) -> ExecutionRef:
    return new_execution_ref(
        workspace="default", workflow=workflow, workflow_id=workflow_id("default", workflow), **fields
    )


def make_step(execution: ExecutionRef, name: str, **fields: Any) -> StepRef:
    return StepRef(
        execution=execution,
        step_id=step_id(execution.workflow_id, name),
        name=name,
        span_id=new_span_id(),
        parent_span_id=execution.span_id,
        **fields,
    )


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool], timeout: float = 10.0) -> None:
        done = threading.Event()
        for _ in range(int(timeout / 0.01)):
            if condition():
                return
            done.wait(0.01)
        raise AssertionError("it did not happen in time")

    return wait
