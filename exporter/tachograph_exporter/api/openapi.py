"""The OpenAPI 3.1 document, made from the table of routes and the types they serve.

Format: https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from tachograph.version import version
from tachograph_exporter.api.problems import CODES, ProblemDetails
from tachograph_exporter.api.routes import Parameter, Route

EXAMPLES: Final = Path(__file__).with_name("openapi_examples.json")
"""Answers of a real service, by ``GET /path``; made by tools/docs.py."""

_KINDS: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string"},
    "time": {
        "type": "string",
        "description": "RFC 3339, unix seconds, or a time ago (`90m`, `24h`, `7d`).",
    },
    "duration": {"type": "string", "description": "Seconds, or a number with a unit: `250ms`, `90s`, `1.5h`, `7d`."},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
}
_IN_PATH: Final = {
    "workflow_id": "A workflow, by id or by name.",
    "execution_id": "An execution, by id.",
    "workspace": "A workspace, by id or slug.",
    "token_id": "A token, by id.",
    "trace_id": "A trace, by id: up to 32 hex digits.",
    "service": "A service, by name.",
    "tag": "A name to search by.",
    "step_id": "A step, by id.",
}
_TAGS: Final = {
    "Executions": "What ran, what runs, and why it took so long.",
    "Workflows": "Definitions: register them, change them, run them; and what their executions add up to.",
    "Stream": "Live events, as they are committed.",
    "Traces": "Spans in by OTLP, and out to Jaeger and Tempo viewers.",
    "Access": "Workspaces, projects and tokens.",
    "Service": "For Prometheus, for health checks, and this document.",
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document."""
    types = {
        ProblemDetails,
        *(t for route in routes for t in (route.answer, route.body, *route.other_answers) if t is not None),
    }
    named = [t for t in types if isinstance(t, type) or getattr(t, "__origin__", None) is not dict]
    _, components = msgspec.json.schema_components(named, ref_template="#/components/schemas/{name}")
    examples = msgspec.json.decode(EXAMPLES.read_bytes()) if EXAMPLES.exists() else {}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, examples)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tachograph",
            "version": version(),
            "summary": "The flight recorder for workflows.",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": about} for name, about in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token with the scope the route asks for; `admin` has all. Not asked for on "
                    "loopback, unless the service is told to.",
                }
            },
        },
    }


_ABOUT: Final = (
    "Times are RFC 3339 UTC, durations seconds. A trailing slash is accepted on every path. Errors are RFC 9457 "
    "problem details with a stable `code`. Successful answers to GET carry an `ETag`; send it back as `If-None-Match` "
    "to get 304 while nothing changed. A route about one workspace takes it from `X-Workspace-Id`, `X-Workspace-Slug`, "
    "`workspace_id` or `workspace_slug`; without any, from the token, else it is the service's own. Rows of another "
    "workspace are 404."
)


def _operation(route: Route, examples: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [_tag(route)],
        "summary": route.summary.rstrip(".").capitalize() if route.summary else "",
        "parameters": [*_path_parameters(route), *map(_query_parameter, route.query), *_workspace_parameters(route)],
        "responses": _responses(route, examples),
    }
    if route.description:
        operation["description"] = route.description
    if route.body is not None:
        content: dict[str, Any] = {"schema": _schema(route.body)}
        if route.body_example is not None:
            content["example"] = route.body_example
        operation["requestBody"] = {
            "required": not route.body_is_optional,
            "content": {"application/json": content},
        }
    if route.scope is not None:
        operation["security"] = [{"token": []}, {}]
        operation["x-scope"] = route.scope
    else:
        operation["security"] = []
    return operation


def _operation_id(route: Route) -> str:
    return route.handler.__name__ if route.handler.__name__ not in ("read", "status", "detail") else (
        f"{route.handler.__name__}_{'execution' if 'execution' in route.path else 'workflow'}"
    )  # fmt: skip


def _tag(route: Route) -> str:
    if route.path.startswith("/api/workflows"):
        return "Executions" if "executions" in route.path else "Workflows"
    if route.path.startswith(("/v1/", "/jaeger/", "/tempo/")):
        return "Traces"
    if route.path.startswith(("/ws/", "/api/stream")):
        return "Stream"
    return "Access" if route.path.startswith(("/api/workspaces", "/api/tokens")) else "Service"


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": _IN_PATH[name], "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]


def _query_parameter(parameter: Parameter) -> dict[str, Any]:
    schema = dict(_KINDS["text" if parameter.kind == "texts" else parameter.kind])
    if parameter.choices:
        schema["enum"] = [str(choice) for choice in parameter.choices]
    if parameter.default is not None:
        schema["default"] = parameter.default
    if parameter.low is not None:
        schema["minimum"] = parameter.low
    if parameter.high is not None:
        schema["maximum"] = parameter.high
    found: dict[str, Any] = {"name": parameter.name, "in": "query", "description": parameter.about, "schema": schema}
    if parameter.kind == "texts":
        found["schema"] = {"type": "array", "items": schema}
        found["style"], found["explode"] = "form", True
        found["description"] += " May be repeated, or list several with commas."
    if parameter.example is not None:
        found["example"] = [parameter.example] if parameter.kind == "texts" else parameter.example
        if parameter.kind == "texts":
            found["example"] = str(parameter.example).split(",")
    return found


def _workspace_parameters(route: Route) -> list[dict[str, Any]]:
    if not route.in_workspace:
        return []
    text = {"type": "string"}
    return [
        {"name": "workspace_slug", "in": "query", "description": "The workspace, by slug.", "schema": text},
        {"name": "workspace_id", "in": "query", "description": "The workspace, by id.", "schema": text},
    ]


def _responses(route: Route, examples: dict[str, Any]) -> dict[str, Any]:
    phrase = HTTPStatus(route.status).phrase
    success: dict[str, Any] = {"description": phrase}
    if route.answer is not None:
        schemas = [_schema(kind) for kind in (route.answer, *route.other_answers)]
        content: dict[str, Any] = {"schema": {"anyOf": schemas} if route.other_answers else schemas[0]}
        example = examples.get(f"{route.method} {route.path}")
        if example is not None:
            content["example"] = example
        success["content"] = {"application/json": content}
    for kind in route.media:
        success.setdefault("content", {})[kind] = {"schema": {"type": "string"}}
    is_document = route.method == "GET" and route.path not in ("/metrics", "/api/stream") and route.status == 200
    if is_document:
        success["headers"] = {"ETag": {"description": "Send back as If-None-Match.", "schema": {"type": "string"}}}
    responses = {str(route.status): success} if route.status < 400 else {}
    for status in route.also:
        responses[str(status)] = {**success, "description": HTTPStatus(status).phrase}
    if is_document:
        responses["304"] = {"description": "Not changed since the ETag sent."}
    by_status: dict[int, list[str]] = {}
    for code in route.all_codes:
        by_status.setdefault(CODES[code][0], []).append(code)
    for status, codes in sorted(by_status.items()):
        responses.setdefault(
            str(status),
            {
                "description": " ".join(f"`{code}`: {CODES[code][1]}" for code in codes),
                "content": {
                    "application/problem+json": {
                        "schema": {"$ref": "#/components/schemas/ProblemDetails"},
                        "example": {
                            "type": "about:blank",
                            "title": HTTPStatus(status).phrase,
                            "status": status,
                            "code": codes[0],
                            "detail": CODES[codes[0]][1],
                        },
                    }
                },
            },
        )
    return responses


def _schema(kind: Any) -> Any:
    (found,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return found


async def openapi(request: web.Request) -> web.Response:
    """``GET /api/openapi.json``: this document."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


DOCUMENT: Final = web.AppKey("document", bytes)

ROUTES: Final = (
    Route(method="GET", path="/api/openapi.json", handler=openapi, scope=None, in_workspace=False,
          answer=dict[str, Any]),
)  # fmt: skip
