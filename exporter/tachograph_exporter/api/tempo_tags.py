"""Names and values of attributes in Tempo's query API: the lists that Grafana offers while somebody builds a query.

Shapes: https://grafana.com/docs/tempo/latest/api_docs/ (search tags, search tag values, and their second version).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from tachograph_exporter.api.jaeger import read
from tachograph_exporter.api.request import json_response
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.api.viewer_query import ViewerQuery
from tachograph_exporter.attribute_text import ValueKind
from tachograph_exporter.store.span_index_reading import Days
from tachograph_exporter.traces import names, search
from tachograph_exporter.traces.traceql.fields import INTRINSICS, STATUSES
from tachograph_exporter.traces.traceql.lexer import TraceQLError
from tachograph_exporter.traces.traceql.parser import parse
from tachograph_exporter.traces.traceql.syntax import EVERYTHING, Query

_SCOPES: Final = ("none", "resource", "span", "event", "link", "instrumentation", "intrinsic")
_TYPES: Final = {ValueKind.INT: "int", ValueKind.FLOAT: "float", ValueKind.BOOL: "bool"}
_MAX_LIMIT: Final = 1 << 31
_SERVICES: Final = frozenset({
    "service.name", ".service.name", "resource.service.name", "rootServiceName", "trace:rootService",
})  # fmt: skip
_NAMES: Final = frozenset({"name", "span:name", "rootName", "trace:rootName"})
_STATUSES: Final = frozenset({"status", "span:status"})
_KINDS: Final = frozenset({"kind", "span:kind"})


def _filter(query: ViewerQuery) -> Query | None:
    """The query that narrows a list down; None if there is none. One that cannot be read is ignored, as in Tempo."""
    text = query.text("q")
    try:
        parsed = parse(text) if text is not None else EVERYTHING
    except TraceQLError:
        return None
    return None if parsed == EVERYTHING else parsed


def _days(query: ViewerQuery) -> Days:
    return Days(query.time("start"), query.time("end"))


async def _attribute_names(request: web.Request, query: ViewerQuery) -> Mapping[str, Sequence[str]]:
    narrowed, days = _filter(query), _days(query)
    query.done()
    by_scope: Mapping[str, Sequence[str]] = await read(
        request, lambda c, workspace, slug: names.attribute_names(c, workspace, slug, narrowed, days)
    )
    return by_scope


async def tempo_tags(request: web.Request) -> web.Response:
    """``GET /tempo/api/search/tags``: Tempo's query API: names of attributes."""
    query = ViewerQuery(request)
    scope = query.choice("scope", _SCOPES, "none")
    by_scope = await _attribute_names(request, query)
    shown = {name for of, attributes in by_scope.items() if scope in ("none", of) for name in attributes}
    if scope in ("none", "intrinsic"):
        shown |= {"name", "status"}
    return json_response({"tagNames": sorted(shown)})


async def tempo_tags_v2(request: web.Request) -> web.Response:
    """``GET /tempo/api/v2/search/tags``: Tempo's query API, version 2: names of attributes, by scope."""
    query = ViewerQuery(request)
    scope = query.choice("scope", _SCOPES, "none")
    by_scope = {**await _attribute_names(request, query), "intrinsic": sorted(INTRINSICS)}
    scopes = [{"name": of, "tags": tags} for of, tags in by_scope.items() if scope in ("none", of)]
    return json_response({"scopes": scopes})


async def _values(request: web.Request) -> list[tuple[str, str]]:
    """Values of the attribute or intrinsic in the path, each with its type, sorted."""
    query = ViewerQuery(request)
    limit = query.integer("limit", 0, 0, _MAX_LIMIT)
    narrowed, days = _filter(query), _days(query)
    query.done()
    tag = request.match_info["tag"]
    values: list[tuple[str, str]]
    if tag in _STATUSES or tag in _KINDS:
        words = STATUSES.values() if tag in _STATUSES else filter(None, search.KINDS.values())
        values = [(word, "keyword") for word in sorted(words)]
    elif tag in _NAMES or tag in _SERVICES:
        rows = await read(
            request,
            lambda c, workspace, _: (
                search.services(c, workspace, days)
                if tag in _SERVICES
                else sorted({name for name, _ in search.operations(c, workspace, None, days)})
            ),
        )
        values = [(name, "string") for name in rows]
    elif tag in INTRINSICS or ":" in tag.partition(".")[0]:
        values = []
    else:
        scope, name = _attribute(tag)
        kinds = await read(
            request,
            lambda c, workspace, slug: names.attribute_values(c, workspace, slug, scope, name, narrowed, days),
        )
        values = [(text, _TYPES.get(kind, "string")) for text, kind in kinds]
    return values[: limit or None]


def _attribute(tag: str) -> tuple[str | None, str]:
    """Scope and name: of ``span.x`` and ``resource.x``; of ``.x`` and of ``x`` without a scope."""
    scope, _, name = tag.partition(".")
    if scope in ("span", "resource") and name:
        return scope, name
    return None, tag.removeprefix(".")


async def tempo_values(request: web.Request) -> web.Response:
    """``GET /tempo/api/search/tag/{tag}/values``: Tempo's query API: values of an attribute."""
    return json_response({"tagValues": list(dict.fromkeys(text for text, _ in await _values(request)))})


async def tempo_values_v2(request: web.Request) -> web.Response:
    """``GET /tempo/api/v2/search/tag/{tag}/values``: Tempo's query API, version 2: values of an attribute."""
    return json_response({"tagValues": [{"type": kind, "value": text} for text, kind in await _values(request)]})


_ANY = dict[str, Any]
_QUERY: Final = (
    Parameter(name="q", example='{ resource.service.name = "etl" && duration > 5s }',
              description="A TraceQL query: only of the newest traces that it matches. "
              "Names of spans and services are not narrowed down."),
    Parameter(name="start", kind="time", description="Only of the days from this time on."),
    Parameter(name="end", kind="time", description="Only of the days up to this time."),
)  # fmt: skip
_OF_NAMES: Final = (
    *_QUERY,
    Parameter(name="scope", description="Only names of this scope.", choices=_SCOPES, default="none"),
    Parameter(name="limit", kind="integer", description="Not used."),
)
_OF_VALUES: Final = (
    *_QUERY, Parameter(name="limit", kind="integer", description="Values to return at most; 0: all.", default=0),
)  # fmt: skip

ROUTES: Sequence[Route] = (
    Route(method="GET", path="/tempo/api/search/tags", handler=tempo_tags, response=_ANY, query=_OF_NAMES),
    Route(method="GET", path="/tempo/api/v2/search/tags", handler=tempo_tags_v2, response=_ANY, query=_OF_NAMES),
    Route(method="GET", path="/tempo/api/search/tag/{tag}/values", handler=tempo_values, response=_ANY,
          query=_OF_VALUES),
    Route(method="GET", path="/tempo/api/v2/search/tag/{tag}/values", handler=tempo_values_v2, response=_ANY,
          query=_OF_VALUES),
)  # fmt: skip
