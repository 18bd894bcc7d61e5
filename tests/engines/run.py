"""`make engines`: starts real engines, each in an environment of its own, and compares what the service shows of their
runs with what the engines say.

    python -m tests.engines.run [ENGINE …] [--install] [--record] [--scene NAME …]

``--record`` writes what the engine sent, raw and in order of arrival, and the truth beside it, into
``tests/ingest/recordings``. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.engines import processes
from tests.engines.play import SCENE_SECONDS, Program, Scene, Viewer
from tests.ingest.truth import RECORDINGS
from tests.postgres_server import PostgresServer
from tools.local_service import LocalService
from tools.record_engine import Recorder
from tools.recordings import Mask, Request, write

ROOT: Final = Path(__file__).resolve().parents[2]
ENVIRONMENTS: Final = ROOT / ".venv-engines"
TACHOGRAPH: Final = Path(sys.executable).with_name("tachograph")
QUIET_SECONDS: Final = 1.5
"""Longer than the delay of the programs' span processors: then all spans of a scene have come."""


TIMES_SECONDS: Final = 0.05
"""How far times may be from the engine's own; where the engine tells its own, see ``tolerance_seconds``."""

KNOWN: Final[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "environments.toml").read_text())
ENGINES: Final[dict[str, Any]] = KNOWN["engines"]


def _requirements(name: str) -> tuple[list[str], list[str]]:
    """What an environment has, and what it has without what that requires."""
    return KNOWN["environments"][name] + KNOWN["environments"]["every"], KNOWN["alone"].get(name, [])


def installed(name: str) -> str | None:
    """The Python of an environment; None where it is missing or has other requirements."""
    requirements, alone = _requirements(name)
    marker = ENVIRONMENTS / name / "requirements.txt"
    is_current = marker.exists() and marker.read_text() == "\n".join(requirements + alone)
    return str(ENVIRONMENTS / name / "bin" / "python") if is_current else None


def python_of(name: str) -> str:
    """The Python of an environment, which is made where it is missing or has other requirements."""
    requirements, alone = _requirements(name)
    directory = ENVIRONMENTS / name
    python, marker = directory / "bin" / "python", directory / "requirements.txt"
    if installed(name) is None:
        start = time.monotonic()
        _install(directory, requirements, alone)
        marker.write_text("\n".join(requirements + alone))
        print(f"{name}: installed in {time.monotonic() - start:.0f} s")
    return str(python)


def _install(directory: Path, requirements: list[str], alone: list[str]) -> None:
    """Make an environment. uv takes a tenth of the time of pip, which is tried where uv cannot reach what pip can."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is not None:
        variables = {"UV_HTTP_TIMEOUT": "180", "UV_NO_PROGRESS": "1", "UV_LINK_MODE": "copy"}
        # What pip is told of the index and its certificate.
        told = {"PIP_CERT": "SSL_CERT_FILE", "PIP_INDEX_URL": "UV_DEFAULT_INDEX"}
        variables |= {ours: os.environ[theirs] for theirs, ours in told.items() if theirs in os.environ}
        environment = {**variables, **os.environ}
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(directory)]
        install = [uv, "pip", "install", "--quiet", "--python", str(directory / "bin" / "python")]
        try:
            subprocess.run(make, check=True, env=environment)
            subprocess.run([*install, *requirements], check=True, env=environment)
            if alone:
                subprocess.run([*install, "--no-deps", *alone], check=True, env=environment)
        except subprocess.CalledProcessError:
            print(f"{directory.name}: uv could not install it, pip is tried", file=sys.stderr)
        else:
            return
    venv.create(directory, with_pip=True, clear=True)
    # Of thousands of modules, hundreds are imported: those are compiled then.
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
           "--no-compile"]  # fmt: skip
    subprocess.run([*pip, *requirements], check=True)
    if alone:
        subprocess.run([*pip, "--no-deps", *alone], check=True)


def install(names: list[str]) -> None:
    """Make the environments of engines. Those that cannot be made are named; their tests are skipped."""
    for name in names:
        try:
            python_of(ENGINES[name]["environment"])
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{name} cannot be installed here, so its tests are skipped: {error}", file=sys.stderr)


def version_of(python: str, package: str) -> str:
    """A package's version, as it is installed."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def services(names: list[str], directory: Path, python: str) -> Iterator[list[str]]:
    """The addresses of the services that an engine needs."""
    with contextlib.ExitStack() as stack:
        addresses = []
        for name in names:
            if name == "postgresql":
                server = PostgresServer()
                stack.callback(server.close)
                addresses.append(f"{server.url}/postgres")
            else:
                starts = {"redis": processes.redis, "rabbitmq": processes.rabbitmq}
                start = starts[name](directory) if name in starts else processes.temporal(directory, python)
                addresses.append(stack.enter_context(start))
        yield addresses


def quiet(recorder: Recorder) -> None:
    """Wait until no more spans come."""
    start = time.monotonic()
    while time.monotonic() - max(start, recorder.last_arrival) < QUIET_SECONDS:
        time.sleep(0.1)


def spans_in(body: Any) -> int:
    groups = body.get("resourceSpans", ()) if isinstance(body, dict) else ()
    return sum(len(scope["spans"]) for group in groups for scope in group["scopeSpans"])


def save(name: str, engine: str, entry: dict[str, Any], scene: Scene, requests: list[Request], mask: Mask) -> None:
    """Write a recording and its truth."""
    recording = write(RECORDINGS / scene.name, requests, mask)
    truth = {
        "recording": recording.name,
        "format": "otlp-requests",
        "engine": engine,
        "engine_version": name,
        "instrumentation": entry["instrumentation"],
        "tolerance_seconds": entry.get("tolerance_seconds", 0.5),
        "spans": sum(spans_in(request.body) for request in requests),
        **scene.truth,
    }
    file = RECORDINGS / f"{scene.name}.truth.json"
    file.write_text(json.dumps(mask(truth), indent=1, ensure_ascii=False) + "\n")
    print(f"  {recording.name}: {len(requests)} requests, {recording.stat().st_size} bytes")


def play(name: str, *, record: bool, scenes: list[str], seconds: float) -> list[str]:
    """Run an engine's program; returns what differs."""
    entry = ENGINES[name]
    # One that no environment has is on the path.
    python = python_of(entry["environment"]) if "environment" in entry else sys.executable
    engine = entry.get("engine", name)
    version = entry.get("version") or version_of(python, entry.get("package", engine))
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"engine-{name}-")))
        service = stack.enter_context(LocalService(directory))
        recorder = stack.enter_context(Recorder(forward=service.address))
        addresses = stack.enter_context(services(entry.get("services", []), directory, python))
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": recorder.address, "OTEL_SERVICE_NAME": engine}
        variables |= {
            key: value.format(service=service.address, tachograph=TACHOGRAPH, spans=recorder.address)
            for key, value in entry.get("variables", {}).items()
        }
        mask = Mask([ROOT, directory, directory.resolve(), Path(python).parents[1], sys.base_prefix, Path.home()])
        program = Program(
            python, entry["program"], *addresses, *(scenes or entry.get("scenes", [])), directory=directory,
            variables=variables, scene_seconds=entry.get("scene_seconds", SCENE_SECONDS),
        )  # fmt: skip
        viewer = Viewer(service.get)
        for scene in program:
            quiet(recorder)
            # What spans tell may be right before a bridge has told of the same run.
            time.sleep(entry.get("settle_seconds", 0.0))
            if record and not scene.goes_on:
                requests = recorder.take()
                save(version, engine, entry, scene, requests, mask)
            differences = viewer.problems(
                scene,
                seconds=max(seconds, entry.get("shown_seconds", 0.0)),
                tolerance_seconds=entry.get("tolerance_seconds", 1.0),
            )
            print(f"{'WRONG' if differences else 'right'}  {scene.name}")
            for difference in differences:
                print(f"       {difference}")
            problems += differences
    if viewer.offsets:
        print(f"   {distribution(viewer.offsets)}")
    return problems


def distribution(offsets: list[float]) -> str:
    """How far the starts and ends that are shown are from the engine's own."""
    apart = sorted(abs(offset) for offset in offsets)
    near, far = apart[len(apart) // 2] * 1e3, apart[min(len(apart) - 1, len(apart) * 95 // 100)] * 1e3
    within = sum(each <= TIMES_SECONDS for each in apart)
    return (
        f"{len(apart)} starts and ends: half within {near:.1f} ms of the engine's, 95 % within {far:.1f} ms, all "
        f"within {apart[-1] * 1e3:.1f} ms; {within / len(apart):.0%} within {TIMES_SECONDS * 1e3:.0f} ms"
    )


def processor_seconds() -> float:
    """What processes that have ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run the engines that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join(ENGINES))
    parser.add_argument("--install", action="store_true", help="only install the engines, each in its environment")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--scene", action="append", default=[], dest="scenes")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long the service may take to show a scene")
    arguments = parser.parse_args()
    problems = []
    if arguments.install:
        install(arguments.engines)
        return 0
    for name in arguments.engines or [name for name, entry in ENGINES.items() if "environment" in entry]:
        print(f"== {name}", flush=True)
        start, before = time.monotonic(), processor_seconds()
        try:
            problems += play(name, record=arguments.record, scenes=arguments.scenes, seconds=arguments.seconds)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            print(error)
            problems.append(f"{name} does not run here")
        print(
            f"   {time.monotonic() - start:.0f} s, {processor_seconds() - before:.0f} s of processor time", flush=True
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
