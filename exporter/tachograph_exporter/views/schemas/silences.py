"""Silences: response and request types."""

from __future__ import annotations

from typing import Any

import msgspec


class NewSilence(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What nobody is to be told of, and until when: give ``until`` (a time) or ``duration`` (seconds, or ``2h``).

    ``workflow`` may have ``*`` and ``?`` as wildcards; ``severity`` is the greatest that is silenced. What is not said
    is any. It counts in the request's workspace, or with ``all_workspaces`` in all of them. ``created_by`` is who asks
    for it; with a token that has a name, it is the token's name.
    """

    workflow: str | None = None
    kind: str | None = None
    severity: str | None = None
    all_workspaces: bool = False
    until: str | None = None
    duration: str | float | None = None
    reason: str = ""
    created_by: str | None = None


class SilenceInfo(msgspec.Struct, kw_only=True):
    """Until when nobody is told of something. What is null is any: workspace (a slug), workflow, kind, severity."""

    id: str
    workspace: str | None
    workflow: str | None
    kind: str | None
    severity: str | None
    until: str
    created_at: str
    created_by: str | None
    reason: str
    is_over: bool


EXAMPLE: dict[str, Any] = {"workflow": "nightly*", "kind": "late", "duration": "2h", "reason": "the database moves"}
