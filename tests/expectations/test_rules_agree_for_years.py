"""The rules for Prometheus say of a thousand days of fifty workflows what the service says of them (promtool)."""

from __future__ import annotations

import bisect
import itertools
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from tachograph.expectation import Expectation, StepExpectation
from tachograph_exporter.expectations.findings import FAILED, FLAPPING, LATE, OVERDUE
from tests.conftest import ROOT
from tests.expectations.scraped_service import STEP, TICK, ScrapedService, Told
from tests.expectations.simulation import DEADLINE, GRACE, STEP_DEADLINE, Fault, Plan, Simulated, plans, simulate

pytestmark = pytest.mark.e2e

ALERTS: Final = {
    LATE: "WorkflowLate",
    OVERDUE: "WorkflowOverdue",
    FAILED: "WorkflowLastRunFailed",
    FLAPPING: "WorkflowFlapping",
}
OF_STEP: Final = "WorkflowStepOverdue"
SILENT: Final = ("WorkflowNoSuccess", "WorkflowRunStuck")
"""Whoever says when a workflow should run, and how long it may, is not told what is unusual."""
FAILED_SECONDS: Final = 600
DAY: Final = 86_400
STRETCH_DAYS: Final = 50
LOOKBACK: Final = 8 * DAY
"""The rules look back for a week and an hour at most."""
CALM: Final = 6 * TICK


def alert_of(told: Told) -> str:
    return OF_STEP if "/" in told.key else ALERTS[told.kind]


def name_of(number: int) -> str:
    return f"w{number:02}"


def has_steps(name: str) -> bool:
    return name.endswith("0")


def live(url: str, chosen: dict[str, Plan], dice: random.Random, begin: int, end: int, **planted: Any) -> Any:
    """(the service, the simulated runs, what it told)"""
    service = ScrapedService(url)
    simulated: dict[str, Simulated] = {}
    for name, plan in chosen.items():
        expectation = Expectation(
            schedule=plan.schedule or plan.cron, timezone=plan.zone, grace_seconds=GRACE, deadline_seconds=DEADLINE,
            steps={STEP: StepExpectation(deadline_seconds=STEP_DEADLINE)} if has_steps(name) else {},
        )  # fmt: skip
        service.expect(name, plan, expectation)
        settings = planted if plan.schedule != "learned" else {**planted, "quiet": 10**9}
        simulated[name] = simulate(plan, dice, until=end - 2 * DAY, least_delay=3600, steps=has_steps(name), **settings)
    told = service.live(simulated, begin, end)
    service.database.close()
    return service, simulated, told


def check_notices(faults: list[Fault], notices: list[Told]) -> None:
    """Each planted fault has one notice of its own, in time, with its recovery; and there is no other."""
    left = list(notices)
    for fault in faults:
        since = fault.since + (FAILED_SECONDS if fault.kind in (FAILED, FLAPPING) else 0)
        mine = [n for n in left if n.kind == fault.kind and since - 2 <= n.told_at <= since + TICK + 2]
        assert len(mine) == 1, (fault, notices)
        assert mine[0].recovered_at == pytest.approx(fault.until, abs=2), (fault, mine)
        left.remove(mine[0])
    assert left == []


class Stretch(NamedTuple):
    """Some days that promtool looks at (unix seconds). It begins to load and to evaluate at ``loaded``."""

    loaded: int
    begin: int
    end: int


def stretches_of(span: range, told: list[Told], days: int) -> list[Stretch]:
    """The span in stretches of about so many days, cut where nothing begins or ends to be told."""
    changes = sorted(t for notice in told for t in (notice.told_at, notice.recovered_at) if t is not None)
    cuts = [span.start]
    while span.stop - cuts[-1] > 1.5 * days * DAY:
        at = cuts[-1] + days * DAY
        while any(abs(change - at) < CALM for change in changes[bisect.bisect(changes, at - CALM) :][:1]):
            at += TICK
        cuts.append(at)
    return [
        Stretch(max(span.start, begin - LOOKBACK), begin, end)
        for begin, end in itertools.pairwise([*cuts, span.stop])
    ]  # fmt: skip


def write_tests(directory: Path, service: ScrapedService, told: list[Told], stretch: Stretch) -> Path:
    """What promtool is to see of a stretch: each notice is an alert that fires from soon after it was told until soon
    after it is over, and there is no other."""
    loaded, begin, end = stretch
    tests: list[dict[str, Any]] = []

    def test(expression: str, at: float, expected: Mapping[str, int]) -> None:
        if begin <= at <= end:
            second = int(-(-(at - loaded) // TICK) * TICK)
            samples = [{"labels": labels, "value": value} for labels, value in expected.items()]
            tests.append({"expr": expression, "eval_time": f"{second}s", "exp_samples": samples})

    mine = [n for n in told if n.told_at < end and (n.recovered_at is None or n.recovered_at > begin)]
    for notice in mine:
        assert notice.recovered_at is not None
        matchers = f'alertname="{alert_of(notice)}", workflow="{notice.workflow}", alertstate="firing"'
        firing = f"count(ALERTS{{{matchers}}}) or vector(0)"
        test(firing, notice.told_at - TICK, {"{}": 0})
        test(firing, notice.told_at + 2 * TICK, {"{}": 1})
        test(firing, notice.recovered_at - TICK, {"{}": 1})
        test(firing, notice.recovered_at + TICK, {"{}": 0})
    # So often each became active: as often as it was told. No other did.
    active = f"max by (alertname, workflow) (changes(ALERTS_FOR_STATE[{end - begin}s])) + 1"
    episodes = Counter((alert_of(notice), notice.workflow) for notice in mine)
    labels = {f'{{alertname="{alert}", workflow="{name}"}}': count for (alert, name), count in episodes.items()}
    test(active, end, labels)
    file = directory / f"history-{begin}.yml"
    document = {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": f"{TICK}s",
        "tests": [{
            "interval": f"{TICK}s",
            "input_series": list(service.input_series(loaded, end)),
            "promql_expr_test": tests,
        }],
    }  # fmt: skip
    file.write_text(yaml.dump(document, sort_keys=False, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
    return file


def check_alerts(directory: Path, service: ScrapedService, told: list[Told], span: range) -> None:
    """The rules say of a history what was told of it."""
    groups = yaml.safe_load((ROOT / "dashboards" / "prometheus" / "alerts.rules.yml").read_text())["groups"]
    kept = {*ALERTS.values(), OF_STEP, *SILENT}
    group = {**groups[0], "interval": f"{TICK}s", "rules": [r for r in groups[0]["rules"] if r["alert"] in kept]}
    assert {rule["alert"] for rule in group["rules"]} == kept
    (directory / "alerts.yml").write_text(yaml.safe_dump({"groups": [group]}))

    def evaluated(stretch: Stretch) -> subprocess.CompletedProcess[str]:
        file = write_tests(directory, service, told, stretch)
        return subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)

    # What promtool holds in memory, and how often it collects it, grows with the days that it is given at once.
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(evaluated, stretches_of(span, told, STRETCH_DAYS)):
            assert result.returncode == 0, (result.stdout + result.stderr)[:4000]


def check(
    url: str, directory: Path, first: date, days: int, numbers: range, dice: random.Random, **planted: Any
) -> Counter[str]:
    """Let a service live through days of some of the fifty workflows. Returns how many faults there were, by kind."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (apt-get install prometheus)")
    begin = round(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp()) - DAY
    end = begin + days * DAY
    chosen = {name_of(n): plan for n, plan in enumerate(plans(first, days + 40)) if n in numbers}
    for plan in chosen.values():
        # One more than there is room for, so that nothing is missing at the end.
        plan.times = [time for time in plan.times if time < end + DAY]
    service, simulated, told = live(url, chosen, dice, begin, end, **planted)
    kinds: Counter[str] = Counter()
    for name, runs in simulated.items():
        check_notices(runs.faults, [notice for notice in told if notice.workflow == name])
        kinds.update(fault.kind for fault in runs.faults)
    kinds.update(OF_STEP for notice in told if alert_of(notice) == OF_STEP)
    check_alerts(directory, service, told, range(begin, end))
    return kinds


def test_rules_and_service_agree_on_days_in_which_clocks_are_put_forward_and_back(
    database_url: str, tmp_path: Path
) -> None:
    # Berlin puts its clocks forward on 31 March, and Lord Howe Island back on 7 April.
    kinds = check(database_url, tmp_path, date(2024, 3, 31), 9, range(50), random.Random(17), quiet=1, share=0.5)
    assert set(kinds) == {LATE, OVERDUE, FAILED, FLAPPING, OF_STEP}
    assert min(kinds.values()) >= 2, kinds


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(5))
def test_rules_and_service_agree_on_a_thousand_days(database_url: str, tmp_path: Path, part: int) -> None:
    kinds = check(
        database_url, tmp_path, date(2024, 1, 1), 1_000, range(part * 10, part * 10 + 10), random.Random(part)
    )
    assert sum(kinds.values()) > 50, kinds
