"""What tools are asked: their arguments, with the descriptions that agents read."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]
Run = Annotated[
    str,
    msgspec.Meta(
        description="Which run: its id, a piece of its id, a workflow's name for its newest run, or `last`.",
        min_length=1,
        max_length=1_000,
    ),
]
Workflow = Annotated[str, msgspec.Meta(description="Workflow name or id.", min_length=1, max_length=1_000)]
Status = Literal["pending", "running", "completed", "failed", "cancelled", "timeout", "lost"]
State = Literal["open", "regressed", "muted", "resolved"]
_TIME = "RFC 3339 in UTC, unix seconds, or an age such as `90m`, `12h`, `7d`."


class _Arguments(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class RunsArguments(_Arguments):
    """Arguments of ``runs``."""

    workflow: Workflow | None = None
    status: Annotated[list[Status], msgspec.Meta(description="Only runs with one of these.", max_length=7)] = []
    since: Annotated[str, msgspec.Meta(description=f"Only runs created after this time: {_TIME}")] | None = None
    until: Annotated[str, msgspec.Meta(description="Only runs created before this time.")] | None = None
    error: Annotated[Text, msgspec.Meta(description="Only runs with this text in their error.")] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=50)] = 10


class WhyArguments(_Arguments):
    """Arguments of ``why``."""

    run: Run
    baseline: Annotated[str, msgspec.Meta(description="How far back the usual runs go.", max_length=20)] = "28d"


class CompareArguments(_Arguments):
    """Arguments of ``compare``."""

    run: Run
    other: Annotated[Run, msgspec.Meta(description="The run to compare with. Default: the usual of its workflow.")] | (
        None
    ) = None
    baseline: Annotated[str, msgspec.Meta(description="How far back the usual runs go.", max_length=20)] = "7d"


class CriticalPathArguments(_Arguments):
    """Arguments of ``critical_path``."""

    run: Run


class TimelineMapArguments(_Arguments):
    """Arguments of ``timeline_map``."""

    run: Run
    step: (
        Annotated[Text, msgspec.Meta(description="Only steps of this name, each of them, the slowest first.")] | None
    ) = None


class FailuresArguments(_Arguments):
    """Arguments of ``failures``."""

    workflow: Workflow | None = None
    since: Annotated[str, msgspec.Meta(description=f"Start; default 14 days ago, at most 90: {_TIME}")] | None = None
    state: Annotated[list[State], msgspec.Meta(description="Default: open and regressed.", max_length=4)] = []
    group: Annotated[Text, msgspec.Meta(description="Id of a group: by version, host and run.")] | None = None


class TrendsArguments(_Arguments):
    """Arguments of ``trends``."""

    workflow: Workflow
    step: Annotated[Text, msgspec.Meta(description="Trends of this step instead of whole runs.")] | None = None
    bucket: Annotated[
        Literal["5m", "1h", "1d"],
        msgspec.Meta(description="Size of a bucket. Without `since` they go back 24 h, 14 d or 180 d."),
    ] = "1h"
    since: Annotated[str, msgspec.Meta(description=f"Start: {_TIME}")] | None = None


class LateArguments(_Arguments):
    """Arguments of ``late``."""

    since: Annotated[str, msgspec.Meta(description=f"Start of the window; default 12 h ago, at most 8 d: {_TIME}")] = (
        "12h"
    )
    until: Annotated[str, msgspec.Meta(description="End of the window. Default: now.")] | None = None
