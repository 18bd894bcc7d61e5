"""Viewers and exporters of others, as they are published."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.e2e.browser import chromium, errors_of, node_module
from tests.e2e.conftest import Server, environment, eventually, get
from tests.e2e.test_engines import ended, steps_of

NODE = Path(__file__).parent.parent / "node"


def test_the_exporter_for_javascript_sends_json(server: Callable[..., Server]) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs Node.js (apt-get install nodejs npm)")
    node_module("@opentelemetry/exporter-trace-otlp-http")
    service = server()
    command = ["node", "export.mjs", f"{service.address}/v1/traces"]
    subprocess.run(command, cwd=NODE, env=environment(), check=True, timeout=60)
    timeline = ended(service, 1)["import orders"]
    assert (timeline["status"], timeline["total_duration_seconds"]) == ("completed", pytest.approx(0.3, abs=0.2))
    assert steps_of(timeline) == [("fetch", "completed", 1), ("store", "failed", 1)]
    assert (timeline["step_timeline"][1]["error_type"], timeline["step_timeline"][1]["error_message"]) == (
        "TypeError",
        "no space left",
    )


@pytest.fixture
def speedscope() -> Iterator[str]:
    """speedscope's page, served as it is published."""
    directory = node_module("speedscope") / "dist" / "release"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory))) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_address[1]}/index.html"
        files.shutdown()


def test_speedscope_opens_a_timeline(server: Callable[..., Server], speedscope: str, tmp_path: Path) -> None:
    service = server()
    workflow = {
        "name": "two lanes",
        "steps": [
            {"name": "left", "config": {"handler": "sleep", "seconds": 0.2}},
            {"name": "right", "config": {"handler": "sleep", "seconds": 0.1}},
            {"name": "join", "depends_on_steps": ["left", "right"]},
        ],
    }
    identifier = service.post("/api/workflows", workflow)["id"]
    execution = service.post(f"/api/workflows/{identifier}/execute")["execution_id"]
    eventually(lambda: service.get(f"/api/workflows/executions/{execution}/status")["status"] == "completed")
    _, trace = get(f"{service.address}/api/workflows/executions/{execution}/timeline?format=chrome")
    file = tmp_path / "trace.json"
    file.write_bytes(msgspec.json.encode(trace))
    with chromium() as browser:
        page = browser.new_page()
        errors = errors_of(page)
        page.goto(speedscope)
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Browse", exact=True).click()
        chooser.value.set_files(file)
        # It draws on a canvas; the table of its sandwich view is text, a thread at a time.
        page.get_by_text("Sandwich").click()
        seen = ""
        for _ in range(3):
            seen += page.locator("body").inner_text()
            page.keyboard.press("n")
            page.wait_for_timeout(200)
        page.get_by_text("Time Order").click()
        page.screenshot(path=str(tmp_path / "speedscope.png"))
    assert errors == []
    for name in ("left", "right", "join"):
        assert name in seen, seen
