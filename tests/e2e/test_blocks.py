"""Every block of the README and of the docs works as it is written, in order, in a clean clone."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.blocks import FOLLOWS, Block, Terminal, blocks_of, clean_clone, shape
from tests.conftest import ROOT
from tests.e2e.conftest import eventually, get
from tests.stand_ins import stand_ins
from tools.local_service import free_port

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
UNMARKED = {"http-api.md", "api.md"}
"""Generated, from real responses and docstrings."""
MAX_NEEDING = 39
"""Blocks that need what is not here: other engines, a Grafana, a Prometheus. They are a burden; keep them few."""
RUN = ("sh", "python")


def runnable(page: Path) -> list[Block]:
    # tests/e2e/test_stream_docs.py runs those that follow a service.
    return [
        block
        for block in blocks_of(page)
        if (block.language in RUN or block.mark.startswith("file: ")) and not block.needs and block.mark != FOLLOWS
    ]


README = PAGES[0]
RUN_PAGES = [page for page in PAGES if page.name not in UNMARKED and runnable(page)]
pytestmark = pytest.mark.xdist_group("blocks")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    directory = tmp_path_factory.mktemp("clone")
    with stand_ins(directory / "stand-ins") as commands:
        terminal = Terminal(clean_clone(directory), free_port(), commands)
        try:
            yield terminal
            terminal.stop()
        finally:
            terminal.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_every_block_works_as_it_is_written(terminal: Terminal, page: Path) -> None:
    # The pages share a service, and those of the docs find what the README's blocks recorded.
    for needed in (README, page):
        visit(terminal, needed)


def visit(terminal: Terminal, page: Path) -> None:
    """Run the blocks of a page, unless they ran already."""
    if page in terminal.visited:
        return
    terminal.visited.add(page)
    for block in runnable(page):
        printed = terminal.run(block)
        lines = {shape(line) for line in printed.splitlines()}
        missing = [line for line in block.shown.splitlines() if shape(line) not in lines | {""}]
        assert not missing, f"{block.place} shows what it does not print: {missing}\nIt prints:\n{printed}"
        if block.text.startswith("make demo"):
            check_demo(terminal)


def check_demo(terminal: Terminal) -> None:
    """The demo has run everything, and says where to look."""
    text = str(eventually(lambda: "Stop with Ctrl-C" in terminal.log.read_text() and terminal.log.read_text(), 120))
    assert f"{terminal.address}/metrics" in text
    assert f"export PATH={terminal.directory}/.venv/bin:$PATH" in text
    stats = get(f"{terminal.address}/api/workflows/executions/stats")[1]
    assert stats["by_status"] == {"completed": 11, "failed": 1}
    address = next(word for word in text.split() if "/#/executions/" in word)
    assert get(address.replace("/#/", "/api/workflows/") + "/timeline")[1]["step_timeline"]
    assert 'reason="condition"' in get(f"{terminal.address}/metrics")[1]


def test_few_blocks_need_what_is_not_here() -> None:
    needing = [block for page in PAGES for block in blocks_of(page) if block.needs]
    assert 0 < len(needing) <= MAX_NEEDING, [f"{block.place}: {block.needs}" for block in needing]
    for block in needing:
        if block.language == "python":
            # With `await` outside functions, as a reader's program has it inside one.
            compile(block.text, block.place, "exec", flags=0x2000)
        elif block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_data_can_be_read(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "json" and page.name not in UNMARKED:
            msgspec.json.decode(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "yaml":
            msgspec.yaml.decode(block.text)
