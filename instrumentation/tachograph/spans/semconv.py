"""Every span and attribute name, once.

``workflow.*`` follows the open proposal for workflow conventions (OpenTelemetry semantic-conventions issue 1688 and
pull request 2387, not merged); ``cicd.*`` is the release candidate of the CI/CD conventions
(https://opentelemetry.io/docs/specs/semconv/cicd/cicd-spans/); ``error.type`` and ``exception.*`` are stable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from tachograph.events import ExecutionStatus, StepStatus

SCOPE: Final = "tachograph"
"""Name of the instrumentation scope of every span."""


class Meaning(NamedTuple):
    """What an attribute says and which spans carry it; the reference table is made from these."""

    on: str
    meaning: str


ATTRIBUTES: Final[dict[str, Meaning]] = {}
"""Every attribute by name, in the order of this module."""


def _attribute(name: str, on: str, meaning: str) -> str:
    ATTRIBUTES[name] = Meaning(on, meaning)
    return name


WORKFLOW_NAME: Final = _attribute("workflow.definition.name", "run, step", "name of the workflow")
WORKFLOW_ID: Final = _attribute("workflow.definition.id", "run, step", "id of the workflow")
WORKFLOW_VERSION: Final = _attribute("workflow.definition.version", "run, step", "version of the definition")
WORKSPACE: Final = _attribute("workflow.workspace", "run, step", "workspace (slug) the workflow belongs to")
EXECUTION_ID: Final = _attribute("workflow.execution.id", "run, step, attempt", "id of this execution")
EXECUTION_STATUS: Final = _attribute("workflow.execution.status", "run", "how the execution ended")
STEP_NAME: Final = _attribute("workflow.step.name", "step, attempt", "name of the step")
STEP_ID: Final = _attribute("workflow.step.id", "step, attempt", "id of the step, the same in every execution")
STEP_TYPE: Final = _attribute("workflow.step.type", "step", "task, condition, parallel, sequential or agent")
STEP_ATTEMPT: Final = _attribute("workflow.step.attempt", "step, attempt", "attempt (on a step: the last), from 1")
STEP_STATUS: Final = _attribute("workflow.step.status", "step, attempt", "how the step or attempt ended")
STEP_WAIT: Final = _attribute(
    "workflow.step.wait_seconds", "step", "seconds not running: for dependencies, for a slot, for backoff to pass"
)
STEP_SKIP_REASON: Final = _attribute("workflow.step.skip_reason", "step", "why the step never started")
PIPELINE_NAME: Final = _attribute("cicd.pipeline.name", "run, step", "name of the workflow")
PIPELINE_RUN_ID: Final = _attribute("cicd.pipeline.run.id", "run, step", "id of this execution")
PIPELINE_RESULT: Final = _attribute(
    "cicd.pipeline.result", "run", "success, failure, timeout, cancellation, skip or error"
)
TASK_NAME: Final = _attribute("cicd.pipeline.task.name", "step", "name of the step")
TASK_RUN_ID: Final = _attribute("cicd.pipeline.task.run.id", "step", "execution id and step id")
TASK_RESULT: Final = _attribute(
    "cicd.pipeline.task.run.result", "step", "success, failure, timeout, cancellation, skip or error"
)
ERROR_TYPE: Final = _attribute("error.type", "on failure", "qualified name of the exception's class")
TOKENS_IN: Final = _attribute("gen_ai.usage.input_tokens", "step that reports tokens", "tokens given to models")
TOKENS_OUT: Final = _attribute("gen_ai.usage.output_tokens", "step that reports tokens", "tokens made by models")
MODEL: Final = _attribute("gen_ai.request.model", "step that reports tokens", "the model last named")
COST: Final = _attribute("workflow.step.cost_usd", "step that reports cost", "US dollars spent")

EXECUTION_RESULTS: Final[Mapping[ExecutionStatus, str]] = {
    ExecutionStatus.COMPLETED: "success",
    ExecutionStatus.FAILED: "failure",
    ExecutionStatus.TIMEOUT: "timeout",
    ExecutionStatus.CANCELLED: "cancellation",
    ExecutionStatus.LOST: "error",
}
"""``cicd.pipeline.result`` by status."""

STEP_RESULTS: Final[Mapping[StepStatus, str]] = {
    StepStatus.COMPLETED: "success",
    StepStatus.FAILED: "failure",
    StepStatus.TIMEOUT: "timeout",
    StepStatus.CANCELLED: "cancellation",
    StepStatus.SKIPPED: "skip",
    StepStatus.LOST: "error",
}
"""``cicd.pipeline.task.run.result`` by status."""


def run_span_name(workflow: str) -> str:
    """The name of an execution's root span."""
    return f"run {workflow}"


def attempt_span_name(step: str, attempt: int) -> str:
    """The name of an attempt's span, where a step has more than one."""
    return f"{step} attempt {attempt}"
