"""One step of one execution, while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from tachograph.events import Failure, StepStatus
from tachograph.identity import StepRef
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.context import StepContext
from tachograph.workflow.definition import Step
from tachograph.workflow.handlers import Handler
from tachograph.workflow.reporter import Reporter
from tachograph.workflow.triggers import Outcome, Upstream

OUTCOMES: Final[Mapping[StepStatus, Outcome]] = {
    StepStatus.COMPLETED: Outcome.SUCCESS,
    StepStatus.FAILED: Outcome.FAILED,
    StepStatus.TIMEOUT: Outcome.FAILED,
    StepStatus.CANCELLED: Outcome.FAILED,
}
"""How a step that ran counts for the trigger rules of the steps after it."""


class Node:
    """One step of one execution, while it runs. Also a `tachograph.critical_path.NamedStep`."""

    __slots__ = (
        "_started_ns", "attempts", "context", "failure", "fallback", "finished_ns", "handler", "has_slot", "is_decided",
        "is_fallback_of", "output", "position", "ref", "reporter", "retry_timer", "status", "step", "task", "upstream",
    )  # fmt: skip

    parent_step_id: None = None

    def __init__(self, position: int, step: Step, ref: StepRef, handler: Handler, upstream: Upstream) -> None:
        self.position = position
        self.step = step
        self.ref = ref
        self.handler = handler
        self.upstream = upstream
        self.status = StepStatus.PENDING
        self.is_decided = False
        self.attempts: StepAttempts | None = None
        self._started_ns: int | None = None
        self.finished_ns: int | None = None
        self.output: Any = None
        self.failure: Failure | None = None
        self.fallback: Node | None = None
        self.is_fallback_of: Node | None = None
        self.reporter: Reporter | None = None
        self.context: StepContext | None = None
        self.task: asyncio.Task[Any] | None = None
        self.has_slot = False
        self.retry_timer: asyncio.TimerHandle | None = None

    @property
    def stand_in(self) -> Node:
        """The step whose outcome is this one's: itself or, where it failed, its fallback (or that one's fallback)."""
        node = self
        while node.fallback is not None and node.has_failed:
            node = node.fallback
        return node

    def stands_in_for(self, other: Node) -> bool:
        """Whether it is the fallback of ``other``, or of a fallback of it."""
        primary = self.is_fallback_of
        while primary is not None and primary is not other:
            primary = primary.is_fallback_of
        return primary is not None

    @property
    def has_output(self) -> bool:
        return self.stand_in.status is StepStatus.COMPLETED

    @property
    def effective_output(self) -> Any:
        return self.stand_in.output

    @property
    def has_failed(self) -> bool:
        """Whether it ran and did not succeed."""
        return OUTCOMES.get(self.status) is Outcome.FAILED

    @property
    def step_id(self) -> str:
        return self.ref.step_id

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def depends_on(self) -> tuple[str, ...]:
        return self.ref.depends_on

    @property
    def started_ns(self) -> int | None:
        return self.attempts.started_ns if self.attempts is not None else self._started_ns

    def put_down(self) -> None:
        """It has ended: forget what only its attempts needed. A run may have tens of thousands of steps."""
        self._started_ns = self.started_ns
        self.attempts = self.reporter = self.context = None
