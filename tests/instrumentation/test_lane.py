"""A lane protects the run: it never blocks the producer, and every loss is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from tests.conftest import make_execution

from tachograph.events import Event, Heartbeat
from tachograph.instrumentation.lane import Lane, Unavailable

Wait = Callable[[Callable[[], bool]], None]


def beat(number: int) -> Event:
    return Heartbeat(execution=make_execution(), time_ns=number)


class Collector:
    """A batch listener that can be told to refuse."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.refuse: Callable[[Sequence[Event]], None] = lambda events: None

    def apply(self, events: Sequence[Event]) -> None:
        self.refuse(events)
        self.taken += [event.time_ns for event in events]


def _wait(event: threading.Event) -> None:
    event.wait(20)


def test_events_arrive_in_order_and_flush_waits_for_them() -> None:
    collector = Collector()
    lane = Lane("test", collector)
    for number in range(5000):
        lane.put(beat(number))
    assert lane.flush(10)
    assert collector.taken == list(range(5000))
    lane.close(1)
    assert not lane.dropped


def test_a_stalled_listener_blocks_nobody_and_what_does_not_fit_is_counted() -> None:
    release = threading.Event()
    collector = Collector()
    collector.refuse = lambda events: _wait(release)
    lane = Lane("test", collector, queue_limit=100)
    begun = time.monotonic()
    for number in range(1000):
        lane.put(beat(number))
    assert time.monotonic() - begun < 5
    assert not lane.flush(0.05)
    release.set()
    assert lane.flush(10)
    assert len(collector.taken) + lane.dropped["queue_full"] == 1000
    assert lane.dropped["queue_full"] > 0
    lane.close(1)


def test_what_a_listener_raises_costs_only_that_event() -> None:
    seen: list[int] = []

    def picky(event: Event) -> None:
        if event.time_ns % 2:
            raise ValueError("odd")
        seen.append(event.time_ns)

    lane = Lane("test", picky)
    for number in range(10):
        lane.put(beat(number))
    assert lane.flush(5)
    assert seen == [0, 2, 4, 6, 8]
    assert lane.dropped == {"error": 5}
    lane.close(1)


def test_one_bad_event_in_a_group_costs_no_other() -> None:
    collector = Collector()

    def refuse(events: Sequence[Event]) -> None:
        if any(event.time_ns == 7 for event in events):
            raise ValueError("seven")

    collector.refuse = refuse
    lane = Lane("test", collector)
    for number in range(10):
        lane.put(beat(number))
    assert lane.flush(5)
    assert collector.taken == [n for n in range(10) if n != 7]
    assert lane.dropped == {"error": 1}
    lane.close(1)


def test_a_listener_that_is_away_for_a_while_gets_everything_once() -> None:
    collector = Collector()
    away = {"left": 3}

    def refuse(events: Sequence[Event]) -> None:
        if away["left"]:
            away["left"] -= 1
            raise Unavailable("disk full")

    collector.refuse = refuse
    lane = Lane("test", collector)
    for number in range(100):
        lane.put(beat(number))
    assert lane.flush(10)
    assert collector.taken == list(range(100))
    assert not lane.dropped
    lane.close(1)


def test_closing_counts_what_could_not_be_delivered_and_takes_no_more(wait_until: Wait) -> None:
    release = threading.Event()
    collector = Collector()
    collector.refuse = lambda events: _wait(release)
    lane = Lane("test", collector)
    lane.put(beat(0))
    wait_until(lambda: len(lane) == 0)
    for number in range(5):
        lane.put(beat(number))
    lane.close(0.05)
    assert lane.dropped["shutdown_timeout"] == 5
    lane.put(beat(9))
    assert lane.dropped["closed"] == 1
    release.set()


def test_many_threads_may_put_at_once() -> None:
    collector = Collector()
    lane = Lane("test", collector)

    def produce(start: int) -> None:
        for number in range(start, start + 2000):
            lane.put(beat(number))

    threads = [threading.Thread(target=produce, args=(i * 2000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lane.flush(10)
    assert sorted(collector.taken) == list(range(8000))
    lane.close(1)
