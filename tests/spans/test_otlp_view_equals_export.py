"""``format=otlp`` of a run and the spans that the SDK exported of it are the same spans, attempts included."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.conftest import make_execution, make_step

import tachograph
from tachograph import Recorder, SpanListener
from tachograph.events import Event, ExecutionStarted, StepLogged, StepRetrying, StepStarted
from tachograph.identity import ExecutionRef, workspace_id
from tachograph.recording.setup import adopt, release
from tachograph.workflow import (
    Backoff,
    Executor,
    HandlerRegistry,
    StepContext,
    StepFailed,
    Workflow,
    WorkflowBuilder,
    parse,
)
from tachograph_exporter import bundled_workflows
from tachograph_exporter.ingest.spans import value_of
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.recovery import find_lost, lost_events
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.otlp_spans import spans_of_run


class Recording:
    """A recorder with a store and an exporter into memory."""

    def __init__(self, database: Database) -> None:
        self.memory = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.memory))
        self.recorder = Recorder()
        self.recorder.set_spans(SpanListener(self.provider))
        self.recorder.add("store", StoreWriter(database))
        self.database = database

    def exported(self) -> list[Span]:
        assert self.recorder.flush(60)
        request = encode_spans(self.memory.get_finished_spans())
        return [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]

    def viewed(self, ref: ExecutionRef) -> list[Span]:
        run = self.database.look(lambda c: execution_rows.run(c, workspace_id(ref.workspace), ref.execution_id))
        assert run is not None
        return [Span.FromString(span.payload) for span in spans_of_run(run, ref.workspace)]

    def close(self) -> None:
        self.recorder.close(60)
        self.provider.shutdown()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def recording(database: Database) -> Iterator[Recording]:
    recording = Recording(database)
    yield recording
    recording.close()


def content(spans: list[Span]) -> dict[str, dict[str, Any]]:
    def values(attributes: Any) -> dict[str, Any]:
        return {attribute.key: value_of(attribute.value) for attribute in attributes}

    assert len({span.span_id for span in spans}) == len(spans)
    return {
        span.span_id.hex(): {
            "trace": span.trace_id.hex(),
            "parent": span.parent_span_id.hex(),
            "name": span.name,
            "kind": span.kind,
            "times": (span.start_time_unix_nano, span.end_time_unix_nano),
            "attributes": values(span.attributes),
            "events": [(event.name, event.time_unix_nano, values(event.attributes)) for event in span.events],
            "links": [(link.trace_id.hex(), link.span_id.hex(), values(link.attributes)) for link in span.links],
            "status": (span.status.code, span.status.message),
        }
        for span in spans
    }


def assert_equal(recording: Recording, ref: ExecutionRef) -> dict[str, dict[str, Any]]:
    """The spans by their names."""
    exported, viewed = content(recording.exported()), content(recording.viewed(ref))
    assert viewed == exported
    return {span["name"]: span for span in exported.values()}


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        *((path.stem, {}) for path in bundled_workflows.workflow_files()),
        ("conditional_workflow", {"mode": "none of them"}),
        ("data_pipeline", {"minimum_rows": 10**9}),
    ],
    ids=str,
)
async def test_the_examples(name: str, inputs: dict[str, Any], recording: Recording, handlers: HandlerRegistry) -> None:
    flow = parse((bundled_workflows.workflow_directory() / f"{name}.json").read_bytes())
    if name == "with_retries":
        # However busy the machine is, the index is read before it is there.
        publish, is_retried = handlers.find("index.publish"), threading.Event()
        assert publish is not None
        recording.recorder.add("retries", lambda event: is_retried.set() if isinstance(event, StepRetrying) else None)
        handlers.register("index.publish")(lambda context: is_retried.wait(60) and publish.function(context))
    result = await Executor(recording.recorder, handlers=handlers).run(flow, inputs)
    spans = assert_equal(recording, result.execution)
    assert (result.status == "failed") == ("minimum_rows" in inputs), result
    if name == "agent_chain":
        assert spans["plan"]["attributes"]["gen_ai.usage.input_tokens"] > 0
        assert spans["plan"]["attributes"]["workflow.step.cost_usd"] > 0
    if name == "with_retries":
        assert any(" attempt 1" in span for span in spans)


@pytest.fixture
def work(handlers: HandlerRegistry) -> HandlerRegistry:
    @handlers.register("talks")
    async def talks(context: StepContext) -> None:
        context.measure("rows", 5, "row")
        context.log("half way")
        context.cost(usd=0.1, tokens_in=7, tokens_out=3, model="m")
        context.cost(usd=0.2, tokens_in=1, model="n")
        context.measure("ratio", 0.25)
        context.log("nearly there", "warning")
        if context.attempt < 3:
            raise StepFailed(f"attempt {context.attempt} failed")
        if context.config.get("fails"):
            raise ValueError("")

    return handlers


def talking(name: str = "w", *, fails: bool) -> Workflow:
    return (
        WorkflowBuilder(name, version="7")
        .step("talks", handler="talks", config={"fails": fails}, max_retries=2,
              retry_backoff=Backoff(initial_seconds=0.001))
        .step("skipped", after="talks", when="1 > 2")
        .step("after", after=["talks", "skipped"], trigger_rule="all_done")
        .build()
    )  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
async def test_a_step_that_reports_retries_and_perhaps_fails(
    fails: bool, recording: Recording, work: HandlerRegistry
) -> None:
    result = await Executor(recording.recorder, handlers=work).run(talking(fails=fails))
    spans = assert_equal(recording, result.execution)
    assert {"talks", "talks attempt 1", "talks attempt 2", "talks attempt 3", "skipped", "after"} <= set(spans)
    names = [name for name, _, _ in spans["talks"]["events"]]
    assert names == ["measure", "log", "measure", "log"] * 3 + ["exception"] * fails
    assert spans["talks"]["attributes"]["gen_ai.usage.input_tokens"] == 24
    assert spans["talks"]["attributes"]["gen_ai.request.model"] == "n"
    (_, _, exception) = spans["talks attempt 1"]["events"][0]
    assert "attempt 1 failed" in exception["exception.message"]
    assert "exception.stacktrace" in exception


def _tell(event: Event, loop: asyncio.AbstractEventLoop, retrying: asyncio.Event) -> None:
    if isinstance(event, StepRetrying):
        loop.call_soon_threadsafe(retrying.set)


async def test_a_cancelled_run(recording: Recording, work: HandlerRegistry) -> None:
    flow = (
        WorkflowBuilder("w")
        .step("sleeps", handler="sleep", config={"seconds": 30})
        .step("retries", handler="fail", config={"times": 9}, max_retries=9, retry_backoff=Backoff(initial_seconds=30))
        .step("after", after="sleeps")
        .build()
    )
    executor = Executor(recording.recorder, handlers=work)
    execution = make_execution("w")
    retrying, loop = asyncio.Event(), asyncio.get_running_loop()
    recording.recorder.add("test", lambda event: _tell(event, loop, retrying))
    task = asyncio.create_task(executor.run(flow, execution=execution))
    await asyncio.wait_for(retrying.wait(), 60)
    executor.cancel(execution.execution_id)
    await task
    spans = assert_equal(recording, execution)
    assert spans["run w"]["attributes"]["cicd.pipeline.result"] == "cancellation"
    assert spans["sleeps"]["attributes"]["workflow.step.status"] == "cancelled"
    assert "retries attempt 2" not in spans


async def test_a_run_under_a_callers_span(recording: Recording, work: HandlerRegistry) -> None:
    parent = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    execution = make_execution("w", parent=parent)
    await Executor(recording.recorder, handlers=work).run(talking(fails=True), execution=execution)
    spans = assert_equal(recording, execution)
    assert (spans["run w"]["trace"], spans["run w"]["parent"]) == parent


def test_plain_functions_with_steps_inside_steps_and_retries(recording: Recording) -> None:
    calls = []

    @tachograph.step
    def inner(number: int) -> int:
        tachograph.measure("number", number)
        return number

    @tachograph.step(max_retries=2, backoff=Backoff(initial_seconds=0.001))
    def outer() -> int:
        calls.append(1)
        tachograph.log(f"call {len(calls)}")
        total = inner(1) + inner(2)
        if len(calls) < 3:
            raise ValueError("too early")
        return total

    @tachograph.step
    def fails() -> None:
        tachograph.cost(usd=1.5, model="m")
        raise KeyError("password=hunter2")

    @tachograph.workflow("plain")
    def plain() -> None:
        outer()
        fails()

    adopt(recording.recorder)
    try:
        with pytest.raises(KeyError):
            contextvars.copy_context().run(plain)
    finally:
        release(recording.recorder)
    exported = recording.exported()
    (root,) = (span for span in exported if span.name == "run plain")
    execution_id = next(a.value.string_value for a in root.attributes if a.key == "workflow.execution.id")
    ref = ExecutionRef(workspace="default", workflow="plain", workflow_id="", execution_id=execution_id,
                       trace_id=root.trace_id.hex(), span_id=root.span_id.hex())  # fmt: skip
    spans = assert_equal(recording, ref)
    assert {"outer", "outer attempt 1", "outer attempt 2", "outer attempt 3", "inner", "fails"} <= set(spans)
    assert spans["fails"]["attributes"]["workflow.step.cost_usd"] == 1.5


def test_a_run_whose_process_died_and_was_closed_by_another(database: Database) -> None:
    execution = make_execution("w")
    step = make_step(execution, "a", depends_on=(), links=())
    dead, alive = Recording(database), Recording(database)
    context = contextvars.copy_context()
    for event in (
        ExecutionStarted(execution=execution, time_ns=10, process="elsewhere/0/1/1"),
        StepStarted(step=step, time_ns=20),
        StepLogged(step=step, time_ns=25, sequence=1, message="starting"),
        StepStarted(step=step, time_ns=50, attempt=2, backoff_ns=10),
    ):
        context.run(dead.recorder, event)
    dead.exported()
    (lost,) = database.look(lambda c: find_lost(c, 1 << 60))
    for closing in lost_events(*lost):
        alive.recorder(closing)
    exported, viewed = content(alive.exported()), content(alive.viewed(execution))
    names = {span["name"]: span for span in exported.values()}
    assert set(names) == {"run w", "a", "a attempt 2"}
    # The log line was on the span that died with its process.
    log = viewed[step.span_id]["events"].pop(0)
    assert log == ("log", 25, {"level": "info", "message": "starting"})
    assert viewed == exported
    dead.close()
    alive.close()


def test_what_still_runs_has_open_spans_with_the_ids_it_will_be_exported_with(recording: Recording) -> None:
    execution = make_execution("w")
    step = make_step(execution, "a")
    context = contextvars.copy_context()
    context.run(recording.recorder, ExecutionStarted(execution=execution, time_ns=10))
    context.run(recording.recorder, StepStarted(step=step, time_ns=20))
    context.run(recording.recorder, StepStarted(step=step, time_ns=50, attempt=2))
    assert recording.exported() == []
    spans = {span.name: span for span in recording.viewed(execution)}
    assert {name: span.end_time_unix_nano for name, span in spans.items()} == {"run w": 0, "a": 0, "a attempt 2": 0}
    listener = recording.recorder.spans
    assert isinstance(listener, SpanListener)
    attempt = listener._runs[execution.execution_id].attempts[step.span_id, 2].get_span_context()
    assert spans["a attempt 2"].span_id.hex() == f"{attempt.span_id:016x}"


def test_the_examples_are_all_there() -> None:
    names = {path.stem for path in Path(bundled_workflows.workflow_directory()).glob("*.json")}
    assert {path.stem for path in bundled_workflows.workflow_files()} == names
