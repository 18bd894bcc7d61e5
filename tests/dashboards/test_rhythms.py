"""Every alert is right for a workflow that runs once a day, once a week and a thousand times an hour (promtool).

A rhythm's scenarios are workflows of one simulated Prometheus, which evaluates the shipped rules every ten minutes for
weeks. At the end, it is asked which alerts fired for which workflow, at any time.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e

RULES: Final = [ROOT / "dashboards" / "prometheus" / name for name in ("recording.rules.yml", "alerts.rules.yml")]
TICK: Final = 10
"""Minutes between two scrapes and between two evaluations."""
HOUR: Final = 60
DAY: Final = 24 * HOUR
WEEK: Final = 7 * DAY
NIGHT: Final = 3 * HOUR
"""When nightly and weekly workflows start."""
BUCKETS: Final = (10, 60, 600, 1800, 3600, 14_400)
Values = list[float | None]

FAILED: Final = "WorkflowLastRunFailed"
FAST: Final = "WorkflowErrorBudgetBurnFast"
SLOW: Final = "WorkflowErrorBudgetBurnSlow"
STUCK: Final = "WorkflowRunStuck"
NO_SUCCESS: Final = "WorkflowNoSuccess"
REGRESSION: Final = "WorkflowStepRegression"
RETRIES: Final = "WorkflowRetryStorm"
QUEUE: Final = "WorkflowQueueWaitGrowing"
COST: Final = "WorkflowCostJump"


class Runs(NamedTuple):
    """Executions that ended together, and what one of them was like. Times in minutes and seconds as named."""

    at: int
    status: str = "completed"
    number: float = 1
    seconds: float = 1200
    wait_seconds: float = 1
    retries: float = 0
    usd: float = 10


class Workflow:
    """A workflow's series, as a service on the database shows them: born at zero, never reset."""

    def __init__(self, registered: int = 0) -> None:
        self.registered = registered
        self.runs: list[Runs] = []
        self.running: list[tuple[int, int]] = []
        """From when to when an execution was the oldest running."""
        self.gaps: list[tuple[int, int]] = []
        """When nothing could be scraped."""

    def series(self, name: str, length: int) -> dict[str, str]:
        """The samples of every series, in promtool's notation."""
        rises: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        labels = f'workspace="w", workflow="{name}"'
        step = f'{labels}, step="load"'
        # Known from the start.
        for status in ("completed", "failed"):
            rises[f'workflow_execution_duration_seconds_count{{{labels}, status="{status}"}}'][self.registered] += 0
            rises[f'workflow_step_attempts_total{{{step}, outcome="{status}"}}'][self.registered] += 0
        for runs in self.runs:
            outcome = f'status="{runs.status}"'
            observed = {
                f"workflow_execution_duration_seconds_count{{{labels}, {outcome}}}": runs.number,
                f"workflow_step_duration_seconds_count{{{step}, {outcome}}}": runs.number,
                f"workflow_step_duration_seconds_sum{{{step}, {outcome}}}": runs.number * runs.seconds,
                f'workflow_step_wait_seconds_count{{{step}, reason="queue"}}': runs.number,
                f'workflow_step_wait_seconds_sum{{{step}, reason="queue"}}': runs.number * runs.wait_seconds,
                f'workflow_step_attempts_total{{{step}, outcome="{runs.status}"}}': runs.number,
                f'workflow_step_attempts_total{{{step}, outcome="failed"}}': runs.number * runs.retries,
                f"workflow_step_retries_total{{{step}}}": runs.number * runs.retries,
                f'workflow_step_cost_usd_total{{{step}, model="m"}}': runs.number * runs.usd,
            }
            for le in (*BUCKETS, "+Inf"):
                bucket = f'workflow_execution_duration_seconds_bucket{{{labels}, {outcome}, le="{le}"}}'
                observed[bucket] = runs.number if le == "+Inf" or runs.seconds <= float(le) else 0
            for key, value in observed.items():
                rises[key][self.registered] += 0
                rises[key][runs.at] += value
        values = {key: self._cumulative(by_minute, length) for key, by_minute in rises.items()}
        gauge = f"{{{labels}}}"
        for end, statuses in (("success", ("completed",)), ("failure", ("failed", "timeout", "lost"))):
            values[f"workflow_execution_last_{end}_timestamp_seconds{gauge}"] = self._last(statuses, length)
        values[f"workflow_execution_oldest_running_start_timestamp_seconds{gauge}"] = self._oldest_running(length)
        for samples in values.values():
            for since, until in self.gaps:
                for i in range(-(-since // TICK), min(until // TICK + 1, len(samples))):
                    samples[i] = None
        return {key: notation(samples) for key, samples in values.items()}

    def _cumulative(self, by_minute: Mapping[int, float], length: int) -> Values:
        values: Values = [None] * -(-self.registered // TICK)
        total = 0.0
        changes = sorted(by_minute.items())
        position = 0
        for i in range(len(values), length // TICK + 1):
            while position < len(changes) and changes[position][0] <= i * TICK:
                total += changes[position][1]
                position += 1
            values.append(round(total, 6))
        return values

    def _last(self, statuses: tuple[str, ...], length: int) -> Values:
        """When a run last ended so."""
        values: Values = []
        last: float | None = None
        ends = sorted(runs.at for runs in self.runs if runs.status in statuses and runs.number)
        position = 0
        for i in range(length // TICK + 1):
            while position < len(ends) and ends[position] <= i * TICK:
                last = ends[position] * 60.0
                position += 1
            values.append(last)
        return values

    def _oldest_running(self, length: int) -> Values:
        values: Values = [None] * (length // TICK + 1)
        for since, until in self.running:
            for i in range(-(-since // TICK), min(until // TICK, len(values) - 1) + 1):
                values[i] = min(values[i] or since * 60.0, since * 60.0)
        return values


def notation(values: Iterable[float | None]) -> str:
    """Samples as promtool reads them: runs of equal values, then where the series ends."""
    words = []
    for value, group in itertools.groupby(values):
        repeated = len(list(group)) - 1
        if value is None:
            words.append(f"stale _x{repeated - 1}" if repeated else "stale")
        else:
            words.append(f"{value!r}x{repeated}")
    return " ".join(words)


def periodic(every: int, until: int, registered: int = 0, **fault: Any) -> Workflow:
    """A workflow that starts every night (or week) and takes 20 minutes. ``fault``: how it differs from ``since`` on.

    ``since``: the first faulty run; ``times``: how many there are; ``never_ends``, ``never_starts``; the rest replaces
    fields of `Runs`.
    """
    workflow = Workflow(registered)
    since, times = fault.pop("since", until), fault.pop("times", 10_000)
    never_ends, never_starts = fault.pop("never_ends", False), fault.pop("never_starts", False)
    for start in range(registered + NIGHT, until, every):
        is_faulty = since <= start and times > 0
        times -= is_faulty
        if is_faulty and never_starts:
            continue
        if is_faulty and never_ends:
            workflow.running.append((start, until))
            continue
        runs = Runs(0, **fault) if is_faulty else Runs(0)
        end = start + int(runs.seconds // 60)
        workflow.running.append((start, end - TICK))
        workflow.runs.append(runs._replace(at=end))
    return workflow


def busy(until: int, rate: Callable[[int], Runs | list[Runs]]) -> Workflow:
    """A workflow that ends a thousand times an hour. ``rate``: what ends in the tick before a minute."""
    workflow = Workflow()
    for at in range(TICK, until, TICK):
        ended = rate(at)
        workflow.runs += [ended] if isinstance(ended, Runs) else ended
        workflow.running.append((at, at))
    return workflow


def check(
    scenarios: Mapping[str, tuple[Workflow, set[str]]],
    length: int,
    directory: Path,
    only: str | tuple[str, ...] = "",
    **seen: float,
) -> None:
    """Exactly these alerts fired for each workflow at any time.

    ``only``: how the names of the series begin that are scraped. ``seen``: a workflow in which `WorkflowLastRunFailed`
    must have been firing for at least this many hours.
    """
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (apt-get install prometheus)")
    inputs: dict[str, str] = {}
    for name, (workflow, _) in scenarios.items():
        inputs |= {key: values for key, values in workflow.series(name, length).items() if key.startswith(only)}
    firing = f'ALERTS{{alertstate="firing", workflow!=""}}[{length}m]'
    expected = [f'{{alertname="{alert}", workflow="{name}"}}' for name, (_, alerts) in scenarios.items()
                for alert in alerts]  # fmt: skip
    tests = [expression(f"group by (alertname, workflow) (last_over_time({firing}))", length, expected)]
    for name, hours in seen.items():
        evaluations = f'count_over_time(ALERTS{{alertname="{FAILED}", workflow="{name}"}}[{length}m])'
        tests.append(expression(f"sum by (workflow) ({evaluations}) >= bool {hours * HOUR / TICK}", length,
                                [f'{{workflow="{name}"}}']))  # fmt: skip
    test = {
        "interval": f"{TICK}m",
        "input_series": [{"series": key, "values": values} for key, values in inputs.items()],
        "promql_expr_test": tests,
    }
    rules = rules_that_read(only, directory) if only else RULES
    document = {
        "rule_files": [str(path) for path in rules],
        "evaluation_interval": f"{TICK}m",
        # Within a tick, what is recorded comes before what reads it; in real life, it is a minute old at most.
        "group_eval_order": [group["name"] for path in rules for group in yaml.safe_load(path.read_text())["groups"]],
        "tests": [test],
    }
    file = directory / "rhythm.yml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    result = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def rules_that_read(only: str | tuple[str, ...], directory: Path) -> list[Path]:
    """The shipped rules without those to which nothing is given: they say nothing, and take most of the time."""
    names = [only] if isinstance(only, str) else [*only]
    files = []
    for path in RULES:
        groups = yaml.safe_load(path.read_text())["groups"]
        for group in groups:
            kept = []
            for rule in group["rules"]:
                if any(name in rule["expr"] for name in names):
                    kept.append(rule)
                    names += [rule["record"]] if "record" in rule else []
            group["rules"] = kept
        file = directory / path.name
        file.write_text(yaml.safe_dump({"groups": [group for group in groups if group["rules"]]}))
        files.append(file)
    return files


def expression(expr: str, at: int, labels: Iterable[str]) -> dict[str, Any]:
    """A test that an expression gives exactly the series with these labels, each with the value 1."""
    samples = [{"labels": label, "value": 1} for label in sorted(labels)]
    return {"expr": expr, "eval_time": f"{at}m", "exp_samples": samples}


GAUGES: Final = "workflow_execution_last_"
"""What the alerts about the last run and about silence read: all other series take most of the time."""
COUNTS: Final = "workflow_execution_duration_seconds_count"
"""What burn rates read."""
RHYTHMS: Final = {"hourly": HOUR, "nightly": DAY, "weekly": WEEK}


def failing(every: int, until: int, since: int) -> dict[str, tuple[Workflow, set[str]]]:
    """A workflow that fails once, twice or always, is run again, or falls silent; and the alerts of each."""
    # When the first faulty run ends.
    end = NIGHT + -(-(since - NIGHT) // every) * every + 20

    def rhythm(**fault: Any) -> Workflow:
        return periodic(every, until, since=since, **fault)

    recovering, at_once = (rhythm(times=1, status="failed") for _ in range(2))
    recovering.runs.append(Runs(end + 25))
    at_once.runs.append(Runs(end + 5))
    return {
        "healthy": (rhythm(), set()),
        "fails_once": (rhythm(times=1, status="failed"), {FAILED, NO_SUCCESS}),
        "fails_twice": (rhythm(times=2, status="timeout"), {FAILED, NO_SUCCESS}),
        "fails_always": (rhythm(status="failed"), {FAILED, NO_SUCCESS}),
        "is_lost": (rhythm(times=1, status="lost"), {FAILED, NO_SUCCESS}),
        "recovers": (recovering, {FAILED}),
        "recovers_at_once": (at_once, set()),
        "is_cancelled": (rhythm(times=1, status="cancelled"), {NO_SUCCESS}),
        "falls_silent": (rhythm(never_starts=True), {NO_SUCCESS}),
    }


@pytest.mark.parametrize(
    ("rhythm", "length", "since"),
    [
        ("hourly", 7 * DAY + 9 * HOUR, 7 * DAY + 5 * HOUR),
        ("nightly", 10 * DAY, 7 * DAY),
        ("weekly", 15 * DAY, WEEK),
    ],
)
@pytest.mark.timeout(300)
def test_failing_once_twice_recovering_and_silence(rhythm: str, length: int, since: int, tmp_path: Path) -> None:
    scenarios = failing(RHYTHMS[rhythm], length, since)
    if rhythm == "hourly":
        # The next success comes before the silence is longer than usual.
        for name in ("fails_once", "is_lost", "is_cancelled"):
            scenarios[name][1].discard(NO_SUCCESS)
    check(scenarios, length, tmp_path, GAUGES)


@pytest.mark.timeout(300)
def test_few_runs_spend_no_budget_and_an_hourly_workflow_that_fails_twice_does(tmp_path: Path) -> None:
    length, since = 2 * DAY, DAY + 5 * HOUR
    # Nothing is known yet about how often it runs.
    scenarios = {name: (workflow, alerts - {NO_SUCCESS})
                 for name, (workflow, alerts) in failing(HOUR, length, since).items()}  # fmt: skip
    for name in ("fails_twice", "fails_always"):
        scenarios[name][1].add(SLOW)
    for every, name in ((DAY, "nightly"), (6 * HOUR, "four_a_day")):
        scenarios[name] = periodic(every, length, status="failed", since=0), {FAILED}
    check(scenarios, length, tmp_path, (GAUGES, COUNTS))


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_nightly_workflow(tmp_path: Path) -> None:
    length = 9 * DAY
    day_6, day_7, day_8 = (number * DAY for number in (6, 7, 8))

    def nightly(**fault: Any) -> Workflow:
        return periodic(DAY, length, **fault)

    redeployed = nightly()
    # The service is away while the run ends.
    redeployed.gaps = [(day + NIGHT + 15, day + NIGHT + 25) for day in range(0, length, DAY)]
    failed_while_away = nightly(since=day_8, times=1, status="failed")
    failed_while_away.gaps = [(day_8 + NIGHT + 10, day_8 + 10 * HOUR)]
    run_again = nightly(since=day_7, times=1, status="failed")
    run_again.runs.append(Runs(day_7 + 9 * HOUR))
    check(
        {
            "healthy": (nightly(), set()),
            "redeployed": (redeployed, set()),
            "new": (nightly(registered=5 * DAY), set()),
            "fails_at_first": (nightly(registered=day_7, since=day_7, times=1, status="failed"), {FAILED}),
            # A success is a day and a half ago at noon of the day after.
            "fails_once": (nightly(since=day_7, times=1, status="failed"), {FAILED, NO_SUCCESS}),
            "lost_once": (nightly(since=day_8, times=1, status="lost"), {FAILED, NO_SUCCESS}),
            "cancelled_once": (nightly(since=day_8, times=1, status="cancelled"), {NO_SUCCESS}),
            "failed_while_away": (failed_while_away, {FAILED, NO_SUCCESS}),
            "run_again": (run_again, {FAILED}),
            "fails_always": (nightly(since=day_6, status="timeout"), {FAILED, NO_SUCCESS}),
            "never_starts": (nightly(since=day_8, never_starts=True), {NO_SUCCESS}),
            "never_ends": (nightly(since=day_8, never_ends=True), {STUCK, NO_SUCCESS}),
            "never_ended": (nightly(registered=day_6, since=day_6, never_ends=True), {STUCK}),
            "slow": (nightly(since=day_8, seconds=2400), {REGRESSION}),
            "retries": (nightly(since=day_8, retries=12), {RETRIES}),
            "waits": (nightly(since=day_8, wait_seconds=120), {QUEUE}),
            "costs": (nightly(since=day_8, usd=40), {COST}),
        },
        length,
        tmp_path,
        fails_once=23,  # until the next night's success
        lost_once=20,  # to the end
        run_again=5,  # until the run by hand
    )


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_weekly_workflow(tmp_path: Path) -> None:
    length = 15 * DAY
    second, third = WEEK, 2 * WEEK

    def weekly(**fault: Any) -> Workflow:
        return periodic(WEEK, length, **fault)

    redeployed = weekly()
    redeployed.gaps = [(day + NIGHT + 15, day + NIGHT + 25) for day in range(0, length, DAY)]
    run_again = weekly(since=second, times=1, status="failed")
    run_again.runs.append(Runs(second + 9 * HOUR))
    check(
        {
            "healthy": (weekly(), set()),
            "redeployed": (redeployed, set()),
            "new": (weekly(registered=10 * DAY), set()),
            "fails_at_first": (weekly(registered=10 * DAY, since=10 * DAY, status="failed"), {FAILED}),
            "run_again": (run_again, {FAILED}),
            "fails_once": (weekly(since=second, times=1, status="failed"), {FAILED, NO_SUCCESS}),
            "never_ends": (weekly(since=third, never_ends=True), {STUCK}),
            "slow": (weekly(since=third, seconds=2400), {REGRESSION}),
            "retries": (weekly(since=third, retries=12), {RETRIES}),
            "waits": (weekly(since=third, wait_seconds=120), {QUEUE}),
            "costs": (weekly(since=third, usd=40), {COST}),
        },
        length,
        tmp_path,
        fails_at_first=5 * 24 - 4,  # to the end
        run_again=5,
    )


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_weekly_workflow_that_stops(tmp_path: Path) -> None:
    length = 18 * DAY
    check(
        {
            "healthy": (periodic(WEEK, length), set()),
            "stops_at_first": (periodic(WEEK, length, since=WEEK, never_starts=True), {NO_SUCCESS}),
            # Ten and a half days after its second run.
            "stops": (periodic(WEEK, length, since=2 * WEEK, never_starts=True), {NO_SUCCESS}),
        },
        length,
        tmp_path,
        GAUGES,
    )


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_workflow_that_runs_a_thousand_times_an_hour(tmp_path: Path) -> None:
    length, since = 8 * DAY + 18 * HOUR, 8 * DAY
    share = 1000 * TICK / HOUR
    usual = Runs(0, number=share, seconds=3, wait_seconds=0.2, usd=0.01)

    def faulty(begin: int = since, end: int = length, **fault: Any) -> Workflow:
        return busy(length, lambda at: usual._replace(at=at, **(fault if begin <= at < end else {})))

    def failing(fraction: float, begin: int = since, end: int = length) -> Workflow:
        def ended(at: int) -> list[Runs]:
            failures = share * fraction if begin <= at < end else 0
            runs = [usual._replace(at=at, number=share - failures)] if failures < share else []
            return [*runs, usual._replace(at=at, number=failures, status="failed")] if failures else runs

        return busy(length, ended)

    redeployed = faulty()
    redeployed.gaps = [(day + 600, day + 610) for day in range(0, length, DAY)]
    stuck = faulty()
    stuck.running = [(since, length)]
    heavy = usual._replace(seconds=12, wait_seconds=20, usd=0.1, number=2 * share)
    busy_nights = busy(length, lambda at: (heavy if 2 * HOUR <= at % DAY < 3 * HOUR else usual)._replace(at=at))
    check(
        {
            "healthy": (faulty(), set()),
            "redeployed": (redeployed, set()),
            "busy_nights": (busy_nights, set()),
            "fails_once": (failing(1 / share, since, since + TICK), set()),
            "fails_rarely": (failing(0.005, 0), set()),
            "fails_for_an_hour": (failing(0.3, since, since + HOUR), {FAST}),
            "fails_slowly": (failing(0.025, 6 * DAY), {SLOW}),
            "fails_always": (failing(1, since, since + 12 * HOUR), {FAST, SLOW, FAILED, NO_SUCCESS}),
            "stops": (faulty(number=0), {NO_SUCCESS}),
            "one_never_ends": (stuck, {STUCK}),
            "slow": (faulty(seconds=9), {REGRESSION}),
            "retries": (faulty(retries=2), {RETRIES}),
            "waits": (faulty(wait_seconds=20), {QUEUE}),
            "costs": (faulty(usd=0.1), {COST}),
        },
        length,
        tmp_path,
    )
