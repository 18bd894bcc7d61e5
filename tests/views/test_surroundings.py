"""The surroundings of runs: what neighbouring runs have in common is no cause."""

from __future__ import annotations

import pytest

from tachograph.clock import NS
from tachograph_exporter.store.samples import Beside, SampledRun
from tachograph_exporter.views.causes import features as kinds
from tachograph_exporter.views.causes import surroundings
from tachograph_exporter.views.causes.differences import Difference


def run(number: int, process: str = "h/b.1/1/1", hour: float | None = None) -> SampledRun:
    started = number * 1_000 * NS if hour is None else round((number * 24 + hour) * 3_600 * NS)
    return SampledRun(
        execution_id=str(number), status="completed", version="1", project="default", process=process, inputs=None,
        queued_ns=None, started_ns=started, finished_ns=started + 600 * NS, error_type=None, error_message=None,
        trace_id="t", span_id="s", number=number,
    )  # fmt: skip


@pytest.mark.parametrize("place", [kinds.PROCESS, kinds.BESIDE])
def test_what_goes_with_a_time_is_told_from_what_goes_with_slow_runs(place: kinds.Place) -> None:
    runs = [run(number) for number in range(60)]
    difference = Difference("key", True, place, effect=1.0, rate=0.0)
    for odd, is_plausible in ((range(50, 60), False), (range(0, 60, 6), True)):
        among = {each.execution_id: each for each in runs if each.number in odd}
        others = {each.execution_id: each for each in runs if each.number not in odd}
        assert surroundings.is_plausible(difference, among, others) is is_plausible
        assert surroundings.is_plausible(difference._replace(place=kinds.VERSION), among, others)


def test_processes_are_counted_and_their_first_runs_known() -> None:
    runs = [run(number, f"h/b.1/{number % 3}/1") for number in range(30)] + [run(30, "h/b.1/new/1")]
    features = surroundings.of_processes(runs)
    assert "processes" not in features["3"]  # What ran before the sample is not known.
    assert features["20"]["processes"].value == 3
    assert features["30"]["processes"].value == 4
    assert [key for key, each in features.items() if "first_run_in_process" in each] == ["30"]


def test_a_time_of_day_needs_slow_runs_on_several_days() -> None:
    runs = [run(day, hour=hour) for day in range(8) for hour in (2.5, 9.0, 16.0)]
    for number, each in enumerate(runs):
        each.execution_id = str(number)
    at_night = {each.execution_id: each for each in runs[::3]}
    times = surroundings.of_time(runs[-3], runs, at_night)
    assert times[runs[-3].execution_id].value == 0
    assert times[runs[0].execution_id].value == 0
    assert times[runs[1].execution_id].value == -6.5
    assert surroundings.of_time(runs[-3], runs, {each.execution_id: each for each in runs[-3:]}) == {}
    assert surroundings.of_time(runs[-2], runs, at_night) == {}  # By day most runs are as usual.


def test_others_count_if_they_ran_in_the_window() -> None:
    others = [Beside("x", "w", "vacuum", None, 100, 200), Beside("y", "w", "vacuum", None, 150, 900)]
    windows = {"before": (0, 100), "in": (190, 300), "between": (850, 950), "after": (900, 1_000)}
    features = surroundings.of_beside(windows, {"vacuum": others})
    assert {key for key, each in features.items() if "beside.vacuum" in each} == {"in", "between"}


def _ids(runs: list[SampledRun]) -> list[SampledRun]:
    for number, each in enumerate(runs):
        each.execution_id = str(number)
    return runs


def test_a_day_of_the_week_needs_slow_ones_in_several_weeks() -> None:
    runs = _ids([run(day, hour=hour) for day in range(26) for hour in (2.5, 9.0, 16.0)])
    last = runs[-1]  # 1970-01-26, a Monday.

    def days(*odd: int) -> dict[str, kinds.Feature]:
        return surroundings.of_weekdays(
            last, runs, {each.execution_id: each for each in runs if each.started_ns // (86_400 * NS) in odd}
        )

    mondays = days(4, 11, 18, 25)
    assert mondays[last.execution_id] == kinds.Feature("weekday", "Monday", kinds.WEEKDAY)
    assert mondays["0"].value == "Thursday"
    assert days(18, 25) == {}  # Two may be chance.
    assert days(23, 24, 25) == {}  # As may three days in a row.
    assert days(4, 11, 18, 25, *range(5, 11), *range(19, 24)) == {}
    # One run a day is enough.
    nightly = _ids([run(day, hour=3) for day in range(26)])
    odd = {each.execution_id: each for each in nightly[4::7]}
    assert surroundings.of_weekdays(nightly[-1], nightly, odd)["25"].value == "Monday"
    # A Sunday, where Saturdays are slow, too.
    runs = runs[: 25 * 3]
    last = runs[-1]
    assert days(2, 3, 9, 10, 16, 17, 23, 24)[last.execution_id] == kinds.Feature("weekend", True, kinds.WEEKDAY)


def test_a_version_with_usual_runs_before_the_slow_ones_is_no_cause() -> None:
    runs = [run(number) for number in range(60)]
    for each in runs[30:]:
        each.version = "2"
    difference = Difference("version", "2", kinds.VERSION, effect=0.9, rate=0.0)
    pair = Difference(
        "host & version", "h & 2", kinds.PAIR, effect=0.9, rate=0.0,
        parts=(kinds.Feature("host", "h", kinds.HOST), kinds.Feature("version", "2", kinds.VERSION)),
    )  # fmt: skip
    for odd, is_plausible in ((range(45, 60), False), (range(30, 60, 2), True), (range(30, 60), True)):
        among = {each.execution_id: each for each in runs if each.number in odd}
        others = {each.execution_id: each for each in runs if each.number not in odd}
        assert surroundings.is_plausible(difference, among, others) is is_plausible
        assert surroundings.is_plausible(pair, among, others) is is_plausible
        # A host may turn bad.
        assert surroundings.is_plausible(difference._replace(key="host", value="h", place=kinds.HOST), among, others)


def test_a_workflow_that_starts_anew_for_each_slow_run_is_told_from_its_time() -> None:
    windows = [(i * 1_000, i * 1_000 + 300) for i in range(8)]
    short = [Beside(str(i), "w", "backup", None, i * 1_000 - 50, i * 1_000 + 100) for i in range(8)]
    assert surroundings.come_and_go(short, windows)
    assert not surroundings.come_and_go([Beside("x", "w", "backfill", None, 0, 9_000)], windows)
    assert not surroundings.come_and_go(short, windows[:3])
