"""Faults of many kinds while much is recorded: nothing acknowledged is lost, nothing is doubled, nothing is stuck.

A few seconds of what `make chaos` does for twenty minutes. On PostgreSQL, one of two services is killed, and the
primary fails over to its standby.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.chaos.faults import Fault, failed_over, killed, one_of_two_killed
from tests.chaos.world import MIN_ACKNOWLEDGED, MIN_TRACES, World


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "first"), [("sqlite", (killed,)), ("postgresql", (one_of_two_killed, failed_over))])
async def test_whatever_fails_what_was_acknowledged_is_there_once(
    kind: str, first: Sequence[Fault], tmp_path: Path
) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("needs faketime (apt-get install faketime)")
    verdict = await World(tmp_path, kind).run(3, first)
    assert verdict.wrongs == [], verdict.table()
    assert verdict.counts["acknowledged"] >= MIN_ACKNOWLEDGED, verdict.counts
    assert verdict.counts["traces"] >= MIN_TRACES, verdict.counts
    assert [happened.fault for happened in verdict.happened][: len(first)] == [fault.__name__ for fault in first]
