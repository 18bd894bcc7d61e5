"""Faults of many kinds while much is recorded: nothing acknowledged is lost, nothing is doubled, nothing is stuck.

A few seconds of what `make chaos` does for twenty.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.chaos.world import World, table


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_whatever_fails_what_was_acknowledged_is_there_once(kind: str, tmp_path: Path) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("needs faketime (apt-get install faketime)")
    verdict = await World(tmp_path, kind).run(10)
    assert verdict.faults == [], table(verdict)
    assert verdict.counts["acknowledged"] > 10, verdict.counts
    assert verdict.counts["traces"] > 2, verdict.counts
    assert verdict.recoveries
