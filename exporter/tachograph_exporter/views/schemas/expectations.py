"""Expectations and notices: response and request types."""

from __future__ import annotations

from typing import Any

import msgspec

from tachograph.expectation import Expectation


class StepDeadline(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is expected of a step: seconds, or a duration such as ``10m``."""

    deadline: str | float | None = None


class ExpectationDocument(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is expected of a workflow, as it is written; a field that is missing is not said here.

    Durations are seconds, or texts such as ``10m``. ``schedule`` is a cron expression of five fields, an alias
    (``@daily``), ``every 15m``, ``learned`` or ``none``. The other limits of ``thresholds.toml`` may be said, too.
    """

    schedule: str | None = None
    timezone: str | None = None
    grace: str | float | None = None
    deadline: str | float | None = None
    is_paused: bool | None = None
    severity: str | None = None
    success_target: float | None = None
    burn_runs: float | None = None
    last_failed_seconds: float | None = None
    stuck_factor: float | None = None
    stuck_seconds: float | None = None
    stale_seconds: float | None = None
    regression_factor: float | None = None
    regression_seconds: float | None = None
    cost_factor: float | None = None
    cost_usd: float | None = None
    steps: dict[str, StepDeadline] = {}


class FindingInfo(msgspec.Struct, kw_only=True):
    """Something that does not hold now. ``execution_id`` is the execution that shows it best."""

    kind: str
    severity: str
    text: str
    since: str
    execution_id: str | None


class ExpectedOf(msgspec.Struct, kw_only=True):
    """What holds for a workflow, all places together; see `ExpectationDocument`."""

    schedule: str | None
    timezone: str | None
    grace_seconds: float
    deadline_seconds: float | None
    is_paused: bool
    severity: str
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
    steps: dict[str, float]


class WorkflowExpectation(msgspec.Struct, kw_only=True):
    """What is expected of a workflow, who says so, and whether it holds.

    ``state`` is ``ok``, ``paused``, or the kind of the first finding. ``schedule_text`` says how the schedule was read,
    and from how many starts it was learned; null: none, or too few starts to learn from. ``said`` has what each place
    says, the weakest first: default, the engine's own schedule (engine, airflow, apscheduler, celery beat), code,
    definition, file, api. ``schedule_source`` is the place whose schedule counts; null: none has one.
    """

    workspace_id: str
    workflow: str
    workflow_id: str | None
    state: str
    schedule_text: str | None
    schedule_source: str | None
    expected_start_at: str | None
    expected: ExpectedOf
    said: dict[str, Expectation]
    findings: list[FindingInfo]


class DeliveryInfo(msgspec.Struct, kw_only=True):
    """A message about a notice to a receiver. ``phase`` is opened or recovered."""

    phase: str
    receiver: str
    state: str
    tries: int
    changed_at: str
    reason: str | None


class NoticeInfo(msgspec.Struct, kw_only=True):
    """Something that did not hold, and who was told. ``since`` is when it began, ``told_at`` when it was noticed.

    ``silence_id`` is the silence that kept it from being told; null if there was none, or it has been told since.
    """

    id: str
    workspace: str
    workflow: str
    kind: str
    severity: str
    text: str
    since: str
    told_at: str
    recovered_at: str | None
    recovery: str | None
    execution_id: str | None
    silence_id: str | None
    deliveries: list[DeliveryInfo]


class NoticePage(msgspec.Struct):
    """A page of notices, the newest first."""

    items: list[NoticeInfo]
    skip: int
    limit: int


class ReceiverTest(msgspec.Struct, kw_only=True):
    """Whether a receiver took a test message. ``address`` has no secret in it; ``reason``: why it did not."""

    receiver: str
    address: str
    is_taken: bool
    reason: str | None = None


class ReceiverTests(msgspec.Struct):
    """The receivers of a service, each with what became of a test message."""

    receivers: list[ReceiverTest]


EXAMPLE: dict[str, Any] = {
    "schedule": "0 3 * * *",
    "timezone": "Europe/Berlin",
    "grace": "10m",
    "deadline": "1h",
    "steps": {"load": {"deadline": "20m"}},
}
