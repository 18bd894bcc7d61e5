"""Trigger rules: may a step run, given the outcomes of the steps before it?

Names and meanings are Airflow's: a step that never ran because a step before it failed (``upstream_failed``) counts as
failed, a step on a branch that was not taken as skipped. The decision waits until all steps before the step have
settled, so it does not depend on timing. Only ``one_success`` runs at the first success.
"""

from __future__ import annotations

from enum import Enum, auto

from tachograph.events import SkipReason
from tachograph.workflow.definition import TriggerRule


class Outcome(Enum):
    """How a step settled, as the steps after it see it."""

    SUCCESS = auto()
    FAILED = auto()
    SKIPPED = auto()


class Decision(Enum):
    """What to do with a step that is not skipped."""

    WAIT = auto()
    RUN = auto()


class Upstream:
    """Outcomes of the steps before one step, counted."""

    __slots__ = ("failed", "skipped", "success", "total")

    def __init__(self, total: int, success: int = 0, failed: int = 0, skipped: int = 0) -> None:
        self.total = total
        self.success = success
        self.failed = failed
        self.skipped = skipped

    def settle(self, outcome: Outcome) -> None:
        """Count an outcome."""
        if outcome is Outcome.SUCCESS:
            self.success += 1
        elif outcome is Outcome.FAILED:
            self.failed += 1
        else:
            self.skipped += 1

    @property
    def is_settled(self) -> bool:
        """Whether every step before this one has an outcome."""
        return self.success + self.failed + self.skipped >= self.total


def decide(rule: TriggerRule, upstream: Upstream) -> Decision | SkipReason:
    """Run the step, wait, or skip it for a reason."""
    if rule is TriggerRule.ONE_SUCCESS and upstream.success:
        return Decision.RUN
    if not upstream.is_settled:
        return Decision.WAIT
    if rule is TriggerRule.ALL_DONE or not upstream.total:
        return Decision.RUN
    unmet = SkipReason.UPSTREAM_FAILED if upstream.failed else SkipReason.UPSTREAM_SKIPPED
    if rule is TriggerRule.ONE_SUCCESS or upstream.failed:
        return unmet
    if rule is TriggerRule.ALL_SUCCESS and upstream.skipped:
        return unmet
    if rule is TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS and not upstream.success:
        return unmet
    return Decision.RUN
