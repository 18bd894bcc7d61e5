"""What does not hold: findings, and their kinds."""

from __future__ import annotations

from typing import Final, NamedTuple

LATE: Final = "late"
OVERDUE: Final = "overdue"
STUCK: Final = "stuck"
FAILED: Final = "failed"
FLAPPING: Final = "flapping"
STALE: Final = "stale"
SUCCESS_RATE: Final = "success_rate"
COST: Final = "cost"
REGRESSION: Final = "regression"

KINDS: Final = {
    LATE: "it did not start when it was due",
    OVERDUE: "an execution, or a step of it, takes longer than its deadline",
    STUCK: "an execution, or a step of it, takes far longer than usual",
    FAILED: "it failed and has not succeeded since",
    FLAPPING: "it fails and succeeds by turns",
    STALE: "it has not succeeded for too long",
    SUCCESS_RATE: "it fails more often than its target allows",
    COST: "it costs far more than usual",
    REGRESSION: "a step takes longer than usual",
}
"""Kinds of findings, with what they mean."""


class Finding(NamedTuple):
    """Something that does not hold since a moment (unix ns), and until one if it is over.

    ``key`` tells apart those of a kind and workflow: the same fault has the same key whenever it is evaluated, unless
    older executions are no longer known. ``execution_id`` is the execution that shows it best. ``is_certain``: it is
    reason enough to tell somebody who has not been told.
    """

    kind: str
    key: str
    since_ns: int
    until_ns: int | None
    severity: str
    text: str
    recovery: str = ""
    execution_id: str | None = None
    is_certain: bool = True
