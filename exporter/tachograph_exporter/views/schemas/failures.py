"""Failure groups: response and request types."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

STATES: Final = ("open", "regressed", "muted", "resolved")
DEFAULT_STATES: Final = ("open", "regressed")
SORTS: Final = tuple(
    sign + name for name in ("last_seen", "first_seen", "failures", "executions") for sign in ("-", "")
)
"""In what groups are sorted; a minus is downwards."""


class FailureCounts(msgspec.Struct, kw_only=True):
    """How often something failed of one cause, within the window.

    ``failures`` is how often it happened: ``attempts``, and executions that failed by themselves outside of any step.
    ``attempts`` failed, whether or not another one followed; ``steps`` failed for good; ``executions`` failed because
    of it. A step or an execution that failed because something inside it did is not counted as a failure again.
    """

    failures: int
    attempts: int
    steps: int
    executions: int


class FailurePlace(msgspec.Struct, kw_only=True):
    """A workflow and a step in which a group happens. ``step_name`` is null outside of any step."""

    workflow_id: str
    workflow_name: str
    step_name: str | None
    failures: int


class FailureExample(msgspec.Struct, kw_only=True):
    """The newest failure of a group. The texts are null if its execution is archived."""

    execution_id: str
    workflow_name: str
    step_name: str | None
    attempt: int
    at: str
    error_message: str | None
    error_stack: str | None = None


class FailureGroupSummary(msgspec.Struct, kw_only=True):
    """Failures of one cause: one type of error, one message but for values, the same own functions of the stack.

    ``message`` is the message with ``<*>`` for values; ``location`` the innermost function of one's own. ``state`` is
    ``open``, ``muted``, ``resolved`` or ``regressed`` (it has failed since somebody resolved it). ``is_new``: first
    seen within the last 24 hours. ``new_since_version``: the workflow's version that it came with; null where that is
    not known. ``trend`` are the failures in equal parts of the window, oldest first. ``rules_version``: of the rules
    that told causes apart.
    """

    id: str
    error_type: str
    message: str
    location: str | None
    state: str
    is_new: bool
    new_since_version: str | None
    state_changed_at: str | None
    state_changed_by: str | None
    note: str | None
    first_seen_at: str
    last_seen_at: str | None
    counts: FailureCounts
    trend: list[int]
    places: list[FailurePlace]
    example: FailureExample | None
    rules_version: int


class FailurePage(msgspec.Struct, kw_only=True):
    """Groups of failures. ``is_complete`` is false while failures of before an upgrade are still being grouped."""

    items: list[FailureGroupSummary]
    total: int
    skip: int
    limit: int
    window_from: str
    window_to: str
    is_complete: bool


class FailureOccurrence(msgspec.Struct, kw_only=True):
    """A failure. ``was_retried``: another attempt followed. ``count``: so many repetitions that share one row."""

    execution_id: str
    workflow_name: str
    workflow_version: str
    step_id: str | None
    step_name: str | None
    attempt: int
    was_retried: bool
    count: int
    at: str


class FailuresOfVersion(msgspec.Struct, kw_only=True):
    """Failures in one version of a workflow."""

    workflow_name: str
    workflow_version: str
    failures: int


class FailuresOnHost(msgspec.Struct, kw_only=True):
    """Failures on one host."""

    host: str
    failures: int


class FailureGroupDetail(msgspec.Struct, kw_only=True):
    """A group, with where it happens and its failures, the newest first.

    ``frames`` are the own functions of the stack that its failures share. ``by_host`` leaves out executions of which
    the host is not known. ``total`` is the number of all ``occurrences``.
    """

    group: FailureGroupSummary
    frames: list[str]
    by_version: list[FailuresOfVersion]
    by_host: list[FailuresOnHost]
    occurrences: list[FailureOccurrence]
    total: int
    skip: int
    limit: int
    window_from: str
    window_to: str


class FailureAction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to do with a group, and why. A muted group is left out of lists, a resolved one until it fails again."""

    action: Literal["mute", "unmute", "resolve", "reopen"]
    note: str = ""
