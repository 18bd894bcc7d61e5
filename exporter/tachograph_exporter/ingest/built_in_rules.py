"""The rules for spans of known engines; the first match wins.

Every attribute that a rule reads is set by the source named beside it; the versions are those that were read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tachograph.spans import celery_tasks, semconv
from tachograph_exporter.ingest.agent_rules import AGENT_RULES
from tachograph_exporter.ingest.lineage.vocabulary import LINEAGE_RULES
from tachograph_exporter.ingest.rules import (
    RETRYING,
    RUNNING,
    Kind,
    Links,
    Moment,
    Read,
    Role,
    Rule,
    Rulebook,
    attribute,
    is_cancellation,
    own_name,
)
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.usage import usage_of


def after_colon(span: SpanRecord) -> str:
    """``RunActivity:charge`` → ``charge``."""
    return span.name.partition(":")[2] or span.name


def joined(*names: str) -> Read:
    """Reads all of these attributes as one value; None if the span lacks one of them."""

    def read(span: SpanRecord) -> str | None:
        values = [span.attributes.get(name) for name in names]
        return None if None in values else "/".join(map(str, values))

    return read


def moment(name: str) -> Read:
    """Reads an attribute that is a time as text (ISO 8601, with an offset) as unix nanoseconds."""

    def read(span: SpanRecord) -> int | None:
        value = span.attributes.get(name)
        try:
            time = datetime.fromisoformat(value) if isinstance(value, str) else None
        except ValueError:
            return None
        if time is None or time.tzinfo is None:
            return None
        elapsed = time - datetime(1970, 1, 1, tzinfo=UTC)
        return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000_000 + elapsed.microseconds * 1_000

    return read


def milliseconds(name: str) -> Read:
    """Reads an attribute that is a unix time in milliseconds as nanoseconds."""

    def read(span: SpanRecord) -> int | None:
        value = span.attributes.get(name)
        return value * 1_000_000 if isinstance(value, int) and 0 < value < 1 << 43 else None

    return read


def by_exception(span: SpanRecord) -> str:
    """The outcome of a span that has an exception, but no error status, when it failed."""
    if span.exception is None and not span.is_error:
        return "success"
    return "cancellation" if span.exception is not None and is_cancellation(span.exception[0]) else "failure"


def arq_state(span: SpanRecord) -> str:
    """How a job ended: its span says OK when it went well, and nothing when it was cancelled, by its timeout too."""
    if span.exception is not None and span.exception[0] == "arq.worker.Retry":
        return "retry"
    return "success" if span.status_code == 1 else "failure"


def celery_state(span: SpanRecord) -> Any:
    """The state of a task. It has none if its process was told to stop, and came to end its span."""
    return span.attributes.get("celery.state") or ("failure" if span.is_error else "revoked")


def celery_message(span: SpanRecord) -> str | None:
    """The key of a task: the id of its message and its name. What a task replaces itself by has the same id."""
    message = _MESSAGE(span)
    return None if message is None else f"{message}/{span.attributes.get('celery.task_name')}"


def celery_together(span: SpanRecord) -> list[str]:
    """The ids that tasks have in common: of their group, and of the task that all of them come from.

    Only ids that Celery has made: a program may give tasks ids of its own, and the same to one every day.
    """
    ids = [span.attributes.get(name) for name in (celery_tasks.GROUP_ID, celery_tasks.ROOT_ID)]
    return [value for value in ids if isinstance(value, str) and _CELERY_ID.fullmatch(value)]


def airflow_task(span: SpanRecord) -> str:
    """The key of a task instance, the same for all its tries."""
    attributes = span.attributes
    return f"{attributes.get('airflow.task_id')}[{attributes.get('airflow.task_instance.map_index', -1)}]"


def airflow_index(span: SpanRecord) -> Any:
    """The map index of a task instance; it is negative for a task that is not mapped."""
    value = span.attributes.get("airflow.task_instance.map_index")
    return value if type(value) is int and value >= 0 else None


_CELERY_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INSTANCE: Final = re.compile(r"(?s)(.*)\[([^\[\]]*)\]")


def without_index(name: str) -> Read:
    """Reads an attribute without the part in brackets at its end: ``work[eu]`` → ``work``."""

    def read(span: SpanRecord) -> str:
        value = str(span.attributes.get(name))
        match = _INSTANCE.fullmatch(value)
        return match[1] if match is not None and match[1] else value

    return read


def index_in(name: str) -> Read:
    """Reads the part in brackets at the end of an attribute: ``work[eu]`` → ``eu``."""

    def read(span: SpanRecord) -> str | None:
        match = _INSTANCE.fullmatch(str(span.attributes.get(name)))
        return match[2] if match is not None and match[1] else None

    return read


_RUN_SUFFIX: Final = re.compile(r"(?s)(.+)-(?:[0-9a-f]{3}|\d+)")


def prefect_task(span: SpanRecord) -> str:
    """The name of a task: its run is called like it, with the first three hex digits (or the number) of its key."""
    name = str(span.attributes.get("prefect.run.name") or span.name)
    match = _RUN_SUFFIX.fullmatch(name)
    return match[1] if match is not None else name


def prefect_flow(span: SpanRecord) -> str:
    """What is the same in all runs of a flow. Their own names are made up anew for each, and spans have no others."""
    return str(span.attributes.get("prefect.flow.id") or span.service)


def prefect_state(span: SpanRecord) -> str | None:
    """The last state of a run, by its name where that says more than its type."""
    for event in reversed(span.events):
        kind = event.attributes.get("prefect.state.type")
        if kind is not None:
            name = str(event.attributes.get("prefect.state.name"))
            return name if name in ("NotReady", "TimedOut", "AwaitingRetry") else str(kind)
    return None


def prefect_moments(span: SpanRecord) -> Sequence[Moment]:
    """The attempts of a run: from each state of type RUNNING to the next state of another type.

    A run that was paused or suspended goes on with the same attempt.
    """
    moments: list[Moment] = []
    exception: tuple[str, str, str] | None = None
    began_ns = 0
    for event in span.events:
        kind = event.attributes.get("prefect.state.type")
        if event.name == "exception" and kind is None:
            found = event.attributes
            exception = (str(found.get("exception.type", "")), str(found.get("exception.message", "")), "")
        elif kind == "RUNNING":
            began_ns = began_ns or event.time_ns
        elif began_ns and kind == "SCHEDULED" and event.name == "AwaitingRetry":
            moments.append(Moment(began_ns, event.time_ns, RETRYING, exception))
            began_ns, exception = 0, None
    if began_ns:
        status = RESULTS.get(str(prefect_state(span)).lower(), "failed" if span.is_error else "completed")
        failed = span.exception if status != "completed" else None
        moments.append(Moment(began_ns, span.end_ns, status if span.end_ns else "running", failed))
    return moments


RESULTS: Final = {
    "success": "completed", "failure": "failed", "error": "failed", "timeout": "timeout", "cancellation": "cancelled",
    "skip": "skipped", "completed": "completed", "failed": "failed", "cancelled": "cancelled", "lost": "failed",
    "skipped": "skipped", "upstream_failed": "skipped", "removed": "skipped", "retry": RETRYING, "revoked": "cancelled",
    "up_for_retry": RETRYING, "retrying": RETRYING, "timed_out": "timeout", "neutral": "completed",
    "stale": "cancelled", "crashed": "failed", "timedout": "timeout", "notready": "skipped", "awaitingretry": RETRYING,
    "rejected": "cancelled", "pass": "completed", "warn": "completed", "fail": "failed",
}  # fmt: skip

TACHOGRAPH: Final = (
    Rule(engine="tachograph", role=Role.ATTEMPT, has=(semconv.STEP_NAME, semconv.STEP_ATTEMPT),
         lacks=(semconv.TASK_NAME,), name=attribute(semconv.STEP_NAME), run_id=attribute(semconv.EXECUTION_ID),
         attempt=attribute(semconv.STEP_ATTEMPT), state=attribute(semconv.STEP_STATUS), states=RESULTS),
    Rule(engine="tachograph", role=Role.STEP, has=(semconv.STEP_NAME,), name=attribute(semconv.STEP_NAME),
         run_id=attribute(semconv.EXECUTION_ID), attempt=attribute(semconv.STEP_ATTEMPT),
         state=attribute(semconv.STEP_STATUS), states=RESULTS, links=Links.IF_ANY, usage=usage_of),
    Rule(engine="tachograph", role=Role.EXECUTION, has=(semconv.EXECUTION_ID, semconv.WORKFLOW_NAME),
         name=attribute(semconv.WORKFLOW_NAME), run_id=attribute(semconv.EXECUTION_ID),
         workflow_id=attribute(semconv.WORKFLOW_ID), version=attribute(semconv.WORKFLOW_VERSION),
         state=attribute(semconv.EXECUTION_STATUS), states=RESULTS),
)  # fmt: skip

# Airflow 3.3: airflow.models.dagrun (dag_run), the execution API's task_instances (task_run: one for each try, all with
# the same span id, from when it was queued), the task SDK's task_runner (worker, the process of a try).
_AIRFLOW_TASK: Final[dict[str, Any]] = {
    "engine": "airflow", "has": ("airflow.task_id",), "name": attribute("airflow.task_id"),
    "index": airflow_index, "workflow": attribute("airflow.dag_id"), "run_id": attribute("airflow.dag_run.run_id"),
    "attempt": attribute("airflow.task_instance.try_number"), "key": airflow_task, "states": RESULTS,
    "blocks": True,
}  # fmt: skip
AIRFLOW: Final = (
    # A task that is deferred goes on in the triggerer, which may also end it, without a further span of the task.
    Rule(role=Role.ATTEMPT, names=("worker.", "trigger."), **_AIRFLOW_TASK),
    Rule(role=Role.STEP, names=("task_run.",), state=attribute("airflow.task_instance.state"), reused=True,
         **_AIRFLOW_TASK),
    Rule(engine="airflow", role=Role.INSIDE, names=("trigger.",), has=("airflow.trigger.name",),
         run_id=attribute("airflow.dag_run.run_id")),
    Rule(engine="airflow", role=Role.EXECUTION, names=("dag_run.",), has=("airflow.dag_run.run_id",),
         name=attribute("airflow.dag_id"), run_id=attribute("airflow.dag_run.run_id"),
         queued=moment("airflow.dag_run.queued_at"), began=moment("airflow.dag_run.start_date")),
)  # fmt: skip

# Prefect 3.4 and 3.9: prefect.telemetry.run_telemetry; states are events of a run's span.
PREFECT: Final = (
    Rule(engine="prefect", role=Role.STEP, equals={"prefect.run.type": "task"}, name=prefect_task,
         moments=prefect_moments, state=prefect_state, states=RESULTS, links=Links.IF_ANY),
    Rule(engine="prefect", role=Role.EXECUTION, equals={"prefect.run.type": "flow"}, name=prefect_flow,
         run_id=attribute("prefect.run.id"), state=prefect_state, states={**RESULTS, "running": RUNNING}),
)  # fmt: skip

# Temporal: temporalio.contrib.opentelemetry. The Python interceptor exports zero-length spans inside a workflow,
# because the workflow may be replayed; its plugin and the interceptors of Go, Java and TypeScript export one span for
# the run.
_TEMPORAL_ID: Final = attribute("temporalWorkflowID")
# temporalio.exceptions: "Activity task failed", "Child Workflow execution failed".
_TEMPORAL_WRAPS: Final = frozenset({"temporalio.exceptions.ActivityError", "temporalio.exceptions.ChildWorkflowError"})
TEMPORAL: Final = (
    Rule(engine="temporal", role=Role.EXECUTION, has=("temporalWorkflowID",), names=("RunWorkflow:",), opens=True,
         name=after_colon, run_id=attribute("temporalRunID"), series=_TEMPORAL_ID,
         state=by_exception, states=RESULTS, wraps=_TEMPORAL_WRAPS, across_traces=True),
    Rule(engine="temporal", role=Role.END, has=("temporalRunID",), names=("CompleteWorkflow:",), name=after_colon,
         run_id=attribute("temporalRunID"), series=_TEMPORAL_ID, state=by_exception, states=RESULTS,
         wraps=_TEMPORAL_WRAPS, across_traces=True),
    Rule(engine="temporal", role=Role.STEP, has=("temporalActivityID",), names=("RunActivity:",), name=after_colon,
         run_id=attribute("temporalRunID"), series=_TEMPORAL_ID, key=joined("temporalRunID", "temporalActivityID"),
         state=by_exception, states=RESULTS, retries=True, across_traces=True),
    Rule(engine="temporal", role=Role.QUEUED, names=("StartActivity:",), has=("temporalRunID",), name=after_colon,
         run_id=attribute("temporalRunID"), series=_TEMPORAL_ID, across_traces=True),
    Rule(engine="temporal", role=Role.INSIDE, has=("temporalWorkflowID",), workflow=after_colon, series=_TEMPORAL_ID,
         names=("StartWorkflow:", "SignalWithStartWorkflow:", "StartUpdateWithStartWorkflow:")),
    Rule(engine="temporal", role=Role.INSIDE,
         has=("temporalWorkflowID",), run_id=attribute("temporalRunID"),
         names=("SignalWithStartWorkflow", "SignalWorkflow:", "HandleSignal:", "QueryWorkflow:", "HandleQuery:",
                "StartChildWorkflow:", "SignalChildWorkflow:", "SignalExternalWorkflow:", "ValidateUpdate:",
                "HandleUpdate:", "StartWorkflowUpdate:", "StartNexusOperation:")),
)  # fmt: skip

# Celery: opentelemetry-instrumentation-celery 0.66; the ids of roots, groups and chords are from
# `tachograph.spans.celery_tasks`.
_MESSAGE: Final = attribute("messaging.message.id", "messaging.message_id")
CELERY: Final = (
    Rule(engine="celery", role=Role.QUEUED, equals={"celery.action": "apply_async"}, name=attribute("celery.task_name"),
         key=celery_message, known_as=_MESSAGE, lasting=True, together=celery_together),
    Rule(engine="celery", role=Role.STEP, equals={"celery.action": "run"}, name=attribute("celery.task_name"),
         attempt=attribute("celery.retries"), first_attempt=0, state=celery_state, states=RESULTS,
         why=attribute("celery.retry.reason"), key=celery_message, due=moment("celery.eta"), lasting=True, linked=True,
         together=celery_together, releases=attribute(celery_tasks.CHORD_ID), known_as=_MESSAGE),
)  # fmt: skip

# Dagster: dagster-otel 0.5. A step's parent is the first step that it waited for, with links to the others.
DAGSTER: Final = (
    Rule(engine="dagster", role=Role.STEP, has=("dagster.run_id", "dagster.step_key"), follows=True,
         name=without_index("dagster.step_key"), index=index_in("dagster.step_key"),
         workflow=attribute("dagster.job_name"), run_id=attribute("dagster.run_id"),
         attempt=attribute("dagster.retry_number"), first_attempt=0,
         key=joined("dagster.run_id", "dagster.step_key"), links=Links.COMPLETE, lasting=True, across_traces=True),
)  # fmt: skip

# RQ: opentelemetry-instrumentation-rq 0.1. A job with dependencies is published when they are met; its worker's parent
# process notes how a job ended, also when the process of the job was killed.
_RQ: Final[dict[str, Any]] = {
    "engine": "rq", "has": ("rq.job.id", "messaging.operation.name"), "name": attribute("rq.job.function"),
    "key": attribute("rq.job.id"), "links": Links.COMPLETE, "lasting": True,
}  # fmt: skip
RQ: Final = (
    Rule(role=Role.QUEUED, names=("setup dependencies",), waits=True, **_RQ),
    Rule(role=Role.QUEUED, names=("schedule",), schedules=True, **_RQ),
    Rule(role=Role.QUEUED, names=("publish",), **_RQ),
    Rule(role=Role.STEP, names=("consume",), repeats=True, **_RQ),
    Rule(role=Role.OUTCOME, names=("perform", "handle_job_success"), **_RQ),
    Rule(role=Role.OUTCOME, names=("handle_job_failure",), outcome="failed", **_RQ),
    Rule(role=Role.INSIDE, names=("success_callback", "failure_callback", "stopped_callback"), **_RQ),
)  # fmt: skip

# arq: opentelemetry-instrumentation-arq 0.50. The score is when the job was due, in milliseconds. A run has the name of
# its Python function, which may have been registered under another.
ARQ: Final = (
    Rule(engine="arq", role=Role.STEP, has=("arq.job.name", "arq.job.try"), name=attribute("arq.job.name"),
         key=attribute("arq.job.id"), attempt=attribute("arq.job.try"), due=milliseconds("arq.job.score"),
         state=arq_state, states=RESULTS, lasting=True),
    Rule(engine="arq", role=Role.QUEUED, has=("arq.job.name", "arq.job.queue"), name=attribute("arq.job.name"),
         key=attribute("arq.job.id"), names_step=True, lasting=True),
)  # fmt: skip

# Dramatiq: opentelemetry-instrumentor-dramatiq 0.1.
DRAMATIQ: Final = (
    Rule(engine="dramatiq", role=Role.QUEUED, has=("actor_name", "message_id"), names=("dramatiq.producer.",),
         name=attribute("actor_name"), key=attribute("message_id"), lasting=True),
    Rule(engine="dramatiq", role=Role.STEP, has=("actor_name", "message_id"), names=("dramatiq.worker.",),
         name=attribute("actor_name"), key=attribute("message_id"), lasting=True),
)  # fmt: skip

# taskiq: taskiq.middlewares.opentelemetry_middleware 0.13. Only the message has its id; a failure that is to be retried
# has its reason in an attribute.
TASKIQ: Final = (
    Rule(engine="taskiq", role=Role.QUEUED, equals={"taskiq.action": "send"}, name=attribute("taskiq.task_name"),
         key=_MESSAGE, lasting=True),
    # The number of retries is the next attempt's if there is one: it says nothing of this one.
    Rule(engine="taskiq", role=Role.STEP, equals={"taskiq.action": "execute"}, name=attribute("taskiq.task_name"),
         why=attribute("taskiq.retry.reason"),
         state=lambda span: "failed" if "taskiq.retry.reason" in span.attributes else None, states=RESULTS,
         lasting=True),
)  # fmt: skip

# Ray: ray.util.tracing.tracing_helper 2.60.
RAY: Final = (
    Rule(engine="ray", role=Role.QUEUED, has=("ray.remote", "ray.function"), kinds=(Kind.PRODUCER,),
         name=attribute("ray.function"), lasting=True),
    Rule(engine="ray", role=Role.STEP, has=("ray.remote", "ray.function"), kinds=(Kind.CONSUMER,),
         name=attribute("ray.function"), lasting=True),
)  # fmt: skip

# dbt 1.12: dbt.task.runnable, dbt.task.run, dbt.clients.jinja. A node's attributes are set at its end; the name of its
# span is its id. The span of an invocation says nothing of what failed in it.
_DBT: Final = "dbt.runner"
_DBT_NODES: Final = tuple(
    f"{kind}."
    for kind in ("model", "test", "seed", "snapshot", "unit_test", "analysis", "source", "exposure", "saved_query",
                 "function", "metric")
)  # fmt: skip
_dbt_name: Final = attribute("name")


def dbt_node(span: SpanRecord) -> str:
    """The name of a node: it is in its id, which is ``model.PROJECT.NAME``, ``test.PROJECT.NAME.HASH`` and the like."""
    name = _dbt_name(span)
    if name is not None:
        return str(name)
    kind, _, *names = span.name.split(".")
    return ".".join(names[1:] if kind == "unit_test" else names[:1]) or span.name


def dbt_version(span: SpanRecord) -> str | None:
    """The version of a model that has several: ``model.PROJECT.NAME.v2``."""
    parts = span.name.split(".")
    return parts[3] if parts[0] == "model" and len(parts) == 4 else None


DBT: Final = (
    Rule(engine="dbt", role=Role.EXECUTION, named=("dbt.invocation",), scopes=(_DBT,),
         name=lambda span: f"dbt {span.attributes.get('command', 'run')}", run_id=attribute("invocation_id"),
         lasting=True),
    Rule(engine="dbt", role=Role.INSIDE, names=("metadata.setup", "on-run-start", "on-run-end", "hooks."),
         scopes=(_DBT,)),
    # Hooks run one after the other, before and after all nodes.
    Rule(engine="dbt", role=Role.STEP, names=("operation.",), scopes=(_DBT,), name=dbt_node,
         state=attribute("hook_outcome"), states=RESULTS),
    Rule(engine="dbt", role=Role.STEP, names=_DBT_NODES, scopes=(_DBT,), name=dbt_node, index=dbt_version,
         key=own_name, state=attribute("node_outcome"), states=RESULTS, links=Links.COMPLETE),
)  # fmt: skip


def _command(option: str) -> Read:
    """Reads what follows an option in the command line."""
    pattern = re.compile(rf"{re.escape(option)}[= ](\S+)")

    def read(span: SpanRecord) -> str | None:
        match = pattern.search(str(span.attributes.get("cmd", "")))
        return match[1] if match is not None else None

    return read


def metaflow_flow(span: SpanRecord) -> str:
    """The flow's file without its folder and ending: the span has only the command line."""
    command = str(span.attributes.get("cmd", "")).split()
    return command[0].rpartition("/")[2].removesuffix(".py") if command else span.name


def metaflow_task(span: SpanRecord) -> str | None:
    """The key of a task, the same for all its attempts."""
    run, step, task = _RUN_ID(span), _STEP(span), _TASK_ID(span)
    return None if None in (run, step, task) else f"{run}/{step}/{task}"


def metaflow_inputs(span: SpanRecord) -> list[str]:
    """The keys of the tasks that a task waited for: ``run/step/1,run/step/2``, or in short ``run/step/:1,2``."""
    text = _INPUTS(span)
    if text is None:
        return []
    prefix, colon, rest = text.partition(":")
    return [prefix + part for part in rest.split(",")] if colon else text.split(",")


_STEP: Final = _command(" step")
_INPUTS: Final = _command("--input-paths")
_RUN_ID: Final = _command("--run-id")
_TASK_ID: Final = _command("--task-id")
# Metaflow: metaflow.tracing 2.19; its commands are spans, with their command line as ``cmd``.
METAFLOW: Final = (
    Rule(engine="metaflow", role=Role.EXECUTION, names=("cli/run", "cli/resume"), has=("cmd", "pid"),
         scopes=("metaflow.tracing",), name=metaflow_flow),
    Rule(engine="metaflow", role=Role.STEP, names=("cli/step",), has=("cmd", "pid"), scopes=("metaflow.tracing",),
         name=_STEP, index=_command("--split-index"), key=metaflow_task, attempt=_command("--retry-count"),
         first_attempt=0, waits_for=metaflow_inputs, links=Links.COMPLETE),
)  # fmt: skip

# n8n 2.40: its modules/otel/execution-level-tracer. A span has one name for all nodes.
N8N: Final = (
    Rule(engine="n8n", role=Role.EXECUTION, named=("workflow.execute",), has=("n8n.workflow.name",),
         name=attribute("n8n.workflow.name"), state=attribute("n8n.execution.status"),
         states={**RESULTS, "canceled": "cancelled", "waiting": RUNNING}),
    Rule(engine="n8n", role=Role.STEP, named=("node.execute",), has=("n8n.node.name",),
         name=attribute("n8n.node.name"), state=attribute("n8n.node.termination_reason"),
         states={"workflow_cancelled": "cancelled"}),
)  # fmt: skip

ENGINES: Final[tuple[tuple[Rule, ...], ...]] = (
    TACHOGRAPH, AIRFLOW, PREFECT, TEMPORAL, CELERY, DAGSTER, RQ, ARQ, DRAMATIQ, TASKIQ, RAY, METAFLOW, DBT, N8N,
    AGENT_RULES,
)  # fmt: skip
RULES: Final[tuple[Rule, ...]] = (*LINEAGE_RULES, *[rule for rules in ENGINES for rule in rules])


def _sent_to(span: SpanRecord) -> str:
    return f"{span.parent_span_id}/{span.service}/{span.name}"


BUILT_IN: Final = Rulebook(RULES)
ANY: Final = Rule(engine="any", role=Role.STEP)
"""Stands in for a rule when only the shape of the trace says that a span is an execution or a step."""
CONSUMED: Final = Rule(engine="any", role=Role.STEP, kinds=(Kind.CONSUMER,), lasting=True)
"""A child of the root that may outlast it, because of its kind."""
SENT: Final = Rule(engine="any", role=Role.QUEUED, kinds=(Kind.PRODUCER,), lasting=True)
"""A message of which the receiver's span is there."""
RECEIVED: Final = Rule(engine="any", role=Role.STEP, kinds=(Kind.CONSUMER, Kind.SERVER), lasting=True, key=_sent_to)
"""The processing of a message that was sent; each service does so by itself."""
