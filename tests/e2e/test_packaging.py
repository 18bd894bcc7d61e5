"""What is installed is enough, and no more than is needed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.e2e.conftest import environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=110)
    (found,) = directory.glob("*.whl")
    return found


def test_the_wheel_holds_two_packages_with_examples_and_migrations(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    information = wheel.name.rpartition("-py3")[0] + ".dist-info"
    assert {name.split("/")[0] for name in names} == {"tachograph", "tachograph_exporter", information}
    for wanted in (
        "tachograph/__init__.py",
        "tachograph/py.typed",
        "tachograph/events.py",
        "tachograph_exporter/examples/workflows/data_pipeline.json",
        "tachograph_exporter/examples/handlers.py",
        "tachograph_exporter/store/migrations/versions/0001_run_tables.py",
        "tachograph_exporter/store/migrations/script.py.mako",
    ):
        assert wanted in names


def test_a_bare_installation_records_and_says_what_the_command_needs(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=60)
    python = venv / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True, capture_output=True, timeout=110
    )

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=60, check=False
        )

    source = (
        "import tachograph as t\n"
        "with t.workflow('w'), t.step('s'): pass\n"
        "t.get_recorder().flush()\n"
        "from prometheus_client import REGISTRY\n"
        "labels = {'workspace': 'default', 'workflow': 'w', 'step': 's', 'status': 'completed'}\n"
        "assert REGISTRY.get_sample_value('workflow_step_duration_seconds_count', labels) == 1\n"
        "import importlib.util\n"
        "assert not any(map(importlib.util.find_spec, ['aiohttp', 'sqlalchemy', 'alembic']))\n"
    )
    recorded = run(str(python), "-W", "error", "-c", source)
    assert (recorded.returncode, recorded.stderr) == (0, "")
    told = run(str(venv / "bin" / "tachograph"), "--version")
    assert told.returncode == 3
    assert "pip install 'tachograph[exporter]'" in told.stderr
    asked = run(str(python), "-c", "from tachograph import configure; configure(database='sqlite:///x.db')")
    assert "pip install 'tachograph[exporter]'" in asked.stderr
