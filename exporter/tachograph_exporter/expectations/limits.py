"""What holds for a workflow: what the places say that may say something, the stronger over the weaker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tachograph.expectation import Expectation, StepExpectation
from tachograph_exporter.alerting.thresholds import read_thresholds
from tachograph_exporter.store.expectations import TAKEN_OVER

SOURCES: Final[tuple[str, ...]] = ("default", *TAKEN_OVER, "code", "definition", "file", "api")
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
    burn_runs: float
    last_failed_seconds: float
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
    severity="warning",
    **msgspec.structs.asdict(read_thresholds().default),
)
"""What counts where no place says anything: the limits are those of the alerts."""


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
