"""The commands that find a run and show it: on a database and on a service they say the same."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from tachograph.workflow import HandlerRegistry, registry
from tachograph_exporter import handler_sources
from tachograph_exporter.config import Config
from tachograph_exporter.service import Service
from tests.command import tachograph
from tests.e2e.conftest import get

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("finding_runs")]

SCHEDULE = {"schedule": "0 3 * * *", "timezone": "Europe/Berlin"}
ALPHA = {"name": "alpha", "expectation": SCHEDULE, "steps": [
    {"name": "load", "config": {"handler": "noop"}},
    {"name": "say", "depends_on_steps": ["load"], "max_retries": 1,
     "config": {"handler": "shell", "command": "echo one; echo two >&2; exit 7"}},
]}  # fmt: skip
BETA = {"name": "beta", "steps": [{"name": "load", "config": {"handler": "noop"}}]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a database: alpha failed once, beta completed twice after it."""
    directory = tmp_path_factory.mktemp("runs")
    (directory / "flows").mkdir()
    for flow in (ALPHA, BETA):
        (directory / "flows" / f"{flow['name']}.json").write_text(json.dumps(flow))
    assert tachograph(directory, "seed", "flows", "--allow-handler", "shell").returncode == 0
    failed = tachograph(directory, "run", "alpha", "--allow-handler", "shell")
    # The command's own exit code.
    assert failed.returncode == 7, failed.stderr
    for _ in range(2):
        assert tachograph(directory, "run", "beta").returncode == 0
    return directory


@contextmanager
def serving(directory: Path, handlers: HandlerRegistry, **settings: Any) -> Iterator[str]:
    """A service on the directory's database, in a thread of its own: commands block this one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    config = Config(database=f"sqlite:///{directory}/tachograph.db", grace_seconds=0.2, **settings)

    async def start() -> TestServer:
        server = TestServer(Service(config, handlers).application())
        await server.start_server()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def service(runs: Path) -> Iterator[str]:
    handler_sources.load(handler_sources.EXAMPLES)
    with serving(runs, registry.copy()) as address:
        yield address


def listed(directory: Path, *words: str) -> list[dict[str, Any]]:
    shown = tachograph(directory, "runs", "--json", *words)
    assert shown.returncode == 0, shown.stderr
    items: list[dict[str, Any]] = json.loads(shown.stdout)
    return items


def test_runs_are_filtered(runs: Path) -> None:
    everything = listed(runs)
    assert [run["workflow_name"] for run in everything] == ["beta", "beta", "alpha"]
    assert [run["workflow_name"] for run in listed(runs, "--failed", "--since", "24h")] == ["alpha"]
    assert listed(runs, "--status", "failed", "--workflow", "beta") == []
    assert len(listed(runs, "--workflow", "beta", "-n", "1")) == 1
    assert [run["workflow_name"] for run in listed(runs, "--last")] == ["beta", "alpha"]
    assert [run["workflow_name"] for run in listed(runs, "--error", "exit code 7")] == ["alpha"]
    table = tachograph(runs, "runs", "--failed").stdout
    assert f"…{everything[2]['execution_id'][-6:]}" in table
    assert "command ended with exit code 7: two" in table
    assert "started (" in table
    shown = tachograph(runs, "runs", "--limit", "1").stdout
    assert "1 of 3 runs" in shown


@pytest.mark.parametrize("name", ["last", "beta", "whole", "beginning", "end", "as on the page"])
def test_a_run_has_many_names(runs: Path, name: str) -> None:
    newest = str(listed(runs)[0]["execution_id"])
    text = {
        "whole": newest, "beginning": newest[:32], "end": newest[-8:], "as on the page": f"…{newest[-6:]}",
    }.get(name, name)  # fmt: skip
    shown = tachograph(runs, "timeline", text, "--json")
    assert json.loads(shown.stdout)["execution_id"] == newest, shown.stderr


def test_an_ambiguous_name_lists_what_it_may_mean(runs: Path) -> None:
    ids = [run["execution_id"] for run in listed(runs)]
    shown = tachograph(runs, "timeline", ids[0][:5])
    assert shown.returncode == 2
    assert all(identifier in shown.stderr for identifier in ids)
    assert "ambiguous" in shown.stderr
    mistyped = tachograph(runs, "timeline", "alhpa")
    assert mistyped.returncode == 2
    assert 'did you mean "alpha"?' in mistyped.stderr


def test_what_a_command_wrote_is_kept_with_each_attempt(runs: Path) -> None:
    lines = json.loads(tachograph(runs, "logs", "alpha", "say", "--json").stdout)
    assert sorted((line["attempt"], line["level"], line["message"]) for line in lines) == [
        (1, "info", "one"), (1, "warning", "two"), (2, "info", "one"), (2, "warning", "two"),
    ]  # fmt: skip
    warnings = tachograph(runs, "logs", "alpha", "--level", "warn").stdout
    assert "two" in warnings
    assert "one" not in warnings
    assert "older lines are left out" in tachograph(runs, "logs", "alpha", "-n", "1").stderr
    assert 'has no step "nope"' in tachograph(runs, "logs", "alpha", "nope").stderr


QUESTIONS = [
    ["runs"], ["runs", "--failed", "--since", "1d"], ["runs", "--last"], ["timeline", "alpha"], ["logs", "alpha"],
    ["compare", "last"], ["metrics", "beta"], ["trends", "beta"], ["workflows", "list"], ["workflows", "show", "alpha"],
]  # fmt: skip


def test_a_service_says_what_the_database_says(runs: Path, service: str) -> None:
    for words in QUESTIONS:
        here = tachograph(runs, *words)
        assert here.returncode == 0, (words, here.stderr)
        there = tachograph(runs, *words, TACHOGRAPH_URL=service)
        assert (there.returncode, there.stdout, there.stderr) == (0, here.stdout, here.stderr), words
        both = [tachograph(runs, *words, "--json", *more).stdout for more in ((), ("--url", service))]
        assert both[0] == both[1], words
        assert json.loads(both[0]), words
    assert "expected 0 3 * * * (Europe/Berlin), says definition" in tachograph(runs, *QUESTIONS[-1]).stdout
    assert "not both" in tachograph(runs, "runs", "--url", service, "--database", "sqlite:///x.db").stderr


def test_output_goes_to_a_file_whole_or_not_at_all(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    assert tachograph(runs, "runs", "--json", "-o", str(file)).stdout == ""
    assert len(json.loads(file.read_text())) == 3
    refused = tachograph(runs, "timeline", "nothing_like_it", "-o", str(file))
    assert refused.returncode == 2
    assert len(json.loads(file.read_text())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]
    assert tachograph(runs, "runs", "-o", str(tmp_path / "no" / "where")).returncode == 2


def test_what_cannot_be_undone_is_asked_for(runs: Path, tmp_path: Path) -> None:
    shutil.copy(runs / "tachograph.db", tmp_path / "tachograph.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "tachograph.db")) as connection, connection:
        # What ended today is never archived.
        connection.execute("UPDATE workflow_executions SET finished_ns = finished_ns - 259200000000000")
    for words in (["workflows", "delete", "beta"], ["archive", "--older-than", "0s", "--delete"]):
        preview = tachograph(tmp_path, *words, "--dry-run")
        assert (preview.returncode, "would delete" in preview.stdout) == (0, True), preview.stderr
        unasked = tachograph(tmp_path, *words)
        assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
        assert len(listed(tmp_path, "--workflow", "beta")) == 2
    assert tachograph(tmp_path, "workflows", "delete", "beta", "--yes").returncode == 0
    assert [run["workflow_name"] for run in listed(tmp_path)] == ["alpha"]
    assert "deleted 1 run(s)" in tachograph(tmp_path, "archive", "--older-than", "0s", "--delete", "--yes").stdout
    assert listed(tmp_path) == []


def test_a_running_run_is_cancelled_through_its_service(tmp_path: Path) -> None:
    slow = {"name": "slow", "steps": [{"name": "wait", "config": {"handler": "sleep", "seconds": 600}}]}
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    assert tachograph(tmp_path, "seed", ".").returncode == 0
    with serving(tmp_path, registry.copy()) as address:
        identifier = get(f"{address}/api/workflows/slow/execute", method="POST", body={})[1]["execution_id"]
        assert "--yes" in tachograph(tmp_path, "cancel", "slow", "--url", address).stderr
        refused = tachograph(tmp_path, "workflows", "delete", "slow", "--yes", "--url", address)
        assert refused.returncode == 2
        assert tachograph(tmp_path, "cancel", "slow", "--yes", "--url", address).returncode == 0
    # The service has stopped, so the run has ended; nothing else could have cancelled it within ten minutes.
    assert [(run["execution_id"], run["status"]) for run in listed(tmp_path)] == [(identifier, "cancelled")]


ANSWERS: list[tuple[int, bytes, str]] = [
    (401, b'{"code": "unauthorized", "detail": "no"}', "set TACHOGRAPH_TOKEN"),
    (403, b'{"code": "forbidden", "detail": "needs read"}', "the token does not allow this"),
    (404, b"<html>nothing here</html>", "no Tachograph service"),
    (429, b"{}", "too many requests"),
    (503, b"", "not available now"),
    (200, b"<html><title>Sign in</title></html>", "does not answer as Tachograph"),
    (200, b"[]", "does not answer as Tachograph"),
    (200, b'{"items": [{"id": 1}], "total": 1, "next": null}', "another version"),
    (302, b"", "answered 302"),
]


def test_whatever_a_service_answers_is_said_in_one_line(tmp_path: Path) -> None:
    answer: tuple[int, bytes, str] = ANSWERS[0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer[0])
            if answer[0] == 302:
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for answer in ANSWERS:
            said = tachograph(tmp_path, "runs", TACHOGRAPH_URL=url)
            assert (said.returncode, said.stdout) == (2, ""), answer
            assert answer[2] in said.stderr, (answer, said.stderr)
            assert said.stderr.count("\n") == 1, said.stderr
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    away = tachograph(tmp_path, "runs", "--url", url)
    assert (away.returncode, "does not answer" in away.stderr) == (2, True)
    for bad in ("ftp://x", "http://", "http://[", "nonsense", "http://a b"):
        assert "not a valid URL" in tachograph(tmp_path, "runs", "--url", bad).stderr


def test_commands_find_runs_in_postgresql(postgres: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "beta.json").write_text(json.dumps(BETA))
    url = {"TACHOGRAPH_DATABASE_URL": postgres()}
    assert tachograph(tmp_path, "run", "beta.json", **url).returncode == 0
    (run,) = json.loads(tachograph(tmp_path, "runs", "--json", **url).stdout)
    for name in (run["execution_id"][:9], run["execution_id"][-6:], "beta", "last"):
        shown = tachograph(tmp_path, "timeline", name, **url)
        assert (shown.returncode, run["execution_id"] in shown.stdout) == (0, True), shown.stderr
    for words in (["runs", "--last"], ["workflows", "list"], ["logs", "beta"], ["compare", "last"], ["trends", "beta"]):
        assert tachograph(tmp_path, *words, **url).returncode == 0, words
    # Wildcards of SQL are not those of a name.
    assert tachograph(tmp_path, "timeline", "____", **url).returncode == 2
    assert tachograph(tmp_path, "workflows", "delete", "beta", "--yes", **url).returncode == 0
    assert json.loads(tachograph(tmp_path, "runs", "--json", **url).stdout) == []


def test_failures_by_cause_are_the_same_in_a_database_and_a_service(runs: Path, service: str) -> None:
    def page(*words: str) -> dict[str, Any]:
        shown = tachograph(runs, "failures", "list", "--json", *words)
        assert shown.returncode == 0, shown.stderr
        answer: dict[str, Any] = json.loads(shown.stdout)
        return answer

    (group,), (served,) = page()["items"], page("--url", service)["items"]
    # The trend and the window move on between two questions.
    assert group | {"trend": []} == served | {"trend": []}
    # An attempt was tried again, and the exit code tells causes apart.
    assert group["counts"] == {"failures": 2, "attempts": 2, "steps": 1, "executions": 1}
    # A number, in words.
    assert group["message"] == "command ended with exit code 7: <*>"
    table = tachograph(runs, "failures").stdout
    assert group["id"][:8] in table
    assert "alpha / say" in table
    shown = tachograph(runs, "failures", "show", "last")
    assert "2 attempts, 1 steps, 1 runs" in shown.stdout, shown.stderr
    assert listed(runs, "--failed")[0]["execution_id"] in shown.stdout

    muted = tachograph(runs, "failures", "mute", group["id"][:6], "-m", "known")
    assert (muted.returncode, muted.stderr) == (0, "")
    assert page()["items"] == page("--url", service)["items"] == []
    (item,) = page("--state", "muted", "--url", service)["items"]
    assert item["note"] == "known"
    assert item["state_changed_by"]
    assert tachograph(runs, "failures", "resolve", "last", "--url", service).returncode == 0
    assert [item["state"] for item in page("--state", "all")["items"]] == ["resolved"]
    assert tachograph(runs, "failures", "reopen", group["id"]).returncode == 0
    for words, message in (
        (("show", "zz"), "begins with"),
        (("mute", "0" * 16), "there is no failure group"),
        (("list", "--state", "x"), "is not valid"),
        (("list", "--workflow", "no"), "there is no workflow"),
        (("list", "--since", "100d"), "90 days"),
    ):
        refused = tachograph(runs, "failures", *words)
        assert refused.returncode == 2, words
        assert message in refused.stderr, (words, refused.stderr)
