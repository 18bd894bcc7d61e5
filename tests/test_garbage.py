"""A service's process collects young garbage as ever, and looks through its oldest objects rarely."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest

from tachograph_exporter import garbage


class _Cycle:
    alive = 0

    def __init__(self) -> None:
        type(self).alive += 1
        self.itself = self

    def __del__(self) -> None:
        type(self).alive -= 1


def test_many_living_objects_do_not_make_a_collection_of_the_oldest() -> None:
    before = gc.get_threshold()
    with garbage.collected_rarely():
        seen = gc.get_stats()[2]["collections"]
        kept = [[number] for number in range(300_000)]
        assert gc.get_stats()[2]["collections"] == seen
        assert len(kept) == 300_000
    assert gc.get_threshold() == before
    assert not any(thread.name == "tachograph-garbage" for thread in threading.enumerate())


def test_old_garbage_goes_too(
    monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    monkeypatch.setattr(garbage, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(garbage, "MAX_SHARE", 1.0)
    with garbage.collected_rarely():
        cycle = _Cycle()
        gc.collect(1)
        gc.collect(1)  # It is one of the oldest now.
        assert _Cycle.alive == 1
        del cycle
        wait_until(lambda: _Cycle.alive == 0)
