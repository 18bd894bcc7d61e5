"""Errors as RFC 9457 problem details: ``application/problem+json`` with a stable ``code``.

Every error response of the API is built here; `CODES` lists them all.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from tachograph.errors import ArchiveError, ExecutionNotFound, Fault, QueryTimeout, StoreUnavailable
from tachograph.quiet_log import QuietLog
from tachograph_exporter.api.jaeger_errors import add_jaeger_error
from tachograph_exporter.store.idempotency import KeyReused

quiet = QuietLog(logging.getLogger(__name__))


class ProblemDetails(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error (RFC 9457). ``code`` is stable, ``detail`` is for people; ``errors`` lists each fault with its place."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[Fault] = []


class Problem(Exception):
    """Raised to respond with an error. ``code`` is stable; ``detail`` is for people."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Fault] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        if CODES[code][0] != status:
            raise ValueError(f"{code} has status {CODES[code][0]}, not {status}")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}

    def response(self) -> web.Response:
        """The response with this problem as its body."""
        body = ProblemDetails(
            type="about:blank",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            code=self.code,
            detail=self.detail,
            errors=list(self.errors),
        )
        response = web.Response(
            body=msgspec.json.encode(body),
            status=self.status,
            content_type="application/problem+json",
            headers=self.headers,
        )
        if self.code in (
            "bad_request",
            "body_too_large",
            "unsupported_media_type",
            "request_timeout",
            "too_many_requests",
        ):
            # What follows on the connection may be the rest of a body that was not read.
            response.force_close()
        return response


def workspace_not_found(name: str) -> Problem:
    return Problem(404, "workspace_not_found", f'there is no workspace "{name}"')


def workspace_exists(slug: str) -> Problem:
    return Problem(409, "workspace_exists", f'workspace "{slug}" already exists')


def project_exists(slug: str) -> Problem:
    return Problem(409, "project_exists", f'project "{slug}" already exists in this workspace')


def trace_not_found(name: str) -> Problem:
    return Problem(404, "trace_not_found", f'there is no trace "{name}" in this workspace')


def no_traces() -> Problem:
    return Problem(404, "trace_not_found", "no trace matches the query")


def token_not_found(name: str) -> Problem:
    return Problem(404, "token_not_found", f'there is no token "{name}"')


def silence_not_found(name: str) -> Problem:
    return Problem(404, "silence_not_found", f'there is no silence "{name}" that has not ended')


def too_many_silences(limit: int) -> Problem:
    return Problem(409, "too_many_silences", f"there are {limit} silences already; end some first")


def archive_unavailable(error: ArchiveError) -> Problem:
    return Problem(410, "archive_unavailable", str(error))


def project_not_found(name: str) -> Problem:
    return Problem(404, "project_not_found", f'there is no project "{name}" in this workspace')


def workflow_not_found(name: str) -> Problem:
    return Problem(404, "workflow_not_found", f'there is no workflow "{name}" in this workspace')


def execution_not_found(execution_id: str) -> Problem:
    return Problem(404, "execution_not_found", str(ExecutionNotFound(execution_id)))


def no_open_run(workflow: str) -> Problem:
    return Problem(404, "execution_not_found", f'no run of "{workflow}" that pings reported is open')


def not_running(execution_id: str, status: str) -> Problem:
    detail = f'execution "{execution_id}" is {status}'
    if status in ("pending", "running"):
        detail += " in another process and can only be cancelled there"
    return Problem(409, "not_cancellable", detail)


def workflow_exists(name: str) -> Problem:
    return Problem(409, "workflow_exists", f'workflow "{name}" already exists in this workspace; change it with PATCH')


def not_runnable(name: str) -> Problem:
    return Problem(
        409, "not_runnable", f'workflow "{name}" is known from recorded executions only and has no definition to run'
    )


def workflow_inactive(name: str) -> Problem:
    return Problem(400, "workflow_inactive", f'workflow "{name}" is inactive; set is_active with PATCH to execute it')


def workflow_busy(name: str, count: int, ids: Sequence[str]) -> Problem:
    """``ids``: of those of the ``count`` open executions that the problem names."""
    faults = [Fault("open_execution", f"/api/workflows/executions/{i}", f"execution {i} is open") for i in ids]
    more = f" and {count - len(ids)} more" if count > len(ids) else ""
    subject = f"{count} open executions" if count != 1 else "an open execution"
    detail = f'workflow "{name}" has {subject}; cancel first: {", ".join(ids)}{more}'
    return Problem(409, "workflow_busy", detail, errors=faults)


def precondition_failed(tag: str) -> Problem:
    detail = f"the definition is not the one that the request expects; its version is {tag} now: read it again"
    return Problem(412, "precondition_failed", detail, headers={"ETag": tag})


def invalid_workflow(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_workflow", _summary("the definition", faults), errors=faults)


def invalid_inputs(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_inputs", _summary("the input variables", faults), errors=faults)


def invalid_parameters(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_parameters", _summary("the query", faults), errors=faults)


def key_reused(error: KeyReused) -> Problem:
    return Problem(422, "idempotency_key_reused", str(error))


def invalid_json(reason: str) -> Problem:
    return Problem(400, "invalid_json", f"the body is not JSON: {reason}")


def invalid_body(reason: str) -> Problem:
    return Problem(422, "invalid_body", f"the body does not match the schema: {reason}")


def not_json(content_type: str) -> Problem:
    sent = f", not {content_type}" if content_type else ""
    return Problem(415, "unsupported_media_type", f"send the body as Content-Type: application/json{sent}")


def unreadable(place: str, reason: str) -> Problem:
    return Problem(400, "bad_request", f"{place} {reason}")


def unsupported_encoding(reason: str) -> Problem:
    return Problem(415, "unsupported_media_type", reason)


def too_large(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"the body is larger than {limit} bytes, the limit of this service")


def too_many_values(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"the body has more than {limit:,} values, the limit of this service")


def too_many_events(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"the body has more than {limit:,} events, the limit of a request")


def invalid_expectation(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_body", _summary("the expectation", faults), errors=faults)


def invalid_silence(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_body", _summary("the silence", faults), errors=faults)


def failure_not_found(group_id: str) -> Problem:
    return Problem(404, "failure_not_found", f'there is no failure group "{group_id}"')


def expectation_not_found(name: str) -> Problem:
    return Problem(404, "expectation_not_found", f'nothing is said here of what is expected of workflow "{name}"')


def invalid_events(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_body", _summary("the body", faults), errors=faults)


def too_many_requests() -> Problem:
    detail = "large requests are being worked on, and there is no room for more; retry later"
    return Problem(429, "too_many_requests", detail, headers={"Retry-After": "1"})


def too_many_executions(limit: int) -> Problem:
    detail = f"{limit} executions are running or queued, the limit of this service; try again when some have ended"
    return Problem(429, "too_many_executions", detail, headers={"Retry-After": "5"})


def request_timeout(what: str, seconds: float) -> Problem:
    return Problem(408, "request_timeout", f"{what} did not arrive within {seconds:g} s")


def too_many_connections(limit: int) -> Problem:
    detail = f"this address has {limit} connections, the limit of this service, and all of them are in use"
    return Problem(503, "too_many_connections", detail, headers={"Retry-After": "1"})


def query_timeout(seconds: float) -> Problem:
    detail = f"reading took longer than {seconds:g} s; ask for less, for instance a shorter range of time"
    return Problem(503, "query_timeout", detail, headers={"Retry-After": "5"})


def shutting_down() -> Problem:
    return Problem(503, "shutting_down", "the service is shutting down", headers={"Retry-After": "10"})


def not_durable() -> Problem:
    detail = "the execution was not accepted: the database is unavailable"
    return Problem(503, "store_unavailable", detail, headers={"Retry-After": "5"})


def acceptance_unknown(*, is_keyed: bool) -> Problem:
    detail = "the database became unavailable meanwhile, and it is not known whether the execution was accepted; "
    if is_keyed:
        detail += "send the request again with the same Idempotency-Key: the execution runs once"
    else:
        detail += "no step of it will run; send the request again, with an Idempotency-Key to be sure that it runs once"
    return Problem(503, "store_unavailable", detail, headers={"Retry-After": "5"})


def store_unavailable() -> Problem:
    return Problem(503, "store_unavailable", "the database is unavailable", headers={"Retry-After": "5"})


def scrape_timeout(seconds: float) -> Problem:
    return Problem(503, "scrape_timeout", f"rendering took longer than the scrape timeout of {seconds:g} s")


def not_supported(reason: str) -> Problem:
    return Problem(400, "not_supported", reason)


def upgrade_required() -> Problem:
    return Problem(
        426,
        "upgrade_required",
        "this route speaks WebSocket only; send an upgrade request",
        headers={"Upgrade": "websocket"},
    )


def too_many_clients(limit: int) -> Problem:
    detail = f"{limit} clients are connected, the limit of this service; try again later"
    return Problem(503, "too_many_clients", detail, headers={"Retry-After": "10"})


def unauthorized(reason: str = "") -> Problem:
    detail = reason or "send a token: Authorization: Bearer …"
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def forbidden(reason: str) -> Problem:
    return Problem(403, "forbidden", reason)


def foreign_page(origin: str) -> Problem:
    return Problem(403, "foreign_page", f"pages of {origin} may not use this service; use the service's own page")


def wrong_host(host: str) -> Problem:
    detail = f'"{host}" is not a name of this machine; without a token, use localhost or the configured host'
    return Problem(421, "wrong_host", detail)


def _summary(what: str, faults: Sequence[Fault]) -> str:
    count = len(faults)
    shown = "; ".join(str(fault) for fault in faults[:5])
    more = f"; and {count - 5} more" if count > 5 else ""
    return f"{what} has {count} fault{'s' if count != 1 else ''}: {shown}{more}"


CODES: Final[dict[str, tuple[int, str]]] = {
    "bad_request": (400, "The request is not valid HTTP, or its body cannot be read."),
    "invalid_json": (400, "The body is not JSON."),
    "not_supported": (400, "A viewer asked for a feature of its own backend that is missing here; see detail."),
    "workflow_inactive": (400, "The workflow is registered with `is_active: false`, so it is not executed."),
    "failure_not_found": (404, "The workspace has no failure group with this id."),
    "expectation_not_found": (404, "The API and code say nothing of what is expected of the workflow."),
    "unauthorized": (401, "A token is required, or the one sent is unknown, expired or revoked."),
    "forbidden": (403, "The token does not allow this."),
    "foreign_page": (403, "A page of another site sent the request (Origin, Sec-Fetch-Site)."),
    "workspace_not_found": (404, "The workspace does not exist, or the token is bound to another one."),
    "project_not_found": (404, "The project does not exist in the workspace."),
    "workflow_not_found": (404, "The workflow does not exist in the workspace."),
    "execution_not_found": (404, "The execution does not exist in the workspace."),
    "trace_not_found": (404, "The trace does not exist in the workspace."),
    "token_not_found": (404, "The token does not exist."),
    "silence_not_found": (404, "The silence does not exist, or has ended."),
    "no_such_route": (404, "There is no route with this path."),
    "method_not_allowed": (405, "The route does not support this method; see Allow."),
    "request_timeout": (408, "The request did not arrive in time; the connection closes."),
    "too_many_silences": (409, "So many silences are in force that there is no room for another."),
    "not_cancellable": (409, "The execution is not running in this process."),
    "not_runnable": (409, "The workflow is known from recorded executions only and has no definition to run."),
    "workflow_exists": (409, "The workspace already has a workflow with this name."),
    "workflow_busy": (409, "The workflow has open executions; errors names them."),
    "workspace_exists": (409, "A workspace with this slug already exists."),
    "project_exists": (409, "The workspace already has a project with this slug."),
    "archive_unavailable": (410, "The execution is archived, and its file cannot be read."),
    "precondition_failed": (412, "If-Match or If-None-Match does not hold: the definition has changed; see ETag."),
    "body_too_large": (413, "The body is larger than the service accepts."),
    "unsupported_media_type": (
        415,
        "The body was not sent as application/json, or its Content-Encoding is not supported.",
    ),
    "wrong_host": (421, "Without a token, the Host header must name this machine."),
    "invalid_parameters": (422, "Query parameters are not valid; every fault is listed."),
    "invalid_body": (422, "The body is JSON but does not match the schema; the detail says where."),
    "invalid_workflow": (422, "The definition is not valid; every fault is listed."),
    "invalid_inputs": (422, "The input variables do not match the definition; every fault is listed."),
    "idempotency_key_reused": (422, "The Idempotency-Key was sent before with another request."),
    "upgrade_required": (426, "The route speaks WebSocket only."),
    "too_many_requests": (429, "Large bodies take all the room that there is for them; see Retry-After."),
    "too_many_executions": (429, "The limit of running and queued executions is reached; see Retry-After."),
    "internal_error": (500, "Unexpected error; the service's log has the details."),
    "store_unavailable": (503, "The database is unavailable; see Retry-After."),
    "query_timeout": (503, "Reading took too long and was stopped; ask for less, or see Retry-After."),
    "too_many_connections": (503, "The client's address has as many connections as it may; see Retry-After."),
    "too_many_clients": (503, "The limit of stream clients is reached; see Retry-After."),
    "shutting_down": (503, "The service is shutting down; see Retry-After."),
    "scrape_timeout": (503, "The scrape could not be rendered within the scrape timeout."),
}
"""Every problem code with its status and meaning."""

_HTTP_CODES: Final = {404: "no_such_route", 405: "method_not_allowed", 413: "body_too_large", 400: "bad_request"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond to every error with a problem. Unexpected errors are logged, and the response reveals no details."""
    return add_jaeger_error(request, await _response(request, handler))


async def _response(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except ExecutionNotFound as error:
        return execution_not_found(error.execution_id).response()
    except ArchiveError as error:
        return archive_unavailable(error).response()
    except web.HTTPRequestEntityTooLarge:
        return too_large(request.app._client_max_size).response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = _HTTP_CODES.get(error.status, "bad_request")
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        detail = f"there is no route {request.path}" if error.status == 404 else error.reason
        if error.status == 405:
            detail = f"{request.path} does not support {request.method}"
        return Problem(CODES[code][0], code, detail, headers=headers).response()
    except web.RequestPayloadError as error:
        return Problem(400, "bad_request", f"the body cannot be read: {error}").response()
    except (ConnectionResetError, TimeoutError):
        raise
    except QueryTimeout as error:
        quiet.warning(type(error), "%s %s: %s", request.method, request.path, error)
        return query_timeout(error.seconds).response()
    except (StoreUnavailable, MemoryError) as error:
        quiet.warning(type(error), "%s %s: %s", request.method, request.path, str(error) or "no memory left")
        return store_unavailable().response()
    except Exception as error:
        quiet.exception((type(error), request.match_info.handler), "%s %s failed", request.method, request.path)
        return Problem(500, "internal_error", "unexpected error; the service's log has the details").response()
