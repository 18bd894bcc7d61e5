"""Shapes of traces that no recording has, with the attributes that the engines' instrumentations set."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.api.test_otlp import T0, S, export, span
from tests.ingest.intake import Intake

from tachograph_exporter.ingest.rule_file import read_rules
from tachograph_exporter.ingest.rules import Kind, Rulebook
from tachograph_exporter.ingest.spans import SpanRecord, records

Make = Callable[..., Intake]


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[Make]:
    intakes: list[Intake] = []

    def make(*rules: Rulebook) -> Intake:
        path = tmp_path / f"{len(intakes)}.db"
        shutil.copy(empty_database, path)
        intakes.append(Intake(f"sqlite:///{path}", *rules))
        return intakes[-1]

    yield make
    for made in intakes:
        made.close()


def of_kind(kind: Kind, *arguments: Any, **options: Any) -> Span:
    made = span(*arguments, **options)
    made.kind = kind.value  # type: ignore[assignment]
    return made


def read(spans: Sequence[Span], service: str = "etl") -> list[SpanRecord]:
    read_spans = [record for record in records(export(spans, service).resource_spans) if isinstance(record, SpanRecord)]
    assert len(read_spans) == len(spans)
    return read_spans


def settled(make: Make, *spans: Span, rules: Rulebook | None = None) -> dict[str, Any]:
    """The only execution that spans become, one to a request: in the order of their ends, or the other way round."""
    ordered = sorted(spans, key=lambda each: each.end_time_unix_nano)
    timelines = []
    for order in (ordered, list(reversed(ordered))):
        service = make(rules) if rules is not None else make()
        for each in order:
            service.take(read([each]))
        service.settle()
        (timeline,) = service.timelines()
        assert service.rows_to_correct() == 0
        timelines.append(timeline)
    first, second = (shown(timeline) for timeline in timelines)
    assert first == second
    result: dict[str, Any] = timelines[0]
    return result


def shown(timeline: dict[str, Any]) -> list[Any]:
    fields = ("step_name", "step_index", "status", "depends_on", "started_at", "completed_at")
    steps = [
        ([step[field] for field in fields], [attempt["status"] for attempt in step["attempts"]])
        for step in timeline["step_timeline"]
    ]
    return [timeline["workflow_name"], timeline["status"], timeline["error_message"], *steps]


def steps_of(timeline: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {step["step_name"]: (step["status"], len(step["attempts"])) for step in timeline["step_timeline"]}


def step_of(timeline: dict[str, Any], name: str) -> dict[str, Any]:
    (step,) = [step for step in timeline["step_timeline"] if step["step_name"] == name]
    return dict(step)


def rq(operation: str, job: str) -> dict[str, str | int]:
    return {"messaging.system": "Python RQ", "messaging.operation.name": operation, "rq.job.id": job,
            "rq.job.function": f"jobs.{job}"}  # fmt: skip


def rq_spans() -> list[Span]:
    return [
        span("weekly", 1, 0, 0, 0.1),
        of_kind(Kind.PRODUCER, "publish default", 2, 1, 0, 0.1, of=rq("publish", "pull")),
        of_kind(Kind.PRODUCER, "setup dependencies default", 3, 1, 0.1, 0.2, of=rq("setup dependencies", "load"),
                links=[2]),
        of_kind(Kind.PRODUCER, "setup dependencies default", 4, 1, 0.2, 0.3, of=rq("setup dependencies", "mail"),
                links=[3]),
    ]  # fmt: skip


def test_a_job_that_waits_for_one_that_failed_for_good_is_skipped_and_the_run_fails(intake: Make) -> None:
    spans = [
        *rq_spans(),
        of_kind(Kind.CONSUMER, "consume default", 5, 2, 1, 3, of=rq("consume", "pull")),
        of_kind(Kind.CLIENT, "perform", 6, 5, 1.1, 2, error="disk full", of=rq("perform", "pull")),
        of_kind(Kind.CLIENT, "handle_job_failure default", 7, 5, 2.1, 2.2, of=rq("handle_job_failure", "pull")),
    ]
    timeline = settled(intake, *spans)
    assert (timeline["workflow_name"], timeline["status"]) == ("weekly", "failed")
    assert (timeline["error_type"], timeline["error_message"]) == ("ValueError", "disk full")
    assert steps_of(timeline) == {"jobs.pull": ("failed", 1), "jobs.load": ("skipped", 0), "jobs.mail": ("skipped", 0)}
    assert {step_of(timeline, name)["skip_reason"] for name in ("jobs.load", "jobs.mail")} == {"upstream_failed"}


def test_a_killed_job_has_an_attempt_though_only_its_workers_parent_process_knows_of_it(intake: Make) -> None:
    spans = [
        *rq_spans()[:2],
        of_kind(Kind.CLIENT, "handle_job_failure default", 5, 2, 2, 2.1, of=rq("handle_job_failure", "pull")),
        of_kind(Kind.PRODUCER, "schedule default", 6, 2, 2, 2.1, of=rq("schedule", "pull")),
        of_kind(Kind.PRODUCER, "publish default", 7, 6, 3, 3.1, of=rq("publish", "pull")),
        of_kind(Kind.CONSUMER, "consume default", 8, 7, 4, 5, of=rq("consume", "pull")),
        of_kind(Kind.CLIENT, "perform", 9, 8, 4, 5, of=rq("perform", "pull")),
    ]
    timeline = settled(intake, *spans)
    assert (timeline["status"], steps_of(timeline)) == ("completed", {"jobs.pull": ("completed", 2)})
    first, second = step_of(timeline, "jobs.pull")["attempts"]
    assert (first["status"], second["status"], second["queue_seconds"]) == ("failed", "completed", 1)


def celery(action: str, **said: str | int) -> dict[str, str | int]:
    names = {"celery.action": action, "celery.task_name": "tasks.mail", "messaging.message.id": "m1"}
    return {**names, **{f"celery.{key}": value for key, value in said.items()}}


def at(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp((T0 + seconds * S) / S, UTC).isoformat()


def test_a_countdown_is_no_queue(intake: Make) -> None:
    timeline = settled(
        intake,
        of_kind(Kind.PRODUCER, "apply_async/tasks.mail", 1, 0, 0, 0.1, of=celery("apply_async")),
        of_kind(Kind.CONSUMER, "run/tasks.mail", 2, 1, 61, 62, of=celery("run", state="RETRY", eta=at(60))),
        of_kind(Kind.PRODUCER, "apply_async/tasks.mail", 3, 2, 61.5, 61.6, of=celery("apply_async")),
        of_kind(Kind.CONSUMER, "run/tasks.mail", 4, 3, 82, 83,
                of=celery("run", state="SUCCESS", eta=at(80), retries=1)),
    )  # fmt: skip
    (step,) = timeline["step_timeline"]
    assert [(a["queue_seconds"], a["backoff_seconds"]) for a in step["attempts"]] == [(1, 0), (2, 18)]
    assert step["wait"]["queue"] == 3


def test_a_task_between_two_tries_is_retrying_and_its_run_goes_on(intake: Make) -> None:
    service = intake()
    service.take(read([
        of_kind(Kind.PRODUCER, "apply_async/tasks.mail", 1, 0, 0, 0.1, of=celery("apply_async")),
        of_kind(Kind.CONSUMER, "run/tasks.mail", 2, 1, 1, 2, of=celery("run", state="RETRY")),
    ]))  # fmt: skip
    service.settle()
    (timeline,) = service.timelines()
    assert (timeline["status"], steps_of(timeline)) == ("running", {"tasks.mail": ("retrying", 1)})


def test_a_task_of_which_only_the_message_is_known_never_completes(intake: Make) -> None:
    service = intake()
    service.take(read([of_kind(Kind.PRODUCER, "apply_async/tasks.mail", 1, 0, 0, 0.1, of=celery("apply_async"))]))
    service.settle()
    (timeline,) = service.timelines()
    assert (timeline["status"], steps_of(timeline)) == ("running", {"tasks.mail": ("pending", 0)})


def airflow(task: str, attempt: int, state: str = "", index: int = -1) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "airflow.dag_id": "sales", "airflow.dag_run.run_id": "r1", "airflow.task_id": task,
        "airflow.task_instance.try_number": attempt, "airflow.task_instance.map_index": index,
    }  # fmt: skip
    return attributes | ({"airflow.task_instance.state": state} if state else {})


RUN = span("dag_run.sales", 1, 0, 0, 30, of={"airflow.dag_id": "sales", "airflow.dag_run.run_id": "r1"})


def test_tries_that_share_a_span_id_are_attempts_in_any_order(intake: Make) -> None:
    timeline = settled(
        intake, RUN,
        span("task_run.pull", 2, 1, 0, 5, error="gone", of=airflow("pull", 1, "up_for_retry")),
        span("worker.pull", 3, 2, 1, 5, of=airflow("pull", 1)),
        span("task_run.pull", 2, 1, 9, 15, error="gone", of=airflow("pull", 2, "up_for_retry")),
        span("task_run.pull", 2, 1, 20, 25, of=airflow("pull", 3, "success")),
        span("worker.pull", 5, 2, 21, 25, of=airflow("pull", 3)),
    )  # fmt: skip
    (step,) = timeline["step_timeline"]
    # The process of the second try was killed: only the API server tells of it.
    assert [a["status"] for a in step["attempts"]] == ["failed", "failed", "completed"]
    assert (step["status"], step["retry_count"]) == ("completed", 2)


def test_a_try_of_which_only_the_next_ones_number_tells_is_an_attempt(intake: Make) -> None:
    timeline = settled(
        intake, RUN,
        span("task_run.pull", 2, 1, 9, 15, of=airflow("pull", 2, "success")),
        span("worker.pull", 5, 2, 10, 15, of=airflow("pull", 2)),
    )  # fmt: skip
    (step,) = timeline["step_timeline"]
    assert [(a["attempt"], a["status"], a["error_type"]) for a in step["attempts"]] == [
        (1, "failed", "Lost"), (2, "completed", None),
    ]  # fmt: skip


def test_a_task_that_was_deferred_ran_once(intake: Make) -> None:
    timeline = settled(
        intake, RUN,
        span("worker.wait", 3, 2, 1, 2, of=airflow("wait", 1)),
        span("trigger.wait", 4, 2, 2, 9, of={**airflow("wait", 1), "airflow.trigger.name": "TimeTrigger"}),
        span("worker.wait", 5, 2, 10, 11, of=airflow("wait", 1)),
        span("task_run.wait", 2, 1, 0, 11, of=airflow("wait", 1, "success")),
    )  # fmt: skip
    assert (timeline["status"], steps_of(timeline)) == ("completed", {"wait": ("completed", 1)})


def test_mapped_instances_are_one_series_with_the_engines_indexes(intake: Make) -> None:
    spans = [span(f"task_run.work[{i}]", 2 + i, 1, i, i + 1, of=airflow("work", 1, "success", i)) for i in range(40)]
    timeline = settled(intake, RUN, *spans)
    assert {step["step_name"] for step in timeline["step_timeline"]} == {"work"}
    assert sorted(step["step_index"] for step in timeline["step_timeline"]) == list(range(40))
    service = intake()
    service.take(read([RUN, *spans]))
    service.settle()
    assert {key[:2] for key in service.counted()} == {("sales", ""), ("sales", "work")}


@pytest.mark.parametrize("engine", ["airflow", "prefect"])
def test_two_hundred_mapped_instances_are_one_name_and_as_many_series_as_one(engine: str, intake: Make) -> None:
    series: list[set[tuple[str, ...]]] = []
    for count in (1, 200):
        service = intake()
        for trace in (1, 2):
            root = span(
                "dag_run.sales",
                1,
                0,
                0,
                900,
                of={"airflow.dag_id": "sales", "airflow.dag_run.run_id": f"r{trace}"},
                trace=trace,
            )
            works = [
                span(f"task_run.work[{i}]", 2 + i, 1, i, i + 2, trace=trace,
                     of={**airflow("work", 1, "success", i), "airflow.dag_run.run_id": f"r{trace}"})
                for i in range(count)
            ]  # fmt: skip
            if engine == "prefect":
                flow: dict[str, str | int] = {"prefect.run.type": "flow", "prefect.run.name": f"wise-owl-{trace}",
                                              "prefect.run.id": f"run-{trace}", "prefect.flow.id": "f-1"}  # fmt: skip
                root = span("wise-owl", 1, 0, 0, 900, of=flow, trace=trace)
                works = [
                    span(name, 2 + i, 1, i, i + 2, trace=trace,
                         of={"prefect.run.type": "task", "prefect.run.name": name})
                    for i in range(count) for name in [f"work-{(i * 7 + trace * 31) % 4096:03x}"]
                ]  # fmt: skip
            service.take(read(works[::-1]))
            service.take(read([root]))
        service.settle()
        for timeline in service.timelines():
            assert {step["step_name"] for step in timeline["step_timeline"]} == {"work"}
            indexes = [step["step_index"] or 0 for step in timeline["step_timeline"]]
            assert sorted(indexes) == list(range(count))
            assert timeline["completed_step_count"] == count
        series.append(set(service.counted()))
    assert series[0] == series[1]


def test_runs_of_a_flow_are_one_workflow_whatever_they_are_called(intake: Make) -> None:
    service = intake()
    for number, name in enumerate(("wise-owl", "shy-fox", "old-ant")):
        flow = {"prefect.run.type": "flow", "prefect.run.name": name, "prefect.run.id": f"run-{number}",
                "prefect.flow.id": "f-1"}  # fmt: skip
        task = {"prefect.run.type": "task", "prefect.run.name": f"pull-{number}a{number}"}
        trace = number + 1
        service.take(read([span(name, 1, 0, 0, 5, of=flow, trace=trace),
                           span(task["prefect.run.name"], 2, 1, 1, 4, of=task, trace=trace)]))  # fmt: skip
    service.settle()
    assert {timeline["workflow_name"] for timeline in service.timelines()} == {"f-1"}
    assert {key[:2] for key in service.counted()} == {("f-1", ""), ("f-1", "pull")}


def temporal(run: str, activity: str = "") -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"temporalWorkflowID": "loop", "temporalRunID": run}
    return attributes | ({"temporalActivityID": activity} if activity else {})


def test_an_activity_nobody_heard_of_is_lost_when_its_run_ends(intake: Make) -> None:
    timeline = settled(
        intake,
        span("RunWorkflow:Loop", 2, 1, 0, 0, of=temporal("a")),
        span("StartActivity:pull", 3, 1, 0, 0, of=temporal("a")),
        span("StartActivity:push", 4, 1, 3, 3, of=temporal("a")),
        span("RunActivity:pull", 5, 3, 1, 3, of=temporal("a", "1")),
        span("CompleteWorkflow:Loop", 6, 1, 9, 9, error="activity timed out", of=temporal("a")),
    )
    assert (timeline["status"], timeline["error_message"]) == ("failed", "activity timed out")
    assert steps_of(timeline) == {"pull": ("completed", 1), "push": ("lost", 1)}


def test_an_activity_that_is_queued_shows_what_it_waited_for(intake: Make) -> None:
    timeline = settled(
        intake,
        span("RunWorkflow:Loop", 2, 1, 0, 0, of=temporal("a")),
        span("StartActivity:pull", 3, 1, 0, 0, of=temporal("a")),
        span("StartActivity:push", 4, 1, 3, 3, of=temporal("a")),
        span("RunActivity:pull", 5, 3, 1, 3, of=temporal("a", "1")),
    )
    pull, push = step_of(timeline, "pull"), step_of(timeline, "push")
    assert (push["status"], push["depends_on"], pull["depends_on"]) == ("pending", [pull["step_id"]], [])


def test_an_execution_of_n8n_that_waits_has_not_completed(intake: Make) -> None:
    # n8n ends its span when it puts the execution aside, and makes another one when that goes on.
    run = {"n8n.workflow.name": "orders", "n8n.execution.id": "2", "n8n.execution.status": "waiting"}
    service = intake()
    service.take(read([
        span("workflow.execute", 1, 0, 0, 2, of={**run}),
        span("node.execute", 2, 1, 1, 2, of={"n8n.node.name": "start"}),
    ]))  # fmt: skip
    service.settle()
    (timeline,) = service.timelines()
    assert (timeline["status"], steps_of(timeline)) == ("running", {"start": ("completed", 1)})


KAFKA = [
    of_kind(Kind.SERVER, "POST /orders", 1, 0, 0, 1),
    of_kind(Kind.PRODUCER, "send orders", 2, 1, 0.5, 0.6),
    of_kind(Kind.CONSUMER, "process orders", 3, 2, 2, 4),
    of_kind(Kind.PRODUCER, "send invoices", 4, 3, 3, 3.1),
    of_kind(Kind.CONSUMER, "process invoices", 5, 4, 5, 9, error="no address"),
]


def test_messages_of_any_program_are_steps_and_the_run_ends_and_fails_with_the_last_of_them(intake: Make) -> None:
    timeline = settled(intake, *KAFKA)
    assert (timeline["workflow_name"], timeline["status"]) == ("POST /orders", "failed")
    assert (timeline["total_duration_seconds"], timeline["error_message"]) == (9, "no address")
    assert steps_of(timeline) == {"process orders": ("completed", 1), "process invoices": ("failed", 1)}
    orders, invoices = step_of(timeline, "process orders"), step_of(timeline, "process invoices")
    assert (orders["wait"]["queue"], invoices["depends_on"]) == (1.5, [orders["step_id"]])


def test_a_message_that_nobody_is_seen_to_read_is_a_step_like_any_other(intake: Make) -> None:
    timeline = settled(intake, *KAFKA[:2])
    assert (timeline["status"], timeline["total_duration_seconds"]) == ("completed", 1)
    assert steps_of(timeline) == {"send orders": ("completed", 1)}


def test_calls_of_one_name_are_attempts_if_each_but_the_last_failed(intake: Make) -> None:
    retried = [span("job", 1, 0, 0, 9), span("pull", 2, 1, 0, 1, error="no"), span("pull", 3, 1, 2, 3, error="no"),
               span("pull", 4, 1, 4, 5)]  # fmt: skip
    timeline = settled(intake, *retried)
    assert (timeline["status"], steps_of(timeline)) == ("completed", {"pull": ("completed", 3)})
    assert step_of(timeline, "pull")["wait"]["backoff"] == 2
    # A loop that goes on after a success, or calls that overlap, are steps of their own.
    loop = settled(intake, *retried, span("pull", 5, 1, 6, 7, error="no"))
    assert [step["step_index"] for step in loop["step_timeline"]] == [0, 1, 2, 3]
    beside = settled(intake, *retried[:2], span("pull", 3, 1, 0.5, 3))
    assert len(beside["step_timeline"]) == 2


MESSAGE = {"messaging.message_id": "t1"}


def test_a_task_of_taskiq_that_is_sent_again_is_tried_again(intake: Make) -> None:
    def taskiq(action: str, retries: int = 0, said: Mapping[str, str] | None = None) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {"taskiq.action": action, "taskiq.task_name": "jobs:pull", **(said or {})}
        return attributes | ({"taskiq._retries": str(retries)} if retries else {})

    timeline = settled(
        intake,
        of_kind(Kind.PRODUCER, "send/jobs:pull", 1, 0, 0, 0.1, of=taskiq("send", 0, MESSAGE)),
        of_kind(Kind.CONSUMER, "execute/jobs:pull", 2, 1, 1, 3,
                of=taskiq("execute", 0, {"taskiq.retry.reason": "not yet"})),
        of_kind(Kind.PRODUCER, "send/jobs:pull", 3, 2, 2, 2.1, of=taskiq("send", 1, MESSAGE)),
        of_kind(Kind.CONSUMER, "execute/jobs:pull", 4, 3, 4, 5, of=taskiq("execute", 1)),
    )  # fmt: skip
    assert (timeline["status"], steps_of(timeline)) == ("completed", {"jobs:pull": ("completed", 2)})
    assert step_of(timeline, "jobs:pull")["attempts"][0]["error_message"] == "not yet"


def test_a_rule_of_the_users_goes_by_the_kind_of_a_span(intake: Make, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        '[[rule]]\nengine = "acme"\nrole = "queued"\nhas = ["acme.job"]\nkind = "client"\nname = "acme.job"\n'
        'lasting = true\n[[rule]]\nengine = "acme"\nrole = "step"\nhas = ["acme.job"]\nkind = ["server", "consumer"]\n'
        'name = "acme.job"\nindex = "acme.shard"\nlasting = true\n'
    )
    job: dict[str, str | int] = {"acme.job": "pull", "acme.shard": "eu"}
    timeline = settled(
        intake, span("weekly", 1, 0, 0, 1), of_kind(Kind.CLIENT, "call", 2, 1, 0, 0.5, of=job),
        of_kind(Kind.SERVER, "serve", 3, 2, 2, 3, of=job), rules=read_rules(path),
    )  # fmt: skip
    (step,) = timeline["step_timeline"]
    assert (step["step_name"], step["step_index"], step["wait"]["queue"]) == ("pull", "eu", 2)
    assert timeline["total_duration_seconds"] == 3


def test_a_link_of_one_step_says_nothing_of_what_others_waited_for(intake: Make) -> None:
    timeline = settled(
        intake, span("nightly", 1, 0, 0, 9), span("pull", 2, 1, 0, 1), span("clean", 3, 1, 2, 3),
        span("load", 4, 1, 4, 5, links=[2]), span("mail", 5, 1, 6, 7),
    )  # fmt: skip
    names = {step["step_id"]: step["step_name"] for step in timeline["step_timeline"]}
    edges = {step["step_name"]: {names[other] for other in step["depends_on"]} for step in timeline["step_timeline"]}
    assert (edges["pull"], edges["clean"], edges["load"]) == (set(), {"pull"}, {"pull"})
    # Without a link: what had ended last when it was ready.
    assert edges["mail"] >= {"load"}


def test_a_run_whose_own_span_gives_no_reason_failed_with_its_first_step_that_did(intake: Make) -> None:
    root = span("nightly", 1, 0, 0, 9)
    root.status.code = Status.STATUS_CODE_ERROR
    timeline = settled(
        intake, root, span("pull", 2, 1, 0, 1), span("load", 3, 1, 5, 6, error="disk full"),
        span("clean", 4, 1, 2, 4, error="no route"),
    )  # fmt: skip
    assert (timeline["status"], timeline["error_type"], timeline["error_message"]) == (
        "failed", "ValueError", "no route",
    )  # fmt: skip
