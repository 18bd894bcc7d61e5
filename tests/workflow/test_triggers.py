"""Trigger rules behave as Airflow documents them."""

from __future__ import annotations

import pytest

from tachograph.events import SkipReason
from tachograph.workflow.definition import TriggerRule
from tachograph.workflow.triggers import Decision, Upstream, decide

RUN, WAIT = Decision.RUN, Decision.WAIT
FAILED, SKIPPED = SkipReason.UPSTREAM_FAILED, SkipReason.UPSTREAM_SKIPPED


@pytest.mark.parametrize(
    ("rule", "success", "failed", "skipped", "expected"),
    [
        ("all_success", 2, 0, 0, RUN),
        ("all_success", 1, 1, 0, FAILED),
        ("all_success", 1, 0, 1, SKIPPED),
        ("all_success", 0, 1, 1, FAILED),
        ("all_done", 0, 1, 1, RUN),
        ("none_failed", 0, 0, 2, RUN),
        ("none_failed", 1, 0, 1, RUN),
        ("none_failed", 1, 1, 0, FAILED),
        ("none_failed_min_one_success", 1, 0, 1, RUN),
        ("none_failed_min_one_success", 0, 0, 2, SKIPPED),
        ("none_failed_min_one_success", 1, 1, 0, FAILED),
        ("one_success", 1, 1, 0, RUN),
        ("one_success", 0, 2, 0, FAILED),
        ("one_success", 0, 0, 2, SKIPPED),
    ],
)
def test_settled_outcomes_decide(
    rule: str, success: int, failed: int, skipped: int, expected: Decision | SkipReason
) -> None:
    assert decide(TriggerRule(rule), Upstream(2, success, failed, skipped)) == expected


@pytest.mark.parametrize("rule", list(TriggerRule))
def test_nothing_is_decided_before_all_is_settled_but_one_success(rule: TriggerRule) -> None:
    assert decide(rule, Upstream(3, 0, 1, 1)) is WAIT
    early = decide(rule, Upstream(3, 1, 0, 0))
    assert early is (RUN if rule is TriggerRule.ONE_SUCCESS else WAIT)
