"""What a span says of the model that it called: tokens, cost and the model's name.

Sources of the attribute names: OpenTelemetry's GenAI conventions (``gen_ai.usage.*``, ``gen_ai.request.model``,
``gen_ai.response.model``; ``prompt_tokens`` and ``completion_tokens`` until 1.27), OpenInference
(``llm.token_count.*``, ``llm.cost.*``, ``llm.model_name``), pydantic-ai and logfire (``operation.cost``, in dollars).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tachograph.spans import semconv
from tachograph_exporter.ingest.spans import SpanRecord, clean

MODEL_LIMIT: Final = 100
"""Characters of a model's name that are kept: it is a label."""
MAX_TOKENS: Final = 10**12
MAX_USD: Final = 1e6
"""What one span may say; more is not believed."""

_IN: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_OUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
_CACHED: Final = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens",
                  "llm.token_count.prompt_details.cache_read")  # fmt: skip
_CACHE_WRITTEN: Final = ("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_creation_input_tokens",
                         "llm.token_count.prompt_details.cache_write")  # fmt: skip
_USD: Final = ("operation.cost", "llm.cost.total", semconv.COST)
_USD_PARTS: Final = ("llm.cost.prompt", "llm.cost.completion")
_MODEL: Final = ("gen_ai.response.model", "llm.response.model_name", "llm.model_name", "embedding.model_name",
                 "gen_ai.request.model", "llm.request.model_name")  # fmt: skip
_REQUESTED: Final = ("gen_ai.request.model", "llm.request.model_name")
_ANY: Final = frozenset({*_IN, *_OUT, *_USD, *_USD_PARTS})


class Usage(NamedTuple):
    """What calls of one model came to.

    ``cached`` and ``cache_written`` are those of ``tokens_in`` that were read from a prompt cache or written to it.
    ``model`` is the model that answered, ``requested`` the one that was asked for; both may be empty. ``usd``: US
    dollars, or None if the span says nothing of money; zero counts as nothing.
    """

    tokens_in: int
    tokens_out: int
    cached: int
    cache_written: int
    model: str
    requested: str
    usd: float | None


def usage_of(span: SpanRecord) -> Usage | None:
    """What a span says, or None if it says nothing. A value that makes no sense counts as missing."""
    attributes = span.attributes
    if _ANY.isdisjoint(attributes):
        return None
    tokens_in, tokens_out = _tokens(attributes, _IN), _tokens(attributes, _OUT)
    usd = _usd(attributes)
    if not (tokens_in or tokens_out) and usd is None:
        return None
    cached = min(_tokens(attributes, _CACHED), tokens_in)
    return Usage(
        tokens_in,
        tokens_out,
        cached,
        min(_tokens(attributes, _CACHE_WRITTEN), tokens_in - cached),
        _text(attributes, _MODEL),
        _text(attributes, _REQUESTED),
        usd,
    )


def _tokens(attributes: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        value = attributes.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_TOKENS:
            return int(value)
    return 0


def _usd(attributes: Mapping[str, Any]) -> float | None:
    for name in _USD:
        if (value := _money(attributes.get(name))) is not None:
            return value
    parts = [value for name in _USD_PARTS if (value := _money(attributes.get(name))) is not None]
    return sum(parts) if parts else None


def _money(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_USD:
        return float(value)
    return None


def _text(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        value = attributes.get(name)
        if isinstance(value, str) and value:
            return clean(value)[:MODEL_LIMIT]
    return ""
