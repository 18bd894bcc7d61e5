"""The installed package is complete and installs only what it needs; the container files fit the source tree."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from tests.conftest import ROOT
from tests.e2e.conftest import environment

# One worker runs these, because they share the wheel and the environment it is installed in.
pytestmark = pytest.mark.xdist_group("packaging")

USER_MODULE = """\
import tachograph

tachograph.configure(database="sqlite:///runs.db")


@tachograph.step
def add(a: int, b: int) -> int:
    return a + b


@tachograph.step(max_retries=2)
async def fetch(url: str) -> bytes:
    return url.encode()


@tachograph.workflow
def nightly(day: str) -> int:
    with tachograph.step("check"):
        return add(1, b=len(day))


@tachograph.workflow(name="weekly")
async def weekly(*urls: str, limit: int = 3) -> list[bytes]:
    return [await fetch(url) for url in urls[:limit]]


total: int = nightly("2026-11-23")
"""
WRONG_CALLS = """\
import asyncio

import user

user.add("1", 2)
user.add(1)
text: str = user.add(1, 2)
user.nightly(day=7)
asyncio.run(user.fetch())
asyncio.run(user.weekly("a", limit="3"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(command, check=True, capture_output=True, timeout=250, cwd=ROOT)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, what it requires, and nothing else; its directory of programs.

    What it requires is linked from the tests' own environment: pip would take ten seconds to find the same again.
    """
    venv = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    python = str(venv / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", "--no-deps"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=250)
    (packages,) = venv.glob("lib/python*/site-packages")
    (information,) = packages.glob("tachograph-*.dist-info")
    for distribution in required(metadata.PathDistribution(information)).values():
        for file in distribution.files or ():
            if ".." not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).symlink_to(Path(str(distribution.locate_file(file))).resolve())
    return venv / "bin"


def required(distribution: metadata.Distribution, extras: Iterable[str] = ("",)) -> dict[str, metadata.Distribution]:
    """What a distribution needs to be installed with, directly or not, by name."""
    distributions: dict[str, metadata.Distribution] = {}
    for requirement in map(Requirement, distribution.requires or ()):
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        required_distribution = metadata.distribution(requirement.name)
        assert requirement.specifier.contains(required_distribution.version, prereleases=True), requirement
        distributions[requirement.name] = required_distribution
        distributions |= required(required_distribution, requirement.extras or ("",))
    return distributions


def run(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=directory, env=environment(), timeout=250, check=False
    )


def test_the_wheel_holds_its_packages_with_types_examples_and_migrations(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        information = wheel.name.rpartition("-py3")[0] + ".dist-info"
        description = archive.read(f"{information}/METADATA").decode()
    # Snakemake and Metaflow find their plugins by these names.
    plugins = {"snakemake_logger_plugin_tachograph", "metaflow_extensions"}
    assert {name.split("/")[0] for name in names} == {"tachograph", "tachograph_exporter", information, *plugins}
    # Metaflow refuses an extension whose first package is none of a namespace.
    assert "metaflow_extensions/__init__.py" not in names
    for expected in (
        "tachograph/__init__.py",
        "tachograph/py.typed",
        "tachograph/events.py",
        "metaflow_extensions/tachograph/config/mfextinit_tachograph.py",
        "metaflow_extensions/tachograph/plugins/tachograph_decorator.py",
        "tachograph_exporter/examples/workflows/data_pipeline.json",
        "tachograph_exporter/examples/handlers.py",
        "tachograph_exporter/store/migrations/versions/0001_run_tables.py",
        "tachograph_exporter/store/migrations/script.py.mako",
    ):
        assert expected in names
    for label in ("Homepage", "Documentation", "Changelog", "Issues"):
        assert f"Project-URL: {label}, https://" in description


def test_a_bare_installation_records_and_names_what_the_command_needs(installed: Path, tmp_path: Path) -> None:
    python = str(installed / "python")
    source = (
        "import tachograph as t\n"
        "t.step, t.workflow, t.configure\n"
        "with t.workflow('w'), t.step('s'): pass\n"
        "t.get_recorder().flush()\n"
        "from prometheus_client import REGISTRY\n"
        "labels = {'workspace': 'default', 'workflow': 'w', 'step': 's', 'status': 'completed'}\n"
        "assert REGISTRY.get_sample_value('workflow_step_duration_seconds_count', labels) == 1\n"
        "import importlib.util\n"
        "assert not any(map(importlib.util.find_spec, ['aiohttp', 'sqlalchemy', 'alembic']))\n"
    )
    recorded = run(tmp_path, python, "-W", "error", "-c", source)
    assert (recorded.returncode, recorded.stderr) == (0, "")
    command = run(tmp_path, str(installed / "tachograph"), "serve")
    assert command.returncode == 3
    assert "pip install 'tachograph[exporter]'" in command.stderr
    configured = run(tmp_path, python, "-c", "from tachograph import configure; configure(database='sqlite:///x.db')")
    assert "pip install 'tachograph[exporter]'" in configured.stderr


def test_a_users_project_sees_types_and_decorated_functions_keep_their_signature(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "user.py").write_text(USER_MODULE)
    (tmp_path / "wrong.py").write_text(WRONG_CALLS)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed / "python"),
            "--cache-dir", str(tmp_path / "cache")]  # fmt: skip
    checked = run(tmp_path, *mypy, "user.py", "wrong.py")
    errors = re.findall(r"^(\w+)\.py:(\d+): error: .*\[([a-z-]+)\]$", checked.stdout, re.MULTILINE)
    assert errors == [
        ("wrong", "5", "arg-type"), ("wrong", "6", "call-arg"), ("wrong", "7", "assignment"),
        ("wrong", "8", "arg-type"), ("wrong", "9", "call-arg"), ("wrong", "10", "arg-type"),
    ], checked.stdout + checked.stderr  # fmt: skip
    assert "Found 6 errors in 1 file (checked 2 source files)" in checked.stdout


def test_the_image_copies_what_the_wheel_is_built_from() -> None:
    """Docker is not needed: the image itself is not part of the tests."""
    text = (ROOT / "Dockerfile").read_text()
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for source in line.split()[:-1]
    }
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    assert {"pyproject.toml", "README.md", "LICENSE", "exporter", "instrumentation", "examples", "dashboards"} <= copied
    for line in ("USER tachograph", "/-/healthy", "FROM python:3.13-slim"):
        assert line in text


def test_the_compose_file_builds_the_image_and_mounts_files_that_exist() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yml").read_text())
    services = compose["services"]
    assert services.keys() == {"tachograph", "prometheus", "alertmanager", "alerts", "grafana"}
    assert (ROOT / "deploy" / services["tachograph"]["build"] / "Dockerfile").exists()
    volumes = set()
    for service in services.values():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (ROOT / "deploy" / source).exists(), mount
            else:
                volumes.add(source)
        assert set(service.get("secrets", [])) <= compose["secrets"].keys()
    assert volumes == compose["volumes"].keys()
