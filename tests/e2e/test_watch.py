"""``tachograph watch`` against a real service."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from tests import programs
from tests.command import tachograph
from tests.e2e.conftest import TACHOGRAPH, Server, environment, eventually
from tools.local_service import free_port

SLOW = {
    "name": "slow",
    "steps": [
        # Longer than it takes to start a process on a busy machine.
        {"name": "first", "config": {"handler": "sleep", "seconds": 6}},
        {"name": "second", "depends_on_steps": ["first"], "config": {"handler": "sleep", "seconds": 1}},
    ],
}
BAD = {"name": "bad", "steps": [{"name": "only", "config": {"handler": "fail", "message": "no\x1b[2Jway"}}]}


def watch(service: Server, *words: str, **variables: str) -> list[str]:
    return [*TACHOGRAPH, "watch", *words, "--url", service.address]


@contextmanager
def watching(service: Server, file: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with file.open("wb") as output:
        process = programs.Popen(watch(service, *words), stdout=output, stderr=output, env=environment())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_watching_everything_prints_a_line_per_event(server: Callable[..., Server], tmp_path: Path) -> None:
    service = server()
    for definition in (SLOW, BAD):
        service.post("/api/workflows", definition)
    lines, documents = tmp_path / "lines", tmp_path / "documents"
    with watching(service, lines) as process, watching(service, documents, "bad", "--json"):
        eventually(lambda: b'"connected"' in documents.read_bytes())
        eventually(lambda: 'kind="websocket"} 2' in service.get("/metrics"))
        service.post("/api/workflows/bad/execute")
        eventually(lambda: "bad failed after" in lines.read_text())
        # Killed and restarted, while `watch` keeps running.
        service.stop(9)
        eventually(lambda: process.poll() is None)
        service.start()
        service.post("/api/workflows/bad/execute")
        service.post("/api/workflows/slow/execute")
        eventually(lambda: "slow completed after" in lines.read_text())
        eventually(lambda: documents.read_text().count('"event_type":"workflow_failed"') == 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    text = lines.read_text()
    assert text.count("bad started") == text.count("bad failed after") == 2
    assert "only failed after" in text
    # Control characters in a step's message do not reach the terminal.
    assert "\x1b" not in text
    said = [line for line in documents.read_text().splitlines() if line.startswith("tachograph: ")]
    assert said[0] == f"tachograph: {service.address} does not answer; trying again"
    messages = [json.loads(line) for line in documents.read_text().splitlines() if line not in said]
    assert {message["data"]["workflow_name"] for message in messages if message["workflow_id"]} == {"bad"}


@pytest.mark.parametrize(("definition", "code", "headline"), [(SLOW, 0, "✔ slow completed"), (BAD, 1, "✘ bad failed")])
def test_watching_one_execution_ends_with_it(
    server: Callable[..., Server], definition: dict[str, object], code: int, headline: str
) -> None:
    service = server()
    service.post("/api/workflows", definition)
    execution = service.post(f"/api/workflows/{definition['name']}/execute")["execution_id"]
    # On a pseudo-terminal, as a user sees it.
    outer, inner = pty.openpty()
    command = watch(service, execution)
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment(TERM="xterm"))
    os.close(inner)
    with os.fdopen(outer, "rb") as terminal:
        text = _read_all(terminal)
    assert process.wait(60) == code
    # The same when a timeline is drawn.
    assert "\x1b[2J" not in text
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert headline in text
    assert "█" in text or "▏" in text or "▌" in text
    if code == 0:
        # It was drawn while it ran, too.
        assert "▶ slow running" in text


def _read_all(terminal: IO[bytes]) -> str:
    output = bytearray()
    while True:
        try:
            chunk = terminal.read1(65_536)  # type: ignore[attr-defined]
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    return output.decode(errors="replace")


def test_what_cannot_be_watched_is_reported(server: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-this-test")
    service = server("--token-file", str(tmp_path / "token"))
    token = {"TACHOGRAPH_TOKEN": "a-token-of-this-test"}
    for words, variables, message in (
        (["nothing"], {}, "a token is required"),
        (["nothing"], token, "no such workflow"),
        (["--workspace", "none"], token, "no such workflow or execution"),
    ):
        ran = tachograph(tmp_path, "watch", *words, "--url", service.address, **variables)
        assert (ran.returncode, message in ran.stderr) == (2, True), ran.stderr
    unknown = "01a20fe6-7932-72e3-b686-ac14d2e75b4a"
    ran = tachograph(tmp_path, "watch", unknown, "--url", f"http://127.0.0.1:{free_port()}")
    assert (ran.returncode, "does not answer" in ran.stderr) == (2, True), ran.stderr


def test_a_service_that_is_away_is_said_at_once_and_waited_for(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    said = tmp_path / "said"
    with said.open("wb") as file:
        process = programs.Popen([*TACHOGRAPH, "watch", "--url", address], stdout=file, stderr=file,
                                   env=environment())  # fmt: skip
    try:
        # Once: a pipe is not told of every try.
        eventually(lambda: said.read_text() == f"tachograph: {address} does not answer; trying again\n", 60)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
