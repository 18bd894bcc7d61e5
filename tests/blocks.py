"""The code blocks of the README and the docs, and a shell that runs them as a reader would.

A comment before a block says what is special about it:

- ``<!-- file: NAME -->``: the reader saves it under this name.
- ``<!-- runs until stopped -->``: it goes on running, beside the blocks after it, until the next one of this kind.
- ``<!-- follows until stopped -->``: it prints what happens in a service.
- ``<!-- needs: WHAT -->``: it needs what is not here, and is not run.

A ``text`` block right after a block of commands shows what these print.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.conftest import ROOT
from tests.e2e.conftest import environment, eventually, get

_BLOCK: Final = re.compile(
    r"^(?:<!-- (?P<mark>[a-z][^\n]*?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$"
    r"(?:\n+```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
RUNS_ON: Final = "runs until stopped"
FOLLOWS: Final = "follows until stopped"
_ADDRESS: Final = "127.0.0.1:9923"


class Block(NamedTuple):
    """A block: its page and line, its language, its mark (empty: none), and what it is shown to print."""

    page: str
    line: int
    language: str
    mark: str
    text: str
    shown: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def needs(self) -> str:
        """What it needs that is not here; empty: nothing."""
        return self.mark.removeprefix("needs: ") if self.mark.startswith("needs: ") else ""


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        mark = match["mark"] or ""
        yield Block(name, line, match["language"], mark, match["text"], match["shown"] or "")


def clean_clone(directory: Path) -> Path:
    """A clone of this repository as `make` leaves it, without what the blocks do not need."""
    clone = directory / "tachograph"
    clone.mkdir()
    for name in ("docs", "dashboards"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("images"))
    # Here the package knows its examples from the files of others.
    (clone / "examples").symlink_to(ROOT / "examples")
    for name in ("README.md", "Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, clone / name)
    (clone / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if not path.name.startswith("."):
            (clone / ".venv" / path.name).symlink_to(path)
    # What `make` writes when it has installed everything.
    (clone / ".venv" / ".exporter").touch()
    return clone


class Terminal:
    """Runs blocks in a directory, one after another. What they set in the environment stays set.

    ``stand_ins``: a directory with commands that are used from when a block has put those of the environment on the
    path (see `stand_ins`): to start an interpreter with all it imports takes longer than what most commands do.
    """

    def __init__(self, directory: Path, port: int, stand_ins: Path) -> None:
        self.directory = directory
        self._stand_ins = stand_ins
        self.address = f"http://127.0.0.1:{port}"
        self._port = port
        self.visited: set[Path] = set()
        """Pages whose blocks have run, or begun to."""
        # A shell in which nothing is activated yet.
        places = [place for place in os.environ["PATH"].split(":") if Path(place) != Path(sys.prefix, "bin")]
        self.variables = environment(
            TACHOGRAPH_LISTEN=f"127.0.0.1:{port}", DEMO_OPTIONS="--interval 0", PATH=":".join(places)
        )
        self.log = directory / "running.log"
        self._running: subprocess.Popen[bytes] | None = None

    def run(self, block: Block) -> str:
        """What it prints. Every command of it must succeed."""
        text = block.text.replace(_ADDRESS, f"127.0.0.1:{self._port}")
        if block.mark.startswith("file: "):
            (self.directory / block.mark.removeprefix("file: ")).write_text(text)
            return ""
        if block.language == "python":
            command = ["python", "-W", "error", "-c", text]
        else:
            command = ["bash", "-e", "-o", "pipefail", "-c", f"{text}\nenv -0 > .environment"]
        if block.mark == RUNS_ON:
            self.start(block, command)
            return ""
        ran = subprocess.run(
            command, cwd=self.directory, env=self.variables, capture_output=True, text=True, timeout=300,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{block.place}: exit code {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        assert "Traceback" not in ran.stderr, f"{block.place}:\n{ran.stderr}"
        if (file := self.directory / ".environment").exists():
            self.variables = dict(line.split("=", 1) for line in file.read_text().split("\0") if "=" in line)
            file.unlink()
            if "VIRTUAL_ENV" in self.variables and not self.variables["PATH"].startswith(f"{self._stand_ins}:"):
                self.variables["PATH"] = f"{self._stand_ins}:{self.variables['PATH']}"
        return ran.stdout

    def start(self, block: Block, command: list[str]) -> None:
        """Start what goes on running, in place of what ran until now, and wait until it serves."""
        self.stop()
        with self.log.open("wb") as log:
            self._running = subprocess.Popen(
                command, cwd=self.directory, env=self.variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        eventually(lambda: self._serves(block), 120)

    def _serves(self, block: Block) -> bool:
        assert self._running is not None
        assert self._running.poll() is None, f"{block.place}: {self.log.read_text()}"
        return get(f"{self.address}/-/ready")[0] == 200

    def stop(self) -> None:
        """Stop what runs, as Ctrl-C does."""
        if self._running is not None:
            os.killpg(self._running.pid, signal.SIGINT)
            self._running.wait(60)
            assert "Traceback" not in self.log.read_text()
            self._running = None

    def close(self) -> None:
        """Stop what runs, in any case."""
        if self._running is not None and self._running.poll() is None:
            os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()


_BARS: Final = re.compile(r"[█▌▏╳·]+(?: *[█▌▏╳·]+)*")
_ID: Final = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{32}\b|…[0-9a-f]{6}\b")
_TIME: Final = re.compile(r"\d+(?:\.\d+)? (?:ms|s|µs)\b")


def shape(line: str) -> str:
    """A line without what differs from run to run: ids, numbers, times, bars, spaces."""
    line = _BARS.sub("█", _TIME.sub("0 s", _ID.sub("ID", line)))
    return re.sub(r"\s+", " ", re.sub(r"\d+(?:\.\d+)?", "0", line)).strip()
