"""Forked and short-lived processes lose nothing; a dead or hanging collector delays nothing.

Each test runs a real process that records to a real database or a real OTLP receiver.
"""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sqlalchemy import Connection, select
from tests import programs

from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import workflow_executions, workflow_step_executions

pytestmark = pytest.mark.e2e


class Receiver:
    """An OTLP/HTTP receiver that keeps span names."""

    def __init__(self) -> None:
        names = self.names = list[str]()
        self.traces = set[str]()
        traces = self.traces

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        names.extend(span.name for span in scope.spans)
                        traces.update(span.trace_id.hex() for span in scope.spans)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A collector that accepts connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def script(
    tmp_path: Path,
    source: str,
    *,
    otlp: str | None = None,
    database: str | None = None,
    is_new: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    file.write_text(source)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TACHOGRAPH_", "TRACEPARENT"))}
    if otlp:
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = otlp
    if database:
        variables["TACHOGRAPH_DATABASE_URL"] = database
    variables.update(environment)
    return (subprocess.run if is_new else programs.run)(
        [sys.executable, "-W", "error", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        env=variables,
        check=False,
    )


Stored = list[tuple[str, list[tuple[str, str]]]]


def stored(url: str) -> Stored:
    """Every execution: workflow and status, and its steps' names and statuses."""
    database = Database(url)

    def read(connection: Connection) -> Stored:
        executions: Stored = []
        for row in connection.execute(select(workflow_executions)):
            steps = connection.execute(
                select(workflow_step_executions.c.name, workflow_step_executions.c.status)
                .where(workflow_step_executions.c.execution_id == row.execution_id)
            )  # fmt: skip
            executions.append((f"{row.workflow} {row.status}", sorted((s.name, s.status) for s in steps)))
        return sorted(executions)

    try:
        return database.look(read)
    finally:
        database.close()


SHORT = """
from tachograph import step, workflow

@step
def load(): pass

@workflow
def short():
    load()

short()
"""


def test_a_script_that_ends_at_once_loses_nothing(tmp_path: Path, database_url: str, receiver: Receiver) -> None:
    ended = script(tmp_path, SHORT, otlp=receiver.address, database=database_url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert stored(database_url) == [("short completed", [("load", "completed")])]
    assert sorted(receiver.names) == ["load", "run short"]


def test_a_script_that_ends_with_an_exception_or_exit_loses_nothing(
    tmp_path: Path, database_url: str, receiver: Receiver
) -> None:
    ended = script(tmp_path, SHORT + "\nimport sys; sys.exit(3)", otlp=receiver.address, database=database_url)
    assert ended.returncode == 3
    assert sorted(receiver.names) == ["load", "run short"]
    assert len(stored(database_url)) == 1


FORK = """
import os
from tachograph import step, workflow

@step
def before(): pass

@step
def inside(): pass

@workflow
def parent():
    before()
    pid = os.fork()
    if pid == 0:
        inside()
        os._exit(0)          # no exit handler runs
    os.waitpid(pid, 0)

@workflow
def child():
    inside()

parent()
pid = os.fork()
if pid == 0:
    child()
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_forked_child_that_leaves_without_exit_handlers_loses_nothing_and_repeats_nothing(
    tmp_path: Path, database_url: str, receiver: Receiver
) -> None:
    ended = script(tmp_path, FORK, otlp=receiver.address, database=database_url)
    assert ended.returncode == 0, ended.stderr
    assert stored(database_url) == [
        ("child completed", [("inside", "completed")]),
        ("parent completed", [("before", "completed"), ("inside", "completed")]),
    ]
    assert sorted(receiver.names) == ["before", "inside", "inside", "run child", "run parent"]


POOL = """
import multiprocessing
from tachograph import step, workflow

@step
def part(n):
    return n * n

@workflow
def pooled():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(part, range(6)) == [0, 1, 4, 9, 16, 25]
        pool.close()
        pool.join()

if __name__ == "__main__":
    pooled()
"""


def test_steps_in_a_multiprocessing_pool_belong_to_the_workflow(
    tmp_path: Path, database_url: str, receiver: Receiver
) -> None:
    ended = script(tmp_path, POOL, otlp=receiver.address, database=database_url)
    assert ended.returncode == 0, ended.stderr
    ((_, steps),) = stored(database_url)
    assert steps == [("part", "completed")] * 6
    assert sorted(receiver.names) == ["part"] * 6 + ["run pooled"]
    assert len(receiver.traces) == 1


@pytest.mark.parametrize("collector", ["down", "black hole"])
def test_a_collector_that_is_down_or_hangs_neither_fails_nor_delays_a_step(
    tmp_path: Path, database_url: str, black_hole: str, collector: str
) -> None:
    source = """
import os
import time
os.environ["TACHOGRAPH_MAX_STEP_REPETITIONS"] = "2000"
from tachograph import step, workflow

@step
def load(): pass

started = time.perf_counter()
with workflow("many"):
    for _ in range(2000):
        load()
print(time.perf_counter() - started)
"""
    address = black_hole if collector == "black hole" else "http://127.0.0.1:9"
    fast = script(tmp_path, source, database=database_url)
    started = time.monotonic()
    slow = script(tmp_path, source, otlp=address, database=database_url)
    took = time.monotonic() - started
    assert slow.returncode == 0, slow.stderr
    # The SDK's own time-out for one export is 10 s: steps that waited for one would take at least that.
    assert float(slow.stdout) < 5 * float(fast.stdout) + 9
    assert took < 100
    assert [len(steps) for _, steps in stored(database_url)] == [2000, 2000]


def test_a_child_process_continues_the_trace(tmp_path: Path, database_url: str, receiver: Receiver) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    script(tmp_path, SHORT, otlp=receiver.address, database=database_url, TRACEPARENT=parent)
    assert receiver.traces == {"0af7651916cd43dd8448eb211c80319c"}


def test_a_database_that_cannot_be_opened_costs_the_script_its_record_only(tmp_path: Path) -> None:
    ended = script(tmp_path, SHORT + "\nprint('done')", database="sqlite:////nowhere/at/all.db")
    assert ended.returncode == 0
    assert ended.stdout == "done\n"
    assert "there is no directory" in ended.stderr


def test_importing_the_instrumentation_needs_none_of_the_services_libraries(tmp_path: Path) -> None:
    source = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"aiohttp", "sqlalchemy", "alembic"}:
            raise ImportError(f"{name} is not there", name=name)

sys.meta_path.insert(0, Refuse())
import tachograph, tachograph.workflow
assert not {"aiohttp", "sqlalchemy", "alembic"} & set(sys.modules)
"""
    ended = script(tmp_path, source + SHORT, is_new=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_instrumentor_sets_up_once_and_delivers_when_it_is_uninstalled(tmp_path: Path, database_url: str) -> None:
    source = """
import sqlite3, sys
from tachograph import get_recorder, workflow
from tachograph.recording.instrumentor import TachographInstrumentor

instrumentor = TachographInstrumentor()
instrumentor.instrument()
first = get_recorder()
instrumentor.instrument()
assert get_recorder() is first

@workflow
def nightly(): return 1

nightly()
instrumentor.uninstrument()
assert get_recorder() is not first
with sqlite3.connect(sys.argv[1]) as database:
    print(database.execute("SELECT workflow, status FROM workflow_executions").fetchall())
database.close()
"""
    (tmp_path / "once.py").write_text(source)
    path = database_url.removeprefix("sqlite:///")
    ran = programs.run(
        [sys.executable, "-W", "error::ResourceWarning", "once.py", path], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "TACHOGRAPH_DATABASE_URL": database_url}, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "[('nightly', 'completed')]\n"
