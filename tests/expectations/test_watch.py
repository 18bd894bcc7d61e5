"""What services tell of eleven nights in a real database: across a clock change, restarts, and a clock that is set."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus
from tachograph.expectation import Expectation
from tachograph.identity import ExecutionRef, workspace_id
from tachograph_exporter.expectations.routing import Target
from tachograph_exporter.expectations.watch import Watch
from tachograph_exporter.store import expectations, notices
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tests.conftest import make_execution

BERLIN = ZoneInfo("Europe/Berlin")
DEFAULT = workspace_id("default")


class Clock:
    """A clock that is moved, and can be set, beside the time that really passes."""

    def __init__(self, start: datetime) -> None:
        self.passed = start.timestamp()
        self.shift = 0.0

    def move(self, moment: datetime) -> None:
        self.passed = moment.timestamp()

    def ns(self) -> int:
        return round((self.passed + self.shift) * NS)

    def monotonic(self) -> float:
        return self.passed


@pytest.fixture
def writer(any_database_url: str) -> Iterator[StoreWriter]:
    database = Database(any_database_url)
    yield StoreWriter(database)
    database.close()


def watch_of(writer: StoreWriter, clock: Clock) -> Watch:
    target = Target(name="on call", url="https://example.com/")
    return Watch(writer.database, DEFAULT, [target], settle_seconds=1, clock=clock.ns, monotonic=clock.monotonic)


def execute(
    writer: StoreWriter, start: datetime, end: datetime | None, status: ExecutionStatus, ref: ExecutionRef | None = None
) -> ExecutionRef:
    execution = ref or make_execution("nightly")
    start_ns = round(start.timestamp()) * NS
    events: list[Event] = [ExecutionStarted(execution=execution, time_ns=start_ns)]
    if end is not None:
        events.append(
            ExecutionFinished(execution=execution, time_ns=round(end.timestamp()) * NS, status=status,
                              started_ns=start_ns, step_count=0)
        )  # fmt: skip
    writer.apply(events)
    return execution


def told(database: Database) -> list[tuple[str, str, str, str]]:
    """(kind, since, until, messages) of all notices, in local time, the oldest first."""

    def local(time_ns: int | None) -> str:
        return "" if time_ns is None else f"{datetime.fromtimestamp(time_ns / NS, BERLIN):%d %H:%M}"

    rows = database.look(lambda c: notices.listed(c, None))
    return [
        (row.kind, local(row.opened_ns), local(row.resolved_ns), " ".join(m.phase for m in messages))
        for row, messages in reversed(rows)
    ]


def test_eleven_nights(writer: StoreWriter) -> None:
    first = datetime(2026, 3, 24, tzinfo=BERLIN)
    clock = Clock(first)
    nightly = Expectation(schedule="30 2 * * *", timezone="Europe/Berlin", deadline_seconds=3600.0)
    database = writer.database
    database.run(lambda c: expectations.say(c, expectations.ANY, "nightly", expectations.FILE, nightly, clock.ns()))
    watch, other = watch_of(writer, clock), watch_of(writer, clock)
    both = "opened recovered"

    def look(moment: datetime) -> None:
        for seconds in (0, 2):
            clock.move(moment + timedelta(seconds=seconds))
            watch.look()
            other.look()

    for night in range(11):
        day = first + timedelta(days=night)
        # On the 29th there is no half past two: it is three then.
        due = day.replace(hour=3 if day.day == 29 else 2, minute=0 if day.day == 29 else 30)
        start = due + timedelta(minutes=40 if day.day == 30 else 0, seconds=5)
        end = start + timedelta(minutes=90 if day.day == 2 else 1)
        status = ExecutionStatus.FAILED if day.day == 1 else ExecutionStatus.COMPLETED
        for minutes in (-60, 5, 15, 45, 80, 100):
            if day.day == 2 and minutes == 5:
                running = execute(writer, start, None, status)
            if day.day == 2 and minutes == 100:
                execute(writer, start, end, status, running)
            elif day.day not in (2, 27) and minutes == (45 if day.day == 30 else 5):
                execute(writer, start, end, status)
            look(due + timedelta(minutes=minutes))
        if day.day == 27:
            # Another service goes on.
            watch = watch_of(writer, clock)
        if day.day == 31:
            # The clock is two hours ahead for a while.
            for clock.shift in (7200.0, 0.0):
                look(day.replace(hour=12))
    assert told(database) == [
        ("late", "27 02:40", "28 02:30", both),
        ("late", "30 02:40", "30 03:10", both),
        ("failed", "01 02:41", "02 04:00", both),
        ("overdue", "02 03:30", "02 04:00", both),
    ]
