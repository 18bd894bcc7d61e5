"""What was true around each run of a sample: its process, the other runs, the time of day. Made from the sample."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from tachograph.clock import NS
from tachograph_exporter.store.samples import Beside, SampledRun
from tachograph_exporter.views.causes import features as kinds
from tachograph_exporter.views.causes.differences import Difference
from tachograph_exporter.views.causes.features import Feature, flattened, host_of
from tachograph_exporter.views.causes.statistics import fisher, rank_sum, superiority

LATELY: Final = 10
"""Runs in a row whose processes are counted."""
MIN_DAYS: Final = 3
"""Days on which slow runs have to be for a time of day to be compared."""
NEAR_HOURS: Final = 1.5
"""How near in the day two runs have to be to be at the same time of it."""
TIME_OF_DAY: Final = "time_of_day"
MAX_WORKERS: Final = 0.6
"""The share of the usual number of processes up to which there are fewer of them."""
MIN_CROWD: Final = 2.0
"""How many times the usual number of runs at the same time are many."""
MIN_BETWEEN: Final = 5
"""Usual runs between odd ones without which a process, or a workflow beside, cannot be told from its time."""
MAX_CHANCE_OF_DAYS: Final = 0.01
"""The probability that chance alone puts slow days on one day of the week, up to which it is compared."""
MAX_CHANCE_OF_LATE: Final = 0.04
"""The two-sided probability that odd runs with a version come after its usual ones by chance, up to which something
later than the version made them odd."""
_DAY_NS: Final = 86_400 * NS
_SATURDAY: Final = 5


def own_features(run: SampledRun, limit: int) -> dict[str, Feature]:
    """What the run itself has: version, project, host, process, and at most ``limit`` values of its inputs."""
    features = [
        Feature("version", run.version, kinds.VERSION),
        Feature("project", run.project, kinds.PROJECT),
        *flattened("input", run.inputs, kinds.INPUT, limit),
    ]
    host = host_of(run.process)
    if host is not None:
        features.append(Feature("host", host, kinds.HOST))
    if run.process:
        features.append(Feature("process", run.process, kinds.PROCESS))
    return {feature.key: feature for feature in features}


def of_processes(runs: Sequence[SampledRun]) -> dict[str, dict[str, Feature]]:
    """Whether each run is the first in its process, and how many processes ran the workflow lately, by run.

    Nothing is known of the first runs of a sample: what was before them was not read.
    """
    ordered = sorted(runs, key=lambda run: run.started_ns)
    seen: set[str] = set()
    result: dict[str, dict[str, Feature]] = {}
    for i, run in enumerate(ordered):
        features: dict[str, Feature] = {}
        if run.process and i >= LATELY - 1:
            lately = {other.process for other in ordered[i - LATELY + 1 : i + 1]}
            features["processes"] = Feature("processes", float(len(lately)), kinds.WORKERS)
            if run.process not in seen:
                features["first_run_in_process"] = Feature("first_run_in_process", True, kinds.FIRST)
        if run.process:
            seen.add(run.process)
        result[run.execution_id] = features
    return result


def of_others(runs: Sequence[SampledRun]) -> dict[str, Feature]:
    """How many runs of the workflow ran when each started, by run."""
    starts = sorted(run.started_ns for run in runs)
    ends = sorted(run.finished_ns for run in runs)
    return {
        run.execution_id: Feature(
            "runs_at_once",
            float(bisect.bisect_right(starts, run.started_ns) - bisect.bisect_right(ends, run.started_ns)),
            kinds.CONCURRENCY,
        )
        for run in runs
    }


def of_time(target: SampledRun, runs: Sequence[SampledRun], odd: Mapping[str, SampledRun]) -> dict[str, Feature]:
    """Minus the hours between the time of day of each run and that of ``target``, if most runs near it are slow."""
    days = {run.started_ns // _DAY_NS for run in odd.values()}
    near = [run for run in runs if _hours(run, target) <= NEAR_HOURS]
    if len(days) < MIN_DAYS or 2 * sum(run.execution_id in odd for run in near) < len(near):
        return {}
    return {
        run.execution_id: Feature(TIME_OF_DAY, 0.0 if run is target else -_hours(run, target), kinds.TIME_OF_DAY)
        for run in runs
    }


def of_weekdays(target: SampledRun, runs: Sequence[SampledRun], odd: Mapping[str, SampledRun]) -> dict[str, Feature]:
    """On which day of the week (UTC) each run started, or whether on a weekend, if the days on which most runs are odd
    are such days: runs of one day are no evidence of their own. The day of ``target`` does not count.
    """
    days: dict[int, list[bool]] = {}
    for run in runs:
        days.setdefault(run.started_ns // _DAY_NS, []).append(run.execution_id in odd)
    own = target.started_ns // _DAY_NS
    slow = {day: 2 * sum(are_odd) > len(are_odd) for day, are_odd in days.items() if day != own}

    def chance(choice: Callable[[int], bool]) -> float:
        a, c = (sum(choice(day) for day in slow if slow[day] is is_odd) for is_odd in (True, False))
        b, d = (sum(not choice(day) for day in slow if slow[day] is is_odd) for is_odd in (True, False))
        return fisher(a, b, c, d) if a > 1 else 1.0

    weekday = _weekday(own)
    of_day = chance(lambda day: _weekday(day) == weekday)
    of_weekend = chance(lambda day: _weekday(day) >= _SATURDAY) if weekday >= _SATURDAY else 1.0
    if min(of_day, of_weekend) > MAX_CHANCE_OF_DAYS:
        return {}
    if of_weekend < of_day:
        return {
            run.execution_id: Feature("weekend", _weekday(run.started_ns // _DAY_NS) >= _SATURDAY, kinds.WEEKDAY)
            for run in runs
        }
    return {
        run.execution_id: Feature(
            "weekday", datetime.fromtimestamp(run.started_ns / NS, UTC).strftime("%A"), kinds.WEEKDAY
        )
        for run in runs
    }


def _weekday(day: int) -> int:
    """The day of the week of a day since 1970-01-01, which was a Thursday; 0 is Monday."""
    return (day + 3) % 7


def is_plausible(difference: Difference, odd: Mapping[str, SampledRun], usual: Mapping[str, SampledRun]) -> bool:
    """Whether a difference in the surroundings is more than neighbouring runs having the same ones.

    Tests take runs to be independent, and in time they are not: runs in a row share their process, how many there are
    of it, and what else ran in those days.
    """
    kind, number = difference.place.kind, difference.value
    if _began_later(difference, odd, usual):
        return False
    if kind in ("process", "beside"):
        low = min(run.started_ns for run in odd.values())
        high = max(run.started_ns for run in odd.values())
        return sum(low < run.started_ns < high for run in usual.values()) >= MIN_BETWEEN
    if isinstance(number, float) and difference.usual_median is not None:
        if kind == "workers":
            return number <= MAX_WORKERS * difference.usual_median
        if kind == "concurrency":
            return number >= MIN_CROWD * max(1.0, difference.usual_median)
    return True


def come_and_go(runs: Sequence[Beside], windows: Sequence[tuple[int, int]]) -> bool:
    """Whether runs of another workflow began anew for each of several windows, rather than one of them going on.

    Then it is told from its time after all, though no usual runs lie between.
    """
    separate = {
        other.execution_id
        for low, high in windows
        for other in runs
        if other.started_ns < high and (other.finished_ns or other.started_ns) > low
    }
    return min(len(separate), len(windows)) >= MIN_BETWEEN


def _began_later(difference: Difference, odd: Mapping[str, SampledRun], usual: Mapping[str, SampledRun]) -> bool:
    """Whether a version was there for a time without odd runs: then it is something later that made them odd.

    A host, or a process, may turn bad; what a version is does not change.
    """
    versions = [part.value for part in difference.parts if part.key == "version"]
    if difference.key == "version":
        versions.append(difference.value)
    if not versions:
        return False
    hosts = [part.value for part in difference.parts if part.key == "host"]
    later, earlier = (
        [
            float(run.started_ns)
            for run in runs.values()
            if run.version in versions and (not hosts or host_of(run.process) in hosts)
        ]
        for runs in (odd, usual)
    )
    return superiority(later, earlier) > 0.5 and rank_sum(later, earlier) <= MAX_CHANCE_OF_LATE


def _hours(run: SampledRun, other: SampledRun) -> float:
    distance = abs(run.started_ns - other.started_ns) % _DAY_NS
    return min(distance, _DAY_NS - distance) / (3600 * NS)


def of_beside(
    windows: Mapping[str, tuple[int, int]], workflows: Mapping[str, Sequence[Beside]]
) -> dict[str, dict[str, Feature]]:
    """Which workflows ran in a window of each run (unix nanoseconds), by run. ``workflows``: their runs, by name."""
    result: dict[str, dict[str, Feature]] = {execution_id: {} for execution_id in windows}
    for workflow, others in workflows.items():
        key = f"beside.{workflow}"
        spans = sorted((other.started_ns, other.finished_ns or other.started_ns) for other in others)
        starts = [start for start, _ in spans]
        latest: list[int] = []
        for _, end in spans:
            latest.append(max(end, latest[-1] if latest else end))
        for execution_id, (low, high) in windows.items():
            # Of those that started before the window ended, did the one that ended last end after it began?
            before = bisect.bisect_left(starts, high)
            if before and latest[before - 1] > low:
                result[execution_id][key] = Feature(key, True, kinds.BESIDE)
    return result
