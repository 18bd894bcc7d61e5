"""The rules for spans of known engines; the first match wins."""

from __future__ import annotations

from typing import Final

from tachograph.spans import semconv
from tachograph_exporter.ingest.lineage.vocabulary import LINEAGE_RULES
from tachograph_exporter.ingest.rules import Role, Rule, Rulebook, attribute, of_resource
from tachograph_exporter.ingest.spans import SpanRecord


def after_colon(span: SpanRecord) -> str:
    """``RunActivity:charge`` → ``charge``."""
    return span.name.partition(":")[2] or span.name


def parent(span: SpanRecord) -> str | None:
    """The id of the parent span."""
    return span.parent_span_id or None


def by_exception(span: SpanRecord) -> str:
    """The outcome of a span that has an exception, but no error status, when it failed."""
    if span.exception is None and not span.is_error:
        return "success"
    return "cancellation" if span.exception is not None and "Cancel" in span.exception[0] else "failure"


def airflow_task(span: SpanRecord) -> str:
    """The key of a task instance, the same for all its tries."""
    return f"{span.attributes.get('airflow.task_id')}[{span.attributes.get('airflow.task_instance.map_index', -1)}]"


RESULTS: Final = {
    "success": "completed", "failure": "failed", "error": "failed", "timeout": "timeout", "cancellation": "cancelled",
    "skip": "skipped", "completed": "completed", "failed": "failed", "cancelled": "cancelled", "lost": "failed",
    "skipped": "skipped", "upstream_failed": "skipped", "removed": "skipped", "retry": "failed", "revoked": "cancelled",
    "up_for_retry": "failed", "timed_out": "timeout", "neutral": "completed", "stale": "cancelled",
}  # fmt: skip

RULES: Final[tuple[Rule, ...]] = (
    *LINEAGE_RULES,
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
    Rule(engine="cicd", role=Role.STEP, has=("cicd.pipeline.task.name",), name=attribute("cicd.pipeline.task.name"),
         state=attribute("cicd.pipeline.task.run.result", "cicd.pipeline.task.run.status",
                         "cicd.pipeline.run.task.status"), states=RESULTS),
    Rule(engine="cicd", role=Role.EXECUTION, has=("cicd.pipeline.name",), name=attribute("cicd.pipeline.name"),
         run_id=attribute("cicd.pipeline.run.id"), state=attribute("cicd.pipeline.result"), states=RESULTS),
    Rule(engine="github", role=Role.INSIDE, has=("cicd.pipeline.run.queue.duration",)),
    Rule(engine="github", role=Role.STEP, resource_has=("cicd.pipeline.task.run.id",),
         state=of_resource("cicd.pipeline.run.task.status", "cicd.pipeline.task.run.status"), states=RESULTS),
    Rule(engine="github", role=Role.EXECUTION, resource_has=("cicd.pipeline.run.id", "cicd.pipeline.name"),
         name=of_resource("cicd.pipeline.name"), state=of_resource("cicd.pipeline.run.status"), states=RESULTS),
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
    Rule(engine="airflow", role=Role.EXECUTION, equals={"airflow.category": "DAG runs"},
         name=attribute("airflow.dag_run.dag_id"), run_id=attribute("airflow.dag_run.run_id"),
         state=attribute("airflow.dag_run.state"), states=RESULTS),
    Rule(engine="prefect", role=Role.STEP, equals={"prefect.run.type": "task"},
         name=attribute("prefect.task.name", "prefect.run.name")),
    Rule(engine="prefect", role=Role.EXECUTION, equals={"prefect.run.type": "flow"},
         name=attribute("prefect.flow.name", "prefect.run.name"), run_id=attribute("prefect.run.id")),
    # The Python SDK exports zero-length spans inside a workflow, because the workflow may be replayed. The SDKs of Go,
    # Java and TypeScript export one span for the run.
    Rule(engine="temporal", role=Role.EXECUTION, has=("temporalWorkflowID",), names=("RunWorkflow:",), opens=True,
         name=after_colon, run_id=attribute("temporalRunID"), series=attribute("temporalWorkflowID")),
    Rule(engine="temporal", role=Role.END, has=("temporalRunID",), names=("CompleteWorkflow:",), name=after_colon,
         run_id=attribute("temporalRunID"), state=by_exception, states=RESULTS),
    Rule(engine="temporal", role=Role.STEP, has=("temporalActivityID",), names=("RunActivity:",), name=after_colon,
         run_id=attribute("temporalRunID"), key=parent, retries=True),
    Rule(engine="temporal", role=Role.QUEUED, names=("StartActivity:",), has=("temporalRunID",), name=after_colon,
         run_id=attribute("temporalRunID")),
    Rule(engine="temporal", role=Role.INSIDE,
         has=("temporalWorkflowID",), run_id=attribute("temporalRunID"),
         names=("StartWorkflow:", "SignalWithStartWorkflow:", "StartUpdateWithStartWorkflow:", "SignalWorkflow:",
                "HandleSignal:", "QueryWorkflow:", "HandleQuery:", "StartChildWorkflow:", "SignalChildWorkflow:",
                "SignalExternalWorkflow:", "ValidateUpdate:", "HandleUpdate:", "StartWorkflowUpdate:")),
    Rule(engine="celery", role=Role.QUEUED, equals={"celery.action": "apply_async"}, lasting=True,
         name=attribute("celery.task_name"), key=attribute("messaging.message.id", "messaging.message_id")),
    Rule(engine="celery", role=Role.STEP, equals={"celery.action": "run"}, lasting=True,
         name=attribute("celery.task_name"), attempt=attribute("celery.retries"), first_attempt=0,
         state=attribute("celery.state"), states=RESULTS, why=attribute("celery.retry.reason"),
         key=attribute("messaging.message.id", "messaging.message_id")),
    # A step's parent is the first step that it waited for, with links to the others.
    Rule(engine="dagster", role=Role.STEP, has=("dagster.run_id", "dagster.step_key"), lasting=True, follows=True,
         name=attribute("dagster.step_key"), workflow=attribute("dagster.job_name"), run_id=attribute("dagster.run_id"),
         attempt=attribute("dagster.retry_number"), first_attempt=0, key=attribute("dagster.step_key")),
)  # fmt: skip


BUILT_IN: Final = Rulebook(RULES)
ANY: Final = Rule(engine="any", role=Role.STEP)
"""Stands in for a rule when only the shape of the trace says that a span is an execution or a step."""
