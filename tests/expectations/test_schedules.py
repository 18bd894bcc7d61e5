"""Schedules: when a workflow is due, in zones whose clocks change, and what is learned from its starts."""

from __future__ import annotations

import random
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from tachograph.clock import NS
from tachograph.expectation import expectation_of, parse_seconds, schedule_fault, timezone_fault
from tachograph_exporter.expectations.schedules import Cron, Every, Learned, due_after, learn, schedule_of
from tests.expectations.cron_model import starts


def ns(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * NS)


@pytest.mark.parametrize(
    ("cron", "after", "due"),
    [
        # Half past two does not exist on this night: it is right after the clock was put forward.
        ("30 2 * * *", "2026-03-29T00:00+01:00", "2026-03-29T03:00+02:00"),
        ("30 2 * * *", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"),
        # It exists twice on this one, and the first of them counts.
        ("30 2 * * *", "2026-10-25T00:00+02:00", "2026-10-25T02:30+02:00"),
        ("30 2 * * *", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
        # What runs every hour runs every hour.
        ("30 * * * *", "2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00"),
        ("0 3 29 2 *", "2026-01-01T00:00+01:00", "2028-02-29T03:00+01:00"),
    ],
)
def test_cron_in_a_zone_whose_clock_changes(cron: str, after: str, due: str) -> None:
    assert Cron(cron, "Europe/Berlin").after(ns(after)) == ns(due)


CHANGES = (
    ("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"), ("America/New_York", "2026-11-01"),
    # By half an hour; at midnight; by two hours.
    ("Australia/Lord_Howe", "2026-04-05"), ("Australia/Lord_Howe", "2026-10-04"), ("America/Havana", "2026-03-08"),
    ("Africa/Cairo", "2026-04-24"), ("Asia/Beirut", "2026-03-29"), ("Antarctica/Troll", "2026-10-25"),
    # Zones whose rule changed: their last change, their first, and one for good.
    ("America/Sao_Paulo", "2019-02-17"), ("Africa/Cairo", "2023-04-28"), ("Asia/Amman", "2022-10-28"),
    ("Asia/Almaty", "2024-03-01"), ("Europe/Volgograd", "2020-12-27"), ("America/Nuuk", "2023-03-26"),
)  # fmt: skip
FIELDS = (
    ("0", "30", "*", "*/15", "5,35", "0-10/5"), ("*", "0", "1", "2", "0-4", "*/2", "22-23"),
    ("*", "*", "1", "25-31", "*/2"), ("*", "*", "mar,oct", "apr"), ("*", "*", "sun", "mon-fri", "0", "6,7"),
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_any_expression_is_due_when_cron_starts_it_while_clocks_change(number: int) -> None:
    zone, day = CHANGES[number]
    dice = random.Random(number)
    midnight = round(datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp()) // 60 * 60
    expressions = [" ".join(map(dice.choice, FIELDS)) for _ in range(3)]
    for expression in [*expressions, "*/15 0 * * *", "*/30 1-3 * * *"]:
        begin = midnight - dice.randint(3, 20) * 3600
        end = begin + 2 * 86_400
        cron, times, at = Cron(expression, zone), [], begin * NS
        while (at := cron.after(at) or end * NS) < end * NS:
            times.append(at // NS)
        assert times == starts(expression, zone, begin, end), (expression, zone)


def test_a_start_shortly_before_its_time_is_the_start_of_that_time() -> None:
    nightly, minutely = Cron("0 3 * * *", "UTC"), Cron("* * * * *", "UTC")
    assert due_after(nightly, ns("2026-01-01T02:59:30+00:00")) == ns("2026-01-02T03:00+00:00")
    assert due_after(nightly, ns("2026-01-01T02:50:00+00:00")) == ns("2026-01-01T03:00+00:00")
    assert due_after(minutely, ns("2026-01-01T02:59:50+00:00")) == ns("2026-01-01T03:01+00:00")
    assert due_after(minutely, ns("2026-01-01T02:59:30+00:00")) == ns("2026-01-01T03:00+00:00")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 3 * *", "five fields"),
        ("0 25 * * *", "Bad hour"),
        ("0 0 31 2 *", "Bad day"),
        ("* * * * * *", "five fields"),
        ("every", "five fields"),
        ("every 3 fortnights", "a duration such as"),
        ("every 1s", "at least 10 seconds"),
        ("hello", "five fields"),
        ("0 3 * * * ; rm", "five fields"),
        ("1/2/3/4 * * * *", "not a cron expression"),
        ("9" * 300, "exceed the limit"),
        ("", "five fields"),
    ],
)
def test_a_schedule_that_cannot_be_read_says_why(text: str, says: str) -> None:
    assert says in schedule_fault(text)


def test_schedules_that_can_be_read() -> None:
    for text in ("0 3 * * *", "@daily", "*/5 0-6 1,15 JAN-MAR MON#1", "every 15m", "learned", "none", " @Hourly "):
        assert schedule_fault(text) == ""
    assert schedule_of("every 1h 30m", None, ()) == Every(5400)
    assert schedule_of("@daily", "Europe/Berlin", ()) == Cron("0 0 * * *", "Europe/Berlin")
    assert schedule_of("none", None, ()) is None


def test_zones_and_durations() -> None:
    assert timezone_fault("Europe/Berlin") == ""
    for name in ("Mars/Olympus", "../../etc/passwd", "", "a\0b"):
        assert "no such time zone" in timezone_fault(name)
    assert (parse_seconds("1h 30m"), parse_seconds(90), parse_seconds("250ms")) == (5400, 90, 0.25)
    for value in ("10 parsecs", "m", "", "-5s", float("nan"), 1e300, True, "9" * 13 + "d"):
        with pytest.raises(ValueError, match="a duration such as"):
            parse_seconds(value)


def test_wrong_expectations_in_code_name_the_argument() -> None:
    with pytest.raises(ValueError, match="schedule='0 3': expected a cron expression"):
        expectation_of(schedule="0 3")
    with pytest.raises(ValueError, match="deadline='soon'"):
        expectation_of(deadline="soon")
    assert expectation_of() is None


def daily(days: list[int], hour: float, dice: random.Random, spread: float = 300) -> list[int]:
    begin = ns("2026-01-05T00:00+00:00")  # A Monday.
    return [begin + round((day * 86_400 + hour * 3600 + dice.uniform(0, spread)) * NS) for day in days]


def test_a_schedule_is_learned_from_regular_starts_and_says_so() -> None:
    dice = random.Random(1)
    nights = daily([*range(10)], 3, dice)
    schedule = learn(nights, None)
    assert isinstance(schedule, Learned)
    assert schedule.text.startswith("2 3 * * * (UTC), learned from 10 starts")
    assert learn(nights[:5], None) is None
    weekdays = learn(daily([d for d in range(28) if d % 7 < 5], 22, dice), "UTC")
    assert weekdays is not None
    assert "* * 1,2,3,4,5 (UTC)" in weekdays.text
    midnight = learn(daily([*range(20)], 23.98, dice), "UTC")
    assert midnight is not None
    assert "* * * (UTC)" in midnight.text
    weekly = learn(daily([*range(0, 60, 7)], 12, dice), "UTC")
    assert weekly is not None
    assert "12 * * 1 (UTC)" in weekly.text
    hourly = learn([n * 3600 * NS + n % 7 * NS for n in range(20)], None)
    assert hourly is not None
    assert hourly.text == "every 1 h 00 m, learned from 20 starts"


def test_nothing_is_learned_from_starts_without_a_rhythm() -> None:
    dice = random.Random(2)
    at, starts = 0, []
    for _ in range(40):
        at += round(dice.expovariate(1 / 40_000) * NS)
        starts.append(at)
    assert learn(starts, None) is None
    assert learn([0] * 20, None) is None
    # One that was missed, and one by hand, leave a rhythm what it is.
    nights = [n for i, n in enumerate(daily([*range(30)], 3, dice)) if i != 12]
    assert learn(nights, "UTC") is not None
