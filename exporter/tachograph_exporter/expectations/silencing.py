"""A silence as it is asked for, checked, and as it is shown."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Row

from tachograph.clock import NS
from tachograph.errors import Fault
from tachograph.expectation import MAX_SECONDS, severity_fault
from tachograph.identity import new_id
from tachograph.names import NAME_LIMIT, encodable
from tachograph.redaction import mask_text
from tachograph_exporter.expectations.findings import KINDS
from tachograph_exporter.store.silences import Silence
from tachograph_exporter.times import parse_duration, parse_time, rfc3339
from tachograph_exporter.views.schemas.silences import NewSilence, SilenceInfo

MAX_REASON: Final = 1_000
"""Characters of a reason."""


def read_silence(
    new: NewSilence, workspace_id: str | None, created_by: str, now_ns: int
) -> tuple[Silence | None, list[Fault]]:
    """A silence that counts in a workspace (None: in all), and every fault of what was asked for."""
    faults: list[Fault] = []

    def fault(place: str, message: str) -> None:
        if message:
            faults.append(Fault("bad_value", place, message))

    if new.workflow is not None and not 0 < len(new.workflow) <= NAME_LIMIT:
        fault("workflow", f"expected 1 to {NAME_LIMIT} characters; leave it out to silence all workflows")
    if new.kind is not None and new.kind not in KINDS:
        fault("kind", f"{new.kind[:40]!r} is not a kind of notice; expected one of {', '.join(KINDS)}")
    if new.severity is not None:
        fault("severity", severity_fault(new.severity))
    until_ns = now_ns
    if (new.until is None) == (new.duration is None):
        fault("duration" if new.until is None else "until", "say either `until` or `duration`")
    else:
        place = "until" if new.until is not None else "duration"
        try:
            until_ns = _until(new, now_ns)
        except ValueError as error:
            fault(place, str(error))
        else:
            if not now_ns < until_ns <= now_ns + MAX_SECONDS * NS:
                fault(place, "expected an end in the future, at most 366 days from now")
    if faults:
        return None, faults
    workflow = encodable(new.workflow) if new.workflow is not None else None
    silence = Silence(
        new_id(now_ns), workspace_id, workflow, new.kind, until_ns, mask_text(encodable(new.reason, MAX_REASON)),
        new.severity, mask_text(encodable(created_by)), now_ns,
    )  # fmt: skip
    return silence, []


def _until(new: NewSilence, now_ns: int) -> int:
    if new.until is not None:
        if not new.until.strip()[:4].isdecimal():
            raise ValueError("expected a time such as 2026-01-31T07:00:00Z")
        return parse_time(new.until.strip(), now_ns)
    if isinstance(new.duration, str):
        return now_ns + parse_duration(new.duration.strip())
    if not 0 < (new.duration or 0) <= MAX_SECONDS:
        raise ValueError("expected seconds, or a duration such as 2h")
    return now_ns + round((new.duration or 0) * NS)


def silence_info(row: Row[Any], now_ns: int) -> SilenceInfo:
    """A silence (a row of `store.silences.listed_silences`) as users read it."""
    return SilenceInfo(
        id=row.id,
        workspace=row.workspace,
        workflow=row.workflow,
        kind=row.kind,
        severity=row.severity,
        until=rfc3339(row.until_ns),
        created_at=rfc3339(row.created_ns),
        created_by=row.created_by or None,
        reason=row.reason,
        is_over=row.until_ns <= now_ns,
    )
