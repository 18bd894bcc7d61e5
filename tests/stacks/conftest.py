"""Tests of stacks are alone in their process."""

from __future__ import annotations

import pytest

from tachograph.running_attempts import running


@pytest.fixture(autouse=True)
def alone() -> None:
    """What other tests left running is not looked at."""
    running.clear()
