"""Every metric about workflows: name, help, labels and buckets."""

from __future__ import annotations

from typing import Final

import msgspec

from tachograph.distribution import DURATION_BUCKETS

BUCKETS: Final = DURATION_BUCKETS
"""Classic buckets of durations and waits, in seconds."""


class MetricSpec(msgspec.Struct, frozen=True):
    """A metric's name, help, labels and (by its class) kind."""

    name: str
    help: str
    labels: tuple[str, ...]

    @property
    def kind(self) -> str:
        """histogram, counter or gauge."""
        return type(self).__name__.removesuffix("Spec").lower()


class HistogramSpec(MetricSpec, frozen=True):
    """A histogram."""


class CounterSpec(MetricSpec, frozen=True):
    """A counter; its name ends in ``_total``."""


class GaugeSpec(MetricSpec, frozen=True):
    """A gauge."""


_WORKFLOW: Final = ("workspace", "workflow")
_STEP: Final = ("workspace", "workflow", "step")

EXECUTION_DURATION: Final = HistogramSpec(
    "workflow_execution_duration_seconds",
    "Time from the start of an execution to its end.",
    (*_WORKFLOW, "status"),
)
STEP_DURATION: Final = HistogramSpec(
    "workflow_step_duration_seconds",
    "Time from the start of a step's first attempt to the end of its last, backoff between attempts included.",
    (*_STEP, "status"),
)
STEP_WAIT: Final = HistogramSpec(
    "workflow_step_wait_seconds",
    "Time an attempt of a step waited: for its dependencies, in the queue for a slot, for the backoff, for a time "
    "that it was asked for (scheduled), or for what the program itself did (unaccounted).",
    (*_STEP, "reason"),
)
STEP_ATTEMPTS: Final = CounterSpec(
    "workflow_step_attempts_total", "Attempts of a step that ended, by outcome.", (*_STEP, "outcome")
)
STEP_RETRIES: Final = CounterSpec(
    "workflow_step_retries_total", "Attempts of a step that failed and were followed by another.", _STEP
)
STEPS_SKIPPED: Final = CounterSpec(
    "workflow_steps_skipped_total", "Steps that never started, by reason.", (*_STEP, "reason")
)
EXECUTIONS_STARTED: Final = CounterSpec("workflow_executions_started_total", "Executions that started.", _WORKFLOW)
EXECUTIONS_RUNNING: Final = GaugeSpec("workflow_executions_running", "Executions running now.", _WORKFLOW)
STEPS_RUNNING: Final = GaugeSpec("workflow_steps_running", "Attempts of steps running now.", _WORKFLOW)
CRITICAL_PATH: Final = CounterSpec(
    "workflow_step_critical_path_seconds_total",
    "Time a step spent on the critical path of its executions: what to speed up first.",
    _STEP,
)
LAST_SUCCESS: Final = GaugeSpec(
    "workflow_execution_last_success_timestamp_seconds", "When an execution last completed, in unix seconds.", _WORKFLOW
)
LAST_FAILURE: Final = GaugeSpec(
    "workflow_execution_last_failure_timestamp_seconds",
    "When an execution last failed, timed out or was lost, in unix seconds; no series while none has.",
    _WORKFLOW,
)
OLDEST_RUNNING: Final = GaugeSpec(
    "workflow_execution_oldest_running_start_timestamp_seconds",
    "When the oldest execution still running started, in unix seconds; no series while none runs.",
    _WORKFLOW,
)
STEP_COST: Final = CounterSpec(
    "workflow_step_cost_usd_total", "US dollars that steps reported as spent.", (*_STEP, "model")
)
STEP_TOKENS: Final = CounterSpec(
    "workflow_step_tokens_total", "Tokens that steps reported, by type (input, output).", (*_STEP, "model", "type")
)

STEP_MEASURE: Final = HistogramSpec(
    "workflow_step_measure",
    "Values that steps reported under a declared name, in their unit.",
    (*_STEP, "measure", "unit"),
)

STEP_CPU: Final = HistogramSpec(
    "workflow_step_cpu_seconds",
    "Processor time, user and system, of an attempt of a step and of the processes that it waited for.",
    _STEP,
)
STEP_MEMORY: Final = HistogramSpec(
    "workflow_step_peak_memory_bytes",
    "Largest resident set of any one process of an attempt of a step, if it did not share that process.",
    _STEP,
)
FAILURE_GROUP_FAILURES: Final = CounterSpec(
    "workflow_failure_group_failures_total",
    "Failures of steps and executions by cause: the id of their failure group. Retried attempts count, too; whatever "
    "failed only because something inside it did, does not.",
    (*_WORKFLOW, "group"),
)

EXPECTED_START: Final = GaugeSpec(
    "workflow_expected_start_timestamp_seconds",
    "When a workflow with a schedule is due to start next, or was and has not; in unix seconds.",
    _WORKFLOW,
)
LATE: Final = GaugeSpec(
    "workflow_late", "1 while a workflow with a schedule has not started although its grace is over, else 0.", _WORKFLOW
)
OVERDUE: Final = GaugeSpec(
    "workflow_overdue",
    "1 while an execution runs past the workflow's deadline, else 0; no series without a deadline.",
    _WORKFLOW,
)
STEP_OVERDUE: Final = GaugeSpec(
    "workflow_step_overdue",
    "1 while a step runs past its deadline or, where neither it nor its workflow has one, for far longer than usual; "
    "else 0 for steps with a deadline.",
    _STEP,
)
FLAPPING: Final = GaugeSpec(
    "workflow_flapping",
    "1 while a workflow fails and succeeds by turns: from a failure soon after another to the third success in a row; "
    "else 0.",
    _WORKFLOW,
)
QUEUE_LENGTH: Final = GaugeSpec(
    "workflow_queue_length",
    "Messages of an engine's queue that are due and that nobody has taken; none while its broker does not answer.",
    ("engine", "broker", "queue"),
)
QUEUE_OLDEST: Final = GaugeSpec(
    "workflow_queue_oldest_message_timestamp_seconds",
    "Since when the oldest message of a queue waits, in unix seconds; none if it is empty, or if nobody can say.",
    ("engine", "broker", "queue"),
)
QUEUE_METRICS: Final[tuple[MetricSpec, ...]] = (QUEUE_LENGTH, QUEUE_OLDEST)
"""What waits in the queues of engines; shown by the service that asks their brokers."""

EXPECTATION_METRICS: Final[tuple[MetricSpec, ...]] = (EXPECTED_START, LATE, OVERDUE, STEP_OVERDUE, FLAPPING)
"""Every metric about what is expected of workflows."""

METRICS: Final[tuple[MetricSpec, ...]] = (
    EXECUTION_DURATION, STEP_DURATION, STEP_WAIT, STEP_ATTEMPTS, STEP_RETRIES, STEPS_SKIPPED, EXECUTIONS_STARTED,
    EXECUTIONS_RUNNING, STEPS_RUNNING, CRITICAL_PATH, LAST_SUCCESS, LAST_FAILURE, OLDEST_RUNNING, STEP_COST,
    STEP_TOKENS, STEP_MEASURE, FAILURE_GROUP_FAILURES, STEP_CPU, STEP_MEMORY,
)  # fmt: skip
"""Every metric about workflows."""
