"""Runs a program that drives a real engine, and compares what the service shows with what the engine says.

A program (`tests/e2e/engines`) plays scenes and tells the truth of each in a line; see `telling.py` there.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.ingest.truth import Truth, differences
from tools.local_service import environment

PROGRAMS: Final = Path(__file__).parents[1] / "e2e" / "engines"
SCENE_SECONDS: Final = 120.0
"""After so long a program is stuck in a scene."""
SHOWN_SECONDS: Final = 45.0
Get = Callable[[str], Any]


class Scene(NamedTuple):
    """What a program told, by the engine's own word."""

    name: str
    truth: Truth

    @property
    def goes_on(self) -> bool:
        """Whether the same executions are told of again."""
        return bool(self.truth.get("goes_on"))


class Program:
    """A program that plays scenes. Iterate over it; the program goes on when the next scene is asked for."""

    def __init__(
        self, python: str, script: str, *arguments: str, directory: Path, variables: Mapping[str, str],
        scene_seconds: float = SCENE_SECONDS,
    ) -> None:  # fmt: skip
        self._log = directory / f"{Path(script).stem}.log"
        self._command = [python, str(PROGRAMS / script), *arguments]
        self._directory = directory
        self._scene_seconds = scene_seconds
        self._variables = {"PYTHONPATH": str(PROGRAMS), **variables}

    def __iter__(self) -> Iterator[Scene]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment() | self._variables, cwd=self._directory, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        limit = self._limit(process)
        try:
            for line in process.stdout:
                if not line.startswith('{"scene"'):
                    continue
                limit.cancel()
                told = json.loads(line)
                yield Scene(told["scene"], told["truth"])
                limit = self._limit(process)
                process.stdin.write("\n")
                process.stdin.flush()
            if process.wait(60) != 0:
                raise RuntimeError(f"{self._command} failed:\n{self._log.read_text()[-3000:]}")
        finally:
            limit.cancel()
            if process.poll() is None:
                # A program stops its workers and servers at SIGTERM.
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
            process.stdin.close()
            process.stdout.close()
            process.wait()

    def _limit(self, process: subprocess.Popen[str]) -> threading.Timer:
        """Ends a program that is stuck."""
        timer = threading.Timer(self._scene_seconds, process.terminate)
        timer.daemon = True
        timer.start()
        return timer


class Viewer:
    """Reads the timelines of a service, scene by scene."""

    def __init__(self, get: Get) -> None:
        self._get = get
        self._seen: set[str] = set()
        self.offsets: list[float] = []
        """How many seconds later than the engine's each start and end of a step is shown, in all scenes so far."""

    def timelines(self) -> list[dict[str, Any]]:
        """The timelines of the executions that earlier scenes did not have."""
        page = self._get("/api/workflows/executions?limit=100")
        ids = [item["execution_id"] for item in page["items"] if item["execution_id"] not in self._seen]
        return [self._get(f"/api/workflows/executions/{execution_id}/timeline") for execution_id in ids]

    def problems(
        self, scene: Scene, *, seconds: float = SHOWN_SECONDS, tolerance_seconds: float = 1.0,
        aside: Sequence[Mapping[str, Any]] = (),
    ) -> list[str]:  # fmt: skip
        """What the service still shows otherwise than the engine after ``seconds``; ends at once when all is right."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                timelines = self.timelines()
            except LookupError:
                continue  # What spans seemed to be when it was listed has turned out to be a part of another run.
            offsets: list[float] = []
            problems = differences(
                scene.truth, timelines, tolerance_seconds=tolerance_seconds, aside=aside, offsets=offsets
            )
            if not problems or time.monotonic() > deadline:
                self.offsets += offsets
                if not scene.goes_on:
                    self._seen |= {timeline["execution_id"] for timeline in timelines}
                return [f"{scene.name}: {problem}" for problem in problems]
            time.sleep(0.2)
