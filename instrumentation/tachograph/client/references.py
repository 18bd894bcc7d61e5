"""What users name: runs, times and durations, as the service reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from tachograph.client.answers import ProblemDetails, WorkflowExecutionResponse
from tachograph.client.errors import NotFound
from tachograph.client.results import Run

RunReference = str | Run | WorkflowExecutionResponse
"""A run: itself, its id, the beginning or end of its id, ``last``, or the name of a workflow for its last run."""
When = str | datetime
"""A time (with a zone), RFC 3339, or an age: ``24h``, ``7d``."""
Duration = str | float | timedelta
"""Seconds, or with a unit: ``250ms``, ``1.5h``."""

LAST: Final = "last"
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PIECE: Final = re.compile(r"[0-9a-f-]{4,36}")

Look = Callable[[str | None, str | None], list[WorkflowExecutionResponse]]
"""The newest runs, at most two, of a workflow (None: of all) and with this piece in their ids (None: any)."""


def find_run_id(text: str, look: Look) -> str:
    """The whole id of the run that ``text`` means. Raises `NotFound`, also if several are meant.

    A workflow's name comes before a piece of an id, which has at least four characters, as on the command line.
    """
    if text == LAST:
        runs = look(None, None)
        if not runs:
            raise _not_found("there are no runs yet")
        return runs[0].execution_id
    if _ID.fullmatch(text.lower()):
        return text.lower()
    try:
        runs = look(text, None)
    except NotFound as error:
        if error.code != "workflow_not_found":
            raise
        runs = []
    if runs:
        return runs[0].execution_id
    piece = text.strip().lstrip("….#").lower()
    if _PIECE.fullmatch(piece):
        runs = look(None, piece)
        if len(runs) > 1:
            raise _not_found(f'"{text}" is ambiguous; give more of the id')
        if runs:
            return runs[0].execution_id
    raise _not_found(f'no run and no workflow is called "{text}"')


def _not_found(detail: str) -> NotFound:
    problem = ProblemDetails(
        type="about:blank", title="Not Found", status=404, code="execution_not_found", detail=detail, errors=[]
    )
    return NotFound(detail, problem)


def time_text(when: When | None) -> str | None:
    """A time as a parameter. Raises `ValueError` for one without a zone."""
    if not isinstance(when, datetime):
        return when
    if when.tzinfo is None:
        raise ValueError(f"{when} has no time zone; say which: datetime.now(timezone.utc)")
    return when.astimezone(UTC).isoformat().replace("+00:00", "Z")


def duration_text(duration: Duration | None) -> str | None:
    """A duration as a parameter."""
    if isinstance(duration, timedelta):
        duration = duration.total_seconds()
    return duration if duration is None or isinstance(duration, str) else f"{duration:.9f}"


def words(values: str | Iterable[str]) -> str | None:
    """One or several words as a parameter; None for none."""
    return (values if isinstance(values, str) else ",".join(values)) or None
