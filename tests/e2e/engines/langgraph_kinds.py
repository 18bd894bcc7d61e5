"""Graphs of LangGraph as users write them, instrumented only with openinference-instrumentation-langchain.

python langgraph_kinds.py [SCENE …]

The truth is from the tasks that LangGraph itself tells of (``stream_mode="tasks"``); what waits for what is from the
program.
"""

import asyncio
import operator
import sys
import time
from collections import defaultdict
from typing import Annotated, TypedDict

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, Send, interrupt
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from telling import execution, step, stop_at_sigterm, tell


class State(TypedDict, total=False):
    number: Annotated[int, lambda before, after: max(before, after)]
    results: Annotated[list, operator.add]


class Tasks:
    """The tasks of a graph's run, by name, in the order in which LangGraph tells of them."""

    def __init__(self, graph, state, **config):
        self.by_name = defaultdict(list)
        self.error = None
        tasks = {}
        try:
            for _, told in graph.stream(state, config or None, stream_mode="tasks", subgraphs=True):
                if "triggers" in told:
                    tasks[told["id"]] = task = {"status": "running"}
                    self.by_name[told["name"]].append(task)
                else:
                    tasks[told["id"]]["status"] = "failed" if told["error"] else "completed"
        except Exception as error:
            # It ends the stream before it tells of the task that failed.
            self.error = f"{type(error).__name__}: {error}"
            for task in tasks.values():
                if task["status"] == "running":
                    task["status"] = "failed"

    def step(self, name, depends_on=None, *, index=None, attempts=1, **more):
        """A step by the task of this name, the only one or the one with this index."""
        tasks = self.by_name[name]
        assert index is not None or len(tasks) == 1, (name, tasks)
        return step(name, tasks[index or 0]["status"], attempts, depends_on, index=index, **more)

    def run(self, workflow, steps, **more):
        assert sum(map(len, self.by_name.values())) >= len([s for s in steps if not s.get("inside")])
        return execution(workflow, "failed" if self.error else "completed", steps, error=self.error, **more)


def node(name, seconds=0.05):
    def work(state):
        time.sleep(seconds)
        return {"results": [name]}

    return work


def fail(state):
    time.sleep(0.1)
    raise ValueError("no item 2")


def graph_of(*edges, **nodes):
    """A builder with these nodes, and edges between them."""
    builder = StateGraph(State)
    for name, action in nodes.items():
        builder.add_node(name, action)
    for source, target in edges:
        builder.add_edge(source, target)
    return builder


def fan_out():
    """Three runs of a node that is a graph, asked for by Send."""
    inner = graph_of((START, "fetch"), ("fetch", "store"), fetch=node("fetch"), store=node("store")).compile()
    builder = graph_of((START, "plan"), ("worker", "join"), plan=node("plan"), worker=inner, join=node("join"))
    builder.add_conditional_edges("plan", lambda _: [Send("worker", {"number": i}) for i in range(3)], ["worker"])
    tasks = Tasks(builder.compile(name="spread"), {"number": 0})
    steps = [tasks.step("plan", [])]
    steps += [tasks.step("worker", ["plan"], index=i) for i in range(3)]
    steps.append(tasks.step("join", [f"worker#{i}" for i in range(3)]))
    for name in ("fetch", "store"):
        # Which of them is in which worker their order cannot tell: they run beside each other.
        inside = [tasks.step(name, index=i) for i in range(3)]
        steps += [{**told, "index": None} for told in inside]
    return [tasks.run("spread", steps)]


def loop():
    """A node that is come back to twice."""
    builder = graph_of((START, "think"), ("act", "think"), act=node("act"))
    builder.add_node("think", lambda state: {"number": state.get("number", 0) + 1})
    builder.add_conditional_edges("think", lambda state: "act" if state["number"] < 3 else END, ["act", END])
    tasks = Tasks(builder.compile(name="ponder"), {"number": 0})
    waits = [[], ["act#0"], ["act#1"]]
    steps = [tasks.step("think", waits[i], index=i) for i in range(3)]
    steps += [tasks.step("act", [f"think#{i}"], index=i) for i in range(2)]
    return [tasks.run("ponder", steps)]


def branch_failed():
    """One of two nodes beside each other fails."""
    builder = graph_of(
        (START, "plan"), ("plan", "good"), ("plan", "bad"), ("good", "join"), ("bad", "join"),
        plan=node("plan"), good=node("good", 0.01), bad=fail, join=node("join"),
    )  # fmt: skip
    tasks = Tasks(builder.compile(name="halves"), {"number": 0})
    steps = [tasks.step("plan", []), tasks.step("good", ["plan"]), tasks.step("bad", ["plan"], error=tasks.error)]
    return [tasks.run("halves", steps)]


def gives_up():
    """A node that fails as often as it may."""
    builder = graph_of((START, "plan"), plan=node("plan"))
    builder.add_node("bad", fail, retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.1, retry_on=ValueError))
    builder.add_edge("plan", "bad")
    tasks = Tasks(builder.compile(name="stubborn"), {"number": 0})
    tries = [{"attempt": i, "status": "failed", "error": tasks.error} for i in (1, 2)]
    steps = [tasks.step("plan", []), tasks.step("bad", ["plan"], attempts=2, tries=tries, error=tasks.error)]
    return [tasks.run("stubborn", steps)]


def recovers():
    """A node that fails once, and is tried again."""
    tries = []

    def flaky(state):
        tries.append(1)
        time.sleep(0.05)
        if len(tries) == 1:
            raise ConnectionError("no route to the shop")
        return {"results": ["flaky"]}

    builder = graph_of((START, "flaky"), ("flaky", "join"), join=node("join"))
    builder.add_node("flaky", flaky, retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.1))
    tasks = Tasks(builder.compile(name="patient"), {"number": 0})
    assert len(tries) == 2
    return [tasks.run("patient", [tasks.step("flaky", [], attempts=2), tasks.step("join", ["flaky"])])]


def deep():
    """A graph in a graph in a graph, the innermost one with two nodes beside each other."""
    inner = graph_of(
        (START, "left"), (START, "right"), ("left", "join"), ("right", "join"),
        left=node("left"), right=node("right"), join=node("join"),
    ).compile(name="inner")  # fmt: skip
    middle = graph_of((START, "before"), ("before", "core"), before=node("before"), core=inner).compile(name="middle")
    outer = graph_of((START, "part"), ("part", "last"), part=middle, last=node("last")).compile(name="outer")
    tasks = Tasks(outer, {"number": 0})
    steps = [
        tasks.step("part", []),
        tasks.step("last", ["part"]),
        tasks.step("before", [], parent="part"),
        tasks.step("core", ["before"], parent="part"),
        tasks.step("left", [], parent="core"),
        tasks.step("right", [], parent="core"),
        tasks.step("join", ["left", "right"], parent="core"),
        # What the graphs themselves are called may be shown or not.
        *[step(name, "completed", 1, optional=True, inside=True) for name in ("middle", "inner")],
    ]
    return [tasks.run("outer", steps)]


def asks():
    """A node that asks a person: the run ends there, and another one goes on."""

    def ask(state):
        return {"results": [interrupt("may I?")]}

    builder = graph_of((START, "plan"), ("plan", "ask"), ("ask", "act"), plan=node("plan"), ask=ask, act=node("act"))
    graph = builder.compile(name="polite", checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    first, second = Tasks(graph, {"number": 0}, **config), Tasks(graph, Command(resume="yes"), **config)
    return [
        first.run("polite", [first.step("plan", []), first.step("ask", ["plan"])]),
        second.run("polite", [second.step("ask", []), second.step("act", ["ask"])]),
    ]


def helper():
    """The library's own agent, with two tools at once."""

    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        time.sleep(0.05)
        return "sunny"

    usage = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110}
    calls = [{"name": "weather", "args": {"city": city}, "id": city} for city in ("Rome", "Oslo")]
    turns = [AIMessage("", tool_calls=calls, usage_metadata=usage), AIMessage("sunny", usage_metadata=usage)]

    class Fake(GenericFakeChatModel):
        def bind_tools(self, tools, **_):
            return self

    agent = create_agent(Fake(messages=iter(turns)), [weather], name="helper")
    tasks = Tasks(agent, {"messages": [("user", "weather?")]})
    nodes = {name: len(of_name) for name, of_name in tasks.by_name.items()}
    assert nodes == {"model": 2, "tools": 2}, nodes
    tools = [f"tools#{i}" for i in range(2)]
    steps = [tasks.step("model", waits, index=i) for i, waits in enumerate([[], tools])]
    steps += [tasks.step("tools", ["model#0"], index=i) for i in range(2)]
    steps += [step("Fake", "completed", 1, [], index=i, parent=f"model#{i}", inside=True, tokens_in=100, tokens_out=10)
              for i in range(2)]  # fmt: skip
    steps += [step("weather", "completed", 1, [], inside=True) for _ in range(2)]
    return [tasks.run("helper", steps)]


def cancelled():
    """A graph that is given up while a node waits."""
    begun = asyncio.Event()

    async def wait(state):
        begun.set()
        await asyncio.sleep(60)
        return {"results": ["late"]}

    graph = graph_of((START, "plan"), ("plan", "wait"), plan=node("plan"), wait=wait).compile(name="hasty")

    async def run():
        task = asyncio.create_task(graph.ainvoke({"number": 0}))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    steps = [step("plan", "completed", 1, []), step("wait", "cancelled", 1, ["plan"])]
    return [execution("hasty", "cancelled", steps)]


SCENES = [cancelled, fan_out, loop, branch_failed, gives_up, recovers, deep, asks, helper]


def main(names):
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    LangChainInstrumentor().instrument()
    for scene in SCENES:
        if not names or scene.__name__ in names:
            executions = scene()
            provider.force_flush()
            for run in executions:
                for told in run["steps"]:
                    told.pop("inside", None)
            source = 'the tasks that LangGraph tells of (stream_mode="tasks"); edges from the program'
            name = f"langgraph_{scene.__name__}"
            tell(name, executions, index_from="order", edges_from="order", truth_from=source)


if __name__ == "__main__":
    stop_at_sigterm()
    main(sys.argv[1:])
