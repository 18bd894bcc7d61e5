"""What the spans of executions, steps and attempts say, for exported spans and for ``format=otlp`` alike.

Names are in `semconv`. A span's attributes come in two parts: those known when it starts, and its state, which is final
once it has ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

from tachograph.clock import NS
from tachograph.events import ExecutionStatus, Failure, StepStatus
from tachograph.identity import ExecutionRef
from tachograph.resources import Resources
from tachograph.spans import semconv


class NamedStep(Protocol):
    """What a step's attributes are read from: a `StepRef`, or a stored row."""

    @property
    def step_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def step_type(self) -> str: ...


def attempt_span_id(step_span_id: str, attempt: int) -> str:
    """The span id of an attempt: 16 hex digits, the same in every process, so that it need not be stored."""
    digest = hashlib.blake2b(f"{step_span_id}/{attempt}".encode(), digest_size=8)
    return digest.hexdigest() if any(digest.digest()) else f"{1:016x}"


def execution_attributes(ref: ExecutionRef) -> dict[str, Any]:
    """Attributes of an execution's root span when it starts; its steps' spans carry them too."""
    return {
        semconv.WORKFLOW_NAME: ref.workflow,
        semconv.WORKFLOW_ID: ref.workflow_id,
        semconv.WORKFLOW_VERSION: ref.version,
        semconv.WORKSPACE: ref.workspace,
        semconv.EXECUTION_ID: ref.execution_id,
        semconv.PIPELINE_NAME: ref.workflow,
        semconv.PIPELINE_RUN_ID: ref.execution_id,
    }


def execution_state_attributes(status: ExecutionStatus) -> dict[str, Any]:
    """An execution's status, and its result once it has ended."""
    attributes = {semconv.EXECUTION_STATUS: status.value}
    if status in semconv.EXECUTION_RESULTS:
        attributes[semconv.PIPELINE_RESULT] = semconv.EXECUTION_RESULTS[status]
    return attributes


def step_attributes(execution: Mapping[str, Any], step: NamedStep) -> dict[str, Any]:
    """Attributes of a step's span when it starts; ``execution`` is what `execution_attributes` gave."""
    name, step_id = step.name, step.step_id
    return {
        **execution,
        semconv.STEP_NAME: name,
        semconv.TASK_NAME: name,
        semconv.STEP_ID: step_id,
        semconv.STEP_TYPE: step.step_type,
        semconv.TASK_RUN_ID: f"{execution[semconv.EXECUTION_ID]}/{step_id}",
    }


def step_state_attributes(
    status: StepStatus,
    attempt: int,
    wait_ns: int = 0,
    skip_reason: str | None = None,
    resources: Resources | None = None,
) -> dict[str, Any]:
    """A step's status, last attempt and waits (of all attempts), and its result once it has ended.

    A skipped step has a reason instead of waits; its attempt is 0. ``resources``: what its last attempt used.
    """
    attributes: dict[str, Any] = {semconv.STEP_ATTEMPT: attempt, semconv.STEP_STATUS: status.value}
    if status is StepStatus.SKIPPED:
        attributes[semconv.STEP_SKIP_REASON] = skip_reason
    else:
        attributes[semconv.STEP_WAIT] = wait_ns / NS
    if status in semconv.STEP_RESULTS:
        attributes[semconv.TASK_RESULT] = semconv.STEP_RESULTS[status]
    if resources is not None:
        _add_resources(attributes, resources)
    return attributes


def attempt_state_attributes(status: StepStatus, resources: Resources | None) -> dict[str, Any]:
    """An attempt's status, and what it used."""
    attributes: dict[str, Any] = {semconv.STEP_STATUS: status.value}
    if resources is not None:
        _add_resources(attributes, resources)
    return attributes


def _add_resources(attributes: dict[str, Any], use: Resources) -> None:
    if use.cpu_seconds is not None:
        attributes[semconv.STEP_CPU] = use.cpu_seconds
    if use.peak_memory_bytes is not None:
        attributes[semconv.STEP_PEAK_MEMORY] = use.peak_memory_bytes
    if use.read_bytes is not None:
        attributes[semconv.STEP_READ] = use.read_bytes
    if use.written_bytes is not None:
        attributes[semconv.STEP_WRITTEN] = use.written_bytes
    if use.gc_seconds is not None:
        attributes[semconv.STEP_GC] = use.gc_seconds
    if use.is_shared:
        attributes[semconv.STEP_SHARED] = True


def attempt_attributes(execution: Mapping[str, Any], step: NamedStep, attempt: int) -> dict[str, Any]:
    """Attributes of an attempt's span when it starts; see `attempt_state_attributes` for the end."""
    return {
        semconv.EXECUTION_ID: execution[semconv.EXECUTION_ID],
        semconv.STEP_NAME: step.name,
        semconv.STEP_ID: step.step_id,
        semconv.STEP_ATTEMPT: attempt,
    }


def add_cost(attributes: dict[str, Any], usd: float, tokens_in: int, tokens_out: int, model: str) -> None:
    """Add a report of money and tokens to what the step's earlier ones came to; the last model named counts."""
    if tokens_in or tokens_out:
        attributes[semconv.TOKENS_IN] = attributes.get(semconv.TOKENS_IN, 0) + tokens_in
        attributes[semconv.TOKENS_OUT] = attributes.get(semconv.TOKENS_OUT, 0) + tokens_out
    if usd:
        attributes[semconv.COST] = attributes.get(semconv.COST, 0.0) + usd
    if model:
        attributes[semconv.MODEL] = model


def exception_attributes(failure: Failure) -> dict[str, Any]:
    """Attributes of a `semconv.EXCEPTION_EVENT`."""
    attributes = {semconv.EXCEPTION_TYPE: failure.type, semconv.EXCEPTION_MESSAGE: failure.message}
    if failure.stack is not None:
        attributes[semconv.EXCEPTION_STACK] = failure.stack
    return attributes


def measure_attributes(name: str, value: float, unit: str) -> dict[str, Any]:
    """Attributes of a `semconv.MEASURE_EVENT`."""
    return {"name": name, "value": float(value), "unit": unit}


def log_attributes(level: str, message: str) -> dict[str, Any]:
    """Attributes of a `semconv.LOG_EVENT`."""
    return {"level": level, "message": message}
