"""Each part of the recording stands alone: what works is kept, what does not is said once, and nothing raises.

The scripts are real processes that record to real databases.
"""

from __future__ import annotations

import collections
import logging
import multiprocessing
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from sqlalchemy import select

import tachograph
from tachograph.errors import BadDatabaseURL, CannotOpen, DatabaseUnavailable, SetupError, StoreError, StoreUnavailable
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepLogged,
)
from tachograph.recording import provider as provider_module
from tachograph.recording import setup
from tachograph.recording.spool import FAILED, FULL, Kept, Spool, address, default_directories
from tachograph.workflow.handlers import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import workflow_executions, workflow_step_executions
from tachograph_exporter.store.writer import StoreWriter, open_writer
from tests import programs
from tests.conftest import make_execution, make_run, make_step, running

SHORT = """
import atexit, time
ended = []
atexit.register(lambda: print("ended in", time.monotonic() - ended[0], "s"))  # the last handler that runs
from tachograph import get_recorder, step, workflow

@step
def load(): pass

@workflow
def short():
    load(); load()

short()
from prometheus_client import REGISTRY
recorder = get_recorder()
recorder.queues["metrics"].flush(60)
steps = REGISTRY.get_sample_value(
    "workflow_step_duration_seconds_count",
    {"workspace": "default", "workflow": "short", "step": "load", "status": "completed"},
)
print("counted", steps, sorted({problem.part for problem in recorder.problems}))
ended.append(time.monotonic())
"""


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "spools"
    monkeypatch.setenv("TACHOGRAPH_SPOOL_DIR", str(directory))
    return directory


@pytest.fixture
def own_recorder() -> Iterator[None]:
    """Closes the process's recorder before the test, whoever used it, and after it."""
    close_recorder()
    yield
    close_recorder()


def close_recorder() -> None:
    if (recorder := setup._recorder) is not None:
        setup.release(recorder)
        recorder.close()


def environment(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TACHOGRAPH_", "TRACEPARENT"))}
    return {**kept, "TACHOGRAPH_SPOOL_DIR": os.environ["TACHOGRAPH_SPOOL_DIR"], **variables}


def script(tmp_path: Path, source: str, **variables: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    file.write_text(source)
    command = [sys.executable, "-W", "error", str(file)]
    return programs.run(command, capture_output=True, text=True, timeout=60, env=environment(**variables), check=False)


def spooled(directory: Path) -> list[Path]:
    """What processes left in their spools: their journals, and what they had in memory at their end."""
    return [*directory.rglob("*.spool"), *directory.rglob("*.jsonl")]


def seconds_to_end(ended: subprocess.CompletedProcess[str]) -> float:
    """How long the exit handlers took, without the start of Python and the imports."""
    return float(ended.stdout.partition("ended in ")[2].split()[0])


def stored(url: str) -> dict[str, int]:
    """Steps of every stored execution that completed, by workflow and number of the run."""
    database = Database(url)

    def read(connection: Any) -> dict[str, int]:
        counts: dict[str, int] = {}
        numbers: collections.Counter[str] = collections.Counter()
        for row in connection.execute(select(workflow_executions)):
            steps = select(workflow_step_executions).where(
                workflow_step_executions.c.execution_id == row.execution_id,
                workflow_step_executions.c.status == "completed",
            )
            counts[f"{row.workflow} {row.status} {numbers[row.workflow]}"] = len(connection.execute(steps).all())
            numbers[row.workflow] += 1
        return counts

    try:
        return database.look(read)
    finally:
        database.close()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another process's transaction that writes."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


CONSOLE = {"OTEL_TRACES_EXPORTER": "console"}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("variables", "named", "spans"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin'", False),
        ({"OTEL_TRACES_EXPORTER": "nonsense,console"}, "'nonsense'", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "::"}, "OTEL_EXPORTER_OTLP_ENDPOINT", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "OTEL_EXPORTER_OTLP_ENDPOINT", False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "localhost:4318"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", False),
        ({**CONSOLE, "OTEL_BSP_MAX_QUEUE_SIZE": "x"}, "OTEL_BSP_MAX_QUEUE_SIZE", True),
        ({**CONSOLE, "OTEL_BSP_SCHEDULE_DELAY": "-5"}, "OTEL_BSP_SCHEDULE_DELAY", True),
        ({**CONSOLE, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "99999999"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", True),
        ({**CONSOLE, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", True),
        ({**CONSOLE, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "x"}, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", True),
        ({**CONSOLE, "OTEL_PROPAGATORS": "nope,tracecontext"}, "OTEL_PROPAGATORS", True),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_a_fault_of_the_span_variables_costs_no_timeline_and_no_metrics(
    tmp_path: Path, database_url: str, variables: dict[str, str], named: str, spans: bool
) -> None:
    ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=database_url, **variables)
    assert ended.returncode == 0, ended.stderr
    assert "counted 2.0 ['spans']" in ended.stdout
    assert stored(database_url) == {"short completed 0": 2}
    assert ('"name": "run short"' in ended.stdout) == spans
    assert "Traceback" not in ended.stderr
    assert sum(named in line for line in ended.stderr.splitlines()) == 1, ended.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_BSP_MAX_QUEUE_SIZE": "100"},  # smaller than the default of a batch
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "x"},
        {"OTEL_RESOURCE_ATTRIBUTES": "a,=,b=%ZZ,service.name="},
        {"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "nope"},
        {"OTEL_PYTHON_CONTEXT": "nope"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "%%%", "OTEL_EXPORTER_OTLP_TIMEOUT": "x"},
    ],
    ids=str,
)
def test_what_the_sdk_forgives_costs_nothing(tmp_path: Path, database_url: str, variables: dict[str, str]) -> None:
    ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=database_url, **CONSOLE, **variables)
    assert ended.returncode == 0, ended.stderr
    assert "counted 2.0 []" in ended.stdout
    assert '"name": "run short"' in ended.stdout
    assert stored(database_url) == {"short completed 0": 2}
    # Its own, when it is set up; none for each step.
    assert ended.stderr.count("Traceback") <= 1


@pytest.mark.e2e
def test_without_a_provider_of_opentelemetry_s_choice_the_environment_s_is_used(
    tmp_path: Path, database_url: str
) -> None:
    ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=database_url, OTEL_PYTHON_TRACER_PROVIDER="nope", **CONSOLE)
    assert ended.returncode == 0, ended.stderr
    assert "counted 2.0 ['spans']" in ended.stdout
    assert '"name": "run short"' in ended.stdout
    assert stored(database_url) == {"short completed 0": 2}
    assert ended.stderr.count("Traceback") == 1  # OpenTelemetry's own
    assert ended.stderr.count("OpenTelemetry's own provider cannot be made") == 1


def directory_as_database(tmp_path: Path) -> str:
    (tmp_path / "directory.db").mkdir()
    return f"sqlite:///{tmp_path}/directory.db"


def no_database(tmp_path: Path) -> str:
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    return f"sqlite:///{tmp_path}/text.db"


def newer_schema(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/newer.db"
    database = Database(url)
    database.run(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    return url


def refusing(_tmp_path: Path) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"postgresql://user:hunter2@127.0.0.1:{port}/runs"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("url", "says", "is_spooled"),
    [
        (lambda path: f"sqlite:///{path}/no/directory/x.db", "there is no directory", True),
        (directory_as_database, "unable to open", True),
        (no_database, "not a database", True),
        (newer_schema, "upgrade Tachograph", True),
        (refusing, "postgresql+asyncpg://user:***@", True),
        (lambda _: "postgresql://user:hunter2@host:notaport/x", "not a database URL", False),
        (lambda _: "mysql://user:hunter2@host/x", "no support", False),
        (lambda _: "hunter2", "not a database URL", False),
        (lambda path: f"sqlite:///{path}/\udce8/x.db", "", None),
    ],
)
def test_a_database_that_cannot_be_opened_costs_no_metrics_and_is_said_once(
    tmp_path: Path, spools: Path, url: Callable[[Path], str], says: str, is_spooled: bool | None
) -> None:
    ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=url(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "counted 2.0 ['store']" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert "hunter2" not in ended.stderr
    if says:
        assert sum(says in line for line in ended.stderr.splitlines()) == 1, ended.stderr
    if is_spooled is not None:
        assert bool(spooled(spools)) == is_spooled
        assert sum(map(int, re.findall(r"spooled (\d+) event", ended.stderr))) == (6 if is_spooled else 0)
    assert seconds_to_end(ended) < 20  # 5, and what a busy machine adds


@pytest.mark.e2e
def test_what_a_locked_database_could_not_take_is_stored_by_the_next_process(
    tmp_path: Path, database_url: str, spools: Path
) -> None:
    with locked(database_url):
        ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=database_url)
    assert ended.returncode == 0, ended.stderr
    assert "spooled" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert seconds_to_end(ended) < 20  # 5, and what a busy machine adds
    assert stored(database_url) == {}
    (file,) = spooled(spools)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=database_url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert stored(database_url) == {"short completed 0": 2, "short completed 1": 2}
    assert list(spools.rglob("*.*")) == []


@pytest.mark.e2e
def test_a_new_database_that_is_locked_is_not_an_error_of_the_argument(tmp_path: Path, spools: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    source = "import tachograph\n" + SHORT.replace(
        "short()\nfrom", f"tachograph.configure(database={url!r}); short()\nfrom"
    )
    with locked(url):
        ended = script(tmp_path, source)
    assert ended.returncode == 0, ended.stderr
    assert "counted 2.0 ['store']" in ended.stdout
    assert len(spooled(spools)) == 1
    script(tmp_path, source)
    assert stored(url) == {"short completed 0": 2, "short completed 1": 2}


@pytest.mark.e2e
async def test_the_service_stores_what_was_spooled_before_it_looks_for_lost_runs(
    database_url: str, handlers: HandlerRegistry
) -> None:
    dead = "dead/-/1/1"
    execution = make_execution("nightly")
    start = ExecutionStarted(execution=execution, time_ns=1, process=dead)
    writer = open_writer(database_url)
    writer.apply([start])
    writer.close()
    Spool(database_url).keep(
        [
            ExecutionFinished(
                execution=execution, time_ns=9, status=ExecutionStatus.COMPLETED, started_ns=1, step_count=0
            )
        ]
    )
    async with running(Config(database=database_url), handlers) as api:
        state = await api.get(f"/api/workflows/executions/{execution.execution_id}/status")
        assert state["status"] == "completed"
        assert files(Spool(database_url)) == []
        other = make_execution("later")
        Spool(database_url).keep(make_run(other))
        await api.service.upkeep.sweep()
        state = await api.get(f"/api/workflows/executions/{other.execution_id}/status")
        assert state["status"] == "completed"


def pipe(source: socket.socket, target: socket.socket) -> None:
    with source, target:
        while data := source.recv(65_536):
            target.sendall(data)


@contextmanager
def proxy(port: int, target: int) -> Iterator[None]:
    """Forwards connections on a port to another."""
    server = socket.create_server(("127.0.0.1", port))

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", target))
            for pair in ((client, upstream), (upstream.dup(), client.dup())):
                threading.Thread(target=_quietly, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def _quietly(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        pipe(source, target)


@pytest.mark.e2e
@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "accepts and never answers"])
def test_a_postgresql_server_that_is_away_gets_everything_later(
    tmp_path: Path, postgres: Callable[[], str], spools: Path, is_silent: bool
) -> None:
    url = postgres()
    real = int(url.rpartition(":")[2].partition("/")[0])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        away = url.replace(f":{real}/", f":{port}/")
        if not is_silent:
            server.close()
        ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=away)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(spooled(spools)) == 1
    assert seconds_to_end(ended) < 20  # 5, and what a busy machine adds
    with proxy(port, real):
        ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=away)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert stored(url) == {"short completed 0": 2, "short completed 1": 2}
    assert list(spools.rglob("*.*")) == []


FORK = """
import os, sys, time
from tachograph import step, workflow

@step
def inside(): pass

@workflow
def child():
    inside()

def run():
    child(); child()

@workflow
def parent():
    started = time.monotonic()
    pid = os.fork()
    print(f"forked {time.monotonic() - started:.1f}", flush=True) if pid else None
    if pid == 0:
        run()
        os._exit(0)          # no exit handler runs
    assert os.waitpid(pid, 0)[1] == 0

parent()
"""


@pytest.mark.e2e
def test_a_forked_child_spools_what_it_cannot_store(tmp_path: Path, database_url: str, spools: Path) -> None:
    with locked(database_url):
        ended = script(tmp_path, FORK, TACHOGRAPH_DATABASE_URL=database_url)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert float(ended.stdout.split()[1]) < 1.5
    script(tmp_path, "import tachograph; tachograph.workflow(print)()", TACHOGRAPH_DATABASE_URL=database_url)
    runs = collections.Counter(name.rpartition(" ")[0] for name in stored(database_url))
    assert runs == {"child completed": 2, "parent completed": 1, "print completed": 1}
    assert spooled(spools) == []


def test_a_wrong_argument_raises_and_leaves_the_earlier_recorder(
    tmp_path: Path, database_url: str, own_recorder: None
) -> None:
    first = tachograph.configure(registry=CollectorRegistry(), database=database_url)
    for url, error in (
        ("nonsense", BadDatabaseURL),
        (f"sqlite:///{tmp_path}/no/x.db", CannotOpen),
        (no_database(tmp_path), CannotOpen),
        (f"sqlite:///{tmp_path}/\0x.db", StoreError),
    ):
        with pytest.raises(error) as raised:
            tachograph.configure(registry=CollectorRegistry(), database=url)
        assert not isinstance(raised.value, StoreUnavailable)
        assert tachograph.get_recorder() is first
    registry = CollectorRegistry()
    Counter("workflow_executions_started", "mine", registry=registry)
    with pytest.raises(SetupError, match="workflow_executions_started"):
        tachograph.configure(registry=registry)


def test_a_name_that_the_programs_own_metric_has_costs_only_the_metrics(
    monkeypatch: pytest.MonkeyPatch, database_url: str, own_recorder: None
) -> None:
    registry = CollectorRegistry()
    monkeypatch.setattr(setup, "REGISTRY", registry)
    Counter("workflow_executions_started", "mine", registry=registry)
    monkeypatch.setenv("TACHOGRAPH_DATABASE_URL", database_url)
    recorder = tachograph.configure(registry=registry)
    assert set(recorder.queues) == {"spans", "store"}
    ((part, message),) = recorder.problems
    assert part == "metrics"
    assert "workflow_executions_started" in message


def test_a_tracer_provider_that_raises_costs_only_the_spans(
    monkeypatch: pytest.MonkeyPatch, own_recorder: None
) -> None:
    class Broken(trace.TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            raise RuntimeError("no tracer today")

    monkeypatch.setattr(trace, "get_tracer_provider", Broken)
    recorder = tachograph.configure(registry=CollectorRegistry())
    assert set(recorder.queues) == {"spans", "metrics"}
    assert [problem.part for problem in recorder.problems] == ["spans"]
    with pytest.raises(RuntimeError, match="no tracer today"):
        tachograph.configure(registry=CollectorRegistry(), provider=Broken())


def test_the_environment_may_hold_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch, own_recorder: None) -> None:
    monkeypatch.setenv("TACHOGRAPH_WORKSPACE", os.fsdecode(b"team-\xe8"))
    monkeypatch.setenv("TACHOGRAPH_MEASURES", os.fsdecode(b"rows,\xe8"))
    tachograph.configure(registry=CollectorRegistry())
    setup.default_workspace().encode()
    assert setup.default_workspace().startswith("team-")


@pytest.mark.parametrize("variable", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_the_multiprocess_mode_of_prometheus_client_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    own_recorder: None,
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    with caplog.at_level(logging.WARNING):
        recorder = tachograph.configure()
        for _ in range(3):
            tachograph.workflow(int)()
    (record,) = caplog.records
    assert variable in record.message
    assert "tachograph serve" in record.message
    assert "registry" in record.message
    assert [problem.part for problem in recorder.problems] == ["metrics"]
    assert REGISTRY.get_sample_value("tachograph_events_total") is not None
    # Whoever gives a registry has taken the way out.
    assert tachograph.configure(registry=CollectorRegistry()).problems == []


def test_a_process_of_its_own_shows_what_it_lost(own_recorder: None) -> None:
    registry = CollectorRegistry()
    recorder = tachograph.configure(registry=registry)
    tachograph.workflow(int)()
    recorder.queues["metrics"].drop("queue_full", 3)
    dropped = {"listener": "metrics", "reason": "queue_full"}
    assert registry.get_sample_value("tachograph_events_dropped_total", dropped) == 3
    recorder = tachograph.configure(registry=registry)
    assert registry.get_sample_value("tachograph_events_dropped_total", dropped) == 0
    assert len([m for m in registry.collect() if m.name == "tachograph_events_dropped"]) == 1


def test_the_provider_keeps_the_exporters_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin, console ,nope")
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "many")
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "7")
    said: list[tuple[str, str]] = []
    provider = provider_module.provider_from_environment(lambda part, message: said.append((part, message)))
    assert isinstance(provider, TracerProvider)
    assert [part for part, _ in said] == ["spans"] * 3
    assert "zipkin" in said[0][1]
    assert "nope" in said[1][1]
    assert "OTEL_SPAN_EVENT_COUNT_LIMIT='many'" in said[2][1]
    limits = provider._span_limits
    assert (limits.max_events, limits.max_links, limits.max_attribute_length) == (128, 7, None)
    provider.shutdown()


def test_an_exporter_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setattr(metadata, "entry_points", lambda **_selected: ())
    said: list[str] = []
    assert provider_module.provider_from_environment(lambda _part, message: said.append(message)) is None
    assert "pip install opentelemetry-exporter-otlp-proto-grpc" in said[0]


def test_opening_tells_away_from_wrong(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    with locked(url):
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="locked"):
            Database(url, wait_seconds=0.1)
        assert time.monotonic() - started < 60
    Database(url, wait_seconds=0.1).close()
    with pytest.raises(DatabaseUnavailable):
        Database(refusing(tmp_path), wait_seconds=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/x?password=hunter2"
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="no response within") as raised:
            Database(silent, wait_seconds=0.2)
        assert time.monotonic() - started < 60
        assert "hunter2" not in str(raised.value)


@pytest.mark.e2e
def test_a_postgresql_database_that_does_not_exist_is_an_error_of_the_argument(postgres: Callable[[], str]) -> None:
    with pytest.raises(CannotOpen) as raised:
        Database(postgres().rpartition("/")[0] + "/no_such_database")
    assert not isinstance(raised.value, StoreUnavailable)


# The spool.


URL = "postgresql://user:hunter2@db/runs"


@pytest.fixture
def spool() -> Spool:
    return Spool(URL)


def files(spool: Spool, ending: str = "") -> list[str]:
    (directory,) = spool.directories
    return sorted(path.name for path in directory.iterdir() if path.name.endswith(ending)) if directory.exists() else []


def test_what_is_spooled_comes_back_once_and_in_order(spool: Spool) -> None:
    runs = [make_run(make_execution(str(i))) for i in range(3)]
    for run in runs:
        assert spool.keep(run) == Kept(4)
    seen: list[Event] = []
    assert Spool(URL).deliver(seen.extend) == 12
    assert seen == [event for run in runs for event in run]
    assert Spool(URL).deliver(seen.extend) == 0
    assert files(spool) == []
    assert "hunter2" not in str(spool.directories)


def test_large_spools_are_several_files_and_bounded(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = make_execution()
    events: list[Event] = [ExecutionStarted(execution=execution, time_ns=i) for i in range(12_000)]
    assert spool.keep(events) == Kept(12_000)
    assert len(files(spool)) == 3
    size = sum((spool.directories[0] / name).stat().st_size for name in files(spool))
    small = Spool(URL, limit_bytes=size + 1000)
    assert small.keep(events[:1]) == Kept(1)
    # The oldest file goes, and no more than that.
    assert small.keep(events[:5_000]) == Kept(5_000, FULL, 5_000)
    assert Spool(URL, limit_bytes=1000).keep(events) == Kept(0, FULL)
    seen: list[Event] = []
    assert spool.deliver(seen.extend, seconds=0) == 0
    assert spool.deliver(seen.extend) == 12_001
    assert seen == [*events[5_000:], events[0], *events[:5_000]]
    assert (spool.take_dropped(), spool.take_dropped()) == (5_000, 0)
    assert files(spool) == []


def test_an_event_that_cannot_be_written_costs_no_other(spool: Spool) -> None:
    execution = make_execution()
    bad = StepLogged(step=make_step(execution, "a"), time_ns=1, sequence=1, message=os.fsdecode(b"\xe8"))
    spool.keep([bad, *make_run(execution)])
    seen: list[Event] = []
    spool.deliver(seen.extend)
    assert len(seen) == 4


def test_while_the_database_is_away_files_stay(spool: Spool) -> None:
    spool.keep(make_run(make_execution()))
    spool.keep(make_run(make_execution()))
    seen: list[Event] = []

    def apply(events: Sequence[Event]) -> None:
        if seen:
            raise StoreUnavailable("locked")
        seen.extend(events)

    assert spool.deliver(apply) == 4
    assert len(files(spool, ".spool")) == 1
    assert not spool.is_empty


def test_an_event_that_is_refused_costs_no_other_and_its_file_is_kept(spool: Spool) -> None:
    run = make_run(make_execution())
    spool.keep(run)
    spool.keep(make_run(make_execution()))
    seen: list[Event] = []

    def apply(events: Sequence[Event]) -> None:
        if run[1] in events:
            raise ValueError("no such step")
        seen.extend(events)

    assert spool.deliver(apply) == 7
    assert len(seen) == 7
    assert [name.rpartition(".")[2] for name in files(spool)] == ["bad"]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def later_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"spool 1", b"spool 2"))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    target = path.parent.parent / "target"
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "damage", [flipped, cut, later_version, a_pipe, a_directory, a_link, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_file_costs_no_other(spool: Spool, damage: Callable[[Path], object]) -> None:
    for _ in range(3):
        spool.keep(make_run(make_execution()))
    damage(spool.directories[0] / files(spool)[1])
    seen: list[Event] = []
    assert spool.deliver(seen.extend) == 8
    assert len(seen) == 8
    left = files(spool)
    assert len(left) == 1
    assert spool.deliver(seen.extend) == 0


def test_an_unfinished_file_is_not_delivered_and_goes_away(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        spool.keep(make_run(make_execution()))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    (part,) = files(spool)
    assert part.endswith(".part")
    seen: list[Event] = []
    assert spool.deliver(seen.extend) == 0
    spool.keep(make_run(make_execution()))
    assert part in files(spool)
    os.utime(spool.directories[0] / part, (1, 1))
    spool.keep(make_run(make_execution()))
    assert part not in files(spool)
    assert spool.deliver(seen.extend) == 8


def test_a_process_killed_while_delivering_loses_nothing_and_doubles_nothing(database_url: str) -> None:
    spool = Spool(database_url)
    for i in range(3):
        spool.keep(make_run(make_execution(f"w{i}")))
    database = Database(database_url)
    calls: list[int] = []

    def killed() -> None:
        database.after_fork()
        writer = StoreWriter(database)

        def apply(events: Sequence[Event]) -> None:
            writer.apply(events)
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        spool.deliver(apply)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(files(spool, ".spool")) == 2
    assert spool.deliver(StoreWriter(database).apply) == 8
    database.close()
    assert stored(database_url) == {f"w{i} completed 0": 1 for i in range(3)}


def test_one_process_delivers_a_file_at_a_time(spool: Spool) -> None:
    for i in range(20):
        spool.keep(make_run(make_execution(f"w{i}")))
    seen: list[str] = []

    def deliver() -> None:
        Spool(URL).deliver(lambda events: seen.append(events[0].execution.execution_id))

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == len(set(seen)) == 20
    assert files(spool) == []


def test_a_spool_that_cannot_be_written_is_counted_and_never_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TACHOGRAPH_SPOOL_DIR", str(tmp_path / "file"))
    assert Spool(URL).keep(make_run(make_execution())) == Kept(0, FAILED)
    assert Spool(URL).deliver(lambda events: None) == 0
    (record,) = caplog.records
    assert "TACHOGRAPH_SPOOL_DIR" in record.message
    assert "4 event(s)" in record.message
    monkeypatch.setenv("TACHOGRAPH_SPOOL_DIR", "/dev/full/x")
    assert Spool(URL).keep(make_run(make_execution())) == Kept(0, FAILED)


def test_another_users_directory_is_not_trusted(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.keep(make_run(make_execution()))
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert spool.deliver(lambda events: None) == 0
    assert spool.keep(make_run(make_execution())) == Kept(0, FAILED)


def test_where_spools_are_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TACHOGRAPH_SPOOL_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directories()[0] == tmp_path / "state/tachograph/spool"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_directories()[0] == tmp_path / ".local/state/tachograph/spool"
    # The first that can be written is taken, and all are read.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / ".local").write_text("")
    assert Spool(URL).keep(make_run(make_execution())) == Kept(4)
    assert len(list((tmp_path / "tmp").rglob("*.spool"))) == 1
    assert Spool(URL).deliver(lambda events: None) == 4
    monkeypatch.setenv("HOME", "/no/such/home")
    assert len(default_directories()) == 2


@pytest.mark.parametrize(
    ("a", "b", "is_same"),
    [
        ("sqlite:///runs.db", "sqlite:////{cwd}/./runs.db?timeout=5", True),
        ("sqlite:///runs.db", "sqlite:///other.db", False),
        ("postgresql://u:p@db/x", "postgres://v@DB:5432/x?sslmode=require", True),
        ("postgresql+asyncpg://u@db/x", "postgresql://db/x?password=y", True),
        ("postgresql://db/x", "postgresql://db/y", False),
        ("postgresql://db/x", "postgresql://db:5433/x", False),
        ("postgresql:///x?host=/run/a", "postgresql:///x?host=/run/b", False),
        ("postgresql://u@[::1]/x", "postgresql://[::1]:5432/x", True),
    ],
)
def test_a_spool_belongs_to_a_database_however_its_url_is_written(a: str, b: str, is_same: bool) -> None:
    cwd = os.getcwd().lstrip("/")
    assert (address(a.format(cwd=cwd)) == address(b.format(cwd=cwd))) == is_same


@pytest.mark.e2e
@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "accepts and never answers"])
def test_a_dead_collector_delays_the_end_by_five_seconds_at_most(
    tmp_path: Path, database_url: str, is_silent: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if not is_silent:
            server.close()
        ended = script(tmp_path, SHORT, TACHOGRAPH_DATABASE_URL=database_url, OTEL_EXPORTER_OTLP_ENDPOINT=address)
    assert ended.returncode == 0, ended.stderr
    assert seconds_to_end(ended) < 20  # 5, and what a busy machine adds
    assert stored(database_url) == {"short completed 0": 2}
