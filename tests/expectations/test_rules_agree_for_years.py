"""The rules for Prometheus say of a thousand days of fifty workflows what the service says of them (promtool)."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tachograph.expectation import Expectation, StepExpectation
from tachograph_exporter.expectations.findings import FAILED, FLAPPING, LATE, OVERDUE
from tests.expectations.evaluated_service import EvaluatedService
from tests.expectations.promtool import DAY, OF_STEP, TICK, Told, check_alerts
from tests.expectations.scraped_service import STEP, ScrapedService
from tests.expectations.simulation import DEADLINE, GRACE, STEP_DEADLINE, Fault, Plan, Simulated, plans, simulate

pytestmark = pytest.mark.e2e

FAILED_SECONDS: Final = 600


def name_of(number: int) -> str:
    return f"w{number:02}"


def has_steps(name: str) -> bool:
    return name.endswith("0")


def live(
    service: ScrapedService | EvaluatedService, chosen: dict[str, Plan], dice: random.Random, begin: int, end: int,
    **planted: Any,
) -> tuple[dict[str, Simulated], list[Told]]:  # fmt: skip
    """(the simulated runs, what a service told that lived through them)"""
    simulated: dict[str, Simulated] = {}
    for name, plan in chosen.items():
        expectation = Expectation(
            schedule=plan.schedule or plan.cron, timezone=plan.zone, grace_seconds=GRACE, deadline_seconds=DEADLINE,
            steps={STEP: StepExpectation(deadline_seconds=STEP_DEADLINE)} if has_steps(name) else {},
        )  # fmt: skip
        service.expect(name, plan, expectation)
        settings = planted if plan.schedule != "learned" else {**planted, "quiet": 10**9}
        simulated[name] = simulate(plan, dice, until=end - 2 * DAY, least_delay=3600, steps=has_steps(name), **settings)
    return simulated, service.live(simulated, begin, end)


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


def check(
    service: ScrapedService | EvaluatedService, directory: Path, first: date, days: int, numbers: range,
    dice: random.Random, **planted: Any,
) -> Counter[str]:  # fmt: skip
    """Let a service live through days of some of the fifty workflows. Returns how many faults there were, by kind."""
    begin = round(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp()) - DAY
    end = begin + days * DAY
    chosen = {name_of(n): plan for n, plan in enumerate(plans(first, days + 40)) if n in numbers}
    for plan in chosen.values():
        # One more than there is room for, so that nothing is missing at the end.
        plan.times = [time for time in plan.times if time < end + DAY]
    simulated, told = live(service, chosen, dice, begin, end, **planted)
    kinds: Counter[str] = Counter()
    for name, runs in simulated.items():
        check_notices(runs.faults, [notice for notice in told if notice.workflow == name])
        kinds.update(fault.kind for fault in runs.faults)
    kinds.update(OF_STEP for notice in told if notice.alert == OF_STEP)
    check_alerts(directory, service.samples, told, range(begin, end))
    return kinds


def test_rules_and_service_agree_on_days_in_which_clocks_are_put_forward_and_back(
    database_url: str, tmp_path: Path
) -> None:
    # Berlin puts its clocks forward on 31 March, and Lord Howe Island back on 7 April.
    service = ScrapedService(database_url)
    kinds = check(service, tmp_path, date(2024, 3, 31), 9, range(50), random.Random(17), quiet=1, share=0.5)
    service.database.close()
    assert set(kinds) == {LATE, OVERDUE, FAILED, FLAPPING, OF_STEP}
    assert min(kinds.values()) >= 2, kinds


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rules_and_service_agree_on_a_thousand_days(tmp_path: Path) -> None:
    kinds = check(EvaluatedService(), tmp_path, date(2024, 1, 1), 1_000, range(50), random.Random(22))
    assert set(kinds) == {LATE, OVERDUE, FAILED, FLAPPING, OF_STEP}
    assert min(kinds.values()) > 20, kinds
