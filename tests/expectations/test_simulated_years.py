"""A thousand days of fifty workflows: every fault is told once, in time, with its recovery, and nothing else is."""

from __future__ import annotations

import random
from collections import Counter
from datetime import date

import pytest

from tachograph_exporter.expectations.findings import FAILED, FLAPPING, LATE, OVERDUE
from tests.expectations.simulation import SETTLE, Fault, Notice, plans, simulate, watch

FIRST = date(2024, 1, 1)
DAYS = 1_000
FEWER = 350
"""A year's days, and what happens with them, in every run of the tests."""
SLACK = 2.0
"""Seconds: facts and times are rounded."""


def check(faults: list[Fault], notices: list[Notice], outages: list[tuple[float, float]]) -> None:
    """Each fault has one notice of its own, in time; no notice is without a fault."""

    def seen(moment: float) -> float:
        """When a service that may be down notices what happens then, at the latest."""
        return next((up + SETTLE for down, up in outages if down <= moment <= up + SETTLE), moment)

    left = list(notices)
    for fault in faults:
        mine = [
            n for n in left if n.kind == fault.kind and fault.since - SLACK <= n.told_at <= seen(fault.until) + SLACK
        ]
        assert len(mine) == 1, (fault, mine)
        (notice,) = mine
        left.remove(notice)
        assert notice.told_at <= seen(fault.since) + SLACK, (fault, notice)
        assert notice.recovered_at is not None, (fault, notice)
        assert fault.until - SLACK <= notice.recovered_at <= seen(fault.until) + SLACK, (fault, notice)
    assert left == []


@pytest.mark.parametrize("days", [FEWER, pytest.param(DAYS, marks=pytest.mark.slow)])
def test_every_planted_fault_is_told_once_and_healthy_days_are_silent(days: int) -> None:
    dice = random.Random(22)
    kinds: Counter[str] = Counter()
    evaluations = runs = 0
    for plan in plans(FIRST, days):
        # A learned schedule has a grace of its own, so its faults are tested elsewhere.
        simulated = simulate(plan, dice, quiet=10**9 if plan.schedule == "learned" else 14)
        notices, count = watch(plan, simulated)
        check(simulated.faults, notices, [])
        kinds.update(fault.kind for fault in simulated.faults)
        evaluations, runs = evaluations + count, runs + len(simulated.runs)
    assert runs > 30 * days
    assert set(kinds) == {LATE, OVERDUE, FAILED, FLAPPING}
    assert min(kinds.values()) > days / 10, kinds
    # Hardly more often than facts appear: a start, an end.
    assert evaluations < 3 * runs


def test_a_service_that_was_down_tells_what_it_missed_once() -> None:
    dice = random.Random(3)
    for plan in [plan for plan in plans(FIRST, 400) if plan.schedule != "learned"][::6]:
        simulated = simulate(plan, dice)
        outages: list[tuple[float, float]] = []
        at, end = plan.times[0] + 86_400.0, simulated.runs[-1][0] - 15 * 86_400
        while at < end:
            # Often around a time at which it starts.
            down = dice.choice([at, dice.choice([t for t in plan.times if t < end]) - dice.uniform(0, 3000)])
            if all(down > up or down + 20_000 < earlier for earlier, up in outages):
                outages.append((down, down + dice.uniform(60, 20_000)))
            at += dice.uniform(3, 12) * 86_400
        notices, _ = watch(plan, simulated, sorted(outages))
        check(simulated.faults, notices, sorted(outages))


def test_it_finds_the_same_as_one_that_evaluates_all_the_time() -> None:
    dice, count = random.Random(5), 0
    for plan in plans(FIRST, 100)[:2]:
        simulated = simulate(plan, dice, quiet=3)
        lazy, _ = watch(plan, simulated)
        eager, _ = watch(plan, simulated, every=600)
        assert [(n.kind, n.key) for n in eager] == [(n.kind, n.key) for n in lazy]
        count += len(lazy)
    assert count > 5
