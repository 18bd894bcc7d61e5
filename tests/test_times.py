"""Times and durations as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.clock import NS
from tachograph_exporter.times import format_duration, parse_duration, parse_go_duration

DAY = 86_400


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 µs"), (820_000, "820 µs"), (999_499, "999 µs"), (999_600, "1 ms"), (12_340_000, "12.3 ms"),
        (999_499_999, "999 ms"), (999_600_000, "1 s"), (4_560_000_000, "4.56 s"), (59_940_000_000, "59.9 s"),
        (59_960_000_000, "1 m 00 s"), (200 * NS, "3 m 20 s"), (3_599_600_000_000, "1 h 00 m"),
        (7_500 * NS, "2 h 05 m"), (3 * DAY * NS + 4 * 3600 * NS, "3 d 04 h"), (-6_490_000, "-6.49 ms"),
    ],
)  # fmt: skip
def test_a_duration_is_shown_in_the_unit_it_rounds_to(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text


@given(st.integers(1_000, 400 * DAY * NS))
def test_any_duration_is_short_and_close(nanoseconds: int) -> None:
    text = format_duration(nanoseconds)
    assert re.fullmatch(r"[1-9]\d{0,2}(\.\d{1,2})? (µs|ms|s)|\d+ (m \d\d s|h \d\d m|d \d\d h)", text), text
    units = {"µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9, "d": DAY * 1e9}
    shown = sum(float(value) * units[unit] for value, unit in re.findall(r"([\d.]+) (\w+)", text))
    # Three digits, or to the smaller of two units.
    smaller_unit = next((units[unit] for unit in ("s", "m", "h") if re.search(rf"\w \d\d {unit}", text)), 0)
    assert abs(shown - nanoseconds) <= max(0.0051 * nanoseconds, 500, smaller_unit)


@given(st.integers(0, 10**6))
def test_durations_with_a_unit_are_read_as_they_are_written(number: int) -> None:
    assert parse_duration(f"{number}ms") == number * NS // 1000
    assert parse_duration(f"{number}m") == parse_duration(f"{number * 60}s") == parse_duration(f"{number * 60}")


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("500us", 500_000), ("100\u00b5s", 100_000), ("100\u03bcs", 100_000), ("1h30m", 5_400 * NS), ("0", 0),
        ("1.5s", 1_500_000_000), ("1h15m30.918273645s", 4_530_918_273_645), (".5s", NS // 2), ("1.s", NS), ("+3ns", 3),
        ("1h0m0.000000001s", 3_600 * NS + 1), ("2d", 2 * DAY * NS), ("0.25", NS // 4), ("90", 90 * NS),
        ("2540400h10m10.000000000s", 9_145_440_610 * NS),
    ],
)  # fmt: skip
def test_durations_of_go_are_read(text: str, nanoseconds: int) -> None:
    # The examples of Go's own tests of time.ParseDuration, and what Grafana and Jaeger UI send.
    assert parse_go_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    ["", "+", "-1s", ".", "s", ".s", "1e3s", "1h-5m", "1 h", "\u0661s", "1s1", "3000000h", "9" * 21 + "ns", "1s" * 200],
)
def test_what_is_no_duration_of_go_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a valid duration|too large"):
        parse_go_duration(text)


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(["ns", "us", "ms", "s", "m"])), min_size=1, max_size=6)
)
def test_parts_of_a_duration_add_up(parts: list[tuple[int, str]]) -> None:
    units = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": NS, "m": 60 * NS}
    text = "".join(f"{number}{unit}" for number, unit in parts)
    total = sum(number * units[unit] for number, unit in parts)
    if total < 1 << 63:
        assert parse_go_duration(text) == total
