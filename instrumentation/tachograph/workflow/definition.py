"""Workflow definitions, as values.

`tachograph.workflow.document` reads a definition from JSON, `tachograph.workflow.builder` builds one in Python,
`tachograph.workflow.validation` checks it and `tachograph.workflow.executor` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from tachograph.expectation import Expectation


class StepType(StrEnum):
    """What a step is for. Descriptive only: what a step *does* is up to its handler, whatever its type."""

    TASK = "task"
    CONDITION = "condition"
    PARALLEL = "parallel"
    SEQUENTIAL = "sequential"
    AGENT = "agent"


class TriggerRule(StrEnum):
    """Which outcomes of the steps before it let a step run. Names and meanings are Airflow's."""

    ALL_SUCCESS = "all_success"
    ALL_DONE = "all_done"
    NONE_FAILED = "none_failed"
    NONE_FAILED_MIN_ONE_SUCCESS = "none_failed_min_one_success"
    ONE_SUCCESS = "one_success"


class DataType(StrEnum):
    """The type of a variable."""

    STRING = "string"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    JSON = "json"


class Backoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long to wait before attempt n+1: ``initial_seconds * factor**(n-1)``, at most ``max_seconds``.

    ``jitter`` j shortens each wait by a random share of up to j (1: "full jitter", 0: none), so that steps that failed
    together do not retry together.
    """

    initial_seconds: float = 0.5
    factor: float = 2.0
    max_seconds: float = 60.0
    jitter: float = 0.5

    def delay_seconds(self, attempt: int, random01: float) -> float:
        """Seconds between the end of ``attempt`` (counted from 1) and the start of the next; ``random01`` in [0, 1)."""
        try:
            full = min(self.max_seconds, self.initial_seconds * self.factor ** (attempt - 1))
        except OverflowError:
            full = self.max_seconds
        return full * (1 - self.jitter * random01)


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """An input variable of a workflow."""

    name: str
    data_type: DataType = DataType.STRING
    is_required: bool = False
    default_value: Any = None
    description: str = ""
    metadata: Mapping[str, Any] = {}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a workflow.

    ``max_retries`` (attempts after the first) defaults to the workflow's, ``retry_backoff`` to ``Backoff()``.
    """

    name: str
    step_type: StepType = StepType.TASK
    step_order: int = 0
    depends_on_steps: tuple[str, ...] = ()
    condition_expression: str | None = None
    timeout_seconds: float | None = None
    max_retries: int | None = None
    retry_backoff: Backoff | None = None
    trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS
    fallback_step: str | None = None
    config: Mapping[str, Any] = {}
    metadata: Mapping[str, Any] = {}
    description: str = ""

    @property
    def handler(self) -> str:
        """Name of its registered handler (``config.handler``); ``noop`` by default."""
        return str(self.config.get("handler", DEFAULT_HANDLER))


DEFAULT_HANDLER: Final = "noop"


class Workflow(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow definition."""

    name: str
    description: str = ""
    version: str = "1"
    timeout_seconds: float | None = None
    max_retries: int = 0
    config: Mapping[str, Any] = {}
    metadata: Mapping[str, Any] = {}
    variables: tuple[Variable, ...] = ()
    steps: tuple[Step, ...] = ()
    expectation: Expectation | None = None

    @property
    def max_concurrency(self) -> int | None:
        """How many steps of one execution may run at once (``config.max_concurrency``). None: not limited here."""
        value = self.config.get("max_concurrency")
        return int(value) if value is not None else None
