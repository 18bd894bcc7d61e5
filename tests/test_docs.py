"""What the docs say is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tachograph_exporter.service import ROUTES
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_tables_are_up_to_date() -> None:
    checked = subprocess.run([sys.executable, str(ROOT / "tools" / "docs.py"), "--check"], capture_output=True,
                             text=True, check=False)  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_routes_named_in_the_docs_exist(page: Path) -> None:
    known = {re.sub(r"\{\w+\}", "X", path) for path in (route.path for route in ROUTES)}
    for path in re.findall(r"`(?:GET|POST|PATCH|DELETE) (/[^`?\s]*)", page.read_text()):
        assert re.sub(r"\{\w+\}", "X", path) in known, path


def test_the_readmes_five_lines_run(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "nightly.py").write_text(source)
    ran = subprocess.run([sys.executable, "-W", "error", "nightly.py"], cwd=tmp_path, capture_output=True, text=True,
                         check=False)  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    command = [sys.executable, "-m", "tachograph_exporter", "timeline", "last", "--database", "sqlite:///runs.db"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "nightly completed" in shown.stdout
