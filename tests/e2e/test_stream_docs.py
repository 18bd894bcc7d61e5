"""The examples of docs/streams.md, run verbatim against a real service."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.e2e.browser import chromium
from tests.e2e.conftest import Server, environment, eventually

QUICK = {"name": "quick", "steps": [{"name": "a"}]}


def example(language: str, contains: str) -> str:
    text = (ROOT / "docs" / "streams.md").read_text()
    blocks: list[str] = [code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if contains in code]
    assert len(blocks) == 1, (language, contains)
    return blocks[0]


@pytest.mark.parametrize("how", ["python", "node", "curl"])
def test_an_example_prints_events(server: Callable[..., Server], tmp_path: Path, how: str) -> None:
    program = {"python": sys.executable, "node": "node", "curl": "curl"}[how]
    if shutil.which(program) is None:
        pytest.skip(f"needs {how}")
    service = server()
    service.post("/api/workflows", QUICK)
    code = {
        "python": lambda: example("python", "aiohttp"),
        "node": lambda: example("javascript", "fetch("),
        "curl": lambda: example("sh", "curl"),
    }[how]().replace("http://127.0.0.1:9923", service.address)
    file = tmp_path / {"python": "follow.py", "node": "follow.mjs", "curl": "follow.sh"}[how]
    file.write_text(code)
    printed = tmp_path / "printed"
    command = ["sh", str(file)] if how == "curl" else [program, str(file)]
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
    try:
        eventually(lambda: "connected" in printed.read_text())
        service.post("/api/workflows/quick/execute")
        eventually(lambda: re.search(r"workflow_completed.*quick completed after", printed.read_text(), re.DOTALL))
        if how == "python":
            # The client reconnects.
            service.stop(9)
            service.start()
            service.post("/api/workflows/quick/execute")
            eventually(lambda: printed.read_text().count("workflow_completed") == 2)
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()


def test_the_example_for_a_page(server: Callable[..., Server]) -> None:
    service = server()
    service.post("/api/workflows", QUICK)
    code = example("javascript", "new WebSocket").replace("127.0.0.1:9923", service.address.removeprefix("http://"))
    console: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("console", lambda message: console.append(message.text))
        page.goto(f"{service.address}/docs")
        page.evaluate(code)
        while not any("connected" in line for line in console):
            page.wait_for_timeout(50)
        service.post("/api/workflows/quick/execute")
        for _ in range(200):
            if any("workflow_completed quick completed" in line for line in console):
                break
            page.wait_for_timeout(50)
    assert any("workflow_completed quick completed" in line for line in console), console
