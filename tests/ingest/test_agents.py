"""Agents' runs: what a span spent is counted once, what is an execution is decided by what is above it, and what was
said to models stays in the spans, without secrets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.ingest.intake import Intake
from tests.ingest.recorded import in_order, recorded_spans
from tests.otlp_values import any_value
from tests.traces.test_traceql import span

from tachograph.events import ExecutionFinished, StepCost, StepFinished
from tachograph_exporter.config import ConfigError
from tachograph_exporter.ingest.assembly.executions import AssembledExecution, assemble
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.messages import is_of_agent, mask_messages, masked
from tachograph_exporter.ingest.prices import read_prices
from tachograph_exporter.ingest.rules import Rulebook
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.usage import MODEL_LIMIT, usage_of
from tachograph_exporter.store.series.rows import current_series
from tachograph_exporter.store.series.values import COST, SEPARATOR, TOKENS

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "clerk"}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o", "gen_ai.response.model": "gpt-4o-2024"}
SPENT = {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 10}
CACHED = {**SPENT, "gen_ai.usage.cache_read.input_tokens": 500}
IN_PARTS = {"llm.token_count.prompt": 7, "llm.cost.prompt": 0.25, "llm.cost.completion": 0.5}
PRICES = '[models."gpt-4o"]\ninput = 2.0\noutput = 10.0\ncached = 0.5\n[models."gpt-*"]\ninput = 1\noutput = 1\n'


def key_values(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def costs(execution: AssembledExecution) -> dict[str, tuple[int, int, float, str]]:
    """What each step spent, by name."""
    return {
        event.step.name: (event.tokens_in, event.tokens_out, event.usd, event.model)
        for event in execution.events
        if isinstance(event, StepCost)
    }


def assembled(*spans: SpanRecord, book: Rulebook = BUILT_IN) -> list[AssembledExecution]:
    return assemble("default", spans, 10**18, book)


def only(*spans: SpanRecord, book: Rulebook = BUILT_IN) -> AssembledExecution:
    (execution,) = assembled(*spans, book=book)
    return execution


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (SPENT, (100, 10, 0, 0, "", "", None)),
        ({"gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 3}, (7, 3, 0, 0, "", "", None)),
        ({**IN_PARTS}, (7, 0, 0, 0, "", "", 0.75)),
        ({**CACHED, **CHAT}, (100, 10, 100, 0, "gpt-4o-2024", "gpt-4o", None)),
        ({"operation.cost": 0.5}, (0, 0, 0, 0, "", "", 0.5)),
        # Nothing is said, or nothing that makes sense.
        ({}, None),
        ({"gen_ai.usage.input_tokens": -1, "operation.cost": float("nan")}, None),
        ({"gen_ai.usage.input_tokens": True, "gen_ai.usage.output_tokens": "12"}, None),
        ({"gen_ai.usage.input_tokens": 1 << 62, "operation.cost": float("inf")}, None),
        ({"gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0, "operation.cost": 0.0}, None),
    ],
)  # fmt: skip
def test_what_a_span_says_it_spent(attributes: dict[str, Any], expected: tuple[Any, ...] | None) -> None:
    usage = usage_of(span("1", "s", 1, attributes))
    assert (tuple(usage) if usage is not None else None) == expected


def test_a_models_name_is_bounded() -> None:
    usage = usage_of(span("1", "s", 1, {**SPENT, "gen_ai.response.model": "m\0" * 10_000}))
    assert usage is not None
    assert len(usage.model) == MODEL_LIMIT
    assert "\0" not in usage.model


def test_an_agent_that_repeats_what_its_calls_spent_is_not_counted_again() -> None:
    repeated = {f"gen_ai.usage.{kind}_tokens": 200 for kind in ("input", "output")}
    execution = only(
        span("1", "invoke_agent clerk", 9, {**AGENT, **repeated}),
        span("2", "delegate", 8, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "delegate"}, parent="1"),
        span("3", "invoke_agent helper", 7, {**AGENT, "gen_ai.agent.name": "helper", **repeated}, parent="2"),
        span("4", "chat gpt-4o", 3, {**CHAT, **SPENT}, parent="3"),
        # The client library's span within the framework's says the same.
        span("5", "chat gpt-4o client", 2, {**CHAT, **SPENT}, parent="4"),
    )
    assert execution.execution.workflow == "clerk"
    assert costs(execution) == {"chat gpt-4o": (100, 10, 0.0, "gpt-4o-2024")}


def test_what_only_the_whole_run_says_is_counted_for_a_step_of_its_name() -> None:
    execution = only(
        span("1", "invoke_agent clerk", 9, {**AGENT, **SPENT, "operation.cost": 0.5}),
        span("2", "look", 8, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}, parent="1"),
    )
    steps = {event.step.name: event.step for event in execution.events if isinstance(event, StepFinished)}
    assert costs(execution) == {"clerk": (100, 10, 0.5, "")}
    assert steps["look"].parent_step_id == steps["clerk"].step_id


def test_a_call_of_a_model_without_an_agent_is_a_step_of_what_is_around_it() -> None:
    execution = only(span("1", "GET /ask", 9), span("2", "chat gpt-4o", 3, {**CHAT, **SPENT}, parent="1"))
    assert execution.execution.workflow == "GET /ask"
    assert costs(execution) == {"chat gpt-4o": (100, 10, 0.0, "gpt-4o-2024")}


def test_agents_under_one_web_request_are_executions_of_their_own() -> None:
    executions = assembled(
        span("1", "GET /ask", 9),
        span("2", "invoke_agent clerk", 3, AGENT, parent="1"),
        span("3", "invoke_agent critic", 3, {**AGENT, "gen_ai.agent.name": "critic"}, parent="1"),
        span("4", "chat gpt-4o", 3, {**CHAT, **SPENT}, parent="3"),
    )
    assert {(e.execution.workflow, bool(costs(e)), e.execution.parent_execution_id) for e in executions} == {
        ("clerk", False, None), ("critic", True, None),
    }  # fmt: skip


def test_an_agent_whose_caller_has_not_arrived_is_announced_only_when_it_is_settled() -> None:
    inner = span("3", "invoke_agent helper", 7, {**AGENT, "gen_ai.agent.name": "helper"}, parent="2")
    assert only(inner).may_be_a_step
    tool = span("2", "delegate", 8, {"gen_ai.operation.name": "execute_tool"}, parent="1")
    assert only(tool, inner).may_be_a_step
    whole = only(span("1", "invoke_agent clerk", 9, AGENT), tool, inner)
    assert (whole.execution.workflow, whole.may_be_a_step) == ("clerk", False)


def test_spans_above_each_other_in_a_circle_are_no_execution_and_no_endless_loop() -> None:
    circle = [span("1", "a", 9, {**AGENT, **SPENT}, parent="2"), span("2", "b", 9, {**AGENT, **SPENT}, parent="1")]
    assert all(not costs(execution) or execution.execution.workflow for execution in assembled(*circle))


def test_prices_of_the_users_are_used_where_a_span_says_no_cost(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(PRICES)
    book = Rulebook(BUILT_IN.rules, read_prices(tmp_path / "prices.toml"))
    cached = {"gen_ai.usage.cache_read.input_tokens": 40}
    execution = only(
        span("1", "invoke_agent clerk", 9, AGENT),
        span("2", "asked for", 1, {**CHAT, **SPENT, **cached}, parent="1"),
        span("3", "says", 2, {**CHAT, **SPENT, "operation.cost": 3.0}, parent="1"),
        span("4", "begins like it", 3, {**SPENT, "gen_ai.request.model": "gpt-9"}, parent="1"),
        span("5", "unknown", 4, {**SPENT, "gen_ai.request.model": "llama"}, parent="1"),
        book=book,
    )
    spent = {name: usd for name, (_, _, usd, _) in costs(execution).items()}
    assert spent == {
        "asked for": pytest.approx((60 * 2 + 40 * 0.5 + 10 * 10) / 1e6),
        "says": 3.0,
        "begins like it": pytest.approx(110e-6),
        "unknown": 0.0,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[models.a]\ninput = -1\noutput = 1", r'"input" of model "a" is not zero or more'),
        ("[models.a]\ninput = nan\noutput = 1", '"input" of model "a"'),
        ("[models.a]\ninput = 1", "missing required field `output`"),
        ("[models.a]\ninput = 1\noutput = 1\noutptu = 1", "unknown field `outptu`"),
        ("[model.a]\ninput = 1\noutput = 1", "unknown field `model`"),
        ("[models", "cannot be read"),
    ],
)
def test_prices_that_make_no_sense_are_refused_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_prices(tmp_path / "prices.toml")
    with pytest.raises(ConfigError, match="No such file"):
        read_prices(tmp_path / "none.toml")


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gen_ai.input.messages", json.dumps([{"parts": [{"content": f"my password={SECRET}"}, {"content": "kept"}]}])),
        ("input.value", json.dumps({"api_key": SECRET, "q": "kept"})),
        ("llm.input_messages.0.message.content", f"token: {SECRET}\nkept"),
        ("gen_ai.tool.call.arguments", json.dumps({"nested": json.dumps({"password": SECRET, "q": "kept"})})),
        ("pydantic_ai.all_messages", f'{{"broken": "password={SECRET}\nkept'),
        ("output.value", '{"kept": 123456789012345678901234567890, "password": "' + SECRET + '"}'),
        ("output.value", json.dumps({"kept": "x" * 100_000, "password": SECRET})),
    ],
)
def test_secrets_in_messages_are_masked_before_they_are_stored(key: str, value: str) -> None:
    message = Span(attributes=key_values({"openinference.span.kind": "LLM", key: value}))
    message.events.add(name="gen_ai.user.message", attributes=key_values({"content": f"password={SECRET}"}))
    assert mask_messages(message)
    assert SECRET.encode() not in message.SerializeToString()
    assert b"kept" in message.SerializeToString()


def test_messages_without_secrets_and_spans_of_others_stay_as_they_are() -> None:
    text = '[ {"content": "weather?", "n": 1.50} ]'
    assert masked(text) == text
    deep = "[" * 100_000
    assert masked(deep) == deep
    assert is_of_agent({"gen_ai.system": "openai"})
    assert not is_of_agent({"db.statement": f"password={SECRET}"})


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Callable[[], Intake]]:
    made = Intake(f"sqlite:///{tmp_path}/agents.db")
    yield lambda: made
    made.close()


@pytest.mark.parametrize("order", ["by end", "reversed"])
def test_tokens_and_costs_are_the_same_in_timeline_metrics_and_events(order: str, intake: Callable[[], Intake]) -> None:
    service = intake()
    for one in in_order(recorded_spans("pydantic_ai_nested"), order):
        service.take([one])
    service.settle()
    (timeline,) = service.timelines()
    assert (timeline["tokens_in"], timeline["tokens_out"], timeline["cost_usd"]) == (580, 62, 0.0016752)
    series: dict[tuple[str, ...], float] = {}
    key = (service.workspace_id, timeline["workflow_id"])
    for by_step in service.database.look(lambda c: current_series(c, key)).values():
        for code, counted in by_step.by_code.items():
            name, *labels = code.split(SEPARATOR)
            if name in (COST, TOKENS):
                assert isinstance(counted.value, int)
                series[name, *labels] = series.get((name, *labels), 0) + counted.value
    assert series == {
        (TOKENS, "gpt-4o", "input"): 460, (TOKENS, "gpt-4o", "output"): 50, (COST, "gpt-4o"): 1_650_000,
        (TOKENS, "gpt-4o-mini", "input"): 120, (TOKENS, "gpt-4o-mini", "output"): 12, (COST, "gpt-4o-mini"): 25_200,
    }  # fmt: skip
    announced = [event for event in service.events if isinstance(event, StepCost)]
    assert sum(event.tokens_in for event in announced) == 580
    assert sum(isinstance(event, ExecutionFinished) for event in service.events) == 1


def chain(
    span_id: str, name: str, seconds: float, parent: str, *, after: float = 0, failed: bool = False
) -> SpanRecord:
    kind = {"openinference.span.kind": "CHAIN"}
    return shifted(span(span_id, name, seconds, kind, parent=parent, status=2 if failed else 1), after)


@pytest.mark.parametrize(
    ("second_starts", "first_failed", "expected"),
    [
        (2.0, True, [("job", 2)]),  # One after the other's failure: tries.
        (2.0, False, [("job", 1), ("job", 1), ("job", 1)]),  # A loop.
        (0.5, True, [("job", 1), ("job", 1), ("job", 1)]),  # Beside each other.
    ],
)
def test_runs_within_one_of_the_same_name_are_its_tries_only_after_a_failure(
    second_starts: float, first_failed: bool, expected: list[tuple[str, int]]
) -> None:
    execution = only(
        chain("1", "RunnableSequence", 9, ""),
        chain("2", "job", 8, "1"),
        chain("3", "job", 1, "2", failed=first_failed),
        chain("4", "job", 1, "2", after=second_starts),
    )
    ends = [event for event in execution.events if isinstance(event, StepFinished)]
    assert [(event.step.name, event.attempt) for event in ends] == expected


def test_a_tool_that_is_called_again_after_a_failure_is_a_step_of_its_own_and_a_model_is_not() -> None:
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}
    model = {**CHAT, **SPENT}
    execution = only(
        span("1", "invoke_agent clerk", 9, AGENT),
        *[shifted(span(str(2 + i), "look", 0.5, tool, parent="1", status=2 - 2 * i), i) for i in range(2)],
        *[shifted(span(str(4 + i), "chat", 0.5, model, parent="1", status=2 - 2 * i), 3 + i) for i in range(2)],
    )
    ends = [event for event in execution.events if isinstance(event, StepFinished)]
    assert [(event.step.name, event.attempt, event.status) for event in ends] == [
        ("look", 1, "failed"), ("look", 1, "completed"), ("chat", 2, "completed"),
    ]  # fmt: skip
    spent = [event for event in execution.events if isinstance(event, StepCost)]
    assert [(event.attempt, event.sequence, event.tokens_in) for event in spent] == [(1, 1, 100), (2, 2, 100)]


def test_agents_inside_agents_inside_agents_cost_no_more_than_others() -> None:
    scope = "openinference.instrumentation.openai_agents"
    spans = [span("0", "Agent workflow", 9, {"openinference.span.kind": "AGENT"})]
    for depth in range(1, 4_000):
        for side in range(2):
            # Two frames beside each other in every frame.
            agent = {"openinference.span.kind": "AGENT", "agent.name": "a"}
            above = f"{depth - 1}.0" if depth > 1 else "0"
            spans.append(shifted(span(f"{depth}.{side}", "a", 1, agent, parent=above), 2 * side))
        model = {"openinference.span.kind": "LLM", **SPENT}
        spans.append(span(f"{depth}.m", "generation", 1, model, parent=f"{depth}.1"))
    for each in spans:
        each.scope = scope
    # Of the processor's time: what else this machine does is no matter.
    began = time.thread_time()
    execution = only(*spans)
    assert time.thread_time() - began < 20
    assert sum(isinstance(event, StepCost) for event in execution.events) == 3_999


def shifted(record: SpanRecord, seconds: float) -> SpanRecord:
    record.start_ns, record.end_ns = record.start_ns + round(seconds * 1e9), record.end_ns + round(seconds * 1e9)
    return record
