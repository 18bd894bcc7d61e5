"""Which spans are executions, steps and attempts: one table, first match wins.

Sources of the names: our own (`semconv`); OpenTelemetry's CI/CD conventions
(https://opentelemetry.io/docs/specs/semconv/cicd/cicd-spans/); Airflow 3 (``dag_run.*``, ``task_run.*``, ``worker.*``
spans of airflow.models.dagrun and the task SDK); Prefect 3 (prefect.telemetry.run_telemetry); Temporal's Python
interceptor (temporalio.contrib.opentelemetry); Celery (opentelemetry-instrumentation-celery); Dagster (dagster-otel's
resource, opentelemetry-instrumentation-dagster); GitHub Actions (the collector's githubreceiver, which describes a run
and a job on their resource). For everything else the root span of a trace is the execution and its children are the
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import msgspec

from tachograph.exporter.ingest.spans import SpanRecord
from tachograph.instrumentation import semconv


class Role(Enum):
    """What a span is to us."""

    EXECUTION = "execution"
    STEP = "step"
    ATTEMPT = "attempt"
    END = "end"
    """Says only when, and how, an execution ended."""
    QUEUED = "queued"
    """A step was asked for; the span of its run is a child of this one and begins when a worker takes it."""
    INSIDE = "inside"
    """Part of a step: kept, shown in traces, nothing of its own in a timeline."""


Read = Callable[[SpanRecord], Any]


def attribute(*names: str) -> Read:
    """The first of these attributes that is there, else None."""

    def read(span: SpanRecord) -> Any:
        return next((span.attributes[name] for name in names if span.attributes.get(name) is not None), None)

    return read


def of_resource(*names: str) -> Read:
    """The first of these attributes that the span's resource has, else None."""

    def read(span: SpanRecord) -> Any:
        return next((span.around[name] for name in names if span.around.get(name) is not None), None)

    return read


def after_colon(span: SpanRecord) -> str:
    """``RunActivity:charge`` → ``charge``."""
    return span.name.partition(":")[2] or span.name


def own_name(span: SpanRecord) -> str:
    """The span's name."""
    return span.name


def parent(span: SpanRecord) -> str | None:
    """The span above it."""
    return span.parent_span_id or None


def by_exception(span: SpanRecord) -> str:
    """How something ended whose span has an exception, but no status, when it failed."""
    if span.exception is None and not span.is_error:
        return "success"
    return "cancellation" if span.exception is not None and "Cancel" in span.exception[0] else "failure"


def airflow_task(span: SpanRecord) -> str:
    """A task instance: the same for all its tries."""
    return f"{span.attributes.get('airflow.task_id')}[{span.attributes.get('airflow.task_instance.map_index', -1)}]"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Spans of one kind.

    A span matches when it has all of ``has`` and none of ``lacks``, the values of ``equals``, a resource that has all
    of ``resource_has``, and a name and an instrumentation scope that begin with one of ``names`` and one of ``scopes``
    (when there are any). ``name`` reads the workflow's or step's name, ``run_id`` the execution's id in its engine,
    ``attempt`` the number of the attempt (from ``first_attempt``), ``state`` a word of ``states``, ``why`` what went
    wrong. Steps with the same ``key`` are attempts of one step. ``workflow`` names the workflow where no execution's
    own span does. ``follows``: the step above it is what it waited for, not what it is part of. ``lasting``: an
    execution with such spans ends with the last of its steps, not with the span above them. ``opens``: a span of no
    length says when an execution began, and one of role END when it ended. ``retries``: a step that failed may be
    tried again for as long as its execution runs.
    """

    engine: str
    role: Role
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    equals: Mapping[str, Any] = {}
    resource_has: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    name: Read = own_name
    workflow: Read | None = None
    run_id: Read | None = None
    workflow_id: Read | None = None
    version: Read | None = None
    attempt: Read | None = None
    first_attempt: int = 1
    state: Read | None = None
    why: Read | None = None
    states: Mapping[str, str] = {}
    key: Read | None = None
    follows: bool = False
    lasting: bool = False
    opens: bool = False
    retries: bool = False

    def matches(self, span: SpanRecord) -> bool:
        """Whether the span is of this kind."""
        # Loops, for this is asked of every span by every rule: `all` and `any` cost four times as much.
        known, around = span.attributes, span.around
        if self.names and not span.name.startswith(self.names):
            return False
        for name in self.has:
            if name not in known:
                return False
        for name, value in self.equals.items():
            if known.get(name) != value:
                return False
        for name in self.resource_has:
            if name not in around:
                return False
        for name in self.lacks:
            if name in known:
                return False
        return not self.scopes or span.scope.startswith(self.scopes)

    def status(self, span: SpanRecord) -> str:
        """How the span ended: completed, failed, cancelled, timeout, skipped."""
        word = self.state(span) if self.state is not None else None
        found = self.states.get(str(word).lower()) if word is not None else None
        return found or ("failed" if span.is_error else "completed")


RESULTS: Final = {
    "success": "completed", "failure": "failed", "error": "failed", "timeout": "timeout", "cancellation": "cancelled",
    "skip": "skipped", "completed": "completed", "failed": "failed", "cancelled": "cancelled", "lost": "failed",
    "skipped": "skipped", "upstream_failed": "skipped", "removed": "skipped", "retry": "failed", "revoked": "cancelled",
    "up_for_retry": "failed", "timed_out": "timeout", "neutral": "completed", "stale": "cancelled",
}  # fmt: skip

RULES: Final[tuple[Rule, ...]] = (
    # --- our own
    Rule(engine="tachograph", role=Role.ATTEMPT, has=(semconv.STEP_NAME, semconv.STEP_ATTEMPT),
         lacks=(semconv.TASK_NAME,), name=attribute(semconv.STEP_NAME), run_id=attribute(semconv.EXECUTION_ID),
         attempt=attribute(semconv.STEP_ATTEMPT), state=attribute(semconv.STEP_STATUS), states=RESULTS),
    Rule(engine="tachograph", role=Role.STEP, has=(semconv.STEP_NAME,), name=attribute(semconv.STEP_NAME),
         run_id=attribute(semconv.EXECUTION_ID), attempt=attribute(semconv.STEP_ATTEMPT),
         state=attribute(semconv.STEP_STATUS), states=RESULTS),
    Rule(engine="tachograph", role=Role.EXECUTION, has=(semconv.EXECUTION_ID, semconv.WORKFLOW_NAME),
         name=attribute(semconv.WORKFLOW_NAME), run_id=attribute(semconv.EXECUTION_ID),
         workflow_id=attribute(semconv.WORKFLOW_ID), version=attribute(semconv.WORKFLOW_VERSION),
         state=attribute(semconv.EXECUTION_STATUS), states=RESULTS),
    # --- OpenTelemetry CI/CD: GitHub Actions, GitLab, Jenkins, Tekton exporters
    Rule(engine="cicd", role=Role.STEP, has=("cicd.pipeline.task.name",), name=attribute("cicd.pipeline.task.name"),
         state=attribute("cicd.pipeline.task.run.result", "cicd.pipeline.task.run.status",
                         "cicd.pipeline.run.task.status"), states=RESULTS),
    Rule(engine="cicd", role=Role.EXECUTION, has=("cicd.pipeline.name",), name=attribute("cicd.pipeline.name"),
         run_id=attribute("cicd.pipeline.run.id"), state=attribute("cicd.pipeline.result"), states=RESULTS),
    # --- GitHub Actions by the collector's github receiver, which says what a run and a job are on their resource
    Rule(engine="github", role=Role.INSIDE, has=("cicd.pipeline.run.queue.duration",)),
    Rule(engine="github", role=Role.STEP, resource_has=("cicd.pipeline.task.run.id",),
         state=of_resource("cicd.pipeline.run.task.status", "cicd.pipeline.task.run.status"), states=RESULTS),
    Rule(engine="github", role=Role.EXECUTION, resource_has=("cicd.pipeline.run.id", "cicd.pipeline.name"),
         name=of_resource("cicd.pipeline.name"), state=of_resource("cicd.pipeline.run.status"), states=RESULTS),
    # --- Airflow 3: what the scheduler saw is the step, what the worker did is an attempt
    Rule(engine="airflow", role=Role.ATTEMPT, has=("airflow.task_id",), names=("worker.",),
         name=attribute("airflow.task_id"), attempt=attribute("airflow.task_instance.try_number")),
    Rule(engine="airflow", role=Role.STEP, has=("airflow.task_id",), names=("task_run.",),
         name=attribute("airflow.task_id"), workflow=attribute("airflow.dag_id"),
         run_id=attribute("airflow.dag_run.run_id"),
         attempt=attribute("airflow.task_instance.try_number"), state=attribute("airflow.task_instance.state"),
         states=RESULTS, key=airflow_task),
    Rule(engine="airflow", role=Role.EXECUTION, names=("dag_run.",),
         has=("airflow.dag_run.run_id",), name=attribute("airflow.dag_id", "airflow.dag_run.dag_id"),
         run_id=attribute("airflow.dag_run.run_id"), state=attribute("airflow.dag_run.state"), states=RESULTS),
    # --- Airflow 2.10 and 2.11
    Rule(engine="airflow", role=Role.EXECUTION, equals={"airflow.category": "DAG runs"},
         name=attribute("airflow.dag_run.dag_id"), run_id=attribute("airflow.dag_run.run_id"),
         state=attribute("airflow.dag_run.state"), states=RESULTS),
    # --- Prefect 3
    Rule(engine="prefect", role=Role.STEP, equals={"prefect.run.type": "task"},
         name=attribute("prefect.task.name", "prefect.run.name")),
    Rule(engine="prefect", role=Role.EXECUTION, equals={"prefect.run.type": "flow"},
         name=attribute("prefect.flow.name", "prefect.run.name"), run_id=attribute("prefect.run.id")),
    # --- Temporal: the activity is the step, each time it runs an attempt. The interceptor of Python makes only points
    # inside a workflow, for the workflow may be replayed; those of Go, Java and TypeScript make one span for the run
    Rule(engine="temporal", role=Role.EXECUTION, has=("temporalWorkflowID",), names=("RunWorkflow:",), opens=True,
         name=after_colon, run_id=attribute("temporalRunID")),
    Rule(engine="temporal", role=Role.END, has=("temporalRunID",), names=("CompleteWorkflow:",), name=after_colon,
         run_id=attribute("temporalRunID"), state=by_exception, states=RESULTS),
    Rule(engine="temporal", role=Role.STEP, has=("temporalActivityID",), names=("RunActivity:",), name=after_colon,
         run_id=attribute("temporalRunID"), key=parent, retries=True),
    Rule(engine="temporal", role=Role.QUEUED, names=("StartActivity:",), has=("temporalRunID",), name=after_colon,
         run_id=attribute("temporalRunID")),
    Rule(engine="temporal", role=Role.INSIDE,
         has=("temporalWorkflowID",),
         names=("StartWorkflow:", "SignalWithStartWorkflow:", "StartUpdateWithStartWorkflow:", "SignalWorkflow:",
                "HandleSignal:", "QueryWorkflow:", "HandleQuery:", "StartChildWorkflow:", "SignalChildWorkflow:",
                "SignalExternalWorkflow:", "ValidateUpdate:", "HandleUpdate:", "StartWorkflowUpdate:")),
    # --- Celery: who calls a task does not wait for it; where nobody does, the first task names the execution
    Rule(engine="celery", role=Role.QUEUED, equals={"celery.action": "apply_async"}, lasting=True,
         name=attribute("celery.task_name"), key=attribute("messaging.message.id", "messaging.message_id")),
    Rule(engine="celery", role=Role.STEP, equals={"celery.action": "run"}, lasting=True,
         name=attribute("celery.task_name"), attempt=attribute("celery.retries"), first_attempt=0,
         state=attribute("celery.state"), states=RESULTS, why=attribute("celery.retry.reason"),
         key=attribute("messaging.message.id", "messaging.message_id")),
    # --- Dagster: steps that say which run they are of; the run has no span. Each attempt has one of its own, below the
    # first step it waited for, with links to the others
    Rule(engine="dagster", role=Role.STEP, has=("dagster.run_id", "dagster.step_key"), lasting=True, follows=True,
         name=attribute("dagster.step_key"), workflow=attribute("dagster.job_name"), run_id=attribute("dagster.run_id"),
         attempt=attribute("dagster.retry_number"), first_attempt=0, key=attribute("dagster.step_key")),
)  # fmt: skip


class Rulebook:
    """Rules in order; the first that a span matches says what it is."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self.rules = tuple(rules)
        # Most spans are of no kind that is known; that is found out without trying every rule.
        self._attributes = frozenset(name for rule in rules for name in (*rule.has, *rule.equals))
        self._resource = frozenset(name for rule in rules for name in rule.resource_has)
        self._names = tuple(
            name for rule in rules if not (rule.has or rule.equals or rule.resource_has) for name in rule.names or ("",)
        )

    def find(self, span: SpanRecord) -> Rule | None:
        """The first rule that a span matches."""
        if (
            self._attributes.isdisjoint(span.attributes)
            and self._resource.isdisjoint(span.around)
            and not span.name.startswith(self._names)
        ):
            return None
        return next((rule for rule in self.rules if rule.matches(span)), None)


BUILT_IN: Final = Rulebook()
ANY: Final = Rule(engine="any", role=Role.STEP)
"""What spans of no known kind are, where the shape of the trace says that they are executions or steps."""
