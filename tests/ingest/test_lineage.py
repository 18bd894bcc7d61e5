"""OpenLineage events become executions by what they say of runs, whoever sent them."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, func, select
from tests.ingest.intake import counts_of
from tests.ingest.lineage_intake import LineageIntake, arrived
from tests.ingest.told import told_wrong
from tests.openlineage_values import airflow_dag, airflow_task, encoded, event, run_id

from tachograph_exporter.store import archiving
from tachograph_exporter.store.schema import lineage_events, spans, trace_keys, traces


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[LineageIntake]:
    shutil.copy(empty_database, tmp_path / "test.db")
    service = LineageIntake(f"sqlite:///{tmp_path}/test.db")
    yield service
    service.close()


def timelines(intake: LineageIntake, *events: Mapping[str, Any], settled: bool = True) -> dict[str, Any]:
    """The timelines once these events have arrived, by workflow."""
    intake.take_events([arrived(encoded(item)) for item in events])
    if settled:
        intake.settle()
    return {timeline["workflow_name"]: timeline for timeline in intake.timelines()}


def steps(timeline: Mapping[str, Any]) -> dict[str, str]:
    """The status of each step, by name, and number if there are several of it."""
    return {reference(entry): entry["status"] for entry in timeline["step_timeline"]}


def reference(entry: Mapping[str, Any]) -> str:
    index = entry["step_index"]
    return str(entry["step_name"]) if index is None else f"{entry['step_name']}#{index}"


def edges(timeline: Mapping[str, Any]) -> set[str]:
    names = {entry["step_id"]: reference(entry) for entry in timeline["step_timeline"]}
    return {f"{names[other]}->{reference(e)}" for e in timeline["step_timeline"] for other in e["depends_on"]}


def rows_of(intake: LineageIntake, table: Table) -> int:
    return intake.database.look(lambda c: c.execute(select(func.count()).select_from(table)).scalar_one())


def spark(kind: str, seconds: float, job: str, **fields: Any) -> dict[str, Any]:
    kind_of_job = "APPLICATION" if job == "orders" else "SQL_JOB"
    return event(kind, seconds, fields.pop("run", job), job, job_type=("SPARK", kind_of_job), **fields)


def application(parent: tuple[str, str] | None = None, **fields: Any) -> list[dict[str, Any]]:
    above = ("orders", "orders")
    return [
        spark("START", 10, "orders", parent=parent, **fields),
        spark("START", 11, "orders.read", parent=above, inputs=["raw"], outputs=["staged"]),
        spark("RUNNING", 12, "orders.read", parent=above),
        spark("COMPLETE", 14, "orders.read", parent=above, inputs=["raw"], outputs=["staged"]),
        spark("START", 15, "orders.write", parent=above, inputs=["staged"], outputs=["mart"]),
        spark("COMPLETE", 18, "orders.write", parent=above),
        spark("COMPLETE", 19, "orders", parent=parent, **fields),
    ]


def test_an_application_of_spark_is_an_execution_of_its_jobs(intake: LineageIntake) -> None:
    shown = timelines(intake, *application())
    assert shown.keys() == {"orders"}
    assert (shown["orders"]["status"], shown["orders"]["execution_id"]) == ("completed", run_id("orders"))
    assert steps(shown["orders"]) == {"read": "completed", "write": "completed"}
    assert edges(shown["orders"]) == {"read->write"}
    assert [part["step_name"] for part in shown["orders"]["critical_path"]] == ["read", "write"]


def test_a_parent_that_sends_no_events_makes_no_execution(intake: LineageIntake) -> None:
    shown = timelines(intake, *application(("task", "sales.load"), root=("sales", "sales")))
    assert shown.keys() == {"orders"}
    assert shown["orders"]["parent_execution_id"] is None


def test_an_application_below_a_task_runs_inside_its_step(intake: LineageIntake) -> None:
    load = "sales.load.1.-1"
    shown = timelines(
        intake,
        airflow_dag("START", 0, tasks={"load": []}),
        airflow_task("START", 5, "load"),
        *application((load, "sales.load"), root=("sales", "sales")),
        airflow_task("COMPLETE", 20, "load"),
        airflow_dag("COMPLETE", 21, states={"load": "success"}),
    )
    assert shown.keys() == {"sales", "orders"}
    (entry,) = shown["sales"]["step_timeline"]
    assert entry["child_execution_id"] == shown["orders"]["execution_id"] == run_id("orders")
    assert shown["orders"]["parent_execution_id"] == shown["sales"]["execution_id"]
    assert steps(shown["orders"]) == {"read": "completed", "write": "completed"}


def test_queries_below_a_task_are_steps_inside_its_step(intake: LineageIntake) -> None:
    load = ("sales.load.1.-1", "sales.load")
    query = [
        event(kind, at, "q", "sales.load.query.1", parent=load, root=("sales", "sales"), job_type=("AIRFLOW", "QUERY"))
        for kind, at in (("START", 6), ("COMPLETE", 8))
    ]
    shown = timelines(
        intake,
        airflow_dag("START", 0, tasks={"load": []}),
        airflow_task("START", 5, "load"),
        *query,
        airflow_task("COMPLETE", 9, "load"),
        airflow_dag("COMPLETE", 10, states={"load": "success"}),
    )["sales"]
    by_name = {entry["step_name"]: entry for entry in shown["step_timeline"]}
    assert by_name.keys() == {"load", "load.query.1"}
    assert by_name["load.query.1"]["parent_step_id"] == by_name["load"]["step_id"]


def test_runs_are_seen_running_and_tries_between(intake: LineageIntake) -> None:
    shown = timelines(intake, airflow_dag("START", 0, tasks={"a": ["b"], "b": []}), settled=False)["sales"]
    assert (shown["status"], shown["step_timeline"]) == ("running", [])
    shown = timelines(intake, airflow_task("START", 1, "a", retries=1), settled=False)["sales"]
    assert steps(shown) == {"a": "running"}
    shown = timelines(intake, airflow_task("FAIL", 2, "a", retries=1, error="gone"), settled=False)["sales"]
    assert steps(shown) == {"a": "retrying"}
    shown = timelines(intake, airflow_task("START", 5, "a", retries=1, try_number=2), settled=False)["sales"]
    (entry,) = shown["step_timeline"]
    assert (entry["status"], [attempt["status"] for attempt in entry["attempts"]]) == ("running", ["failed", "running"])
    assert entry["attempts"][0]["error_message"] == "gone"
    shown = timelines(intake, airflow_task("FAIL", 6, "a", retries=1, try_number=2), settled=False)["sales"]
    assert steps(shown) == {"a": "failed"}


def test_a_deferred_task_is_no_retry(intake: LineageIntake) -> None:
    shown = timelines(
        intake,
        airflow_dag("START", 0, tasks={"wait": []}),
        airflow_task("START", 1, "wait"),
        airflow_task("START", 9, "wait"),
        airflow_task("COMPLETE", 10, "wait"),
        airflow_dag("COMPLETE", 11, states={"wait": "success"}),
    )["sales"]
    (entry,) = shown["step_timeline"]
    assert (entry["status"], len(entry["attempts"]), entry["duration_seconds"]) == ("completed", 1, 9)


def test_tasks_without_events_are_what_the_dag_run_says(intake: LineageIntake) -> None:
    tasks = {"start": ["pick"], "pick": ["left", "right"], "left": ["end"], "right": ["end"], "end": []}
    shown = timelines(
        intake,
        airflow_dag("START", 0, tasks=tasks),
        airflow_task("START", 2, "pick", upstream=["start"]),
        airflow_task("COMPLETE", 4, "pick", upstream=["start"]),
        airflow_task("START", 5, "right", upstream=["pick"]),
        airflow_task("FAIL", 6, "right", upstream=["pick"], error="no"),
        airflow_dag("FAIL", 8, durations={"start": 0.0},
                    states={"start": "success", "pick": "success", "left": "skipped", "right": "failed", "end": None}),
    )["sales"]  # fmt: skip
    assert steps(shown) == {
        "start": "completed", "pick": "completed", "left": "skipped", "right": "failed", "end": "skipped",
    }  # fmt: skip
    assert edges(shown) == {"start->pick", "pick->left", "pick->right", "left->end", "right->end"}
    reasons = {entry["step_name"]: entry["skip_reason"] for entry in shown["step_timeline"]}
    assert reasons["left"] == "condition"
    assert (shown["error_type"], shown["error_message"]) == ("ValueError", "no")


def test_a_mapped_instance_waits_for_its_own_index_in_a_mapped_group(intake: LineageIntake) -> None:
    instances = itertools.chain.from_iterable(
        (airflow_task("START", 1 + i, f"g.{task}", map_index=i, upstream=upstream, group="g"),
         airflow_task("COMPLETE", 2 + i, f"g.{task}", map_index=i, upstream=upstream, group="g"))
        for i in range(2) for task, upstream in (("a", []), ("b", ["g.a"]))
    )  # fmt: skip
    shown = timelines(
        intake,
        airflow_dag("START", 0, tasks={"g.a": ["g.b"], "g.b": ["sum"], "sum": []}, groups={"g.a": "g", "g.b": "g"}),
        *instances,
        airflow_task("START", 5, "sum", upstream=["g.b"]),
        airflow_task("COMPLETE", 6, "sum", upstream=["g.b"]),
        airflow_dag("COMPLETE", 7, states={"g.a": "success", "g.b": "success", "sum": "success"}),
    )["sales"]
    assert edges(shown) == {"g.a#0->g.b#0", "g.a#1->g.b#1", "g.b#0->sum", "g.b#1->sum"}


def test_a_mapped_task_waits_for_all_of_another_mapped_task_in_its_group(intake: LineageIntake) -> None:
    instances = itertools.chain.from_iterable(
        (airflow_task("START", 1 + i, f"g.{task}", map_index=i, upstream=upstream, group="g", mapped=True),
         airflow_task("COMPLETE", 2 + i, f"g.{task}", map_index=i, upstream=upstream, group="g", mapped=True))
        for i in range(2) for task, upstream in (("a", []), ("b", ["g.a"]))
    )  # fmt: skip
    shown = timelines(intake, airflow_dag("START", 0), *instances, airflow_dag("COMPLETE", 7, states={}))["sales"]
    assert edges(shown) == {"g.a#0->g.b#0", "g.a#1->g.b#0", "g.a#0->g.b#1", "g.a#1->g.b#1"}


def test_queries_of_trino_have_a_name_that_is_not_an_id(intake: LineageIntake) -> None:
    facets = {"nominalTime": {"nominalStartTime": "2026-11-25T04:00:00Z"}}
    events = [event(kind, at, f"q{n}", f"20261125_04000{n}_00042_ab3x9", job_type=("TRINO", "QUERY"), facets=facets)
              for n in range(2) for kind, at in (("START", n), ("COMPLETE", n + 1))]  # fmt: skip
    intake.take_events([arrived(encoded(item)) for item in events])
    assert [(shown["workflow_name"], shown["status"]) for shown in intake.timelines()] == [("query", "completed")] * 2


def test_a_step_lists_those_that_ended_last_of_very_many(
    intake: LineageIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tachograph_exporter.ingest.lineage.edges.MAX_EDGES", 8)
    monkeypatch.setattr("tachograph_exporter.ingest.lineage.edges.MIN_DEPENDENCIES", 2)
    tasks = [airflow_task(kind, at + i, "a", map_index=i, mapped=True) for i in range(4)
             for kind, at in (("START", 1), ("COMPLETE", 2))]  # fmt: skip
    tasks += [airflow_task(kind, at, "b", map_index=i, mapped=True, upstream=["a"]) for i in range(4)
              for kind, at in (("START", 7), ("COMPLETE", 8))]  # fmt: skip
    shown = timelines(intake, airflow_dag("START", 0), *tasks, airflow_dag("COMPLETE", 9, states={}))["sales"]
    assert edges(shown) == {f"a#{source}->b#{target}" for source in (2, 3) for target in range(4)}


def test_a_task_that_was_left_running_is_lost(intake: LineageIntake) -> None:
    shown = timelines(
        intake,
        airflow_dag("START", 0, tasks={"a": [], "b": []}),
        airflow_task("START", 1, "a"),
        airflow_dag("FAIL", 5, states={"a": "running", "b": "deferred"}),
    )["sales"]
    assert steps(shown) == {"a": "lost", "b": "skipped"}


def test_what_has_no_end_when_its_run_ends_is_lost(intake: LineageIntake) -> None:
    shown = timelines(
        intake,
        event("START", 0, "r", "job"),
        event("START", 1, "s", "job.step", parent=("r", "job")),
        event("ABORT", 5, "r", "job"),
    )["job"]
    assert (shown["status"], steps(shown)) == ("cancelled", {"step": "lost"})


def test_a_node_that_dbt_did_not_run_is_skipped(intake: LineageIntake) -> None:
    def node(kind: str, seconds: float, name: str, **fields: Any) -> dict[str, Any]:
        unique_id = f"model.shop.{name}"
        facets = {"dbt_node": {"unique_id": unique_id}}
        return event(kind, seconds, name, unique_id, parent=("dbt", "dbt-run-shop"), job_type=("DBT", "MODEL"),
                     job_facets=facets, **fields)  # fmt: skip

    shown = timelines(
        intake,
        event("START", 0, "dbt", "dbt-run-shop", job_type=("DBT", "JOB")),
        node("START", 1, "raw", outputs=["raw"]),
        node("FAIL", 2, "raw", facets={"errorMessage": {"message": "no such table", "programmingLanguage": "sql"}}),
        node("START", 2.5, "mart", inputs=["raw"], outputs=["mart"]),
        node("ABORT", 3, "mart", inputs=["raw"], outputs=["mart"]),
        event("FAIL", 4, "dbt", "dbt-run-shop", job_type=("DBT", "JOB")),
    )["dbt-run-shop"]
    assert steps(shown) == {"raw": "failed", "mart": "skipped"}
    assert edges(shown) == {"raw->mart"}
    assert [len(entry["attempts"]) for entry in shown["step_timeline"]] == [1, 0]


def test_another_run_of_a_failed_job_is_another_try_of_its_step(intake: LineageIntake) -> None:
    above = ("r", "job")
    shown = timelines(
        intake,
        event("START", 0, "r", "job"),
        event("START", 1, "s1", "job.load", parent=above),
        event("FAIL", 2, "s1", "job.load", parent=above),
        event("START", 3, "s2", "job.load", parent=above),
        event("COMPLETE", 4, "s2", "job.load", parent=above),
        # After a success it is another step.
        event("START", 5, "s3", "job.load", parent=above),
        event("COMPLETE", 6, "s3", "job.load", parent=above),
        event("COMPLETE", 7, "r", "job"),
    )["job"]
    assert [(reference(e), e["status"], len(e["attempts"])) for e in shown["step_timeline"]] == [
        ("load#0", "completed", 2), ("load#1", "completed", 1),
    ]  # fmt: skip


def test_a_reader_waits_for_those_that_had_written_when_it_started(intake: LineageIntake) -> None:
    def step(name: str, start: float, end: float, **fields: Any) -> list[dict[str, Any]]:
        return [event(kind, at, name, f"job.{name}", parent=("r", "job"), **fields)
                for kind, at in (("START", start), ("COMPLETE", end))]  # fmt: skip

    shown = timelines(
        intake,
        event("START", 0, "r", "job"),
        *step("first", 1, 2, outputs=["t"]),
        *step("append", 2, 3, outputs=["t"]),
        *step("read", 4, 5, inputs=["t"], outputs=["u"]),
        *step("later", 6, 7, outputs=["t"]),
        *step("alone", 6, 7, inputs=["elsewhere"]),
        *step("grow", 8, 9, inputs=["u"], outputs=["u"]),
        event("COMPLETE", 9, "r", "job"),
    )["job"]
    assert edges(shown) == {"first->read", "append->read", "read->grow"}


def test_what_arrives_after_a_run_was_told_of_is_told_once_and_leaves_it_counted(intake: LineageIntake) -> None:
    start, read_starts, *others = application()
    timelines(intake, start, *others)
    assert told_wrong(intake.events, intake.timelines()) == []
    # Its start, a minute late; an event that says nothing new; the same from another producer.
    late: list[dict[str, Any]] = [
        read_starts,
        {**read_starts, "eventType": "RUNNING", "eventTime": others[-1]["eventTime"]},
        {**others[-1], "producer": "https://example.org/another"},
    ]
    for each in late:
        shown = timelines(intake, each)
        assert told_wrong(intake.events, intake.timelines()) == []
        assert intake.counted() == counts_of(list(shown.values()))
    assert (shown["orders"]["status"], steps(shown["orders"])) == (
        "completed",
        {"read": "completed", "write": "completed"},
    )


def test_a_parent_is_known_by_the_older_name_of_its_facet(intake: LineageIntake) -> None:
    for number, item in enumerate(application()):
        facets = item["run"].get("facets", {})
        if "parent" in facets:
            facets["parentRun"] = facets.pop("parent")
        item["eventTime"] = item["eventTime"].replace("Z", "+00:00[UTC]") if number % 2 else item["eventTime"]
        intake.take_events([arrived(encoded(item))])
    shown = timelines(intake)
    assert steps(shown["orders"]) == {"read": "completed", "write": "completed"}


@pytest.mark.parametrize("seed", range(4))
def test_runs_that_are_found_to_belong_together_become_one_execution(intake: LineageIntake, seed: int) -> None:
    # Each event names only the run above its own, so that nothing connects the first and the last at first.
    chain = [("a", "a"), ("b", "a.b"), ("c", "a.b.c")]
    events = [event("START", 0, "a", "a"), event("COMPLETE", 9, "a", "a")]
    for (run, job), above in zip(chain[1:], chain, strict=False):
        events += [event(kind, at, run, job, parent=above) for kind, at in (("START", 1), ("COMPLETE", 5))]
    random.Random(seed).shuffle(events)
    for item in events:
        shown = timelines(intake, item, settled=False)
    intake.settle()
    (timeline,) = intake.timelines()
    assert (timeline["workflow_name"], steps(timeline)) == ("a", {"b": "completed", "b.c": "completed"})
    assert shown.keys() >= {"a"}
    assert rows_of(intake, traces) == 1


CIRCLES: dict[str, Sequence[dict[str, Any]]] = {
    "itself": [event("START", 0, "a", "a", parent=("a", "a")), event("COMPLETE", 1, "a", "a", parent=("a", "a"))],
    "each other": [event("COMPLETE", 1, "a", "a", parent=("b", "b")),
                   event("COMPLETE", 1, "b", "b", parent=("a", "a"))],
    "root below": [event("START", 0, "a", "a", parent=("b", "b"), root=("a", "a")),
                   event("COMPLETE", 2, "b", "b", parent=("a", "a"))],
}  # fmt: skip


@pytest.mark.parametrize("events", CIRCLES.values(), ids=CIRCLES)
def test_no_run_is_inside_itself_whatever_events_say(intake: LineageIntake, events: Sequence[dict[str, Any]]) -> None:
    shown = timelines(intake, *events)
    assert len(shown) == 1
    assert intake.rows_to_correct() == 0


def test_a_long_run_is_assembled_a_little_later(intake: LineageIntake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachograph_exporter.ingest.lineage.lineage_store.MAX_AT_ONCE", 10)
    events = [airflow_dag("START", 0)]
    for i in range(20):
        events += [airflow_task("START", 1 + i, "work", map_index=i, mapped=True),
                   airflow_task("COMPLETE", 2 + i, "work", map_index=i, mapped=True)]  # fmt: skip
    for i in range(0, len(events), 5):
        intake.take_events([arrived(encoded(item)) for item in events[i : i + 5]])
    intake.take_events([arrived(encoded(airflow_dag("COMPLETE", 40, states={"work": "success"})))])
    intake.settle()
    (timeline,) = intake.timelines()
    assert (timeline["status"], timeline["completed_step_count"]) == ("completed", 20)
    assert intake.rows_to_correct() == 0


def test_events_are_deleted_with_the_spans_that_stand_for_them(intake: LineageIntake) -> None:
    timelines(intake, *application())
    assert archiving.delete_spans(intake.database, 1 << 62) > 0
    for table in (lineage_events, trace_keys, spans, traces):
        assert rows_of(intake, table) == 0, table.name
