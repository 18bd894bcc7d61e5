"""The rules for spans of agents, models and tools.

Sources: OpenTelemetry's GenAI conventions (open-telemetry/semantic-conventions-genai, ``gen_ai.operation.name``), as
pydantic-ai and logfire follow them; OpenInference (``openinference.span.kind``), as its instrumentors of LangChain,
LangGraph and the OpenAI Agents SDK do; logfire's spans of the OpenAI Agents SDK (scope ``logfire.openai_agents``);
OpenLLMetry (``traceloop.span.kind``), as opentelemetry-instrumentation-langchain does.

The outermost agent, workflow, graph or chain of a trace is the execution, whatever is around it; all below it are
steps inside each other. Prompts, messages, arguments and results are never read here: they stay in the spans.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Final

from tachograph_exporter.ingest.rules import Read, Role, Rule, attribute
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.usage import usage_of

_OUTCOMES: Final = {"completed": "completed", "failed": "failed", "cancelled": "cancelled"}
_CANCELLED: Final = frozenset({"CancelledError", "KeyboardInterrupt", "GeneratorExit"})
_OPENINFERENCE_AGENTS: Final = "openinference.instrumentation.openai_agents"
_LOGFIRE_AGENTS: Final = "logfire.openai_agents"


def outcome(span: SpanRecord) -> str:
    """How a span ended, by its status and exception."""
    if "pydantic_ai.tool.deferral.name" in span.attributes:
        # The tool was put off until a person or another process has answered; some versions call that an error.
        return "completed"
    if not span.is_error:
        return "completed"
    kind = span.exception[0].rpartition(".")[2] if span.exception is not None else ""
    return "cancelled" if kind in _CANCELLED else "failed"


def retry_cause(span: SpanRecord) -> str | None:
    """What a tool of pydantic-ai raised to be called again: the span has the library's own exception around it."""
    return "ModelRetry" if span.attributes.get("pydantic_ai.tool.retry.cause") == "model_retry" else None


def model_call(span: SpanRecord) -> str:
    """``chat gpt-4o``: the span's name, or, where that is a template (logfire's), the same from the attributes."""
    if "{" not in span.name:
        return span.name
    operation = span.attributes.get("gen_ai.operation.name") or "chat"
    model = span.attributes.get("gen_ai.request.model") or span.attributes.get("gen_ai.response.model") or ""
    return f"{operation} {model}".strip()


def handoff(span: SpanRecord) -> str:
    """``handoff to billing_agent``."""
    return f"handoff to {span.attributes.get('to_agent') or 'another agent'}"


def logged_error(span: SpanRecord) -> str | None:
    """The message of logfire's ``error`` attribute, which is JSON."""
    error = _parsed(span.attributes.get("error"))
    message = error.get("message")
    return str(message) if message is not None else None


@functools.lru_cache(maxsize=256)
def _parsed_text(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _parsed(text: Any) -> Mapping[str, Any]:
    return _parsed_text(text) if isinstance(text, str) and len(text) <= 20_000 else {}


def graph_node(span: SpanRecord) -> Any:
    """The key of a node's run in LangGraph, the same for all its tries; None if the span is not a node's own.

    Spans within a node have the same metadata, but another name or parent. A node's run in a loop is another one.
    """
    metadata = _parsed(span.attributes.get("metadata"))
    namespace = metadata.get("langgraph_checkpoint_ns")
    if metadata.get("langgraph_node") != span.name or not isinstance(namespace, str):
        return None
    return f"{span.parent_span_id}/{namespace}" if namespace else None


def graph_index(span: SpanRecord) -> int | None:
    """The index that LangGraph gives one of several runs of a node that were asked for at once (``Send``)."""
    path = _parsed(span.attributes.get("metadata")).get("langgraph_path")
    if graph_node(span) is None or not isinstance(path, list) or path[:1] != ["__pregel_push"]:
        return None
    return next((item for item in path[1:] if isinstance(item, int) and not isinstance(item, bool)), None)


def _step(engine: str, step_type: str, name: Read, **more: Any) -> Rule:
    return Rule(engine=engine, role=Role.STEP, step_type=step_type, name=name, usage=usage_of, state=outcome,
                states=_OUTCOMES, of_agent=True, **more)  # fmt: skip


def _agent(engine: str, step_type: str, name: Read, **more: Any) -> Rule:
    return Rule(engine=engine, role=Role.EXECUTION, is_outermost=True, step_type=step_type, name=name, usage=usage_of,
                state=outcome, states=_OUTCOMES, of_agent=True, **more)  # fmt: skip


def _name_or_span(*names: str) -> Read:
    read = attribute(*names)

    def name(span: SpanRecord) -> Any:
        return read(span) or span.name

    return name


def _operation(name: str) -> dict[str, Any]:
    return {"equals": {"gen_ai.operation.name": name}}


def _kind(name: str, **more: Any) -> dict[str, Any]:
    return {"equals": {"openinference.span.kind": name}, **more}


_AGENT_NAME: Final = _name_or_span("gen_ai.agent.name", "agent_name", "gen_ai.workflow.name")
_TOOL_NAME: Final = _name_or_span("gen_ai.tool.name", "tool.name")
_CALLS_OF_MODELS: Final = ("chat", "text_completion", "generate_content", "embeddings")

OPENAI_AGENTS_BY_LOGFIRE: Final[tuple[Rule, ...]] = (
    _agent("openai-agents", "workflow", _name_or_span("name"), scopes=(_LOGFIRE_AGENTS,), has=("agent_trace_id",),
           ends_as_last_agent=True),
    _step("openai-agents", "agent", _name_or_span("name"), scopes=(_LOGFIRE_AGENTS,), names=("Agent run",),
          has=("gen_ai.system",), is_frame=True, why=logged_error),
    _step("openai-agents", "tool", _name_or_span("name"), scopes=(_LOGFIRE_AGENTS,), names=("Function",),
          has=("gen_ai.system",), why=logged_error),
    _step("openai-agents", "tool", handoff, scopes=(_LOGFIRE_AGENTS,), names=("Handoff",), has=("gen_ai.system",),
          why=logged_error),
    # An agent's span does not say that its last turn failed.
    Rule(engine="openai-agents", role=Role.OUTCOME, of_agent=True, scopes=(_LOGFIRE_AGENTS,), has=("sdk_span_type",),
         names=("Turn ",), state=outcome, states=_OUTCOMES, why=logged_error),
    Rule(engine="openai-agents", role=Role.INSIDE, of_agent=True, scopes=(_LOGFIRE_AGENTS,), has=("sdk_span_type",)),
    _step("openai-agents", "llm", model_call, scopes=(_LOGFIRE_AGENTS,), has=("gen_ai.request.model",),
          is_model_call=True, why=logged_error),
)  # fmt: skip

GEN_AI: Final[tuple[Rule, ...]] = (
    _agent("gen_ai", "agent", _AGENT_NAME, **_operation("invoke_agent")),
    _agent("gen_ai", "workflow", _AGENT_NAME, **_operation("invoke_workflow")),
    _step("gen_ai", "tool", _TOOL_NAME, cause=retry_cause, **_operation("execute_tool")),
    *[_step("gen_ai", "embedding" if name == "embeddings" else "llm", model_call, is_model_call=True,
            **_operation(name)) for name in _CALLS_OF_MODELS],
    _step("gen_ai", "retriever", model_call, **_operation("retrieval")),
    # OpenLLMetry's names for what LangChain and LangGraph run.
    Rule(engine="langchain", role=Role.INSIDE, of_agent=True, named=("execute_task RunnableCallable",),
         **_operation("execute_task")),
    _step("gen_ai", "chain", _name_or_span("gen_ai.task.name"), **_operation("execute_task")),
    _step("gen_ai", "retriever", _name_or_span("traceloop.entity.name"), **_operation("vector_db_retrieve")),
    *[_step("gen_ai", "task", model_call, **_operation(name)) for name in ("create_agent", "plan")],
    # A model that another one stood in for, within the call that tells of both.
    Rule(engine="gen_ai", role=Role.INSIDE, of_agent=True, scopes=("pydantic-ai",),
         has=("pydantic_ai.model_request.attempt",)),
    # A model is called, by an operation of another name or by an instrumentation that names none.
    _step("gen_ai", "llm", model_call, is_model_call=True, has=("gen_ai.request.model",)),
    # pydantic-ai with an instrumentation version below 3.
    _agent("gen_ai", "agent", _AGENT_NAME, scopes=("pydantic-ai",), names=("agent run",), has=("agent_name",)),
    _step("gen_ai", "tool", _TOOL_NAME, scopes=("pydantic-ai",), names=("running tool",), has=("gen_ai.tool.name",),
          cause=retry_cause),
)  # fmt: skip

# pydantic_graph 2.68, by logfire: its graph_builder. The name of a graph is only in that of its span.
PYDANTIC_GRAPH: Final[tuple[Rule, ...]] = (
    _agent("pydantic-graph", "workflow", lambda span: span.name.removeprefix("run graph "), scopes=("pydantic-graph",),
           names=("run graph ",), has=("graph",)),
    _step("pydantic-graph", "task", attribute("node_id"), scopes=("pydantic-graph",), names=("run node ",),
          has=("node_id",)),
)  # fmt: skip

OPENINFERENCE: Final[tuple[Rule, ...]] = (
    # What the OpenAI Agents SDK puts around each turn and each run; an agent's own span is in between, and does not say
    # that its last turn failed.
    Rule(engine="openai-agents", role=Role.OUTCOME, of_agent=True, scopes=(_OPENINFERENCE_AGENTS,), named=("turn",),
         state=outcome, states=_OUTCOMES, **_kind("CHAIN")),
    Rule(engine="openai-agents", role=Role.INSIDE, of_agent=True, scopes=(_OPENINFERENCE_AGENTS,),
         named=("Agent workflow",), **_kind("CHAIN")),
    _step("openai-agents", "agent", _name_or_span("agent.name"), scopes=(_OPENINFERENCE_AGENTS,), is_frame=True,
          **_kind("AGENT", has=("agent.name",))),
    _agent("openai-agents", "workflow", _name_or_span("agent.name"), scopes=(_OPENINFERENCE_AGENTS,),
           ends_as_last_agent=True, **_kind("AGENT")),
    # What LangGraph and LangChain run around and between the nodes of a graph.
    Rule(engine="langchain", role=Role.INSIDE, of_agent=True, scopes=("openinference.instrumentation.langchain",),
         names=("RunnableCallable", "ChannelWrite", "ChannelRead"), **_kind("CHAIN")),
    _agent("openinference", "agent", _name_or_span("agent.name"), key=graph_node, index=graph_index, **_kind("AGENT")),
    _agent("openinference", "chain", _name_or_span(), key=graph_node, index=graph_index, **_kind("CHAIN")),
    _step("openinference", "llm", model_call, is_model_call=True, **_kind("LLM")),
    _step("openinference", "embedding", model_call, is_model_call=True, **_kind("EMBEDDING")),
    _step("openinference", "tool", _TOOL_NAME, **_kind("TOOL")),
    *[_step("openinference", kind.lower(), _name_or_span(), **_kind(kind))
      for kind in ("RETRIEVER", "RERANKER", "GUARDRAIL", "EVALUATOR", "PROMPT")],
)  # fmt: skip

OPENLLMETRY: Final[tuple[Rule, ...]] = (
    *[_agent("openllmetry", kind, _name_or_span("traceloop.entity.name"), equals={"traceloop.span.kind": kind})
      for kind in ("workflow", "agent")],
    _step("openllmetry", "task", _name_or_span("traceloop.entity.name"), equals={"traceloop.span.kind": "task"}),
    _step("openllmetry", "tool", _name_or_span("traceloop.entity.name"), equals={"traceloop.span.kind": "tool"}),
)  # fmt: skip

AGENT_RULES: Final = (*OPENAI_AGENTS_BY_LOGFIRE, *PYDANTIC_GRAPH, *GEN_AI, *OPENINFERENCE, *OPENLLMETRY)


def is_nameless_graph(node: SpanRecord, span: SpanRecord) -> bool:
    """Whether a span is the graph that a node of LangGraph is, and has no name of its own."""
    inner = _parsed(span.attributes.get("metadata"))
    outer = _parsed(node.attributes.get("metadata"))
    namespace = inner.get("langgraph_checkpoint_ns")
    return (
        namespace is not None
        and namespace == outer.get("langgraph_checkpoint_ns")
        and outer.get("langgraph_node") == node.name
        and span.name == "LangGraph"
    )
