"""A real agent library with models that need no network, and a real service: what the agent did, spent and was told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from tests.e2e.conftest import Server, eventually

# The library itself is imported by what uses it: whoever collects the tests need not wait a second for it.
if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models.function import AgentInfo

PRICES = '[models.test]\ninput = 3.0\noutput = 15.0\n[models."gpt-4o*"]\ninput = 1000000.0\noutput = 0.0\n'
SECRET = "hunter2hunter2"


@pytest.fixture
def service(server: Callable[..., Server], tmp_path: Path) -> Server:
    (tmp_path / "prices.toml").write_text(PRICES)
    return server("--prices", str(tmp_path / "prices.toml"))


@pytest.fixture
def provider(service: Server) -> Iterator[TracerProvider]:
    """Exports what agents do to the service."""
    from pydantic_ai import Agent
    from pydantic_ai.models.instrumented import InstrumentationSettings

    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{service.address}/v1/traces")))
    Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))
    yield provider
    Agent.instrument_all(False)
    provider.shutdown()


def timeline_of(service: Server, workflow: str) -> Any:
    def found() -> Any:
        items = service.get("/api/workflows/executions?limit=50")["items"]
        return next((i for i in items if i["workflow_name"] == workflow and i["completed_at"] is not None), None)

    execution = eventually(found, 60)
    return service.get(f"/api/workflows/executions/{execution['execution_id']}/timeline")


def test_what_an_agent_did_and_spent_is_shown_and_not_what_it_was_told(
    service: Server, provider: TracerProvider
) -> None:
    _under_a_web_request_with_prices_of_the_users(service, provider)
    _a_tool_that_asks_for_another_try_fails_and_the_run_goes_on(service, provider)


def _under_a_web_request_with_prices_of_the_users(service: Server, provider: TracerProvider) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.test import TestModel

    agent = Agent(TestModel(), name="clerk")

    @agent.tool_plain
    def stock(item: str) -> int:
        return len(item)

    with provider.get_tracer("web").start_as_current_span("GET /ask", kind=SpanKind.SERVER):
        usage = asyncio.run(agent.run(f"is there enough? password={SECRET}")).usage
    provider.force_flush()
    timeline = timeline_of(service, "clerk")
    steps = [(s["step_name"], s["step_type"], s["status"], len(s["depends_on"])) for s in timeline["step_timeline"]]
    assert steps == [
        ("chat test", "llm", "completed", 0), ("stock", "tool", "completed", 1), ("chat test", "llm", "completed", 1),
    ]  # fmt: skip
    assert (timeline["status"], timeline["tokens_in"], timeline["tokens_out"]) == (
        "completed", usage.input_tokens, usage.output_tokens,
    )  # fmt: skip
    assert timeline["cost_usd"] == pytest.approx((3 * usage.input_tokens + 15 * usage.output_tokens) / 1e6)
    names = [item["workflow_name"] for item in service.get("/api/workflows/executions?limit=50")["items"]]
    assert names == ["clerk"]
    trace = service.get(f"/api/workflows/executions/{timeline['execution_id']}/timeline?format=otlp")
    labels = 'model="test",step="chat test",type="input",workflow="clerk",workspace="default"'
    series = f"workflow_step_tokens_total{{{labels}}} {usage.input_tokens}.0"
    metrics = eventually(lambda: (text := service.get("/metrics")) and series in text and text, 60)
    for shown in (timeline, metrics, trace):
        assert SECRET not in str(shown)
        assert "is there enough" not in str(shown)


def _a_tool_that_asks_for_another_try_fails_and_the_run_goes_on(service: Server, provider: TracerProvider) -> None:
    from pydantic_ai import Agent, ModelRetry
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel
    from pydantic_ai.usage import RequestUsage

    turns: list[list[Any]] = [[ToolCallPart("shaky", {})], [ToolCallPart("shaky", {})], [TextPart("done")]]

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=turns[len(messages) // 2], usage=RequestUsage(input_tokens=10, output_tokens=2))

    agent = Agent(FunctionModel(answer, model_name="gpt-4o"), name="stubborn")
    calls = []

    @agent.tool_plain(retries=2)
    def shaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ModelRetry("not now")
        return "ok"

    asyncio.run(agent.run("go"))
    provider.force_flush()
    timeline = timeline_of(service, "stubborn")
    steps = [(s["step_name"], s["step_index"], s["status"], s["error_type"]) for s in timeline["step_timeline"]]
    assert steps == [
        ("chat gpt-4o", 0, "completed", None), ("shaky", 0, "failed", "ModelRetry"),
        ("chat gpt-4o", 1, "completed", None), ("shaky", 1, "completed", None), ("chat gpt-4o", 2, "completed", None),
    ]  # fmt: skip
    assert (timeline["status"], timeline["tokens_in"], timeline["tokens_out"]) == ("completed", 30, 6)
    # The library itself said what it cost, so the price of a million dollars is not used.
    assert 0 < timeline["cost_usd"] < 1
