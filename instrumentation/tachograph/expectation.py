"""What is expected of a workflow: when it starts, how long it takes, how often it succeeds.

Said in code, in a definition, in a file or through the API; the service evaluates it (see docs/expectations.md). A
field that is None is not said here: another place may say it, else a default counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec

LEARNED: Final = "learned"
"""A schedule that is read from the starts of earlier executions."""
NO_SCHEDULE: Final = "none"
"""A schedule that takes back what another place says."""
EVERY: Final = "every "
"""A schedule of this and a duration: so long after the previous start."""
ALIASES: Final[Mapping[str, str]] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
SEVERITIES: Final = ("info", "warning", "critical")
MAX_SCHEDULE: Final = 200
MAX_SECONDS: Final = 366 * 86_400.0
MIN_EVERY_SECONDS: Final = 10.0

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*(ms|s|m|h|d|w)\s*")
_CRON_FIELD: Final = re.compile(r"[0-9A-Za-z*,/#-]+")


class StepExpectation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is expected of a step: how many seconds it may run."""

    deadline_seconds: float | None = None


class Expectation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is expected of a workflow.

    ``schedule`` is a cron expression of five fields, an alias such as ``@daily``, ``every 15m``, ``learned`` or
    ``none``. It is meant in ``timezone`` (a name such as Europe/Berlin; default: UTC). A start may be ``grace_seconds``
    late, and an execution may take ``deadline_seconds``. ``is_paused``: nothing is expected for now. ``severity`` is
    that of its notices, one of `SEVERITIES`. ``steps`` are by name. The others are the limits that the rules for
    Prometheus have, too.
    """

    schedule: str | None = None
    timezone: str | None = None
    grace_seconds: float | None = None
    deadline_seconds: float | None = None
    is_paused: bool | None = None
    severity: str | None = None
    success_target: float | None = None
    burn_runs: float | None = None
    last_failed_seconds: float | None = None
    stuck_factor: float | None = None
    stuck_seconds: float | None = None
    stuck_unknown_seconds: float | None = None
    stale_seconds: float | None = None
    stale_factor: float | None = None
    stale_min_seconds: float | None = None
    stale_unknown_seconds: float | None = None
    regression_factor: float | None = None
    regression_seconds: float | None = None
    retry_ratio: float | None = None
    retry_count: float | None = None
    queue_factor: float | None = None
    queue_seconds: float | None = None
    cost_factor: float | None = None
    cost_usd: float | None = None
    steps: dict[str, StepExpectation] = {}

    def over(self, other: Expectation) -> Expectation:
        """This expectation where it says something, else the other."""
        fields = {
            name: mine if (mine := getattr(self, name)) is not None else getattr(other, name)
            for name in self.__struct_fields__
            if name != "steps"
        }
        if self.schedule is not None and self.timezone is None:
            # A zone belongs to the schedule it was written with.
            fields["timezone"] = None
        return Expectation(**fields, steps={**other.steps, **self.steps})


def expectation_of(
    schedule: str | None = None,
    timezone: str | None = None,
    grace: str | float | None = None,
    deadline: str | float | None = None,
    success_target: float | None = None,
) -> Expectation | None:
    """What code expects of a workflow; None if it says nothing. Raises ValueError, naming the argument."""
    if schedule is timezone is grace is deadline is success_target is None:
        return None
    grace_seconds, deadline_seconds = _seconds_of("grace", grace), _seconds_of("deadline", deadline)
    if schedule is not None and (fault := schedule_fault(schedule)):
        raise ValueError(f"schedule={schedule!r}: {fault}")
    if timezone is not None and (fault := timezone_fault(timezone)):
        raise ValueError(f"timezone={timezone!r}: {fault}")
    if success_target is not None and not 0 < success_target < 1:
        raise ValueError(f"success_target={success_target!r}: expected a fraction between 0 and 1, such as 0.99")
    return Expectation(
        schedule=schedule,
        timezone=timezone,
        grace_seconds=grace_seconds,
        deadline_seconds=deadline_seconds,
        success_target=success_target,
    )


def step_expectation_of(deadline: str | float | None) -> StepExpectation | None:
    """What code expects of a step; None if it says nothing. Raises ValueError, naming the argument."""
    seconds = _seconds_of("deadline", deadline)
    return None if seconds is None else StepExpectation(deadline_seconds=seconds)


def merged(before: Expectation | None, now: Expectation) -> Expectation:
    """What code says, after it said something before: steps say what is expected of them when they first start, each on
    its own, and the workflow what is expected of it."""
    if before is None:
        return now
    steps = {**before.steps, **now.steps}
    is_of_steps = now.steps and msgspec.structs.replace(now, steps={}) == Expectation()
    return msgspec.structs.replace(before if is_of_steps else now, steps=steps)


def _seconds_of(name: str, value: str | float | None) -> float | None:
    try:
        return None if value is None else parse_seconds(value)
    except ValueError as error:
        raise ValueError(f"{name}={value!r}: {error}") from None


def parse_seconds(value: str | float) -> float:
    """Seconds of a number, or of a text such as ``90s``, ``10m`` or ``1h 30m``. Raises ValueError."""
    total = math.nan
    if isinstance(value, str):
        parts = list(_PART.finditer(value.strip()))
        if parts and "".join(part[0] for part in parts) == value.strip():
            total = sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    elif type(value) in (int, float):
        total = float(value)
    if not 0 <= total <= MAX_SECONDS:
        raise ValueError("expected seconds, or a duration such as 90s, 10m or 1h 30m, of at most 366 days")
    return total


def cron_of(schedule: str) -> str | None:
    """The cron expression of a schedule, aliases resolved; None if it is of another kind."""
    text = schedule.strip()
    if text in (LEARNED, NO_SCHEDULE) or text.startswith(EVERY):
        return None
    return ALIASES.get(text.lower(), text)


def schedule_fault(schedule: str) -> str:
    """What is wrong with a schedule, and the way out; "" if nothing is.

    Values out of range are noticed where cronsim is installed, as it is with the service.
    """
    text = schedule.strip()
    if len(text) > MAX_SCHEDULE:
        return f"{len(text)} characters exceed the limit of {MAX_SCHEDULE}"
    cron = cron_of(text)
    if cron is None:
        if not text.startswith(EVERY):
            return ""
        try:
            seconds = parse_seconds(text.removeprefix(EVERY))
        except ValueError as error:
            return str(error)
        return "" if seconds >= MIN_EVERY_SECONDS else f"expected at least {MIN_EVERY_SECONDS:g} seconds"
    fields = cron.split()
    if len(fields) != 5 or not all(_CRON_FIELD.fullmatch(field) for field in fields):
        return (
            "expected a cron expression of five fields (0 3 * * *: every day at three), an alias (@daily), "
            '"every 15m", "learned" or "none"'
        )
    return _cronsim_fault(cron)


def _cronsim_fault(cron: str) -> str:
    if find_spec("cronsim") is None:
        return ""
    from datetime import UTC, datetime

    from cronsim import CronSim, CronSimError

    try:
        # A date that never comes, such as the 31st of February, is noticed by the first step.
        next(CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        return f"not a cron expression: {str(error) or 'this day never comes'}"
    except (ValueError, RecursionError):
        return "not a cron expression"
    return ""


def timezone_fault(name: str) -> str:
    """What is wrong with the name of a time zone, and the way out; "" if nothing is."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        if name and name.isascii() and name.isprintable() and not available_timezones():
            return ""  # This machine knows no zones at all; the service's does.
        return "no such time zone; expected a name such as UTC or Europe/Berlin"
    return ""


def severity_fault(name: str) -> str:
    """What is wrong with the name of a severity; "" if nothing is."""
    return "" if name in SEVERITIES else f"expected one of {', '.join(SEVERITIES)}"
