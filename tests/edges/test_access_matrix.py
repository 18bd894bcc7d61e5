"""Who may call what: every route, with every kind of token, asked plainly, as a WebSocket and as an event stream."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.guard import BEARER_PROTOCOL
from tachograph_exporter.api.routes import Route
from tachograph_exporter.config import Config
from tachograph_exporter.store.tokens import ADMIN, SCOPES, create_token, revoke_token
from tachograph_exporter.store.workspaces import create_workspace
from tests.conftest import Api, serve

SERVICE_TOKEN = "the-services-own-token-0123"
INVALID = ("none", "wrong", "misspelled", "empty", "basic", "expired", "revoked", "expired admin", "revoked admin")
TRANSPORTS = ("plain", "websocket", "websocket protocol", "events")
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip


IDS = {"{trace_id}": "1"}


class Tokens(NamedTuple):
    """Headers by the name of a token."""

    invalid: dict[str, str | None]
    valid: dict[str, str]
    foreign: dict[str, str]


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    # Without room for followers, a stream that lets someone in says so and ends.
    config = Config(database=database_url, grace_seconds=0.1, token=SERVICE_TOKEN, max_stream_clients=0, mcp=True)
    async for api in serve(config, handlers):
        yield api


@pytest.fixture
def tokens(api: Api) -> Tokens:
    database = api.service.database
    theirs = database.run(lambda c: create_workspace(c, "theirs", time.time_ns(), "Theirs"))
    assert theirs is not None

    def made(scopes: list[str], **more: Any) -> tuple[str, str]:
        return database.run(lambda c: create_token(c, name="t", scopes=scopes, **more))

    everything = list(SCOPES)
    valid = {scope: made([scope])[1] for scope in SCOPES} | {"the service's own": SERVICE_TOKEN}
    revoked = {"revoked": made(everything[:3]), "revoked admin": made([ADMIN])}
    for identifier, _ in revoked.values():
        assert database.run(lambda c, i=identifier: revoke_token(c, i))  # type: ignore[misc]
    invalid: dict[str, str | None] = {
        "none": None, "wrong": "Bearer tgr_" + "x" * 43, "misspelled": "Bearer " + valid["admin"].swapcase(),
        "empty": "Bearer ", "basic": "Basic " + base64.b64encode(f"admin:{valid['admin']}".encode()).decode(),
        "expired": "Bearer " + made(everything[:3], expires_ns=1)[1],
        "expired admin": "Bearer " + made([ADMIN], expires_ns=time.time_ns() - 1)[1],
    }  # fmt: skip
    invalid |= {name: f"Bearer {token}" for name, (_, token) in revoked.items()}
    assert tuple(sorted(invalid)) == tuple(sorted(INVALID))
    foreign = {scope: made([scope], workspace_id=theirs.id)[1] for scope in SCOPES}
    return Tokens(invalid, valid, foreign)


def path_of(route: Route) -> str:
    path = "/".join(IDS.get(part, "x") if part.startswith("{") else part for part in route.path.split("/"))
    return path + "?a=x&b=y" if path.endswith("/compare") else path


async def ask(api: Api, route: Route, authorization: str | None, transport: str, **more: str) -> tuple[int, str]:
    """(status, problem code) of a request to a route."""
    headers = dict(more)
    if transport.startswith("websocket"):
        headers |= UPGRADE
    if transport == "events":
        headers["Accept"] = "text/event-stream"
    if authorization is not None:
        if transport == "websocket protocol" and authorization.startswith("Bearer "):
            token = base64.urlsafe_b64encode(authorization.removeprefix("Bearer ").encode()).decode().rstrip("=")
            headers["Sec-WebSocket-Protocol"] = f"tachograph, {BEARER_PROTOCOL}{token}"
        else:
            headers["Authorization"] = authorization
    body: Any = {} if route.body is not None else None
    status, answer = await api.call(route.method, path_of(route), body, headers=headers)
    return status, answer.get("code", "") if isinstance(answer, dict) else ""


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_has_no_valid_token_gets_nothing(api: Api, tokens: Tokens, transport: str) -> None:
    asked = 0
    for route in ROUTES:
        for name, authorization in tokens.invalid.items():
            asked += 1
            status, code = await ask(api, route, authorization, transport)
            if route.scope is None:
                assert status < 400, (route.path, name, code)
            else:
                assert (status, code) == (401, "unauthorized"), (route.path, name)
    assert asked == len(ROUTES) * len(INVALID) > 400


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_token_opens_what_its_scope_says(api: Api, tokens: Tokens, transport: str) -> None:
    opened = 0
    for route in ROUTES:
        for scope, token in tokens.valid.items():
            status, code = await ask(api, route, f"Bearer {token}", transport)
            if scope in (route.scope, ADMIN, "the service's own") or route.scope is None:
                opened += 1
                assert code not in ("unauthorized", "forbidden", "foreign_page", "wrong_host"), (route.path, scope)
                assert status < 500 or code == "too_many_clients", (route.path, scope, status)
            else:
                assert (status, code) == (403, "forbidden"), (route.path, scope)
    assert opened > 2 * len(ROUTES)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_token_of_another_workspace_opens_nothing_here(api: Api, tokens: Tokens, transport: str) -> None:
    own = api.service.config.workspace
    identifier = (await api.get(f"/api/workspaces/{own}", headers={"Authorization": f"Bearer {SERVICE_TOKEN}"}))["id"]
    for route in ROUTES:
        for scope, token in tokens.foreign.items():
            may = route.scope is None or scope in (route.scope, ADMIN)
            for header, value in (("X-Workspace-Slug", own), ("X-Workspace-Id", identifier)):
                status, code = await ask(api, route, f"Bearer {token}", transport, **{header: value})
                if route.scope is None:
                    assert status < 400
                elif not may or route.path in ("/metrics", "/api/queues", "/api/notices/test"):
                    assert (status, code) == (403, "forbidden"), (route.path, scope)
                elif route.in_workspace:
                    assert (status, code) == (404, "workspace_not_found"), (route.path, scope)
                else:
                    assert status < 500
                    assert code not in ("unauthorized", "forbidden") or route.method != "GET", (route.path, scope, code)


async def test_what_is_known_only_after_authentication_is_not_told_before(api: Api, tokens: Tokens) -> None:
    """Without a token, what exists and what does not looks the same."""
    admin = {"Authorization": f"Bearer {SERVICE_TOKEN}"}
    document = {"name": "x", "steps": [{"name": "s"}]}
    answers = []
    for is_there in (False, True):
        if is_there:
            assert (await api.call("POST", "/api/workflows", document, headers=admin))[0] == 201
        answers.append([await ask(api, route, tokens.invalid["wrong"], "plain") for route in ROUTES])
    assert answers[0] == answers[1]
