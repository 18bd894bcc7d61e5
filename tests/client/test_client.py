"""The client against a service, and against what is none."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.api.test_api import RETRY, register
from tests.conftest import Api
from tests.report_file.runs import HOSTILE, hostile_run, long_run

from tachograph.client import (
    AsyncClient,
    Client,
    NotFound,
    Report,
    ServiceProblem,
    ServiceUnreachable,
    UnexpectedAnswer,
)
from tachograph.client import client as client_module
from tachograph.errors import SetupError
from tachograph_exporter.store.workspaces import create_workspace


async def store(api: Api, events: list[Any]) -> None:
    await asyncio.to_thread(api.service.writer.apply, events)


async def test_runs_answers_and_frames_of_a_service(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PAGE", 3)
    monkeypatch.setattr(client_module, "_LINES", 5)
    await register(api, RETRY)
    executions = [await api.run("retry") for _ in range(7)]
    bad, events = hostile_run()
    going, more = long_run(4, is_open=True, name="going")
    await store(api, [*events, *more])
    async with AsyncClient(api.address) as client:
        everything = await client.runs()
        assert len(everything) == everything.total == 9
        assert {run.execution_id for run in everything} == {*executions, bad.execution_id, going.execution_id}
        some = await client.runs("retry", limit=5)
        assert (len(some), some.total) == (5, 7)
        assert [run.execution_id for run in some] == executions[:1:-1]
        assert len(await client.runs("retry", limit=0)) == 0
        assert repr(some) == "<5 of 7 runs of 'retry'>"
        assert len(await client.runs(status=["running", "lost"])) == 1
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        assert len(await client.runs(since=tomorrow)) == 0
        assert len(await client.runs("retry", min_duration=timedelta(0), until="0s", max_duration=3600.0)) == 7
        assert (await client.runs(text=bad.execution_id))[0].error_type == "Bad</script>"

        # Every name of a run, as on the command line.
        for name in (executions[-1], executions[-1][-12:], executions[-1].upper(), f"…{executions[-1][-6:]}", "retry"):
            assert (await client.run(name)).execution_id == executions[-1], name
        run = await client.run(some[1])
        assert run.execution_id == executions[-2]
        assert (await client.timeline(run)).execution_id == executions[-2]
        with pytest.raises(NotFound, match="ambiguous"):
            await client.run(executions[0][:4])
        for nothing in ("nothing", "0" * 36, "00000000-0000-0000-0000-000000000000", "../../-/healthy", "a?b#c"):
            with pytest.raises(NotFound):
                await client.run(nothing)

        why = await client.why(bad.execution_id)
        assert why.verdict == "failed"
        compared = await client.compare(executions[1], executions[0])
        assert compared.reference is not None
        assert (compared.execution.execution_id, compared.reference.execution_id) == (executions[1], executions[0])
        assert (await client.compare("retry", baseline="30d")).baseline is not None
        failures = await client.failures(limit=1_000)
        assert len({group.id for group in failures}) == len(failures) == failures.total > 3
        assert len(await client.failures(limit=2)) == 2
        lines = await client.logs(bad.execution_id)
        assert [line.message for line in lines] == [f"line {name}" for name in HOSTILE]
        assert len(await client.logs(bad.execution_id, limit=7)) == 7
        assert (await client.metrics("retry")).total_executions == 7

        report = await client.report(bad.execution_id)
        assert report.content.startswith(b"<!doctype html>")
        shown = await asyncio.to_thread((await client.run(bad.execution_id))._repr_html_)
        assert shown.startswith('<iframe sandbox="allow-scripts allow-downloads" ')
        assert shown.count("<") == 2
        assert "allow-same-origin" not in shown

        await check_frames(client, bad.execution_id, going.execution_id, executions)

        # Who asks wrongly is told what is wrong, and where.
        with pytest.raises(ServiceProblem, match="status: ") as caught:
            await client.runs(status="broken")
        assert (caught.value.status, caught.value.code) == (422, "invalid_parameters")
        assert caught.value.problem.errors[0].at == "status"
        with pytest.raises(ValueError, match="no time zone"):
            await client.runs(since=datetime(2026, 11, 30))
    with pytest.raises(ServiceUnreachable):
        await asyncio.to_thread(run_of(AsyncClient("http://127.0.0.1:1")))


def run_of(client: AsyncClient) -> Callable[[], object]:
    async def ask() -> object:
        async with client:
            return await client.run()

    return lambda: asyncio.run(ask())


async def check_frames(client: AsyncClient, bad: str, going: str, executions: list[str]) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    runs = await client.runs()
    frame = runs.to_pandas()
    assert list(frame["execution_id"]) == [run.execution_id for run in runs]
    kinds = {name: str(frame[name].dtype) for name in ("workflow_name", "status", "started_at", "duration_seconds",
                                                       "step_count", "error_message")}  # fmt: skip
    assert kinds == {
        "workflow_name": "category", "status": "category", "started_at": "datetime64[us, UTC]",
        "duration_seconds": "float64", "step_count": "Int64", "error_message": "string",
    }  # fmt: skip
    ended = frame[frame["execution_id"] == bad].iloc[0]
    assert ended["completed_at"] - ended["started_at"] == pandas.Timedelta(seconds=3)
    assert frame[frame["execution_id"] == going]["completed_at"].isna().all()
    assert frame.groupby("workflow_name", observed=True)["duration_seconds"].count()["retry"] == len(executions)
    other = runs.to_polars()
    assert other.schema["started_at"] == polars.Datetime("us", "UTC")
    assert other.schema["status"] == polars.Categorical
    assert other["duration_seconds"].drop_nulls().sum() == pytest.approx(frame["duration_seconds"].sum())
    run = await client.run(bad)
    steps = run.to_pandas()
    assert list(steps["step_name"]) == list(HOSTILE)
    assert steps["duration_seconds"].sum() == pytest.approx(0.09 * len(HOSTILE))
    assert str(steps["on_critical_path"].dtype) == "boolean"
    assert str(steps["peak_memory_bytes"].dtype) == "Int64"
    assert run.to_polars()["step_name"].to_list() == list(HOSTILE)
    # An empty frame has the same columns and types.
    empty = await client.runs("retry", limit=0)
    assert dict(empty.to_pandas().dtypes.astype(str)).keys() == dict(frame.dtypes.astype(str)).keys()
    assert empty.to_polars().schema == other.schema
    assert str(empty.to_pandas()["started_at"].dtype) == "datetime64[us, UTC]"


async def test_a_token_sees_its_workspace_only(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await register(api, RETRY)
    execution = await api.run("retry")
    api.service.database.run(lambda connection: create_workspace(connection, "other", 1))

    def ask(**options: Any) -> object:
        with Client(api.address, **options) as client:
            return client.run(execution)

    with pytest.raises(NotFound):
        await asyncio.to_thread(ask, workspace="other")
    with pytest.raises(NotFound) as caught:
        await asyncio.to_thread(ask, workspace="none")
    assert caught.value.code == "workspace_not_found"
    with pytest.raises(ServiceProblem, match="TACHOGRAPH_TOKEN") as refused:
        await asyncio.to_thread(ask, token="wrong-token-of-nobody")
    assert refused.value.status == 401
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "line\nbreak")
    with pytest.raises(SetupError, match="TACHOGRAPH_TOKEN"):
        Client(api.address)
    for url in ("ftp://host", "host:80", "http://user:secret@host", "http://host/?a=1"):
        with pytest.raises(SetupError) as wrong:
            Client(url, token="")
        assert "secret" not in str(wrong.value)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {}  # noqa: RUF012
    seen: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        status, headers, body = self.answers[self.path.partition("?")[0].split("/")[1]]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if "Truncated" in headers:
            self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def foreign() -> Iterator[str]:
    """A server that is no Tachograph."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_what_is_no_service_is_told_apart(foreign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachograph.client.transport.MAX_BYTES", 1_000_000)
    unavailable = b'{"type":"about:blank","title":"x","status":503,"code":"store_unavailable","detail":"later"}'
    Handler.answers = {
        "login": (200, {"Content-Type": "text/html"}, b"<h1>Sign in</h1>"),
        "redirect": (302, {"Location": f"{foreign}/elsewhere"}, b""),
        "elsewhere": (200, {}, b"{}"),
        "proxy": (502, {}, b"Bad gateway"),
        "other": (200, {}, b'{"items": 3}'),
        "deep": (200, {}, b"[" * 100_000),
        "bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 20_000_000)),
        "broken": (200, {"Content-Encoding": "gzip"}, b"no gzip"),
        "long": (200, {}, b" " * 1_000_001),
        "cut": (200, {"Content-Length": "50", "Truncated": "1"}, b"{"),
        "away": (503, {"Retry-After": "7"}, unavailable),
    }
    for name, kind in {
        "login": UnexpectedAnswer, "redirect": UnexpectedAnswer, "proxy": UnexpectedAnswer, "other": UnexpectedAnswer,
        "deep": UnexpectedAnswer, "bomb": UnexpectedAnswer, "broken": UnexpectedAnswer, "long": UnexpectedAnswer,
        "cut": ServiceUnreachable, "away": ServiceProblem,
    }.items():  # fmt: skip
        with Client(f"{foreign}/{name}", token="secret-of-mine") as client, pytest.raises(kind) as caught:
            client.runs()
        assert "secret-of-mine" not in str(caught.value), name
        if isinstance(caught.value, ServiceProblem):
            assert caught.value.retry_after_seconds == 7
    # A redirect would carry the token elsewhere.
    assert not [path for path, _ in Handler.seen if path.startswith("/elsewhere")]


def test_a_connection_that_was_closed_meanwhile_is_opened_again(foreign: str) -> None:
    page = b'{"items":[],"total":0,"skip":0,"limit":1,"next":null}'
    Handler.answers = {"api": (200, {"Connection": "close"}, page)}
    with Client(foreign) as client:
        assert client.runs().total == 0
        Handler.answers = {"api": (200, {}, page)}
        assert client.runs().total == 0
        (connection,) = client._transport._idle
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        assert client.runs().total == 0
        if hasattr(os, "fork"):
            child = os.fork()
            if not child:
                os._exit(0 if client.runs().total == 0 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.runs().total == 0


def test_pages_that_never_end_are_refused(foreign: str) -> None:
    page = b'{"items":[],"total":1,"skip":0,"limit":1,"next":"again"}'
    Handler.answers = {"api": (200, {}, page)}
    with Client(foreign) as client, pytest.raises(UnexpectedAnswer, match="comes after itself"):
        client.runs()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_awaits_its_own_answers(foreign: str) -> None:
    Handler.answers = {"api": (200, {}, b'{"items":[],"total":0,"skip":0,"limit":1,"next":null}')}
    client = AsyncClient(foreign)

    async def ask() -> int:
        return (await client.runs()).total

    assert asyncio.run(ask()) == 0
    together = threading.Barrier(4)
    for waiting in [client._threads.submit(together.wait) for _ in range(4)]:
        waiting.result()  # All of its threads have been started.
    child = os.fork()
    if not child:
        total = 1
        try:
            total = asyncio.run(asyncio.wait_for(ask(), 30))
        finally:
            os._exit(total)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(ask()) == 0
    asyncio.run(client.close())


def test_the_client_loads_neither_the_service_nor_frames() -> None:
    program = (
        "import sys, tachograph.client\n"
        "heavy = {'pandas', 'polars', 'numpy', 'aiohttp', 'sqlalchemy', 'tachograph_exporter', 'opentelemetry.sdk', "
        "'prometheus_client', 'tachograph.workflow'}\nprint(*sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_a_frame_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from tachograph.client.results import Runs

    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"tachograph\[pandas\]"):
        Runs([], 0).to_pandas()
    with pytest.raises(ImportError, match=r"tachograph\[polars\]"):
        Runs([], 0).to_polars()


def test_a_report_is_saved_and_shown_without_rights(tmp_path: Any) -> None:
    report = Report(b'<script>alert("&")</script>')
    report.save(tmp_path / "run.html")
    assert (tmp_path / "run.html").read_bytes() == report.content
    assert 'srcdoc="&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;"' in report._repr_html_()
