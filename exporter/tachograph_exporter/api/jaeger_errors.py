"""Problems in the words of Jaeger's query API, beside our own: its UI shows what it finds there.

Version 3 has ``{"error": {"httpCode", "message"}}`` (``GRPCGatewayError`` in ``api_v3/query_service.proto``), the older
one ``{"errors": [{"code", "msg"}]}`` (``structuredError`` in Jaeger's ``http_handler.go``).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

_PROBLEM: Final = "application/problem+json"
_PREFIX: Final = "/jaeger/api/"


def add_jaeger_error(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """The response; if it is a problem of one of Jaeger's routes, with members that Jaeger's clients read."""
    if not request.path.startswith(_PREFIX) or response.content_type != _PROBLEM:
        return response
    assert isinstance(response, web.Response) and isinstance(response.body, bytes)  # noqa: S101, PT018 - see `problems`
    problem: dict[str, Any] = msgspec.json.decode(response.body)
    if request.path.startswith(f"{_PREFIX}v3/"):
        problem["error"] = {"httpCode": problem["status"], "message": problem["detail"]}
    else:
        faults = problem.get("errors") or [{"code": problem["code"], "at": "", "message": problem["detail"]}]
        problem["errors"] = [{**fault, "msg": fault["message"]} for fault in faults]
    response.body = msgspec.json.encode(problem)
    return response
