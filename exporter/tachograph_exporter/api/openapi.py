"""The OpenAPI 3.1 document, generated from the route declarations and their types.

Format: https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from tachograph.version import version
from tachograph_exporter.api import idempotency
from tachograph_exporter.api.problems import CODES, ProblemDetails
from tachograph_exporter.api.routes import Parameter, Route

EXAMPLES: Final = Path(__file__).with_name("openapi_examples.json")
"""Responses of a real service by ``GET /path``; written by tools/docs.py."""

_SCHEMA_BY_KIND: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string"},
    "time": {"type": "string", "description": "RFC 3339, unix seconds, or an age (`90m`, `24h`, `7d`)."},
    "duration": {"type": "string", "description": "Seconds, or a number with a unit: `250ms`, `90s`, `1.5h`, `7d`."},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
}
_PATH_PARAMETERS: Final = {
    "failure_id": "Id of a failure group.",
    "workflow_id": "Id or name of a workflow.",
    "execution_id": "Id of an execution.",
    "workspace": "Id or slug of a workspace.",
    "token_id": "Id of a token.",
    "silence_id": "Id of a silence.",
    "trace_id": "Id of a trace: up to 32 hex digits.",
    "service": "Name of a service.",
    "tag": "Name of a tag (an attribute).",
    "step_id": "Id of a step.",
    "workflow": "Name of a workflow; it need not exist.",
    "run": "An id of your own for one of several runs: at most 64 letters, digits, dots and dashes.",
    "action": "What happens: start, success, fail or log.",
}
_TAGS: Final = {
    "Executions": "Executions, their timelines, why they took so long, and failures by cause.",
    "Workflows": "Register, change and execute definitions; metrics and trends of their executions.",
    "Expectations": "What is expected of workflows, whether it holds, and who was told.",
    "Stream": "Live events, sent as they are committed.",
    "Traces": "Ingest spans, logs and metrics by OTLP; query traces with Jaeger and Tempo viewers.",
    "Recording": "Runs that other processes record, or that pings report.",
    "Access": "Workspaces, projects and tokens.",
    "Agents": "Answers for agents.",
    "Service": "Prometheus metrics, health checks, and this document.",
}

_TEXT_BODY: Final = {"schema": {"type": "string"}, "example": "12,044 rows loaded"}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    types = {
        ProblemDetails,
        *(t for route in routes for t in (route.response, route.body, *route.other_responses) if t is not None),
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
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token with the scope that the route requires (`x-scope`); `admin` includes every "
                    "scope. On loopback no token is required unless the service is configured to require one.",
                }
            },
        },
    }


_DESCRIPTION: Final = (
    "Times are RFC 3339 UTC, durations are seconds. Every path accepts a trailing slash. HEAD works wherever GET does. "
    "Errors are RFC 9457 problem "
    "details with a stable `code`. Successful responses to GET carry an `ETag`; send it back as `If-None-Match` to get "
    "304 while nothing has changed. A route that works in one workspace takes it from `X-Workspace-Id`, "
    "`X-Workspace-Slug`, `workspace_id` or `workspace_slug`; it defaults to the workspace of the token, else to the "
    "service's own. Rows of other workspaces are 404."
)


def _operation(route: Route, examples: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [_tag(route)],
        "summary": route.summary[:1].upper() + route.summary[1:].rstrip("."),
        "parameters": [
            *_path_parameters(route),
            *map(_query_parameter, route.query),
            *_workspace_parameters(route),
            *_conditions(route),
            *_key_parameter(route),
        ],
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
    if route.takes_text:
        operation["requestBody"] = {"required": False, "content": {"text/plain": _TEXT_BODY}}
    if route.scope is not None:
        operation["security"] = [{"token": []}, {}]
        operation["x-scope"] = route.scope
    else:
        operation["security"] = []
    return operation


def _operation_id(route: Route) -> str:
    name = route.handler.__name__
    if name in ("read", "status", "detail"):
        return f"{name}_{'execution' if 'execution' in route.path else 'workflow'}"
    return name


def _tag(route: Route) -> str:
    if route.path.startswith("/api/workflows"):
        return "Executions" if "executions" in route.path else "Workflows"
    if route.path.startswith("/api/failures"):
        return "Executions"
    if route.path.startswith(("/api/expectations", "/api/night", "/api/notices", "/api/silences")):
        return "Expectations"
    if route.path.startswith(("/v1/", "/jaeger/", "/tempo/")):
        return "Traces"
    if route.path.startswith(("/ws/", "/api/stream")):
        return "Stream"
    if route.path.startswith(("/api/events", "/ping/")):
        return "Recording"
    if route.path == "/mcp":
        return "Agents"
    return "Access" if route.path.startswith(("/api/workspaces", "/api/tokens")) else "Service"


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]


def _query_parameter(parameter: Parameter) -> dict[str, Any]:
    schema = dict(_SCHEMA_BY_KIND["text" if parameter.kind == "texts" else parameter.kind])
    if parameter.choices:
        schema["enum"] = [str(choice) for choice in parameter.choices]
    if parameter.default is not None:
        schema["default"] = parameter.default
    if parameter.low is not None:
        schema["minimum"] = parameter.low
    if parameter.high is not None:
        schema["maximum"] = parameter.high
    described: dict[str, Any] = {
        "name": parameter.name, "in": "query", "description": parameter.description, "schema": schema
    }  # fmt: skip
    if parameter.example is not None:
        described["example"] = parameter.example
    if parameter.kind == "texts":
        described["schema"] = {"type": "array", "items": schema}
        described["style"], described["explode"] = "form", True
        described["description"] += " May be repeated or hold a comma-separated list."
        if parameter.example is not None:
            described["example"] = str(parameter.example).split(",")
    return described


def _workspace_parameters(route: Route) -> list[dict[str, Any]]:
    if not route.in_workspace:
        return []
    text = {"type": "string"}
    return [
        {"name": "workspace_slug", "in": "query", "description": "Slug of the workspace.", "schema": text},
        {"name": "workspace_id", "in": "query", "description": "Id of the workspace.", "schema": text},
    ]


_VERSIONED: Final = ("/api/workflows", "/api/workflows/{workflow_id}")
"""Paths whose responses carry the version of a definition."""


def _conditions(route: Route) -> list[dict[str, Any]]:
    if "precondition_failed" not in route.codes:
        return []
    described = "Only if the definition is still this version: the `ETag` of an earlier response. Else 412."
    return [{"name": "If-Match", "in": "header", "description": described, "schema": {"type": "string"}}]


def _key_parameter(route: Route) -> list[dict[str, Any]]:
    if not route.creates:
        return []
    return [
        {
            "name": idempotency.HEADER,
            "in": "header",
            "description": "A key of your choice, such as a UUID. The same request with the same key gets the same "
            "answer for 24 hours, and nothing is done twice.",
            "schema": {"type": "string", "minLength": 1, "maxLength": idempotency.MAX_LENGTH},
        }
    ]


def _responses(route: Route, examples: dict[str, Any]) -> dict[str, Any]:
    phrase = HTTPStatus(route.status).phrase
    success: dict[str, Any] = {"description": phrase}
    if route.response is not None:
        schemas = [_schema(kind) for kind in (route.response, *route.other_responses)]
        content: dict[str, Any] = {"schema": {"anyOf": schemas} if route.other_responses else schemas[0]}
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
    for status in route.other_statuses:
        responses[str(status)] = {**success, "description": HTTPStatus(status).phrase}
    if route.status < 300 and not is_document and route.path in _VERSIONED and route.response is not None:
        success["headers"] = {"ETag": {"description": "Version of the definition.", "schema": {"type": "string"}}}
    if is_document:
        responses["304"] = {"description": "Not modified since the given ETag."}
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
    (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return schema


async def openapi(request: web.Request) -> web.Response:
    """``GET /api/openapi.json``: this document."""
    body = await asyncio.to_thread(request.app[DOCUMENT].encoded)
    return web.Response(body=body, content_type="application/json")


class Document:
    """The document of some routes, made when somebody asks for it: that takes as long as starting the service."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        self._encoded = b""

    def encoded(self) -> bytes:
        """As JSON."""
        if not self._encoded:
            self._encoded = msgspec.json.encode(document(self._routes))
        return self._encoded


DOCUMENT: Final = web.AppKey("document", Document)

ROUTES: Final = (
    Route(method="GET", path="/api/openapi.json", handler=openapi, scope=None, in_workspace=False,
          response=dict[str, Any]),
)  # fmt: skip
