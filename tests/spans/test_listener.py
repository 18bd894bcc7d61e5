"""Events as spans: names, parents, links, attributes; through the real SDK."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from tests.conftest import make_execution, make_step

from tachograph import Recorder, SpanListener, propagation
from tachograph.events import (
    ExecutionFinished,
    ExecutionStatus,
    Failure,
    StepCost,
    StepFinished,
    StepLogged,
    StepStatus,
)
from tachograph.identity import StepRef
from tachograph.spans import semconv as sc
from tachograph.spans.attributes import attempt_span_id
from tachograph.workflow import Backoff, Executor, HandlerRegistry, StepContext, WorkflowBuilder, registry


class Traced:
    """A recorder that exports spans into memory."""

    def __init__(self, recorder: Recorder, **options: Any) -> None:
        self.memory = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.memory))
        self.recorder = recorder
        self.listener = SpanListener(self.provider)
        recorder.set_spans(self.listener)

    def spans(self) -> dict[str, ReadableSpan]:
        assert self.recorder.flush(60)
        return {span.name: span for span in self.memory.get_finished_spans()}


@pytest.fixture
def traced(recorder: Recorder) -> Iterator[Traced]:
    traced = Traced(recorder)
    yield traced
    traced.provider.shutdown()


@pytest.fixture
def work() -> HandlerRegistry:
    return registry.copy()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_run_is_a_server_span_with_a_child_per_step_linked_as_the_graph(traced: Traced) -> None:
    flow = WorkflowBuilder("etl", version="7").step("a").step("b", after="a").step("c", after=["a", "b"]).build()
    result = await Executor(traced.recorder).run(flow)
    spans = traced.spans()
    assert set(spans) == {"run etl", "a", "b", "c"}
    root = spans["run etl"]
    assert root.kind is SpanKind.SERVER
    assert root.parent is None
    assert f"{root.context.span_id:016x}" == result.execution.span_id
    assert f"{root.context.trace_id:032x}" == result.execution.trace_id
    for name in "abc":
        assert spans[name].kind is SpanKind.INTERNAL
        assert spans[name].parent is not None
        assert spans[name].parent.span_id == root.context.span_id  # type: ignore[union-attr]
    linked = {link.context.span_id for link in spans["c"].links}
    assert linked == {spans["a"].context.span_id, spans["b"].context.span_id}
    of_b = attributes(spans["b"])
    assert of_b[sc.WORKFLOW_NAME] == of_b[sc.PIPELINE_NAME] == "etl"
    assert of_b[sc.WORKFLOW_VERSION] == "7"
    assert of_b[sc.EXECUTION_ID] == of_b[sc.PIPELINE_RUN_ID] == result.execution.execution_id
    assert of_b[sc.STEP_NAME] == of_b[sc.TASK_NAME] == "b"
    assert of_b[sc.STEP_STATUS] == "completed"
    assert of_b[sc.TASK_RESULT] == "success"
    assert of_b[sc.STEP_ATTEMPT] == 1
    assert 0 <= of_b[sc.STEP_WAIT] < 5
    assert attributes(root)[sc.PIPELINE_RESULT] == "success"
    # Every attribute is one of those documented, and every one documented for steps is there somewhere.
    assert {*of_b, *attributes(root)} <= set(sc.ATTRIBUTES)


async def test_a_retried_step_has_a_span_per_attempt_and_one_that_did_not_has_one(
    traced: Traced, work: HandlerRegistry
) -> None:
    flow = WorkflowBuilder("w").step("flaky", handler="fail", config={"times": 2}, max_retries=3,
                                     retry_backoff=Backoff(initial_seconds=0.001)).build()  # fmt: skip
    await Executor(traced.recorder).run(flow)
    spans = traced.spans()
    assert set(spans) == {"run w", "flaky", "flaky attempt 1", "flaky attempt 2", "flaky attempt 3"}
    for number in (1, 2, 3):
        attempt = spans[f"flaky attempt {number}"]
        assert attempt.parent is not None
        assert attempt.parent.span_id == spans["flaky"].context.span_id
        assert attributes(attempt)[sc.STEP_STATUS] == ("completed" if number == 3 else "failed")
        assert attempt.status.status_code is (StatusCode.UNSET if number == 3 else StatusCode.ERROR)
    assert spans["flaky attempt 1"].end_time < spans["flaky attempt 2"].start_time  # type: ignore[operator]
    assert attributes(spans["flaky"])[sc.STEP_ATTEMPT] == 3


async def test_failures_skips_and_cost_are_on_the_span(traced: Traced, work: HandlerRegistry) -> None:
    @work.register("spend")
    async def spend(context: StepContext) -> None:
        context.cost(usd=0.5, tokens_in=10, tokens_out=3, model="m")
        context.cost(usd=0.25, tokens_in=1)
        context.measure("rows", 5)
        context.log("half way")

    flow = (
        WorkflowBuilder("w").step("bad", handler="fail", config={"message": "password=hunter2"})
        .step("after", after="bad").step("ai", handler="spend")
    ).build()  # fmt: skip
    await Executor(traced.recorder, handlers=work).run(flow)
    spans = traced.spans()
    bad = spans["bad"]
    assert bad.status.status_code is StatusCode.ERROR
    assert "hunter2" not in bad.to_json()
    assert attributes(bad)[sc.ERROR_TYPE].endswith("StepFailed")
    assert [event.name for event in bad.events] == ["exception"]
    after = spans["after"]
    assert after.start_time == after.end_time
    assert attributes(after)[sc.STEP_SKIP_REASON] == "upstream_failed"
    assert attributes(after)[sc.TASK_RESULT] == "skip"
    ai = attributes(spans["ai"])
    assert (ai[sc.TOKENS_IN], ai[sc.TOKENS_OUT], ai[sc.COST], ai[sc.MODEL]) == (11, 3, 0.75, "m")
    assert [event.name for event in spans["ai"].events] == ["measure", "log"]
    assert spans["run w"].status.status_code is StatusCode.ERROR
    assert attributes(spans["run w"])[sc.PIPELINE_RESULT] == "failure"


async def test_the_steps_span_is_current_in_its_handler_in_tasks_and_in_threads(
    traced: Traced, work: HandlerRegistry
) -> None:
    tracer = traced.provider.get_tracer("users")
    headers: dict[str, str] = {}

    @work.register("async")
    async def in_task(context: StepContext) -> None:
        trace.get_current_span().set_attribute("users.own", (1, 2))
        with tracer.start_as_current_span("inner async"):
            pass
        headers.update(context.propagation())

    @work.register("sync")
    def in_thread(context: StepContext) -> None:
        with tracer.start_as_current_span("inner sync"):
            pass
        trace.get_current_span().add_event("seen", {"n": 1})
        trace.get_current_span().record_exception(KeyError("handled"))

    flow = WorkflowBuilder("w").step("a", handler="async").step("b", handler="sync").build()
    await Executor(traced.recorder, handlers=work, carrier=propagation).run(flow)
    assert not trace.get_current_span().get_span_context().is_valid
    spans = traced.spans()
    assert spans["inner async"].parent.span_id == spans["a"].context.span_id  # type: ignore[union-attr]
    assert spans["inner sync"].parent.span_id == spans["b"].context.span_id  # type: ignore[union-attr]
    assert attributes(spans["a"])["users.own"] == (1, 2)
    assert [event.name for event in spans["b"].events] == ["seen", "exception"]
    assert headers["traceparent"] == (f"00-{spans['a'].context.trace_id:032x}-{spans['a'].context.span_id:016x}-01")


async def test_a_run_continues_its_callers_trace(traced: Traced) -> None:
    from tachograph import caller

    with traced.provider.get_tracer("users").start_as_current_span("request") as outer:
        parent = caller()
        assert parent is not None
        execution = make_execution("w", parent=parent)
        await Executor(traced.recorder).run(WorkflowBuilder("w").step("a").build(), execution=execution)
        assert trace.get_current_span() is outer
    spans = traced.spans()
    assert spans["run w"].parent is not None
    assert spans["run w"].parent.span_id == spans["request"].context.span_id
    assert spans["a"].context.trace_id == spans["request"].context.trace_id


async def test_the_users_sampler_and_processors_are_respected(recorder: Recorder) -> None:
    seen: list[str] = []

    class Watcher(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            seen.append(f"start {span.name} {baggage.get_baggage('team', parent_context)}")
            span.set_attribute("added.at.start", True)

        def on_end(self, span: ReadableSpan) -> None:
            seen.append(f"end {span.name}")

    traced = Traced(recorder)
    traced.provider.add_span_processor(Watcher())
    token = otel_context.attach(baggage.set_baggage("team", "a"))
    try:
        await Executor(recorder).run(WorkflowBuilder("w").step("a").build())
    finally:
        otel_context.detach(token)
    spans = traced.spans()
    assert seen[0].startswith("start run w")
    assert {"end a", "end run w"} <= set(seen)
    assert attributes(spans["a"])["added.at.start"] is True


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, TraceIdRatioBased(0.0)])
async def test_what_the_sampler_drops_is_not_exported_but_the_run_has_its_ids(
    recorder: Recorder, sampler: Any, work: HandlerRegistry
) -> None:
    ids: list[int] = []

    @work.register("look")
    async def look(context: StepContext) -> None:
        ids.append(trace.get_current_span().get_span_context().trace_id)

    traced = Traced(recorder, sampler=sampler)
    result = await Executor(recorder, handlers=work).run(WorkflowBuilder("w").step("a", handler="look").build())
    assert traced.spans() == {}
    assert f"{ids[0]:032x}" == result.execution.trace_id


async def test_without_a_provider_the_current_span_still_has_the_runs_ids(
    recorder: Recorder, work: HandlerRegistry
) -> None:
    ids: list[int] = []

    @work.register("look")
    async def look(context: StepContext) -> None:
        ids.append(trace.get_current_span().get_span_context().trace_id)

    recorder.set_spans(SpanListener(None))
    result = await Executor(recorder, handlers=work).run(WorkflowBuilder("w").step("a", handler="look").build())
    assert f"{ids[0]:032x}" == result.execution.trace_id


def test_a_lost_runs_spans_are_made_from_its_closing_events_under_their_real_parent(traced: Traced) -> None:
    execution = make_execution("w")
    step = make_step(execution, "a")
    lost = Failure("Lost", "gone")
    traced.recorder(
        StepFinished(step=step, time_ns=90, status=StepStatus.LOST, attempt=1, started_ns=20, attempt_started_ns=20,
                     failure=lost)
    )  # fmt: skip
    traced.recorder(
        ExecutionFinished(execution=execution, time_ns=90, status=ExecutionStatus.LOST, started_ns=10, step_count=1,
                          failure=lost)
    )  # fmt: skip
    spans = traced.spans()
    assert (spans["run w"].start_time, spans["run w"].end_time) == (10, 90)
    assert (spans["a"].start_time, spans["a"].end_time) == (20, 90)
    assert f"{spans['a'].context.span_id:016x}" == step.span_id
    assert spans["a"].parent.span_id == spans["run w"].context.span_id  # type: ignore[union-attr]
    assert f"{spans['run w'].context.span_id:016x}" == execution.span_id
    assert attributes(spans["run w"])[sc.PIPELINE_RESULT] == "error"


async def test_a_processor_that_raises_or_blocks_costs_the_run_nothing(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise RuntimeError("start")

        def on_end(self, span: ReadableSpan) -> None:
            raise RuntimeError("end")

    traced = Traced(recorder)
    traced.provider.add_span_processor(Broken())
    with caplog.at_level(logging.CRITICAL):
        result = await Executor(recorder).run(WorkflowBuilder("w").step("a").build())
    assert result.status == "completed"
    recorder.flush(60)
    assert recorder.queues["spans"].dropped["error"] > 0


class Watching(SpanProcessor):
    """Notes each call with the span's name and the thread; adds to each span as it starts."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []

    def on_start(self, span: Any, parent_context: otel_context.Context | None = None) -> None:
        span.set_attribute("added.at.start", baggage.get_baggage("who", parent_context) or "nobody")
        self.calls.append(("start", span.name, threading.current_thread().name))

    def on_end(self, span: ReadableSpan) -> None:
        self.calls.append(("end", span.name, threading.current_thread().name))


async def test_processors_see_a_span_start_with_its_step_and_end_off_the_steps_thread(
    traced: Traced, work: HandlerRegistry
) -> None:
    @work.register("touches")
    def touches(context: StepContext) -> None:
        span = trace.get_current_span()
        span.set_attribute("mine", 1)
        span.add_event("seen")
        with trace.get_tracer("t", tracer_provider=traced.provider).start_as_current_span("inside"):
            pass

    flow = (
        WorkflowBuilder("w")
        .step("a", handler="touches")
        .step("b", handler="fail", config={"times": 1}, max_retries=1, retry_backoff=Backoff(initial_seconds=0.0),
              after="a")
        .step("c", handler="fail", after="b")
        .step("d", after="c")
        .build()
    )  # fmt: skip
    watching = Watching()
    traced.provider.add_span_processor(watching)
    token = otel_context.attach(baggage.set_baggage("who", "me"))
    await Executor(traced.recorder, handlers=work).run(flow)
    otel_context.detach(token)
    spans = traced.spans()
    assert set(spans) == {"run w", "a", "inside", "b", "b attempt 1", "b attempt 2", "c", "d"}
    assert [call for call, name, _ in watching.calls if name == "a"] == ["start", "end"]
    threads = {call: thread for call, name, thread in watching.calls if name == "a"}
    assert threads["start"] != threads["end"] == "tachograph-spans"
    assert spans["inside"].parent.span_id == spans["a"].context.span_id  # type: ignore[union-attr]
    assert attributes(spans["a"])["mine"] == 1
    assert [event.name for event in spans["a"].events] == ["seen"]
    assert [link.context.span_id for link in spans["d"].links] == [spans["c"].context.span_id]


def finished(step: StepRef, **fields: Any) -> StepFinished:
    return StepFinished(step=step, time_ns=90, status=StepStatus.LOST, started_ns=20, failure=Failure("Lost", "gone"),
                        **fields)  # fmt: skip


def test_an_attempt_has_the_same_span_id_in_every_process(recorder: Recorder) -> None:
    step = make_step(make_execution("w"), "a")
    ids = []
    for _ in range(2):
        traced = Traced(Recorder())
        traced.recorder(finished(step, attempt=2, attempt_started_ns=50))
        attempt = traced.spans()["a attempt 2"]
        assert (attempt.start_time, attempt.end_time) == (50, 90)
        assert f"{attempt.parent.span_id:016x}" == step.span_id  # type: ignore[union-attr]
        ids.append(attempt.context.span_id)
        traced.recorder.close(60)
    assert ids[0] == ids[1] == int(attempt_span_id(step.span_id, 2), 16)
    assert len({attempt_span_id(step.span_id, n) for n in range(1000)} | {step.span_id}) == 1001


def test_what_is_reported_after_a_steps_end_leaves_nothing_behind(traced: Traced) -> None:
    step = make_step(make_execution("w"), "a")
    traced.recorder(StepLogged(step=step, time_ns=5, sequence=1, message="late"))
    traced.recorder(StepCost(step=step, time_ns=5, sequence=2, usd=1.0))
    assert traced.spans() == {}
    assert traced.listener._runs == {}
