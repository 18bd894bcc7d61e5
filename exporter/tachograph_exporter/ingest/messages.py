"""Secrets in what was said to models and tools: prompts, messages, arguments and results in the attributes of spans.

They are stored with their spans for whoever reads a trace, and nowhere else; credentials in them are masked first, by
the rules that hold for the inputs and outputs of steps (`tachograph.redaction`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tachograph.redaction import MASK, is_secret_key, mask_text

_OF_AGENTS: Final = frozenset({
    "gen_ai.operation.name", "gen_ai.system", "gen_ai.provider.name", "gen_ai.tool.name", "gen_ai.agent.name",
    "openinference.span.kind", "traceloop.span.kind", "agent_trace_id",
})  # fmt: skip
"""A span has one of these if it is of an agent, a model or a tool."""
_CONTENT: Final = (
    # OpenTelemetry's GenAI conventions and their older forms; OpenLLMetry.
    "gen_ai.input", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result", "gen_ai.prompt", "gen_ai.completion", "gen_ai.task.input", "gen_ai.task.output",
    "gen_ai.retrieval", "gen_ai.memory", "traceloop.entity.input", "traceloop.entity.output",
    # OpenInference.
    "input.value", "output.value", "llm.input_messages", "llm.output_messages", "llm.prompt", "llm.choices",
    "llm.invocation_parameters", "retrieval.documents", "reranker.", "embedding.embeddings", "tool.parameters",
    # pydantic-ai and logfire.
    "pydantic_ai.all_messages", "all_messages_events", "final_result", "tool_arguments", "tool_response",
    "request_data", "response_data", "raw_input", "events", "input", "output", "response",
)  # fmt: skip
_MAX_DEPTH: Final = 64


def is_of_agent(attributes: Mapping[str, Any]) -> bool:
    """Whether a span is of an agent, a model or a tool."""
    return not _OF_AGENTS.isdisjoint(attributes)


def mask_messages(span: Span) -> bool:
    """Mask secrets in what a span of an agent, model or tool says was said. Returns whether it changed anything."""
    changed = _mask_attributes(attribute for attribute in span.attributes if attribute.key.startswith(_CONTENT))
    for event in span.events:
        # Messages as events are gen_ai.user.message and others; an exception's text is its program's.
        if event.name != "exception":
            changed |= _mask_attributes(event.attributes)
    return changed


def _mask_attributes(attributes: Iterable[KeyValue]) -> bool:
    changed = False
    for attribute in attributes:
        changed |= _mask_value(attribute.key, attribute.value, 0)
    return changed


def _mask_value(key: str, value: AnyValue, depth: int) -> bool:
    kind = value.WhichOneof("value")
    changed = False
    if kind == "string_value":
        text = MASK if is_secret_key(key) else masked(value.string_value)
        if text != value.string_value:
            value.string_value = text
            changed = True
    elif depth >= _MAX_DEPTH:
        pass
    elif kind == "array_value":
        for item in value.array_value.values:
            changed |= _mask_value(key, item, depth + 1)
    elif kind == "kvlist_value":
        for pair in value.kvlist_value.values:
            changed |= _mask_value(pair.key, pair.value, depth + 1)
    return changed


def masked(text: str) -> str:
    """A text without credentials; one that is JSON stays JSON."""
    if text[:1] in ("{", "["):
        try:
            document = msgspec.json.decode(text)
            clean = _masked(document)
            return text if clean == document else msgspec.json.encode(clean).decode()
        except (msgspec.MsgspecError, RecursionError, OverflowError, ValueError):
            pass  # No JSON, or none that can be written again.
    return mask_text(text, len(text))


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list):
        return [_masked(item) for item in value]
    if isinstance(value, dict):
        return {
            key: MASK if isinstance(item, str) and is_secret_key(key) else _masked(item) for key, item in value.items()
        }
    return value
