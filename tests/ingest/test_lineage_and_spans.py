"""Where Airflow's own spans and its OpenLineage events tell of one run, it is one execution, whichever comes first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.api.test_otlp import describe
from tests.ingest.intake import counts_of, intakes
from tests.ingest.lineage_intake import LineageIntake, in_order, recorded_events
from tests.ingest.truth import differences, read_truth

from tachograph_exporter.ingest.spans import SpanRecord, record

NAME: Final = "openlineage_airflow3"
TRACE: Final = bytes.fromhex("5b8efff798038103d269b633813fc60c")
QUEUED_SECONDS: Final = 0.5
"""How long each task was queued, by its span."""


def _ns(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000) * 1000


def _id(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _span(name: str, parent: str, start_ns: int, end_ns: int, attributes: dict[str, Any]) -> SpanRecord:
    span = Span(trace_id=TRACE, span_id=_id(name), parent_span_id=_id(parent) if parent else b"",
                name=name.partition("#")[0], start_time_unix_nano=start_ns, end_time_unix_nano=end_ns)  # fmt: skip
    describe(span.attributes, attributes)
    return record(span, "airflow", "airflow.sdk", "resource", b"", {"service.name": "airflow"})


def airflow_spans() -> list[SpanRecord]:
    """The spans that Airflow 3 exports of the recorded run, with the names and attributes that it gives them."""
    (execution,) = read_truth(NAME)["executions"]
    run = {"airflow.dag_id": execution["workflow"], "airflow.dag_run.run_id": execution["run_id"]}
    root = f"dag_run.{execution['workflow']}"
    spans = [_span(root, "", _ns(execution["started_at"]), _ns(execution["ended_at"]), run)]
    for step in execution["steps"]:
        if not step["attempts"]:
            continue
        index = -1 if step["index"] is None else step["index"]
        label = step["name"] if step["index"] is None else f"{step['name']}[{index}]"
        task = {**run, "airflow.task_id": step["name"], "airflow.task_instance.map_index": str(index)}
        start, end = _ns(step["started_at"]), _ns(step["ended_at"])
        queued = round(QUEUED_SECONDS * 1e9)
        tries = [(1, start, end)]
        if step["name"] == "flaky":
            tries = [(1, start, _ns("2026-11-25T03:50:51.453185Z")), (2, _ns("2026-11-25T03:50:55.119113Z"), end)]
        last = tries[-1]
        state = {"airflow.task_instance.try_number": str(last[0]), "airflow.task_instance.state": step["engine_status"]}
        spans.append(_span(f"task_run.{label}", root, last[1] - queued, end, {**task, **state}))
        spans += [
            _span(f"worker.{label}#{number}", f"task_run.{label}", began, ended,
                  {**task, "airflow.task_instance.try_number": str(number)})
            for number, began, ended in tries
        ]  # fmt: skip
    return spans


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[Callable[[], LineageIntake]]:
    """Makes intakes with a database of their own."""
    with intakes(LineageIntake, tmp_path, empty_database) as make:
        yield make


def _feed(service: LineageIntake, order: str, spans: Sequence[SpanRecord]) -> None:
    events = recorded_events(NAME)
    if order == "spans first":
        service.take(spans)
        service.take_events(events)
    elif order == "lineage first":
        service.take_events(events)
        service.take(spans)
    else:
        turns = zip(in_order(events, "shuffled"), [*reversed(spans), *[None] * len(events)], strict=False)
        for event, span in turns:
            service.take_events([event])
            if span is not None:
                service.take([span])


@pytest.mark.parametrize("order", ["spans first", "lineage first", "in turns"])
def test_a_run_that_both_tell_of_is_one_execution(order: str, intake: Callable[[], LineageIntake]) -> None:
    service, spans = intake(), airflow_spans()
    _feed(service, order, spans)
    service.settle()
    timelines = service.timelines()
    assert differences(read_truth(NAME), timelines, tolerance_seconds=0.001) == []
    (timeline,) = timelines
    assert timeline["trace_id"] == TRACE.hex()
    queue = {entry["step_name"]: entry["wait"]["queue"] for entry in timeline["step_timeline"] if entry["wait"]}
    # `load` was ready only when `choose` had ended.
    assert all(0.4 < seconds <= QUEUED_SECONDS for seconds in queue.values()), queue
    assert service.counted() == counts_of(timelines)
    assert service.rows_to_correct() == 0


def test_what_arrives_again_of_either_changes_nothing(intake: Callable[[], LineageIntake]) -> None:
    service, spans = intake(), airflow_spans()
    _feed(service, "in turns", spans)
    service.settle()
    before = (service.timelines(), service.counted(), list(service.events))
    assert service.take(spans) == service.take_events(recorded_events(NAME)) == 0
    service.settle()
    assert (service.timelines(), service.counted(), service.events) == before


def test_a_try_of_which_only_a_span_tells_counts(intake: Callable[[], LineageIntake]) -> None:
    service = intake()
    # The events of the first try of `flaky`, and those of `merge`, were lost.
    kept = [item for item in recorded_events(NAME) if not (item.event.airflow and (
        (item.event.airflow.task_id == "flaky" and item.event.airflow.try_number == 1)
        or item.event.airflow.task_id == "merge"))]  # fmt: skip
    service.take_events(kept)
    service.take(airflow_spans())
    service.settle()
    (timeline,) = service.timelines()
    aside = [{"step": "flaky", "field": "error"}]
    assert differences(read_truth(NAME), [timeline], tolerance_seconds=0.001, aside=aside) == []


def test_spans_below_a_task_stay_below_it(intake: Callable[[], LineageIntake]) -> None:
    service = intake()
    inner = _span("run sync", "worker.load#1", _ns("2026-11-25T03:50:56.4Z"), _ns("2026-11-25T03:50:56.5Z"),
                  {"workflow.execution.id": "0198f000-0000-7000-8000-000000000001",
                   "workflow.definition.name": "sync"})  # fmt: skip
    service.take_events(recorded_events(NAME))
    service.take([*airflow_spans(), inner])
    service.settle()
    timelines = {timeline["workflow_name"]: timeline for timeline in service.timelines()}
    assert timelines.keys() == {"nightly_fail", "sync"}
    outer = timelines["nightly_fail"]
    assert timelines["sync"]["parent_execution_id"] == outer["execution_id"]
    (load,) = [entry for entry in outer["step_timeline"] if entry["step_name"] == "load"]
    assert load["child_execution_id"] == timelines["sync"]["execution_id"]
