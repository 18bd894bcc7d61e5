"""The docs agree with the code."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

import tachograph
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.store.schema import metadata
from tests import programs
from tests.conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MAPS = [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"]
"""Pages that name files, with or without the root of their package."""
SOURCES = ("", "instrumentation/tachograph", "exporter/tachograph_exporter", "tests")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_tables_are_up_to_date() -> None:
    checked = programs.run([sys.executable, str(ROOT / "tools" / "docs.py"), "--check"], capture_output=True,
                           text=True, check=False)  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_routes_named_in_the_docs_exist(page: Path) -> None:
    known = {re.sub(r"\{\w+\}", "X", path) for path in (route.path for route in ROUTES)}
    for path in re.findall(r"`(?:GET|POST|PATCH|DELETE) (/[^`?\s]*)", page.read_text()):
        assert re.sub(r"\{\w+\}|\bNAME\b", "X", path) in known, path


@pytest.mark.parametrize("page", MAPS, ids=page_id)
def test_paths_named_in_the_maps_exist(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text())
    paths = re.findall(r"(?<![\w/.:])((?:[\w.-]+/)+(?:[\w-]+\.\w+)?|[\w-]+\.(?:py|js|toml|md))(?![\w/])", text)
    assert len(paths) > 30
    missing = [path for path in paths if not any((ROOT / source / path).exists() for source in SOURCES)]
    assert not missing


def test_dashboards_and_panels_named_in_the_runbooks_exist() -> None:
    titles = {"Status → Targets"}  # Prometheus' own menu
    for path in (ROOT / "dashboards" / "grafana").glob("*.json"):
        titles |= set(re.findall(r'"title": "([^"]+)"', path.read_text()))
    web = ROOT / "exporter" / "tachograph_exporter" / "web"
    page = "".join(path.read_text() for path in web.rglob("*.js") if "vendor" not in path.parts)
    named: set[str] = set()
    for path in (ROOT / "docs" / "runbooks").glob("*.md"):
        named |= {" ".join(name.split()) for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", path.read_text())}
    assert len(named) > 15
    assert not [name for name in named if name not in titles and name not in page]


def test_every_table_is_described() -> None:
    text = (ROOT / "docs" / "database.md").read_text()
    assert not [name for name in metadata.tables if f"`{name}`" not in text]


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = set(re.findall(r"\]\((?!https?://)([^)#]+)", index.read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_the_adr_index_lists_every_decision() -> None:
    adrs = ROOT / "docs" / "adr"
    linked = set(re.findall(r"\]\(([^)#]+)", (adrs / "README.md").read_text()))
    assert {page.name for page in adrs.glob("0*.md")} == linked


def test_the_python_api_has_every_public_name() -> None:
    names = re.findall(r"^### `(\w+)`$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(tachograph.__all__)


def test_the_tools_do_not_import_tests() -> None:
    for tool in (ROOT / "tools").glob("*.py"):
        assert not re.search(r"^\s*(from|import) tests\b", tool.read_text(), re.MULTILINE), tool.name


def test_the_changelog_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_examples_of_responses_name_no_path_of_the_machine_that_made_them() -> None:
    examples = (ROOT / "exporter" / "tachograph_exporter" / "api" / "openapi_examples.json").read_text()
    assert re.findall(r'File \\"/[^"]*', examples) == []
