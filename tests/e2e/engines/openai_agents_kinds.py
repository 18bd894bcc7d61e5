"""Agents of the OpenAI Agents SDK as users write them, with a server of models that answers from a script.

python openai_agents_kinds.py [SCENE …]

The truth is from the SDK's own hooks and results; what waits for what is from the program. With LOGFIRE=1 logfire
instruments them, else openinference-instrumentation-openai-agents.
"""

import asyncio
import contextlib
import json
import os
import sys
import time

import httpx2 as httpx
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    OpenAIResponsesModel,
    RunHooks,
    Runner,
    function_tool,
    input_guardrail,
    set_trace_processors,
)
from agents import trace as run_of
from openai import APIStatusError, AsyncOpenAI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from telling import execution, step, stop_at_sigterm, tell

LOGFIRE = os.environ.get("LOGFIRE") == "1"
PREFIX = "logfire_openai_agents" if LOGFIRE else "openai_agents"
LLM = "chat gpt-4o" if LOGFIRE else "response"
USAGE = {
    "input_tokens": 100, "output_tokens": 10, "total_tokens": 110,
    "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
}  # fmt: skip


def model(*turns):
    """A model whose server answers with these items, one list after the other; a number is the status of an error."""
    left = list(turns)

    def answer(request):
        items = left.pop(0)
        if isinstance(items, int):
            return httpx.Response(items, json={"error": {"message": "overloaded"}})
        body = {
            "id": "resp_1", "object": "response", "created_at": time.time(), "model": "gpt-4o", "output": items,
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": USAGE, "status": "completed",
        }  # fmt: skip
        return httpx.Response(200, json=body)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return OpenAIResponsesModel("gpt-4o", AsyncOpenAI(api_key="none", http_client=client, max_retries=0))


COUNT = iter(range(1000))


def call(name, **arguments):
    number = next(COUNT)
    return {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}", "name": name,
            "arguments": json.dumps(arguments), "status": "completed"}  # fmt: skip


def says(text):
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {
        "type": "message",
        "id": f"msg_{next(COUNT)}",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }


DONE = [says("done")]


class Told(RunHooks):
    """What the SDK tells of a run: calls of models and tools, by name, in order."""

    def __init__(self):
        self.models, self.tools, self.handoffs, self.agents = [], [], [], []

    async def on_llm_end(self, context, agent, response):
        self.models.append((agent.name, response.usage))

    async def on_tool_end(self, context, agent, tool, result):
        self.tools.append(tool.name)

    async def on_handoff(self, context, from_agent, to_agent):
        self.handoffs.append(to_agent.name)

    async def on_agent_start(self, context, agent):
        self.agents.append(agent.name)


@function_tool
async def weather(city: str) -> str:
    await asyncio.sleep(0.05)
    return "sunny"


@function_tool
async def stock() -> str:
    await asyncio.sleep(0.1)
    return "3"


def frames(*names):
    """The turns of agents, which may be shown or not."""
    if LOGFIRE:
        return []
    return [step("turn", "completed", 1, optional=True, status_or=["failed"]) for _ in range(12)] + [
        step("Agent workflow", "completed", 1, optional=True, status_or=["failed"])
    ]


def calls_of(told, waits, **more):
    """The calls of the model by the SDK's hooks."""
    several = len(told.models) > 1
    return [
        step(LLM, "completed", 1, depends_on, index=i if several else None, tokens_in=usage.input_tokens,
             tokens_out=usage.output_tokens, **more)
        for i, ((_, usage), depends_on) in enumerate(zip(told.models, waits, strict=True))
    ]  # fmt: skip


async def parallel_tools():
    told = Told()
    turns = [call("weather", city="Rome"), call("weather", city="Oslo"), call("stock")], DONE
    agent = Agent("forecaster", model=model(*turns), tools=[weather, stock])
    with run_of("Forecast"):
        await Runner.run(agent, "go", hooks=told)
    assert sorted(told.tools) == ["stock", "weather", "weather"]
    steps = [step("forecaster", "completed", 1, [])]
    steps += calls_of(told, [[], ["weather#0", "weather#1", "stock"]], within="forecaster")
    steps += [step("weather", "completed", 1, [f"{LLM}#0"], index=i) for i in range(2)]
    steps.append(step("stock", "completed", 1, [f"{LLM}#0"]))
    return [execution("Forecast", "completed", [*steps, *frames()], tokens_in=200, tokens_out=20)]


async def tool_failed():
    """A tool that fails: the model is told, and the run goes on."""
    told = Told()

    @function_tool
    def broken() -> str:
        raise RuntimeError("no item 1")

    agent = Agent("brave", model=model([call("broken")], DONE), tools=[broken])
    with run_of("Brave"):
        await Runner.run(agent, "go", hooks=told)
    steps = [step("brave", "completed", 1, []), *calls_of(told, [[], ["broken"]])]
    steps.append(step("broken", "failed", 1, [f"{LLM}#0"]))
    return [execution("Brave", "completed", [*steps, *frames()], tokens_in=200, tokens_out=20)]


async def handoffs():
    """An agent hands over to another, and that one to a third."""
    told = Told()
    last = Agent("refunds", model=model(DONE))
    second = Agent("billing", model=model([call("transfer_to_refunds")]), handoffs=[last])
    first = Agent("triage", model=model([call("transfer_to_billing")]), handoffs=[second])
    with run_of("Service"):
        await Runner.run(first, "go", hooks=told)
    assert told.handoffs == ["billing", "refunds"]
    assert [name for name, _ in told.models] == ["triage", "billing", "refunds"]
    names = ["handoff to billing", "handoff to refunds"]
    steps = calls_of(told, [[], [names[0]], [names[1]]])
    steps += [step(name, "completed", 1, [f"{LLM}#{i}"]) for i, name in enumerate(names)]
    steps += [step("triage", "completed", 1, []), step("billing", "completed", 1, ["triage"]),
              step("refunds", "completed", 1, ["billing"])]  # fmt: skip
    return [execution("Service", "completed", [*steps, *frames()], tokens_in=300, tokens_out=30)]


async def agents_as_tools():
    """Two agents at once, as tools of a third."""
    told = Told()
    helpers = [Agent(f"helper_{i}", model=model([call("stock")], DONE), tools=[stock]) for i in range(2)]
    tools = [helper.as_tool(f"ask_{i}", "asks a helper") for i, helper in enumerate(helpers)]
    manager = Agent("manager", model=model([call("ask_0", input="a"), call("ask_1", input="b")], DONE), tools=tools)
    with run_of("Management"):
        await Runner.run(manager, "go", hooks=told)
    steps = [step("manager", "completed", 1, [])]
    steps += [step(f"ask_{i}", "completed", 1) for i in range(2)]
    steps += [step(f"helper_{i}", "completed", 1, []) for i in range(2)]
    steps += [step("stock", "completed", 1) for _ in range(2)]
    steps += [step(LLM, "completed", 1) for _ in range(6)]
    return [execution("Management", "completed", [*steps, *frames()], tokens_in=600, tokens_out=60)]


async def too_many_turns():
    told = Told()
    agent = Agent("endless", model=model([call("stock")], [call("stock")]), tools=[stock])
    with run_of("Endless"), contextlib.suppress(MaxTurnsExceeded):
        await Runner.run(agent, "go", hooks=told, max_turns=2)
    steps = [step("endless", "failed", 1, []), *calls_of(told, [[], ["stock#0"]])]
    steps += [step("stock", "completed", 1, [f"{LLM}#{i}"], index=i) for i in range(2)]
    return [execution("Endless", "failed", [*steps, *frames()], tokens_in=200, tokens_out=20)]


async def guarded():
    """An input that a guardrail refuses, while the model is asked."""

    @input_guardrail
    async def polite(context, agent, text):
        await asyncio.sleep(0.2)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    agent = Agent("guarded", model=model(DONE), input_guardrails=[polite])
    with run_of("Guarded"), contextlib.suppress(InputGuardrailTripwireTriggered):
        await Runner.run(agent, "go")
    steps = [
        step("guarded", "failed", 1, []), step("polite", "completed", 1, optional=True, status_or=["failed"]),
        step(LLM, "completed", 1, optional=True, status_or=["cancelled"]),
    ]  # fmt: skip
    return [execution("Guarded", "failed", [*steps, *frames()])]


async def two_runs():
    """Two runs of agents in one trace."""
    told = Told()
    agents = [Agent(name, model=model(DONE)) for name in ("writer", "critic")]
    with run_of("Both"):
        for agent in agents:
            await Runner.run(agent, "go", hooks=told)
    steps = [step("writer", "completed", 1, []), step("critic", "completed", 1, ["writer"])]
    steps += calls_of(told, [[], [f"{LLM}#0"]])
    return [execution("Both", "completed", [*steps, *frames()], tokens_in=200, tokens_out=20)]


async def refused():
    """The server of the model answers with an error to the agent that was handed over to."""
    told = Told()
    second = Agent("billing", model=model(503))
    first = Agent("triage", model=model([call("transfer_to_billing")]), handoffs=[second])
    with run_of("Refused"), contextlib.suppress(APIStatusError):
        await Runner.run(first, "go", hooks=told)
    steps = [step("triage", "completed", 1, []), step("billing", "failed", 1, ["triage"])]
    steps += [step(LLM, "completed", 1, [], index=0), step(LLM, "failed", 1, ["handoff to billing"], index=1)]
    steps.append(step("handoff to billing", "completed", 1, [f"{LLM}#0"]))
    return [execution("Refused", "failed", [*steps, *frames()], tokens_in=100, tokens_out=10)]


async def cancelled():
    """A run that is given up while a tool works."""
    waits = asyncio.Event()

    @function_tool
    async def wait() -> str:
        waits.set()
        await asyncio.sleep(60)
        return "late"

    agent = Agent("hasty", model=model([call("wait")], DONE), tools=[wait])
    told = Told()

    async def run():
        with run_of("Hasty"):
            await Runner.run(agent, "go", hooks=told)

    task = asyncio.create_task(run())
    await waits.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    # Every span says that all went well.
    well = {"status_or": ["completed"]}
    steps = [step("hasty", "cancelled", 1, [], **well), *calls_of(told, [[]]),
             step("wait", "cancelled", 1, [LLM], **well)]  # fmt: skip
    return [execution("Hasty", "cancelled", [*steps, *frames()], tokens_in=100, tokens_out=10, **well)]


UNKNOWN = {"cancelled": ["that a run was cancelled: its spans say that all went well"]}
"""What spans cannot tell of a scene, in words."""

SCENES = [
    parallel_tools, tool_failed, handoffs, agents_as_tools, too_many_turns, guarded, two_runs, refused, cancelled,
]  # fmt: skip


def main(names):
    if LOGFIRE:
        import logfire

        logfire.configure(send_to_logfire=False, console=False)
        logfire.instrument_openai_agents()
        provider = trace.get_tracer_provider()
    else:
        from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor

        # Nothing is sent to OpenAI.
        set_trace_processors([])
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
        OpenAIAgentsInstrumentor().instrument(tracer_provider=provider)
    for scene in SCENES:
        if not names or scene.__name__ in names:
            executions = asyncio.run(scene())
            provider.force_flush()
            for run in executions:
                for told in run["steps"]:
                    told.pop("within", None)
            tell(f"{PREFIX}_{scene.__name__}", executions, index_from="order", edges_from="order",
                 unknowable=[{"field": "cost_usd"}], unknown=UNKNOWN.get(scene.__name__, []),
                 truth_from="the hooks of the SDK; edges from the program")  # fmt: skip


if __name__ == "__main__":
    stop_at_sigterm()
    main(sys.argv[1:])
