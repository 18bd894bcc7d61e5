"""Agents of pydantic-ai as users write them, traced by the library itself, with models that need no network.

python pydantic_ai_kinds.py [SCENE …]

The truth is from the messages and the usage that the library keeps of a run; what waits for what is from the program.
With LOGFIRE=1 logfire instruments them.
"""

import asyncio
import os
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ModelRetry, capture_run_messages
from pydantic_ai.exceptions import ModelHTTPError, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import ModelResponse, RetryPromptPart, TextPart, ToolCallPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import DeltaToolCall, FunctionModel
from pydantic_ai.usage import RequestUsage, UsageLimits
from pydantic_graph import GraphBuilder, StepContext, reduce_list_append
from telling import execution, step, stop_at_sigterm, tell

LOGFIRE = os.environ.get("LOGFIRE") == "1"
PREFIX = "logfire_pydantic_ai" if LOGFIRE else "pydantic_ai"


def model(*turns, name="gpt-4o"):
    """A model that answers with these parts, one list after the other, and says what it used."""
    left = list(turns)

    def answer(messages, info):
        parts = left.pop(0)
        if isinstance(parts, Exception):
            raise parts
        return ModelResponse(parts=parts, usage=RequestUsage(input_tokens=100 + 10 * len(messages), output_tokens=10))

    return FunctionModel(answer, model_name=name)


def call(tool, **arguments):
    return ToolCallPart(tool, arguments)


DONE = [TextPart("done")]


def chats(messages, name="gpt-4o", depends_on=(), **more):
    """The calls of a model, by the answers that the library keeps. ``depends_on``: what each of them waits for."""
    answers = [message for message in messages if isinstance(message, ModelResponse)]
    several = len(answers) > 1
    return [
        step(f"chat {name}", "completed", 1, list(waits), index=i if several else None,
             tokens_in=answer.usage.input_tokens, tokens_out=answer.usage.output_tokens, **more)
        for i, (answer, waits) in enumerate(zip(answers, depends_on, strict=True))
    ]  # fmt: skip


def run_of(name, status, steps, usage, **more):
    return execution(name, status, steps, tokens_in=usage.input_tokens, tokens_out=usage.output_tokens, **more)


def errors_in(messages):
    return [part.content for message in messages for part in message.parts if isinstance(part, RetryPromptPart)]


async def parallel_tools():
    """Three tools at once, two of them of one name."""
    turns = [call("weather", city="Rome"), call("weather", city="Oslo"), call("stock")]
    agent = Agent(model(turns, DONE), name="forecaster")

    @agent.tool_plain
    async def weather(city: str) -> str:
        await asyncio.sleep(0.05)
        return "sunny"

    @agent.tool_plain
    async def stock() -> int:
        await asyncio.sleep(0.1)
        return 3

    result = await agent.run("go")
    chat = "chat gpt-4o"
    steps = chats(result.all_messages(), depends_on=[[], ["weather#0", "weather#1", "stock"]])
    steps += [step("weather", "completed", 1, [f"{chat}#0"], index=i) for i in range(2)]
    steps.append(step("stock", "completed", 1, [f"{chat}#0"]))
    return [run_of("forecaster", "completed", steps, result.usage)]


async def tool_gives_up():
    """A tool that asks to be called again, more often than it may."""
    agent = Agent(model([call("shaky")], [call("shaky")], DONE), name="stubborn")

    @agent.tool_plain(retries=1)
    def shaky() -> str:
        raise ModelRetry("not now")

    with capture_run_messages() as messages:
        try:
            await agent.run("go")
        except UnexpectedModelBehavior as caught:
            error = f"UnexpectedModelBehavior: {caught}"
    chat = "chat gpt-4o"
    steps = chats(messages, depends_on=[[], ["shaky#0"]])
    steps += [step("shaky", "failed", 1, [f"{chat}#{i}"], index=i) for i in range(2)]
    return [execution("stubborn", "failed", steps, error=error)]


async def one_of_two_asks_again():
    """Two tools at once, of which one asks to be called again; the model calls it alone then."""
    agent = Agent(model([call("shaky"), call("stock")], [call("shaky")], DONE), name="patient")
    calls = []

    @agent.tool_plain(retries=2)
    async def shaky() -> str:
        calls.append("shaky")
        await asyncio.sleep(0.05)
        if len(calls) == 1:
            raise ModelRetry("not now")
        return "well"

    @agent.tool_plain
    async def stock() -> int:
        await asyncio.sleep(0.1)
        return 3

    result = await agent.run("go")
    chat = "chat gpt-4o"
    steps = chats(result.all_messages(), depends_on=[[], ["shaky#0", "stock"], ["shaky#1"]])
    steps.append(step("stock", "completed", 1, [f"{chat}#0"]))
    steps += [step("shaky", status, 1, [f"{chat}#{i}"], index=i) for i, status in enumerate(("failed", "completed"))]
    return [run_of("patient", "completed", steps, result.usage)]


async def graph():
    """A graph of pydantic_graph: for each item of a list a node with an agent, whose tool asks to be called again."""
    builder = GraphBuilder(name="review", input_type=int, output_type=list[str])
    results = {}

    @builder.step
    async def plan(ctx: StepContext[None, None, int]) -> list[int]:
        await asyncio.sleep(0.05)
        return list(range(ctx.inputs))

    @builder.step
    async def draft(ctx: StepContext[None, None, int]) -> str:
        # One begins after the other.
        await asyncio.sleep(0.1 * ctx.inputs)
        turns = [call(f"look_{ctx.inputs}")], [call(f"look_{ctx.inputs}")], DONE
        agent = Agent(model(*turns, name=f"gpt-4o-{ctx.inputs}"), name=f"writer {ctx.inputs}")
        calls = []

        @agent.tool_plain(retries=1, name=f"look_{ctx.inputs}")
        async def look() -> str:
            calls.append(1)
            if len(calls) == 1:
                raise ModelRetry("not now")
            return "well"

        results[ctx.inputs] = result = await agent.run("go")
        return result.output

    @builder.step
    async def publish(ctx: StepContext[None, None, list[str]]) -> list[str]:
        return ctx.inputs

    drafts = builder.join(reduce_list_append, initial_factory=list[str])
    builder.add(
        builder.edge_from(builder.start_node).to(plan),
        builder.edge_from(plan).map().to(draft),
        builder.edge_from(draft).to(drafts),
        builder.edge_from(drafts).to(publish),
        builder.edge_from(publish).to(builder.end_node),
    )
    await builder.build().run(inputs=2)
    steps = [step("plan", "completed", 1, [])]
    steps += [step("draft", "completed", 1, ["plan"], index=i) for i in range(2)]
    steps.append(step("publish", "completed", 1, ["draft#0", "draft#1"]))
    for i in range(2):
        name, chat, look = f"writer {i}", f"chat gpt-4o-{i}", f"look_{i}"
        steps.append(step(name, "completed", 1, [], parent=f"draft#{i}"))
        waits = [[], [f"{look}#0"], [f"{look}#1"]]
        steps += chats(results[i].all_messages(), f"gpt-4o-{i}", waits, parent=name)
        steps += [step(look, status, 1, [f"{chat}#{number}"], index=number, parent=name)
                  for number, status in enumerate(("failed", "completed"))]  # fmt: skip
    return [execution("review", "completed", steps)]


async def output_refused():
    """An answer that the program refuses once."""
    agent = Agent(model([TextPart("bad")], DONE), name="picky")
    refused = []

    @agent.output_validator
    def check(text: str) -> str:
        if text != "done":
            refused.append(text)
            raise ModelRetry("say done")
        return text

    result = await agent.run("go")
    assert refused == errors_in(result.all_messages()) or len(refused) == 1
    steps = chats(result.all_messages(), depends_on=[[], ["chat gpt-4o#0"]])
    return [run_of("picky", "completed", steps, result.usage)]


async def fallback():
    """A model that answers with an error, and another one that is asked instead."""
    first = model(ModelHTTPError(503, "gpt-4o", "overloaded"))
    agent = Agent(FallbackModel(first, model(DONE, name="gpt-4o-mini")), name="careful")
    result = await agent.run("go")
    (answer,) = [message for message in result.all_messages() if isinstance(message, ModelResponse)]
    steps = [step(f"chat {answer.model_name}", "completed", 1, [], tokens_in=answer.usage.input_tokens,
                  tokens_out=answer.usage.output_tokens, also=[])]  # fmt: skip
    return [run_of("careful", "completed", steps, result.usage)]


async def refused():
    """A model that answers with an error."""
    agent = Agent(model(ModelHTTPError(503, "gpt-4o", "overloaded")), name="unlucky")
    try:
        await agent.run("go")
    except ModelHTTPError as caught:
        error = f"ModelHTTPError: {caught}"
    return [execution("unlucky", "failed", [step("chat gpt-4o", "failed", 1, [], error=error)], error=error)]


async def delegates():
    """Two tools at once, each of which runs an agent, whose tool runs another one."""
    results = {}

    def helper_of(name):
        reader = Agent(model(DONE, name=f"gpt-4o-{name}"), name=f"reader of {name}")
        helper = Agent(model([call("read")], DONE, name=f"gpt-4-{name}"), name=name)

        @helper.tool_plain
        async def read() -> str:
            await asyncio.sleep(0.05)
            results[f"reader of {name}"] = result = await reader.run("read")
            return result.output

        return helper

    names = ("left", "right")
    helpers = [helper_of(name) for name in names]
    manager = Agent(model([call("delegate", number=0), call("delegate", number=1)], DONE), name="manager")

    @manager.tool_plain
    async def delegate(number: int) -> str:
        results[names[number]] = result = await helpers[number].run("help")
        return result.output

    result = await manager.run("go")
    steps = chats(result.all_messages(), depends_on=[[], ["delegate#0", "delegate#1"]])
    steps += [step("delegate", "completed", 1, ["chat gpt-4o#0"], index=i) for i in range(2)]
    for i, name in enumerate(names):
        messages = [results[who].all_messages() for who in (name, f"reader of {name}")]
        steps.append(step(name, "completed", 1, [], parent=f"delegate#{i}"))
        steps += chats(messages[0], f"gpt-4-{name}", [[], [f"read#{i}"]], parent=name)
        steps.append(step("read", "completed", 1, [f"chat gpt-4-{name}#0"], index=i, parent=name))
        steps.append(step(f"reader of {name}", "completed", 1, [], parent=f"read#{i}"))
        steps += chats(messages[1], f"gpt-4o-{name}", [[]], parent=f"reader of {name}")
    return [execution("manager", "completed", steps)]


async def under_a_span():
    """Two agents one after the other in a span of the program: each is a run of its own."""
    with trace.get_tracer("shop").start_as_current_span("nightly"):
        results = [await Agent(model(DONE), name=name).run("go") for name in ("writer", "critic")]
    return [
        run_of(name, "completed", chats(result.all_messages(), depends_on=[[]]), result.usage)
        for name, result in zip(("writer", "critic"), results, strict=True)
    ]


async def too_much():
    """A run that may ask the model once."""
    agent = Agent(model([call("look")], DONE), name="greedy")

    @agent.tool_plain
    def look() -> str:
        return "nothing"

    with capture_run_messages() as messages:
        try:
            await agent.run("go", usage_limits=UsageLimits(request_limit=1))
        except UsageLimitExceeded as caught:
            error = f"UsageLimitExceeded: {caught}"
    steps = [*chats(messages, depends_on=[[]]), step("look", "completed", 1, ["chat gpt-4o"])]
    return [execution("greedy", "failed", steps, error=error)]


async def cancelled():
    """A run that is given up while a tool works."""
    agent = Agent(model([call("wait")], DONE), name="hasty")
    waits = asyncio.Event()

    @agent.tool_plain
    async def wait() -> str:
        waits.set()
        await asyncio.sleep(60)
        return "late"

    task = asyncio.create_task(agent.run("go"))
    await waits.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    steps = [step("chat gpt-4o", "completed", 1, []), step("wait", "cancelled", 1, ["chat gpt-4o"])]
    return [execution("hasty", "cancelled", steps)]


async def approved():
    """A tool that a person has to approve: the run ends, and another one goes on."""
    agent = Agent(model([call("delete", path="a")], DONE), name="cleaner", output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def delete(path: str) -> str:
        return "deleted"

    first = await agent.run("go")
    assert isinstance(first.output, DeferredToolRequests)
    answers = DeferredToolResults(approvals={part.tool_call_id: True for part in first.output.approvals})
    second = await agent.run(message_history=first.all_messages(), deferred_tool_results=answers)
    return [
        run_of("cleaner", "completed", chats(first.new_messages(), depends_on=[[]]), first.usage),
        run_of("cleaner", "completed",
               [step("delete", "completed", 1, []), *chats(second.new_messages(), depends_on=[["delete"]])],
               second.usage),
    ]  # fmt: skip


async def streamed():
    """A run whose answers are streamed, with a tool in between."""

    async def answer(messages, info):
        if len(messages) == 1:
            yield {0: DeltaToolCall("look", "{}")}
        else:
            yield "done"

    agent = Agent(FunctionModel(stream_function=answer, model_name="gpt-4o"), name="streamer")

    @agent.tool_plain
    def look() -> str:
        return "nothing"

    async with agent.run_stream("go") as result:
        await result.get_output()
    steps = chats(result.all_messages(), depends_on=[[], ["look"]])
    steps.append(step("look", "completed", 1, ["chat gpt-4o#0"]))
    return [run_of("streamer", "completed", steps, result.usage)]


SCENES = [
    parallel_tools, tool_gives_up, one_of_two_asks_again, output_refused, fallback, refused, delegates, under_a_span,
    too_much, cancelled, approved, streamed,
]  # fmt: skip
BY_LOGFIRE = [graph]
"""What has spans only with logfire."""


def main(names):
    if LOGFIRE:
        import logfire

        logfire.configure(send_to_logfire=False, console=False)
        logfire.instrument_pydantic_ai()
        provider = trace.get_tracer_provider()
    else:
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
        trace.set_tracer_provider(provider)
        Agent.instrument_all()
    for scene in [*SCENES, *(BY_LOGFIRE if LOGFIRE else ())]:
        if not names or scene.__name__ in names:
            executions = asyncio.run(scene())
            provider.force_flush()
            tell(f"{PREFIX}_{scene.__name__}", executions, index_from="order", edges_from="order",
                 truth_from="the messages and usage that the library keeps; edges from the program")  # fmt: skip


if __name__ == "__main__":
    stop_at_sigterm()
    main(sys.argv[1:])
