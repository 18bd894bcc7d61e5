"""A listener's queue protects the run: it never blocks the producer, and every loss is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from tests.conftest import make_execution

from tachograph.errors import StoreUnavailable
from tachograph.events import Event, Heartbeat
from tachograph.recording.listener_queue import ListenerQueue

Wait = Callable[[Callable[[], bool]], None]


def heartbeat(number: int) -> Event:
    return Heartbeat(execution=make_execution(), time_ns=number)


class Collector:
    """A batch listener that can refuse a batch."""

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
    queue = ListenerQueue("test", collector)
    for number in range(5000):
        queue.put(heartbeat(number))
    assert queue.flush(10)
    assert collector.taken == list(range(5000))
    queue.close(1)
    assert not queue.dropped


def test_a_stalled_listener_blocks_nobody_and_what_does_not_fit_is_counted() -> None:
    release = threading.Event()
    collector = Collector()
    collector.refuse = lambda events: _wait(release)
    queue = ListenerQueue("test", collector, queue_limit=100)
    started = time.monotonic()
    for number in range(1000):
        queue.put(heartbeat(number))
    assert time.monotonic() - started < 5
    assert not queue.flush(0.05)
    release.set()
    assert queue.flush(10)
    assert len(collector.taken) + queue.dropped["queue_full"] == 1000
    assert queue.dropped["queue_full"] > 0
    queue.close(1)


def test_what_a_listener_raises_costs_only_that_event() -> None:
    seen: list[int] = []

    def picky(event: Event) -> None:
        if event.time_ns % 2:
            raise ValueError("odd")
        seen.append(event.time_ns)

    queue = ListenerQueue("test", picky)
    for number in range(10):
        queue.put(heartbeat(number))
    assert queue.flush(5)
    assert seen == [0, 2, 4, 6, 8]
    assert queue.dropped == {"error": 5}
    queue.close(1)


def test_one_bad_event_in_a_group_costs_no_other() -> None:
    collector = Collector()

    def refuse(events: Sequence[Event]) -> None:
        if any(event.time_ns == 7 for event in events):
            raise ValueError("seven")

    collector.refuse = refuse
    queue = ListenerQueue("test", collector)
    for number in range(10):
        queue.put(heartbeat(number))
    assert queue.flush(5)
    assert collector.taken == [n for n in range(10) if n != 7]
    assert queue.dropped == {"error": 1}
    queue.close(1)


def test_a_listener_that_is_away_for_a_while_gets_everything_once() -> None:
    collector = Collector()
    away = {"left": 3}

    def refuse(events: Sequence[Event]) -> None:
        if away["left"]:
            away["left"] -= 1
            raise StoreUnavailable("disk full")

    collector.refuse = refuse
    queue = ListenerQueue("test", collector)
    for number in range(100):
        queue.put(heartbeat(number))
    assert queue.flush(10)
    assert collector.taken == list(range(100))
    assert not queue.dropped
    queue.close(1)


def test_events_delivered_another_way_are_counted_and_flush_does_not_wait_for_fewer() -> None:
    release = threading.Event()
    collector = Collector()
    collector.refuse = lambda events: _wait(release)
    queue = ListenerQueue("test", collector)
    queue.put(heartbeat(0))
    queue.acknowledge(3)
    assert not queue.flush(0.05)
    assert queue.delivered == 3
    release.set()
    assert queue.flush(10)
    assert queue.delivered == 4
    queue.close(1)


def test_closing_counts_what_could_not_be_delivered_and_takes_no_more(wait_until: Wait) -> None:
    release = threading.Event()
    collector = Collector()
    collector.refuse = lambda events: _wait(release)
    queue = ListenerQueue("test", collector)
    queue.put(heartbeat(0))
    wait_until(lambda: len(queue) == 0)
    for number in range(5):
        queue.put(heartbeat(number))
    queue.close(0.05)
    assert queue.dropped["shutdown_timeout"] == 5
    queue.put(heartbeat(9))
    assert queue.dropped["closed"] == 1
    release.set()


def test_many_threads_may_put_at_once() -> None:
    collector = Collector()
    queue = ListenerQueue("test", collector)

    def produce(start: int) -> None:
        for number in range(start, start + 2000):
            queue.put(heartbeat(number))

    threads = [threading.Thread(target=produce, args=(i * 2000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.flush(10)
    assert sorted(collector.taken) == list(range(8000))
    queue.close(1)
