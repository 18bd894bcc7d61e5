"""A real Alertmanager with the shipped routing, and the shipped program that prints what it sends."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.conftest import ROOT
from tests.e2e.conftest import eventually, get
from tools.local_service import free_port

SHIPPED = ROOT / "dashboards" / "provisioning" / "alertmanager"


class Alertmanager(NamedTuple):
    """Its address, and the file with the lines that its receiver printed."""

    address: str
    printed: Path

    @property
    def target(self) -> str:
        """As a Prometheus' configuration names it."""
        return self.address.removeprefix("http://")

    def lines(self) -> list[str]:
        """One line for each alert of each notification: status, severity, alert, summary, runbook."""
        return self.printed.read_text().splitlines()[1:]


@contextlib.contextmanager
def alertmanager(directory: Path) -> Iterator[Alertmanager]:
    """Start both. What is grouped for half a minute or longer is sent after seconds."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.skip("needs Alertmanager (apt-get install prometheus-alertmanager)")
    with contextlib.ExitStack() as stack:

        def start(command: list[str], log: Path) -> None:
            with log.open("wb") as file:
                process = subprocess.Popen(command, stdout=file, stderr=file)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)

        printed = directory / "alerts.log"
        start([sys.executable, "-u", str(SHIPPED / "print_alerts.py"), "127.0.0.1:0"], printed)
        eventually(lambda: printed.read_text().endswith("\n"))
        match = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)", printed.read_text().splitlines()[0])
        assert match is not None
        receiver = match[1]
        configuration = (SHIPPED / "alertmanager.yml").read_text()
        assert configuration.count("http://alerts:9095/") == 2
        configuration = configuration.replace("http://alerts:9095/", f"http://{receiver}/")
        configuration = re.sub(r"(group_wait|group_interval): \w+", r"\1: 2s", configuration)
        (directory / "alertmanager.yml").write_text(configuration)
        port = free_port()
        start(
            [program, f"--config.file={directory / 'alertmanager.yml'}", f"--web.listen-address=127.0.0.1:{port}",
             f"--storage.path={directory / 'alertmanager'}", "--cluster.listen-address="],
            directory / "alertmanager.log",
        )  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        eventually(lambda: get(f"{address}/-/ready")[0] == 200)
        yield Alertmanager(address, printed)
