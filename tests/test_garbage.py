"""A service's process collects young garbage as ever, and looks through its oldest objects rarely."""

from __future__ import annotations

import gc
import itertools
import threading
import time
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
    monkeypatch.setattr(garbage, "MAX_WAIT_SECONDS", 0.01)
    with garbage.collected_rarely():
        cycle = _Cycle()
        gc.collect(1)
        gc.collect(1)  # It is one of the oldest now.
        assert _Cycle.alive == 1
        del cycle
        wait_until(lambda: _Cycle.alive == 0)


def test_the_oldest_objects_are_looked_through_when_there_is_little_to_do(
    monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    monkeypatch.setattr(garbage, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(garbage, "MAX_SHARE", 1.0)
    busy, asked = True, itertools.count(1)
    latest = 0

    def used() -> float:
        nonlocal latest
        if busy:
            latest = next(asked)
        return float(latest)

    # Of a process with much to do, a second of a processor goes by from one look to the next.
    monkeypatch.setattr(time, "process_time", used)
    with garbage.collected_rarely():
        seen = gc.get_stats()[2]["collections"]
        wait_until(lambda: latest > 6)
        assert gc.get_stats()[2]["collections"] == seen
        busy = False
        wait_until(lambda: gc.get_stats()[2]["collections"] > seen)
