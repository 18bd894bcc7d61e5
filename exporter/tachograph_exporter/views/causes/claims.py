"""Making claims: a sentence with its certainty and its evidence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, urlencode

from tachograph.clock import NS
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.causes.differences import Difference
from tachograph_exporter.views.causes.features import Feature, Value
from tachograph_exporter.views.schemas.why import Certainty, Claim, Evidence, Scalar, WhatDiffers

CERTAIN: Final[Certainty] = "certain"
LIKELY: Final[Certainty] = "likely"
NOT_KNOWN: Final[Certainty] = "not known"
_EXECUTIONS: Final = "/api/workflows/executions"
_MAX_VALUE: Final = 60


def claim(kind: str, subject: str | None, text: str, certainty: Certainty, url: str, /, **values: Scalar) -> Claim:
    """A claim with its evidence; figures that are None are left out."""
    known = {name: value for name, value in values.items() if value is not None}
    return Claim(kind=kind, subject=subject, text=text, certainty=certainty, evidence=Evidence(url=url, values=known))


def timeline_url(execution_id: str, step: str | None = None) -> str:
    """Where the times of a run, or of its steps with a name, are."""
    query = f"?{urlencode({'step': step})}" if step is not None else ""
    return f"{_EXECUTIONS}/{execution_id}/timeline{query}"


def why_url(execution_id: str) -> str:
    """Where all that differs is."""
    return f"{_EXECUTIONS}/{execution_id}/why"


def comparison_url(execution_id: str, baseline_ns: int) -> str:
    """Where a run is compared with the usual ones."""
    return f"{_EXECUTIONS}/compare?{urlencode({'execution': execution_id, 'baseline': f'{baseline_ns // NS}s'})}"


def trends_url(workflow_id: str, step: str | None) -> str:
    """Where the course of a workflow's or a step's durations is."""
    query = {"from": "4w", **({"step": step} if step is not None else {})}
    return f"/api/workflows/{quote(workflow_id, safe='')}/trends?{urlencode(query)}"


def failures_url(workflow_id: str, error: str | None) -> str:
    """Where the runs are that failed with an error."""
    query = {"workflow_id": workflow_id, "status": "failed", **({"error": error} if error else {})}
    return f"{_EXECUTIONS}?{urlencode(query)}"


def failure_url(group_id: str) -> str:
    """Where a group of failures is."""
    return f"/api/failures/{quote(group_id, safe='')}"


def trace_url(trace_id: str) -> str:
    """Where the spans of a trace are."""
    return f"/jaeger/api/traces/{trace_id}"


def length(seconds: float) -> str:
    """A duration in seconds, for people."""
    return format_duration(round(seconds * NS))


def value_text(value: Value | None) -> str:
    """A value, for people."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e15 else f"{value:.3g}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"


def plural(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``, ``1,204 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


_FEATURE_NAMES: Final = {
    "first_run_in_process": "the first run in its process",
}


def _part_text(part: Feature) -> str:
    """One of two values that belong together, in words."""
    name = part.key.partition(".")[2]
    if part.place.kind == "beside":
        return f"workflow “{name}” ran at that time"
    if part.place.kind == "missing_step":
        return f"step “{name}” did not run" if part.value is True else f"step “{name}” ran"
    return f"`{part.key}` is {value_text(part.value)}"


def difference_text(difference: Difference, odd: str) -> str:
    """A difference in words. ``odd`` says what the odd runs are: ``slow`` or ``failed``."""
    name = _FEATURE_NAMES.get(difference.key, f"`{difference.key}`")
    if difference.odd_median is not None:
        if difference.place.kind == "time_of_day":
            return f"It ran at the time of day at which the {odd} runs do"
        if difference.place.kind == "workers":
            return (
                f"Fewer processes run it: {value_text(difference.value)} ran the last runs, "
                f"usually {value_text(difference.usual_median)}"
            )
        if difference.place.kind == "concurrency":
            return (
                f"{value_text(difference.value)} runs of the workflow ran at the same time, "
                f"usually {value_text(difference.usual_median)}"
            )
        return (
            f"{name} is {value_text(difference.value)}: {value_text(difference.odd_median)} in {odd} runs, "
            f"{value_text(difference.usual_median)} in others"
        )
    counts = (
        f"{odd} in {difference.odd_with:,} of {difference.with_count:,} runs with it, "
        f"{difference.odd_without:,} of {difference.without_count:,} without"
    )
    if difference.parts:
        both = " and ".join(map(_part_text, difference.parts))
        return f"Only together, {both}: {counts}"
    if difference.place.kind == "missing_step":
        return (
            f"Step “{difference.key.partition('.')[2]}” did not run: {odd} in {difference.odd_with:,} of "
            f"{difference.with_count:,} runs without it, {difference.odd_without:,} of "
            f"{difference.without_count:,} with it"
        )
    if difference.place.kind == "weekday":
        day = difference.value if isinstance(difference.value, str) else "weekend"
        return (
            f"It ran on a {day} (UTC): {odd} in {difference.odd_with:,} of {difference.with_count:,} runs then, "
            f"{difference.odd_without:,} of {difference.without_count:,} at other times"
        )
    if difference.place.kind == "beside":
        return f"Workflow “{difference.key.partition('.')[2]}” ran at that time: {counts}"
    if difference.place.kind == "first_run":
        return f"It is {name}: {counts}"
    return f"{name} is {value_text(difference.value)}: {counts}"


def differing(differences: Iterable[Difference], odd: str) -> list[WhatDiffers]:
    """Differences as users read them."""
    return [
        WhatDiffers(
            key=d.key,
            kind=d.place.kind,
            value=d.value,
            effect=round(d.effect, 4),
            false_discovery_rate=d.rate,
            odd_with=d.odd_with if d.odd_median is None else None,
            with_count=d.with_count if d.odd_median is None else None,
            odd_without=d.odd_without if d.odd_median is None else None,
            without_count=d.without_count if d.odd_median is None else None,
            odd_median=d.odd_median,
            usual_median=d.usual_median,
            is_outcome=d.is_outcome,
            text=f"{difference_text(d, odd)}.",
        )
        for d in differences
    ]


def difference_claim(difference: Difference, odd: str, url: str) -> Claim:
    """A difference as a likely cause."""
    subject = difference.key
    if difference.place.kind in ("version", "host", "process", "project"):
        subject = value_text(difference.value)
    elif difference.parts:
        subject = ", ".join(f"{part.key} {value_text(part.value)}" for part in difference.parts)
    elif difference.place.kind in ("beside", "missing_step"):
        subject = difference.key.partition(".")[2]
    return claim(
        difference.place.kind,
        subject,
        f"Likely: {_lower(difference_text(difference, odd))}.",
        LIKELY,
        url,
        key=difference.key,
        value=difference.value,
        effect=round(difference.effect, 3),
        false_discovery_rate=difference.rate,
        odd_with=difference.odd_with if difference.odd_median is None else None,
        with_count=difference.with_count if difference.odd_median is None else None,
        odd_without=difference.odd_without if difference.odd_median is None else None,
        without_count=difference.without_count if difference.odd_median is None else None,
        odd_median=difference.odd_median,
        usual_median=difference.usual_median,
    )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[:1].isupper() else text
