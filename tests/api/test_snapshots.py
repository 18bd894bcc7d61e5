"""Every answer is of one state of the database, whatever is committed between the statements that read it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import gzip
import itertools
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Connection, delete, event, func, select
from sqlalchemy.engine import Engine
from tests.conftest import Api, make_execution, make_step, serve

from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus, StepFinished, StepStatus
from tachograph.identity import ExecutionRef, workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.routes import Route
from tachograph_exporter.config import Config
from tachograph_exporter.store import archiving
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.removal import remove_workflow
from tachograph_exporter.store.schema import workflow_executions
from tachograph_exporter.store.writer import StoreWriter

pytestmark = pytest.mark.every_database

DAY_NS: Final = 86_400 * NS
MAX_STATEMENTS: Final = 60


@dataclasses.dataclass
class Other:
    """Another process that writes to the same database."""

    database: Database
    writer: StoreWriter

    def record(self, workflow: str, at_ns: int, status: ExecutionStatus = ExecutionStatus.COMPLETED) -> ExecutionRef:
        """Store an execution that started at this time and ended a second later."""
        execution = make_execution(workflow)
        self.writer.apply(events_of(execution, at_ns, status))
        return execution


def events_of(
    execution: ExecutionRef, at_ns: int, status: ExecutionStatus, steps: Sequence[str] = ("a",)
) -> list[Event]:
    end_ns = at_ns + NS
    ended = [
        StepFinished(
            step=make_step(execution, name), time_ns=end_ns, status=StepStatus(status), attempt=1, started_ns=at_ns,
            attempt_started_ns=at_ns, run_ns=NS,
        )
        for name in steps
    ]  # fmt: skip
    count = len(steps)
    return [
        ExecutionStarted(execution=execution, time_ns=at_ns, step_count=count, process="gone"),
        *ended,
        ExecutionFinished(execution=execution, time_ns=end_ns, status=status, started_ns=at_ns, step_count=count),
    ]


@pytest.fixture
def other(any_database_url: str) -> Iterator[Other]:
    database = Database(any_database_url)
    yield Other(database, StoreWriter(database))
    database.close()


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.2), handlers):
        # A change here holds up the event loop. If that is about to commit something of the service's own, with the
        # writers' lock, both wait for each other.
        background = [task for task in asyncio.all_tasks() if is_of_the_service(task)]
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        yield api


def is_of_the_service(task: asyncio.Task[Any]) -> bool:
    return task.get_name().startswith("tachograph ")


def is_background(connection: Connection) -> bool:
    """Whether the service does something of its own: while it holds the writers' lock, a change would wait for it."""
    if connection.get_execution_options().get("tachograph_write"):
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:  # A thread.
        return False
    return task is not None and is_of_the_service(task)


@contextlib.contextmanager
def before_statement(number: int, other: Other, change: Callable[[], None]) -> Iterator[list[str]]:
    """Call ``change`` before the statement with this number (from 0) of this thread's service; yields the statements.

    Only reads are counted: the service writes nothing in these tests.
    """
    statements: list[str] = []
    is_changing = False

    def on_statement(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal is_changing
        if is_changing or not statement.lstrip().upper().startswith("SELECT"):
            return
        # The service looks for traces to assemble all the time.
        if connection.engine is other.database.engine or "traces.due_ns" in statement or is_background(connection):
            return
        statements.append(statement)
        if len(statements) == number + 1:
            is_changing = True
            try:
                change()
            finally:
                is_changing = False

    event.listen(Engine, "before_cursor_execute", on_statement)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", on_statement)


async def test_all_statements_of_a_read_see_the_same_state(any_database_url: str, other: Other) -> None:
    count = select(func.count()).select_from(workflow_executions)

    def read(connection: Connection) -> tuple[int, int]:
        before = connection.execute(count).scalar_one()
        other.record("w", time.time_ns())
        return before, connection.execute(count).scalar_one()

    # The first execution of a month makes a partition, which would wait for the end of the read.
    other.record("w", time.time_ns())
    database = Database(any_database_url)
    try:
        assert await database.read(read) == (1, 1)
        assert database.look(read) == (2, 2)
        assert await database.read(read) == (3, 3)
        # A connection that has read is used again, to write.
        assert database.run(lambda c: c.execute(delete(workflow_executions)).rowcount) == 4
        assert await database.write(lambda c: c.execute(delete(workflow_executions)).rowcount) == 0
    finally:
        await database.aclose()


@dataclasses.dataclass
class Case:
    """A workflow with two executions, the first given up as lost, and the changes that another process may make."""

    other: Other
    workflow: str
    lost: ExecutionRef
    usual: ExecutionRef
    archive: Path

    @classmethod
    def make(cls, other: Other, workflow: str, archive: Path) -> Case:
        ended_ns = time.time_ns() - 2 * DAY_NS
        usual = other.record(workflow, ended_ns - 3600 * NS)
        return cls(other, workflow, other.record(workflow, ended_ns, ExecutionStatus.LOST), usual, archive)

    def path(self, route: Route) -> str:
        path = route.path.format(
            workflow_id=self.workflow, execution_id=self.lost.execution_id, trace_id=self.lost.trace_id
        )
        if path.endswith("/compare"):
            path += f"?execution={self.lost.execution_id}&baseline=30d"
        if path.endswith("/metrics"):
            path += "?from=2020-01-01"  # Metrics of all time are cached.
        if path.endswith("/trends"):
            path += "?from=3d"
        return path

    def end_another_on_a_new_day(self) -> None:
        self.other.record(self.workflow, time.time_ns())

    def end_after_all(self) -> None:
        at_ns = time.time_ns() - 2 * DAY_NS
        self.other.writer.apply(events_of(self.lost, at_ns, ExecutionStatus.COMPLETED, steps=("a", "b", "c")))

    def move_to_the_archive(self) -> None:
        archiving.archive(self.other.database, time.time_ns() - DAY_NS, self.archive)

    def delete(self) -> None:
        self.other.database.run(lambda c: remove_workflow(c, workspace_id("default"), self.lost.workflow_id))


async def said(api: Api, path: str) -> tuple[int, Any]:
    """The answer; of a report what it holds, without the moment at which it was made."""
    status, body = await api.call("GET", path)
    if isinstance(body, str) and (
        data := re.search(r'<script[^>]*type="[^"]*"[^>]*>([A-Za-z0-9+/=\s]+)</script>', body)
    ):
        body = json.loads(gzip.decompress(base64.b64decode(data[1])))
        del body["made_at"]
    return status, body


READS: Final = [
    route
    for route in ROUTES
    if route.method == "GET"
    and route.in_workspace
    and (route.path.startswith("/api/workflows") or "{trace_id}" in route.path)
    and "templates" not in route.path
]
CHANGES: Final = (Case.end_another_on_a_new_day, Case.end_after_all, Case.move_to_the_archive, Case.delete)


@pytest.mark.parametrize(
    "changes",
    [pytest.param(CHANGES, id="each in turn"),
     *(pytest.param([change], id=change.__name__, marks=pytest.mark.slow) for change in CHANGES)],
)  # fmt: skip
async def test_an_answer_is_of_one_state(
    api: Api, other: Other, changes: Sequence[Callable[[Case], None]], tmp_path: Path
) -> None:
    names = itertools.count()
    next_changes = itertools.islice(itertools.cycle(changes), random.randrange(len(changes)), None)
    stride = 5 if other.database.is_sqlite else 10
    for route in READS:
        # Every fifth or tenth place, beginning anywhere: each run looks at others.
        for number in range(random.randrange(stride), MAX_STATEMENTS + stride, stride):
            case = Case.make(other, f"w{next(names)}", tmp_path / "archive")
            path = case.path(route)
            before = await said(api, path)
            with before_statement(number, other, functools.partial(next(next_changes), case)) as statements:
                during = await said(api, path)
            after = await said(api, path)
            assert before[0] == 200, before
            if number >= len(statements):
                assert during == before
                break
            assert during in (before, after), (route.path, number, statements)
        else:
            raise AssertionError(f"{route.path} takes more than {MAX_STATEMENTS} statements")
