"""Whatever arrives in whatever pieces, stored first or assembled at once, listeners are told each thing once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.api.test_otlp import export, span
from tests.ingest.hurried_intake import Hurried
from tests.ingest.intake import counts_of, intakes
from tests.ingest.told import told_wrong

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, StepFinished, StepRetrying
from tachograph_exporter.ingest import span_rows, span_store
from tachograph_exporter.ingest.spans import SpanRecord, records


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[Callable[[], Hurried]]:
    with intakes(Hurried, tmp_path, empty_database) as make:
        yield make


def task(number: int, parent: int, start: float, end: float | None, message: str, state: str = "SUCCESS") -> Span:
    """The span of a Celery task's run; what it is, and how it ended, it says when it has ended."""
    of: dict[str, str | int] = {"celery.action": "run", "celery.task_name": "add", "messaging.message.id": message}
    return span("run/add", number, parent, start, end, of=of | {"celery.state": state} if end is not None else {})


def sent(number: int, parent: int, at: float, message: str) -> Span:
    of: dict[str, str | int] = {"celery.action": "apply_async", "celery.task_name": "add",
                                "messaging.message.id": message}  # fmt: skip
    return span("apply_async/add", number, parent, at, at + 0.1, of=of)


def agent(number: int, parent: int, start: float, end: float | None, name: str = "writer") -> Span:
    of: dict[str, str | int] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}
    return span(f"invoke_agent {name}", number, parent, start, end, of=of)


def chat(number: int, parent: int, start: float, end: float | None, tokens: int = 10) -> Span:
    of: dict[str, str | int] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m",
                                "gen_ai.usage.input_tokens": tokens}  # fmt: skip
    return span("chat m", number, parent, start, end, of=of)


def flow(number: int, parent: int, start: float, end: float | None) -> Span:
    of: dict[str, str | int] = {"prefect.run.type": "flow", "prefect.run.name": f"run {number}",
                                "prefect.run.id": f"00000000-0000-4000-8000-{number:012d}",
                                "prefect.flow.id": f"flow {number}"}  # fmt: skip
    return span(f"run {number}", number, parent, start, end, of=of)


def of_flow(number: int, parent: int, start: float, end: float | None) -> Span:
    of: dict[str, str | int] = {"prefect.run.type": "task", "prefect.run.name": f"load-{number:03x}"}
    return span(f"load-{number:03x}", number, parent, start, end, of=of)


TRACES: Final[dict[str, list[Span]]] = {
    "any": [span("nightly", 1, 0, 0, 9), *[span(f"step {i}", i, 1, i, i + 0.5) for i in range(2, 7)],
            span("query", 8, 2, 2.1, 2.2)],
    "any that runs": [
        span("nightly", 1, 0, 0, None), *[span(f"step {i}", i, 1, i, None) for i in range(2, 5)],
        span("nightly", 1, 0, 0, 9), *[span(f"step {i}", i, 1, i, i + 0.5) for i in range(2, 5)],
        span("query", 8, 2, 2.1, 2.2),
    ],
    "tasks": [sent(1, 0, 0, "m1"), task(2, 1, 1, None, "m1"), task(2, 1, 1, 3, "m1"), sent(3, 2, 2, "m2"),
              task(4, 3, 4, None, "m2"), task(4, 3, 4, 5, "m2")],
    "a task that is tried again": [sent(1, 0, 0, "m1"), task(2, 1, 1, None, "m1"), task(2, 1, 1, 2, "m1", "RETRY"),
                                   sent(3, 2, 1.9, "m1"), task(4, 3, 3, None, "m1"), task(4, 3, 3, 4, "m1")],
    "an agent in a task": [sent(1, 0, 0, "m1"), task(2, 1, 1, None, "m1"), agent(5, 2, 1.1, 2), chat(6, 5, 1.2, 1.3),
                           chat(7, 5, 1.4, 1.5), task(2, 1, 1, 3, "m1"), sent(3, 2, 2, "m2"), task(4, 3, 4, 5, "m2")],
    "an agent that alone says what it spent": [
        sent(1, 0, 0, "m1"), task(2, 1, 1, 3, "m1"),
        agent(5, 2, 1.1, 2, "critic"), chat(6, 5, 1.2, 1.3), chat(7, 5, 1.4, 1.5),
    ],
    "flows in a flow": [of_flow(4, 3, 2.1, 2.2), flow(3, 2, 2, 3), of_flow(5, 1, 1, 2), flow(2, 1, 1.5, 4),
                        of_flow(6, 1, 5, 6), flow(1, 0, 0, 9)],
    "a flow that runs": [flow(1, 0, 0, None), of_flow(2, 1, 1, None), flow(3, 1, 2, None), of_flow(4, 3, 2.1, 2.2),
                         of_flow(2, 1, 1, 2), flow(3, 1, 2, 3), flow(1, 0, 0, 9)],
}  # fmt: skip
"""Spans of traces; of one that is sent while it runs, too, the open one comes first."""


def read(spans: Sequence[Span]) -> list[SpanRecord]:
    request = export(spans)
    for group in request.resource_spans:
        if group.scope_spans[0].spans[0].name.startswith(("run/", "apply_async/")):
            group.scope_spans[0].scope.name = "opentelemetry.instrumentation.celery"
    return [record for record in records(request.resource_spans) if isinstance(record, SpanRecord)]


def play(service: Hurried, spans: Sequence[Span], random_: random.Random, *, is_ordered: bool) -> str:
    """Deliver spans in random pieces and ways, without a long pause; returns what was done."""
    left = list(spans)
    if not is_ordered:
        random_.shuffle(left)
    done = []
    while left:
        count = random_.choice((1, 1, 2, 3))
        piece, left = left[:count], left[count:]
        way = random_.choice((service.take, service.hurry))
        way(read(piece))
        done.append(f"{way.__name__} {[(each.name, bool(each.end_time_unix_nano)) for each in piece]}")
        then = random_.choice((None, None, service.assemble_waiting, service.assemble))
        if then is not None:
            then()
            done.append(then.__name__)
    service.assemble_waiting()
    service.settle()
    return "\n".join(done)


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("is_long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 60), marks=pytest.mark.slow)], ids=["few", "many"])
def test_each_thing_is_told_once(
    name: str, is_long: bool, seeds: range, intake: Callable[[], Hurried], monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_long:
        # Then a trace is assembled later.
        monkeypatch.setattr(span_store, "MAX_AT_ONCE", 3)
        monkeypatch.setattr(span_rows, "MAX_AT_ONCE", 3)
    for seed in seeds:
        service = intake()
        spans = [Span.FromString(each.SerializeToString()) for each in TRACES[name]]
        done = play(service, spans, random.Random(seed), is_ordered=seed % 2 == 0)
        timelines = service.timelines()
        assert timelines
        problems = told_wrong(service.events, timelines)
        assert not problems, f"seed {seed}: {problems}\n{done}"
        assert service.rows_to_correct() == 0
        service.close()


def test_a_run_that_turns_out_to_be_a_step_of_another_is_told_as_both(intake: Callable[[], Hurried]) -> None:
    service = intake()
    for spans in ([flow(3, 1, 2, None)], [flow(1, 0, 0, None)], [flow(3, 1, 2, 3)], [flow(1, 0, 0, 9)]):
        service.take(read(spans))
    service.settle()
    assert not told_wrong(service.events, service.timelines())
    # Before, too, it was told that the run inside has started.
    assert [type(event).__name__ for event in service.events[:2]] == ["ExecutionStarted", "ExecutionStarted"]


def test_a_sent_message_is_told_of_when_it_was_read(intake: Callable[[], Hurried]) -> None:
    root, create, publish = (
        span("orders", 1, 0, 0, 1),
        span("orders create", 2, 1, 0.1, 0.1),
        span("send", 3, 2, 0.1, 0.2),
    )
    process = span("orders process", 4, 2, 2, 3, error="no such item")
    create.kind = publish.kind = Span.SPAN_KIND_PRODUCER
    process.kind = Span.SPAN_KIND_CONSUMER
    service = intake()
    service.take(read([root, create, publish]))
    assert [type(event).__name__ for event in service.events] == ["ExecutionStarted"]
    service.take(read([process]))
    service.settle()
    (timeline,) = service.timelines()
    assert timeline["status"] == "failed"
    assert [(entry["step_name"], entry["status"]) for entry in timeline["step_timeline"]] == [
        ("orders process", "failed"),
    ]  # fmt: skip
    assert not told_wrong(service.events, [timeline])


def test_a_task_that_runs_an_agent_is_a_run_around_it(intake: Callable[[], Hurried]) -> None:
    for spans in (TRACES["an agent in a task"], TRACES["an agent in a task"][::-1]):
        service = intake()
        for each in spans:
            service.take(read([each]))
        service.settle()
        outer, inner = service.timelines()
        assert [(entry["step_name"], entry["status"]) for entry in outer["step_timeline"]] == [
            ("add", "completed"), ("add", "completed"),
        ]  # fmt: skip
        assert (outer["workflow_name"], inner["workflow_name"]) == ("add", "writer")
        assert inner["parent_execution_id"] == outer["execution_id"]
        assert [entry["step_name"] for entry in inner["step_timeline"]] == ["chat m", "chat m"]


def test_a_run_whose_own_span_is_missing_is_listed_though_what_it_called_has_ended(
    intake: Callable[[], Hurried],
) -> None:
    service = intake()
    for each in TRACES["flows in a flow"][:3]:
        service.take(read([each]))
    first, second = service.timelines()
    assert {first["workflow_name"], second["workflow_name"]} == {"unnamed (etl)", "flow 3"}
    unnamed = first if first["workflow_name"] != "flow 3" else second
    assert (unnamed["status"], len(unnamed["step_timeline"])) == ("running", 1)
    service.take(read(TRACES["flows in a flow"][3:]))
    service.settle()
    assert sorted(timeline["workflow_name"] for timeline in service.timelines()) == ["flow 1", "flow 2", "flow 3"]


def dagster(number: int, start: float, end: float, *, error: str = "") -> Span:
    of: dict[str, str | int] = {"dagster.run_id": "00000000-0000-4000-8000-000000000007", "dagster.job_name": "nightly",
                                "dagster.step_key": f"step{number}"}  # fmt: skip
    return span(f"step{number}", number, 0, start, end, of=of, error=error)


def message(name: str, number: int, parent: int, start: float, end: float, kind: int, *, error: str = "") -> Span:
    of_kind = span(name, number, parent, start, end, error=error)
    of_kind.kind = kind  # type: ignore[assignment]
    return of_kind


PRODUCER, CONSUMER = Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER
GOES_ON: Final[dict[str, tuple[list[Span], list[Span], list[str]]]] = {
    "a task that is sent late": (
        [sent(1, 0, 0, "m1"), task(2, 1, 1, 3, "m1")],
        [sent(3, 2, 20, "m2"), task(4, 3, 21, 22, "m2", "FAILURE")],
        ["started", "completed", "resumed", "failed"],
    ),
    "a message that is read late": (
        [message("create", 2, 1, 0.1, 0.1, PRODUCER), span("orders", 1, 0, 0, 1)],
        [message("process", 4, 2, 20, 21, CONSUMER, error="no such item")],
        ["started", "completed", "failed"],
    ),
    "a run without a span of its own": (
        [dagster(1, 0, 1), dagster(2, 1, 2, error="no route")],
        [dagster(3, 1, 400)],
        ["started", "failed", "resumed", "failed"],
    ),
}  # fmt: skip
"""Spans after which a run seems to have ended, more of them after a long pause, and what is told of the run."""


def ends_of(events: Sequence[Event]) -> list[str]:
    """What was told of the only execution itself."""
    told = []
    for event in events:
        if isinstance(event, ExecutionStarted):
            told.append("resumed" if event.is_resumed else "started")
        elif isinstance(event, ExecutionFinished):
            told.append(event.status.value)
    return told


@pytest.mark.parametrize("name", GOES_ON)
@pytest.mark.parametrize("is_hurried", [False, True], ids=["at once", "stored first"])
def test_a_run_that_goes_on_after_a_long_pause_is_told_of_so_and_its_end_again(
    name: str, is_hurried: bool, intake: Callable[[], Hurried]
) -> None:
    first, second, expected = GOES_ON[name]
    service = intake()
    for spans in (first, second):
        for each in spans:
            piece = read([each])
            service.hurry(piece) if is_hurried else service.take(piece)
            service.assemble_waiting()
        service.settle()
        (timeline,) = service.timelines()
        assert service.counted() == counts_of([timeline])
        assert service.rows_to_correct() == 0
    assert ends_of(service.events) == expected
    assert timeline["status"] == expected[-1]
    steps = Counter(event.step.name for event in service.events if isinstance(event, StepFinished))
    shown = Counter(entry["step_name"] for entry in timeline["step_timeline"])
    # A message that seemed to be a step of its own was one.
    assert steps - shown == Counter({"create": 1} if name == "a message that is read late" else {})
    assert not shown - steps
    # Nothing of it is told a third time.
    before = list(service.events)
    service.take(read([*first, *second]))
    service.settle()
    assert service.events == before


@pytest.mark.parametrize("name", ["tasks", "a task that is tried again", "any that runs"])
def test_a_run_of_a_slow_engine_ends_once_however_long_its_steps_wait(name: str, intake: Callable[[], Hurried]) -> None:
    """Whatever a task asks for is sent before its own end is: between two tasks there is one that waits."""
    service = intake()
    moments = sorted(TRACES[name], key=lambda each: each.end_time_unix_nano or each.start_time_unix_nano)
    for each in moments:
        assert "completed" not in ends_of(service.events)
        service.take(read([each]))
        service.settle()
    assert ends_of(service.events).count("started") == len(service.timelines())
    assert "resumed" not in ends_of(service.events)
    assert not told_wrong(service.events, service.timelines())


def test_an_agent_waits_for_the_span_above_it_if_that_is_of_its_own_process(intake: Callable[[], Hurried]) -> None:
    """It lasts as long as the agents in it: for minutes. One of another process may be sent to somebody else."""
    inner = [chat(6, 5, 1.2, 1.3), agent(5, 9, 1.1, 2)]
    for flags, is_told in ((0x100, False), (0x300, True), (0, True)):
        service = intake()
        inner[1].flags = flags
        service.take(read(inner))
        service.pause(60)
        assert bool(service.events) == is_told
        assert [timeline["workflow_name"] for timeline in service.timelines()] == ["writer"]
        if not is_told:
            service.take(read([agent(9, 0, 1, 90, "manager")]))
            service.settle()
            (timeline,) = service.timelines()
            assert timeline["workflow_name"] == "manager"
            assert not told_wrong(service.events, [timeline])


def test_a_node_that_failed_is_told_of_when_it_is_known_whether_it_is_tried_again(
    intake: Callable[[], Hurried],
) -> None:
    def node(number: int, start: float, end: float | None, error: str = "") -> Span:
        return span("fetch", number, 1, start, end, of={"traceloop.span.kind": "task"}, error=error)

    def ends(service: Hurried) -> list[str]:
        return [type(event).__name__ for event in service.events if isinstance(event, StepFinished | StepRetrying)]

    graph: dict[str, str | int] = {"traceloop.span.kind": "workflow"}
    opened, over = span("graph", 1, 0, 0, None, of=graph), span("graph", 1, 0, 0, 9, of=graph)
    for again, expected in (([node(3, 3, None), node(3, 3, 4)], ["StepRetrying", "StepFinished"]), ([], [])):
        service = intake()
        for each in (opened, node(2, 1, None), node(2, 1, 2, "no route")):
            service.take(read([each]))
        assert ends(service) == []
        for each in again:
            service.take(read([each]))
        assert ends(service) == expected
        service.take(read([over]))
        service.settle()
        assert ends(service) == (expected or ["StepFinished"])
        assert not told_wrong(service.events, service.timelines())
