"""The table of benchmarks: measured with small numbers, it has its lines, and its page has the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs
from tests.conftest import ROOT
from tests.e2e.conftest import environment

PAGE = "# Performance\n\nbefore\n\n<!-- generated: performance -->\nold\n<!-- end -->\n\nafter\n"
SMALL = ("recorder", "timeline", "scrape", "growth")


@pytest.mark.e2e
def test_the_table_is_made_of_what_was_measured(tmp_path: Path) -> None:
    page, results = tmp_path / "performance.md", tmp_path / "results"
    page.write_text(PAGE)

    def measure(*names: str) -> str:
        process = programs.Popen(
            [sys.executable, "benchmarks/run.py", *names], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=environment(BENCH_SCALE="0.01", BENCH_PAGE=str(page), BENCH_RESULTS=str(results),
                            GROWTH_SIZES="1000,10000", GROWTH_COUNTED="5000"),
        )  # fmt: skip
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return str(printed)

    printed = measure(*SMALL)
    text = page.read_text()
    assert text.startswith("# Performance\n\nbefore\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    subjects = [row[0].removeprefix("| ") for row in rows]
    assert "a step, all the way to the commit" in subjects
    assert any(subject.startswith("timeline of 500 steps") for subject in subjects)
    assert any("series after all ran" in subject for subject in subjects)
    assert "`trends` of 180 days, 100 executions, SQLite" in subjects
    for row in rows:
        value, other, ratio = (
            float(cell.strip("*").split(" ")[0].replace(",", "")) for cell in (row[1], row[3], row[4])
        )
        assert min(value, other, ratio) > 0
    # Each says when it was measured and on what; one run, if the machine was as busy.
    assert 1 <= text.rpartition("Runs:")[2].count("processors") <= len(SMALL)
    assert all(subject in printed for subject in subjects)
    # Further benchmarks are added to what the others measured.
    measure("timeline")
    assert [line.split(" | ")[0] for line in page.read_text().splitlines() if line.startswith("| a step")] == [
        line.split(" | ")[0] for line in text.splitlines() if line.startswith("| a step")
    ]
    assert sorted(path.suffix for path in results.iterdir()) == [".json"] * len(SMALL) + [".txt"] * len(SMALL)
