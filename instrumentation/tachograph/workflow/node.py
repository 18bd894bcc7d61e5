"""One step of one execution while it runs, and how other steps see it once it has settled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tachograph.events import Failure, StepStatus
from tachograph.identity import StepRef
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
"""How a step that ran counts for the trigger rules of those after it."""


class Node:
    """One step of one execution, while it runs."""

    __slots__ = (
        "attempt", "attempt_backoff_ns", "attempt_queue_ns", "attempt_started_ns", "backoff_ns", "context", "decided",
        "dependency_ns", "failure", "fallback", "finished_ns", "handler", "inputs", "is_fallback_of", "output",
        "parent_step_id", "pending_backoff_ns", "position", "queue_ns", "ready_ns", "ref", "reporter", "retry",
        "run_ns", "started_ns", "status", "step", "task", "upstream",
    )  # fmt: skip

    def __init__(self, position: int, step: Step, ref: StepRef, handler: Handler, upstream: Upstream) -> None:
        self.position = position
        self.step = step
        self.ref = ref
        self.handler = handler
        self.upstream = upstream
        self.status = StepStatus.PENDING
        self.decided = False
        self.attempt = 0
        self.ready_ns = 0
        self.started_ns: int | None = None
        self.finished_ns: int | None = None
        self.attempt_started_ns = 0
        self.attempt_queue_ns = 0
        self.attempt_backoff_ns = 0
        self.pending_backoff_ns = 0
        self.dependency_ns = 0
        self.queue_ns = 0
        self.backoff_ns = 0
        self.run_ns = 0
        self.output: Any = None
        self.inputs: str | None = None
        self.failure: Failure | None = None
        self.fallback: Node | None = None
        self.is_fallback_of: Node | None = None
        self.parent_step_id = None
        self.reporter: Reporter | None = None
        self.context: StepContext | None = None
        self.task: asyncio.Task[None] | None = None
        self.retry: asyncio.TimerHandle | None = None

    @property
    def has_output(self) -> bool:
        return StepStatus.COMPLETED in (self.status, self.fallback.status if self.fallback is not None else None)

    @property
    def effective_output(self) -> Any:
        if self.status is not StepStatus.COMPLETED and self.fallback is not None:
            return self.fallback.output
        return self.output

    # What the analysis asks of a step.
    @property
    def step_id(self) -> str:
        return self.ref.step_id

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def depends_on(self) -> tuple[str, ...]:
        return self.ref.depends_on

    @property
    def failed(self) -> bool:
        """Whether it ran and did not succeed."""
        return OUTCOMES.get(self.status) is Outcome.FAILED


class Settled(Mapping[str, Any]):
    """``{"status", "output"}`` of settled steps by name, made when asked for; what ``steps`` means in a reference."""

    __slots__ = ("_nodes", "_positions")

    def __init__(self, nodes: Sequence[Node], positions: Mapping[str, int]) -> None:
        self._nodes = nodes
        self._positions = positions

    def _find(self, name: str) -> Node:
        return self._nodes[self._positions[name]]

    def __getitem__(self, name: str) -> Any:
        node = self._find(name)
        if not node.status.is_terminal:
            raise KeyError(name)
        return {"status": str(node.status), "output": node.effective_output}

    def __iter__(self) -> Iterator[str]:
        return (node.step.name for node in self._nodes if node.status.is_terminal)

    def __len__(self) -> int:
        return sum(node.status.is_terminal for node in self._nodes)


class Outputs(Settled):
    """Outputs of completed steps by name; that of a failed step is what its fallback returned."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        node = self._find(name)
        if not node.has_output:
            raise KeyError(name)
        return node.effective_output

    def __iter__(self) -> Iterator[str]:
        return (node.step.name for node in self._nodes if node.has_output)

    def __len__(self) -> int:
        return sum(node.has_output for node in self._nodes)
