"""Errors as RFC 9457 problem details: ``application/problem+json`` with a stable ``code``.

Every error a route can answer is made here, so the list of codes is this module.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy.exc import InterfaceError, OperationalError

from tachograph.errors import ArchiveError, ExecutionNotFound, Fault, StoreUnavailable

log = logging.getLogger(__name__)


class ProblemDetails(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error (RFC 9457). ``code`` is stable, ``detail`` is for people; ``errors`` lists faults by code and place."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[Fault] = []


class Problem(Exception):
    """An answer other than what was asked for. ``code`` is stable; ``detail`` is for people."""

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
        """The problem as a response."""
        body = ProblemDetails(
            type="about:blank",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            code=self.code,
            detail=self.detail,
            errors=list(self.errors),
        )
        return web.Response(
            body=msgspec.json.encode(body),
            status=self.status,
            content_type="application/problem+json",
            headers=self.headers,
        )


def workspace_not_found(wanted: str) -> Problem:
    return Problem(404, "workspace_not_found", f'there is no workspace "{wanted}"')


def workspace_exists(slug: str) -> Problem:
    return Problem(409, "workspace_exists", f'there is a workspace "{slug}" already')


def project_exists(slug: str) -> Problem:
    return Problem(409, "project_exists", f'this workspace has a project "{slug}" already')


def trace_not_found(wanted: str) -> Problem:
    return Problem(404, "trace_not_found", f'there is no trace "{wanted}" in this workspace')


def token_not_found(wanted: str) -> Problem:
    return Problem(404, "token_not_found", f'there is no token "{wanted}"')


def archive_unavailable(error: ArchiveError) -> Problem:
    return Problem(410, "archive_unavailable", str(error))


def project_not_found(wanted: str) -> Problem:
    return Problem(404, "project_not_found", f'there is no project "{wanted}" in this workspace')


def workflow_not_found(wanted: str) -> Problem:
    return Problem(404, "workflow_not_found", f'there is no workflow "{wanted}" in this workspace')


def execution_not_found(execution_id: str) -> Problem:
    return Problem(404, "execution_not_found", str(ExecutionNotFound(execution_id)))


def not_running(execution_id: str, status: str) -> Problem:
    detail = f'execution "{execution_id}" is {status}'
    if status in ("pending", "running"):
        detail += ", but in another process; it can only be cancelled there"
    return Problem(409, "not_cancellable", detail)


def workflow_exists(name: str) -> Problem:
    return Problem(409, "workflow_exists", f'this workspace already has a workflow "{name}"; change it with PATCH')


def not_runnable(name: str) -> Problem:
    return Problem(409, "not_runnable", f'workflow "{name}" was recorded elsewhere and has no definition here to run')


def workflow_busy(name: str, count: int) -> Problem:
    return Problem(409, "workflow_busy", f'workflow "{name}" has {count} open execution(s); cancel them first')


def invalid_workflow(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_workflow", _summary("the definition", faults), errors=faults)


def invalid_inputs(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_inputs", _summary("the input variables", faults), errors=faults)


def invalid_parameters(faults: Sequence[Fault]) -> Problem:
    return Problem(422, "invalid_parameters", _summary("the query", faults), errors=faults)


def invalid_json(why: str) -> Problem:
    return Problem(400, "invalid_json", f"the body is not JSON: {why}")


def invalid_body(why: str) -> Problem:
    return Problem(422, "invalid_body", f"the body does not fit: {why}")


def not_json(content_type: str) -> Problem:
    return Problem(
        415, "unsupported_media_type", f"send the body as Content-Type: application/json, not {content_type}"
    )


def too_large(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"the body is larger than {limit} bytes")


def too_many_executions(limit: int) -> Problem:
    detail = f"{limit} executions run or wait already; try again when some have ended"
    return Problem(429, "too_many_executions", detail, headers={"Retry-After": "5"})


def shutting_down() -> Problem:
    return Problem(503, "shutting_down", "the service is shutting down", headers={"Retry-After": "10"})


def not_durable() -> Problem:
    detail = "the execution was not accepted: the database cannot take it now"
    return Problem(503, "store_unavailable", detail, headers={"Retry-After": "5"})


def store_unavailable() -> Problem:
    return Problem(503, "store_unavailable", "the database does not answer now", headers={"Retry-After": "5"})


def scrape_timeout(seconds: float) -> Problem:
    return Problem(503, "scrape_timeout", f"the scrape could not be rendered within the scraper's {seconds:g} s")


def not_supported(why: str) -> Problem:
    return Problem(400, "not_supported", why)


def upgrade_required() -> Problem:
    return Problem(426, "upgrade_required", "this is a WebSocket", headers={"Upgrade": "websocket"})


def too_many_clients(limit: int) -> Problem:
    detail = f"{limit} clients follow already; try again later"
    return Problem(503, "too_many_clients", detail, headers={"Retry-After": "10"})


def unauthorized(why: str = "") -> Problem:
    detail = why or "send a token: Authorization: Bearer …"
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def forbidden(why: str) -> Problem:
    return Problem(403, "forbidden", why)


def wrong_host(host: str) -> Problem:
    detail = f'asked for host "{host}", but without a token only this machine\'s own names are answered'
    return Problem(421, "wrong_host", detail)


def _summary(what: str, faults: Sequence[Fault]) -> str:
    count = len(faults)
    shown = "; ".join(str(fault) for fault in faults[:5])
    more = f"; and {count - 5} more" if count > 5 else ""
    return f"{what} has {count} fault{'s' if count != 1 else ''}: {shown}{more}"


CODES: Final[dict[str, tuple[int, str]]] = {
    "bad_request": (400, "The request cannot be read as HTTP says."),
    "invalid_json": (400, "The body is not JSON."),
    "not_supported": (400, "A viewer asks for what its own server can and this one cannot; says what."),
    "unauthorized": (401, "A token is needed, or the one sent is not valid (any more)."),
    "forbidden": (403, "The token does not allow this."),
    "workspace_not_found": (404, "There is no such workspace, or the token is not for it."),
    "project_not_found": (404, "There is no such project in the workspace."),
    "workflow_not_found": (404, "There is no such workflow in the workspace."),
    "execution_not_found": (404, "There is no such execution in the workspace."),
    "trace_not_found": (404, "There is no such trace in the workspace."),
    "token_not_found": (404, "There is no such token."),
    "no_such_route": (404, "There is nothing at this path."),
    "method_not_allowed": (405, "The path does not take this method; see Allow."),
    "not_cancellable": (409, "The execution does not run here."),
    "not_runnable": (409, "The workflow was recorded elsewhere and has no definition here."),
    "workflow_exists": (409, "The workspace has a workflow of that name."),
    "workflow_busy": (409, "The workflow has open executions."),
    "workspace_exists": (409, "There is a workspace with that slug."),
    "project_exists": (409, "The workspace has a project with that slug."),
    "archive_unavailable": (410, "The execution was archived, and its file cannot be read now."),
    "body_too_large": (413, "The body is larger than the service takes."),
    "unsupported_media_type": (415, "The body is not sent as application/json."),
    "wrong_host": (421, "Without a token, only requests that name this machine are answered."),
    "invalid_parameters": (422, "Query parameters are wrong; every fault is listed."),
    "invalid_body": (422, "The body is JSON but does not fit; says where."),
    "invalid_workflow": (422, "The definition has faults; every one is listed."),
    "invalid_inputs": (422, "The input variables do not fit the definition; every fault is listed."),
    "upgrade_required": (426, "This route speaks WebSocket only."),
    "too_many_executions": (429, "As many executions run and wait as the service allows; see Retry-After."),
    "internal_error": (500, "Something went wrong in the service; its log says what."),
    "store_unavailable": (503, "The database cannot take it now; see Retry-After."),
    "too_many_clients": (503, "As many clients follow as the service allows; see Retry-After."),
    "shutting_down": (503, "The service is shutting down; see Retry-After."),
    "scrape_timeout": (503, "The scrape could not be rendered within the scraper's time."),
}
"""Every code: its status, and what it means."""

_HTTP_CODES: Final = {404: "no_such_route", 405: "method_not_allowed", 413: "body_too_large", 400: "bad_request"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem; what nobody foresaw is logged here and says nothing of its insides."""
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
        detail = f"there is no {request.path}" if error.status == 404 else error.reason
        if error.status == 405:
            detail = f"{request.path} does not take {request.method}"
        return Problem(CODES[code][0], code, detail, headers=headers).response()
    except web.RequestPayloadError as error:
        return Problem(400, "bad_request", f"the body cannot be read: {error}").response()
    except (ConnectionResetError, TimeoutError):
        raise
    except (OperationalError, InterfaceError, StoreUnavailable):
        log.exception("%s %s: the database does not answer", request.method, request.path)
        return store_unavailable().response()
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return Problem(500, "internal_error", "something went wrong here; the log says what").response()
