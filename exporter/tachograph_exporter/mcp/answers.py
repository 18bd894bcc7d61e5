"""What tools answer: the structured content. Durations are seconds, times RFC 3339 in UTC; see `budget` for the bound.

``left_out`` is how many of a list did not fit. ``page`` is the address of a run's page, null where none is known.
"""

from __future__ import annotations

import msgspec

from tachograph_exporter.mcp.wording import NOTICE


class _Answer(msgspec.Struct, kw_only=True):
    notice: str = NOTICE


class RunLine(msgspec.Struct, kw_only=True):
    """A run in a list."""

    run_id: str
    workflow: str
    status: str
    started_at: str | None
    duration_seconds: float | None
    error: str | None
    page: str | None


class RunsAnswer(_Answer, kw_only=True):
    """The newest runs first."""

    total: int
    runs: list[RunLine]
    left_out: int


class ClaimLine(msgspec.Struct, kw_only=True):
    """A sentence about a run. ``certainty`` is certain (measured), likely (statistics) or "not known"."""

    text: str
    certainty: str
    kind: str
    subject: str | None
    evidence: str


class WhyToolAnswer(_Answer, kw_only=True):
    """Why a run was slow or failed. ``causes``: the likeliest first. ``differences`` from the usual runs."""

    run_id: str
    workflow: str
    status: str
    verdict: str
    claims: list[ClaimLine]
    causes: list[ClaimLine]
    differences: list[str]
    compared_runs: int
    usual_runs: int
    left_out: int
    page: str | None
    resource: str


class ComparedLine(msgspec.Struct, kw_only=True):
    """A step on both sides. ``blame``: its share of the slowdown, from 0 to 1."""

    step: str
    seconds: float | None
    reference_seconds: float | None
    difference_seconds: float | None
    blame: float | None
    on_critical_path: bool
    not_in_reference: bool
    status: str | None


class CompareAnswer(_Answer, kw_only=True):
    """A run beside another one (``other_run_id``) or the median of ``baseline_runs``; steps to blame come first."""

    run_id: str
    other_run_id: str | None
    baseline_runs: int | None
    duration_seconds: float | None
    reference_seconds: float | None
    difference_seconds: float | None
    ratio: float | None
    culprit: str | None
    sentence: str
    steps: list[ComparedLine]
    left_out: int
    page: str | None


class PathLine(msgspec.Struct, kw_only=True):
    """A step on the critical path. ``share`` of the run, from 0 to 1; ``scheduled_seconds``: waited before it."""

    step: str
    step_id: str
    duration_seconds: float
    share: float | None
    scheduled_seconds: float


class CriticalPathAnswer(_Answer, kw_only=True):
    """The steps whose delay delayed the run, in order. ``unaccounted_seconds``: none of them ran."""

    run_id: str
    workflow: str
    status: str
    total_seconds: float | None
    critical_path_seconds: float
    unaccounted_seconds: float | None
    step_count: int
    steps: list[PathLine]
    left_out: int
    left_out_seconds: float
    page: str | None


class MapLine(msgspec.Struct, kw_only=True):
    """All steps of one name. ``first_start`` and ``last_end`` are seconds after the run's start."""

    step: str
    count: int
    failed: int
    running: int
    skipped: int
    retries: int
    first_start: float | None
    last_end: float | None
    run_seconds: float
    slowest_seconds: float | None
    on_critical_path: bool
    error: str | None


class MapStep(msgspec.Struct, kw_only=True):
    """One step of a name."""

    step_id: str
    index: str | None
    status: str
    start: float | None
    duration_seconds: float | None
    retries: int
    on_critical_path: bool
    error: str | None


class TimelineMapAnswer(_Answer, kw_only=True):
    """A run at one look: ``groups`` of steps of one name by start, or the ``steps`` of the name that was asked for."""

    run_id: str
    workflow: str
    status: str
    started_at: str | None
    total_seconds: float | None
    step_count: int
    failed_step_count: int
    running_step_count: int
    error: str | None
    groups: list[MapLine]
    steps: list[MapStep]
    left_out: int
    page: str | None
    resource: str


class GroupLine(msgspec.Struct, kw_only=True):
    """Failures of one cause."""

    group: str
    error_type: str
    message: str
    location: str | None
    state: str
    is_new: bool
    new_since_version: str | None
    first_seen_at: str
    last_seen_at: str | None
    failures: int
    failed_runs: int
    places: list[str]
    example_run_id: str | None


class FailedRun(msgspec.Struct, kw_only=True):
    """A failure of a group."""

    run_id: str
    workflow: str
    step: str | None
    at: str
    version: str
    page: str | None


class FailuresAnswer(_Answer, kw_only=True):
    """Failures by cause in a window. With a ``group`` asked for: its functions, versions, hosts and runs too."""

    window_from: str
    window_to: str
    total: int
    groups: list[GroupLine]
    frames: list[str]
    by_version: dict[str, int]
    by_host: dict[str, int]
    runs: list[FailedRun]
    left_out: int


class TrendLine(msgspec.Struct, kw_only=True):
    """What ended in one bucket of time."""

    start: str
    runs: int
    failed: int
    p50_seconds: float | None
    p95_seconds: float | None


class ChangeLine(msgspec.Struct, kw_only=True):
    """A time since when it takes longer or shorter."""

    since: str
    until: str | None
    step: str | None
    ratio: float
    before_seconds: float
    after_seconds: float
    sentence: str


class TrendsAnswer(_Answer, kw_only=True):
    """A workflow or step over time: the newest buckets in which something ended, and all changes, oldest first."""

    workflow: str
    step: str | None
    bucket: str
    start: str
    end: str
    changes: list[ChangeLine]
    buckets: list[TrendLine]
    left_out: int


class LateStart(msgspec.Struct, kw_only=True):
    """An expected start that is ``missing``, ``late``, ``held`` or ``due``."""

    at: str
    state: str
    started_at: str | None


class LateLine(msgspec.Struct, kw_only=True):
    """A workflow in a window. ``starts`` are those that did not begin in time, ``last_run_id`` its newest run."""

    workflow: str
    missing: int
    failed: int
    running: int
    runs: int
    starts: list[LateStart]
    last_run_id: str | None
    last_status: str | None
    expected_end_at: str | None


class LateAnswer(_Answer, kw_only=True):
    """Workflows of a window, those with a problem first."""

    start: str
    end: str
    is_complete: bool
    workflows: list[LateLine]
    left_out: int
