"""A listener's queue protects the run: it never blocks the producer, and every loss is counted."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests import programs
from tests.conftest import make_execution

from tachograph.errors import StoreUnavailable
from tachograph.events import Event, Heartbeat
from tachograph.recording.listener_queue import ListenerQueue
from tachograph.recording.spool import Kept

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
    event.wait(200)


def test_events_arrive_in_order_and_flush_waits_for_them() -> None:
    collector = Collector()
    queue = ListenerQueue("test", collector)
    for number in range(5000):
        queue.put(heartbeat(number))
    assert queue.flush(60)
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
    assert time.monotonic() - started < 100
    assert not queue.flush(0.05)
    release.set()
    assert queue.flush(60)
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
    assert not queue.flush(60)  # Not all of it was delivered.
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
    assert not queue.flush(60)  # Not all of it was delivered.
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
    assert queue.flush(60)
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
    assert queue.flush(60)
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
    assert queue.flush(60)
    assert sorted(collector.taken) == list(range(8000))
    queue.close(1)


class CannotStart(threading.Thread):
    """A thread that the system refuses to start, as under a limit on threads."""

    refuse = True

    def start(self) -> None:
        if CannotStart.refuse and self.name.startswith("tachograph-"):
            raise RuntimeError("can't start new thread")
        super().start()


def test_a_thread_that_could_not_start_is_started_later(
    monkeypatch: pytest.MonkeyPatch, wait_until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threading, "Thread", CannotStart)
    monkeypatch.setattr(CannotStart, "refuse", True)
    collector = Collector()
    queue = ListenerQueue("test", collector)
    for number in range(100):
        queue.put(heartbeat(number))
    started = time.monotonic()
    assert not queue.flush(60)
    assert time.monotonic() - started < 100
    CannotStart.refuse = False
    number = 100

    def put_until_taken() -> bool:
        nonlocal number
        queue.put(heartbeat(number))
        number += 1
        return bool(collector.taken)

    wait_until(put_until_taken)
    assert queue.flush(60)
    assert collector.taken == list(range(number))
    assert not queue.dropped
    assert [record.message for record in caplog.records if "can't start new thread" in record.message] != []
    assert len(caplog.records) == 1
    queue.close(1)


def test_what_no_thread_ever_delivered_is_spooled_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Thread", CannotStart)
    monkeypatch.setattr(CannotStart, "refuse", True)
    keeper, collector = Keeper(), Collector()
    for listener in (keeper, collector):
        queue = ListenerQueue("test", listener)
        for number in range(10):
            queue.put(heartbeat(number))
        queue.close(1)
        assert (queue.spooled, dict(queue.dropped)) in ((10, {}), (0, {"shutdown_timeout": 10}))
    assert keeper.kept == list(range(10))


def test_a_limit_on_threads_costs_the_program_nothing(tmp_path: Path) -> None:
    source = """
import os, resource, threading
import tachograph
from prometheus_client import CollectorRegistry
registry = CollectorRegistry()
recorder = tachograph.configure(registry=registry)
real = threading._start_new_thread
def refused(*args, **kwargs):
    raise RuntimeError("can't start new thread")
threading._start_new_thread = refused

@tachograph.workflow
def nightly():
    return 1

assert nightly() == 1
threading._start_new_thread = real
assert nightly() == 1
assert recorder.flush()
print(registry.get_sample_value("workflow_executions_started_total", {"workspace": "default", "workflow": "nightly"}))
"""
    ran = programs.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "2.0\n"), ran.stderr
    assert "Traceback" not in ran.stderr


class Keeper(Collector):
    """A batch listener that keeps what it did not take."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[int] = []
        self.limit = 1_000_000

    def keep(self, events: Sequence[Event]) -> Kept:
        kept = events[: self.limit]
        self.kept += [event.time_ns for event in kept]
        return Kept(len(kept), "" if len(kept) == len(events) else "spool_full")


def away(events: Sequence[Event]) -> None:
    raise StoreUnavailable("locked")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, MemoryError])
@pytest.mark.parametrize("in_batches", [False, True])
def test_no_exception_of_a_listener_stops_its_queue(error: type[BaseException], in_batches: bool) -> None:
    collector = Collector()

    def take(event: Event) -> None:
        if event.time_ns == 1:
            raise error
        collector.taken.append(event.time_ns)

    def refuse(events: Sequence[Event]) -> None:
        if any(event.time_ns == 1 for event in events):
            raise error

    collector.refuse = refuse
    queue = ListenerQueue("test", collector if in_batches else take)
    for number in range(3):
        queue.put(heartbeat(number))
    assert not queue.flush(60)  # Not all of it was delivered.
    queue.put(heartbeat(3))
    assert queue.flush(60)
    assert collector.taken == [0, 2, 3]
    assert queue.dropped == {"error": 1}
    queue.close(1)


@pytest.mark.parametrize("listener", [Collector, Keeper])
def test_a_listener_that_is_away_for_ever_does_not_hold_up_the_end(
    listener: type[Collector], wait_until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    collector = listener()
    collector.refuse = away
    queue = ListenerQueue("test", collector)
    queue.put(heartbeat(0))
    wait_until(lambda: len(queue) == 0)
    for number in range(1, 10):
        queue.put(heartbeat(number))
    started = time.monotonic()
    queue.close(1)
    assert time.monotonic() - started < 100
    if isinstance(collector, Keeper):
        assert (collector.kept, queue.spooled, dict(queue.dropped)) == (list(range(10)), 10, {})
    else:
        assert (queue.spooled, dict(queue.dropped)) == (0, {"unavailable": 10})
    unavailable = [record for record in caplog.records if "wait and are offered again" in record.message]
    assert len(unavailable) == 1
    thread = queue._thread
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()
    assert sum(queue.dropped.values()) + queue.spooled == 10


def test_a_listener_that_hangs_has_its_events_kept(wait_until: Wait) -> None:
    release = threading.Event()
    keeper = Keeper()
    keeper.refuse = lambda events: _wait(release)
    queue = ListenerQueue("test", keeper)
    queue.put(heartbeat(0))
    wait_until(lambda: len(queue) == 0)
    queue.put(heartbeat(1))
    started = time.monotonic()
    queue.close(0.2)
    assert time.monotonic() - started < 100
    assert keeper.kept == [0, 1]
    release.set()


def test_a_disk_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    keeper = Keeper()
    keeper.refuse = away
    monkeypatch.setattr(keeper, "keep", lambda events: release.wait(200))
    queue = ListenerQueue("test", keeper)
    queue.put(heartbeat(0))
    started = time.monotonic()
    queue.close(0.2)
    assert time.monotonic() - started < 100
    assert queue.dropped == {"spool_failed": 1}
    release.set()


def test_what_the_spool_does_not_take_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper()
    keeper.refuse = away
    keeper.limit = 4
    queue = ListenerQueue("test", keeper)
    for number in range(10):
        queue.put(heartbeat(number))
    queue.close(0.2)
    assert (queue.spooled, dict(queue.dropped)) == (4, {"spool_full": 6})


def test_events_that_settle_are_delivered_or_kept_once(wait_until: Wait) -> None:
    keeper = Keeper()
    queue = ListenerQueue("test", keeper)
    queue.put(heartbeat(0))
    queue.settle(60)
    assert (keeper.taken, keeper.kept) == ([0], [])
    keeper.refuse = away
    queue.put(heartbeat(1))
    queue.settle(0.1)
    queue.put(heartbeat(2))
    started = time.monotonic()
    queue.settle(60)
    assert time.monotonic() - started < 30  # It was late a moment ago.
    assert keeper.kept == [1, 2]
    keeper.refuse = lambda events: None
    wait_until(lambda: not queue._is_late)
    queue.put(heartbeat(3))
    queue.settle(60)
    # The batch in hand is delivered as well, which does no harm.
    assert keeper.taken == [0, 1, 3]
    assert keeper.kept == [1, 2]
    queue.close(1)


def test_a_listener_that_comes_back_is_noticed_by_whoever_waits() -> None:
    collector = Collector()
    is_away = threading.Event()
    is_away.set()
    collector.refuse = lambda events: away(events) if is_away.is_set() else None
    queue = ListenerQueue("test", collector)
    queue.put(heartbeat(0))
    assert not queue.flush(3.5)  # By now it waits two seconds between attempts.
    is_away.clear()
    assert queue.flush(60)
    queue.close(1)


def test_a_fork_does_not_wait_for_a_listener_that_is_away(wait_until: Wait) -> None:
    collector = Collector()
    collector.refuse = away
    queue = ListenerQueue("test", collector)
    queue.put(heartbeat(0))
    wait_until(lambda: queue._is_unavailable)
    started = time.monotonic()
    for _ in range(20):
        queue.before_fork(1.0)
        queue.after_fork_in_parent()
    assert time.monotonic() - started < 100
    collector.refuse = lambda events: None
    assert queue.flush(60)
    queue.close(1)


class SettingAside(Collector):
    """A batch listener that keeps what it refused, once that is possible."""

    def __init__(self) -> None:
        super().__init__()
        self.aside: list[tuple[int, str]] = []
        self.away = 2

    def set_aside(self, event: Event, error: BaseException) -> None:
        if self.away:
            self.away -= 1
            raise StoreUnavailable("locked")
        self.aside.append((event.time_ns, str(error)))


def test_a_refused_event_is_set_aside_and_the_halves_without_it_are_taken_whole() -> None:
    collector = SettingAside()
    sizes: list[int] = []

    def refuse(events: Sequence[Event]) -> None:
        sizes.append(len(events))
        if any(event.time_ns == 700 for event in events):
            raise ValueError("seven hundred")

    collector.refuse = refuse
    queue = ListenerQueue("test", collector, gather_seconds=0.2)
    for number in range(1024):
        queue.put(heartbeat(number))
    assert not queue.flush(60)
    assert collector.taken == [n for n in range(1024) if n != 700]
    assert collector.aside == [(700, "seven hundred")]
    assert queue.dropped == {"error": 1}
    assert len(sizes) < 50  # Offering each event alone would take more than a thousand transactions.
    assert "seven hundred" in queue.last_refusal
    queue.close(1)


def test_a_store_that_refuses_everything_says_so_once_and_counts_all(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()

    def refuse(events: Sequence[Event]) -> None:
        raise ValueError("broken")

    collector.refuse = refuse
    queue = ListenerQueue("test", collector)
    for number in range(1000):
        queue.put(heartbeat(number))
    assert not queue.flush(60)
    assert queue.dropped == {"error": 1000}
    assert queue.refused_in_a_row == 1000
    assert len([record for record in caplog.records if record.exc_info]) == 1
    collector.refuse = lambda events: None
    queue.put(heartbeat(1000))
    assert queue.flush(60)
    assert queue.refused_in_a_row == 0
    queue.close(1)


def test_a_thread_that_could_not_be_started_or_died_is_started_later(
    monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    collector = Collector()
    queue = ListenerQueue("test", collector)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        queue.put(heartbeat(0))
        assert not queue.flush(0.05)
    assert queue.flush(60)
    queue.close(1)
    # One that is out of memory, and again while it reports that.
    queue = ListenerQueue("test", collector)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "_deliver_until_closed", _no_memory)
        patch.setattr(queue, "drop", _no_memory)
        patch.setattr(threading, "excepthook", lambda _arguments: None)
        queue.put(heartbeat(1))
        wait_until(lambda: queue._thread is None)
    queue.put(heartbeat(2))
    assert queue.flush(60)
    assert collector.taken == [0, 1, 2]
    queue.close(1)


def _no_thread(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def _no_memory(*_arguments: object) -> None:
    raise MemoryError
