"""What holds for a workflow: what the places say that may say something, the stronger over the weaker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tachograph.expectation import Expectation, StepExpectation

SOURCES: Final[tuple[str, ...]] = ("default", "code", "definition", "file", "api")
"""Places that say what is expected, the weakest first. The built-in defaults are weaker than all."""
GRACE_SECONDS: Final = 600.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a workflow; `tachograph.expectation.Expectation` explains the fields.

    ``has_target``: some place says how often it should succeed; else nobody is told by the service of a rate.
    """

    schedule: str | None
    timezone: str | None
    grace_seconds: float
    deadline_seconds: float | None
    is_paused: bool
    success_target: float
    failed_ratio: float
    stuck_factor: float
    stuck_seconds: float
    stuck_unknown_seconds: float
    stale_seconds: float
    regression_factor: float
    regression_seconds: float
    cost_factor: float
    cost_usd: float
    severity: str
    steps: Mapping[str, StepExpectation]
    has_grace: bool
    has_target: bool


BUILT_IN: Final = Expectation(
    grace_seconds=GRACE_SECONDS,
    is_paused=False,
    success_target=0.99,
    failed_ratio=0.1,
    stuck_factor=3.0,
    stuck_seconds=300.0,
    stuck_unknown_seconds=86_400.0,
    stale_seconds=0.0,
    stale_factor=1.5,
    stale_min_seconds=5_400.0,
    stale_unknown_seconds=691_200.0,
    regression_factor=1.5,
    regression_seconds=1.0,
    retry_ratio=0.5,
    retry_count=10.0,
    queue_factor=3.0,
    queue_seconds=5.0,
    cost_factor=3.0,
    cost_usd=1.0,
    severity="warning",
)
"""What counts where no place says anything. The same as in dashboards/thresholds.toml."""


def combined(said: Mapping[str, Expectation]) -> Expectation:
    """What all places (`SOURCES`) say together, without the built-in defaults."""
    expectation = Expectation()
    for source in SOURCES:
        if source in said:
            expectation = said[source].over(expectation)
    if expectation.timezone is None and "default" in said:
        expectation = msgspec.structs.replace(expectation, timezone=said["default"].timezone)
    return expectation


def limits_of(said: Expectation) -> Limits:
    """What holds where this is said."""
    whole = said.over(BUILT_IN)
    values = {name: getattr(whole, name) for name in Limits.__struct_fields__ if hasattr(whole, name)}
    return Limits(
        **{**values, "timezone": said.timezone},
        has_grace=said.grace_seconds is not None,
        has_target=said.success_target is not None,
    )
