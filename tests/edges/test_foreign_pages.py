"""Pages of other sites: no route that changes anything or streams listens to them, and programs are not disturbed."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.routes import Route
from tachograph_exporter.config import Config
from tachograph_exporter.store.tokens import create_token
from tests.conftest import Api, serve

UNSAFE = [route for route in ROUTES if route.method not in ("GET", "HEAD")]
STREAMS = [route for route in ROUTES if route.path == "/api/stream" or route.path.startswith("/ws/")]
ORIGINS = (
    "own", "OWN", None, "null", "", "http://evil.example", "https://evil.example", "http://localhost:1", "file://",
    "http://{host}.evil.example", "http://evil.example@{host}", "chrome-extension://{host}", "{host}", "//{host}",
    "http://{host}, http://evil.example", "http://[", "http://\xff",
)  # fmt: skip
SITES = (None, "none", "same-origin", "same-site", "cross-site", "", "cross-origin", "same-origin, cross-site")
OWN_ORIGINS = ("own", "OWN", None)
OWN_SITES = (None, "none", "same-origin")


def path_of(route: Route) -> str:
    parts = ["x" if part.startswith("{") else part for part in route.path.split("/")]
    return "/".join(parts)


def headers_of(api: Api, origin: str | None, site: str | None) -> dict[str, str]:
    host = api.address.partition("//")[2]
    headers = {}
    if origin is not None:
        own = {"own": api.address, "OWN": api.address.upper()}
        headers["Origin"] = own.get(origin) or origin.format(host=host)
    if site is not None:
        headers["Sec-Fetch-Site"] = site
    return headers


@pytest.fixture
async def secured(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1, is_token_required=True,
                                  token="the-services-own-token"), handlers):  # fmt: skip
        yield api


async def refused(api: Api, route: Route, headers: dict[str, str]) -> bool:
    """Whether a request to the route is refused as a foreign page's."""
    if route in STREAMS:
        # The service has no room for followers, so that those it lets in do not stay.
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **headers}  # fmt: skip
    status, body = await api.call(route.method, path_of(route), None if route in STREAMS else {}, headers=headers)
    if status == 403:
        assert body["code"] == "foreign_page"
    return bool(status == 403)


@pytest.mark.parametrize("route", [*UNSAFE, *STREAMS], ids=lambda route: f"{route.method} {route.path}")
async def test_no_route_listens_to_the_page_of_another_site(
    database_url: str, handlers: HandlerRegistry, route: Route
) -> None:
    async for api in serve(Config(database=database_url, grace_seconds=0.1, max_stream_clients=0), handlers):
        token = api.service.database.run(lambda c: create_token(c, name="t", scopes=["admin"]))[1]
        for origin, site in itertools.product(ORIGINS, SITES):
            headers = headers_of(api, origin, site)
            is_own = origin in OWN_ORIGINS and site in OWN_SITES
            for more in ({}, {"Authorization": f"Bearer {token}"}):
                is_refused = await refused(api, route, headers | more)
                assert is_refused is not is_own, (origin, site, more)


async def test_a_token_does_not_open_the_door_to_a_foreign_page(secured: Api) -> None:
    headers = {"Authorization": "Bearer the-services-own-token", "Origin": "http://evil.example"}
    status, body = await secured.call("POST", "/api/workflows", {}, headers=headers)
    assert (status, body["code"]) == (403, "foreign_page")


async def test_no_response_invites_other_sites(api: Api) -> None:
    for route in ROUTES:
        if route in STREAMS:
            continue
        for method in ("OPTIONS", route.method):
            headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": route.method}
            async with api.session.request(method, api.address + path_of(route), headers=headers) as response:
                assert not [name for name in response.headers if name.lower().startswith("access-control")]
                assert method != "OPTIONS" or response.status == 405


async def test_a_body_is_read_only_if_it_says_what_it_is(api: Api) -> None:
    """A page of another site sends a Blob without a type, text or a form without asking first, but not JSON."""
    token = api.service.database.run(lambda c: create_token(c, name="t", scopes=["admin"]))[1]
    for route in UNSAFE:
        if route.takes_text:
            continue  # See `api.pings`: what curl sends. It is refused to pages of other sites.
        accepted = ["application/json", "application/json; charset=utf-8", "Application/JSON", *route.media]
        for kind in (None, "", "application/octet-stream", "text/plain", "text/plain; application/json",
                     "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp",
                     "text/json", ", application/json", *accepted):  # fmt: skip
            for data in (b"{}", b""):
                if not data and (route.body is None or route.body_is_optional):
                    continue
                headers = {"Authorization": f"Bearer {token}"}
                if kind is not None:
                    headers["Content-Type"] = kind
                async with api.session.request(
                    route.method, api.address + path_of(route), data=data, headers=headers,
                    skip_auto_headers=("Content-Type",),
                ) as response:  # fmt: skip
                    assert (response.status == 415) is (kind not in accepted), (route.path, kind, data)


async def test_without_a_body_none_need_be_announced(api: Api) -> None:
    """As ``curl -X POST`` does it."""
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
    async with api.session.post(f"{api.address}/api/workflows/w/execute") as response:
        assert response.status == 202
    async with api.session.delete(f"{api.address}/api/workflows/nothing") as response:
        assert response.status == 404


TOKEN_CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/api/tokens", {"name": "x", "scopes": ["admin"]}),
    ("POST", "/api/tokens/", {"name": "x"}),
    ("DELETE", "/api/tokens/x", None),
]


@pytest.mark.parametrize(("method", "path", "body"), TOKEN_CALLS)
async def test_who_has_no_token_makes_and_revokes_none(api: Api, method: str, path: str, body: Any) -> None:
    status, problem = await api.call(method, path, body)
    assert (status, problem["code"]) == (401, "unauthorized")
    assert "tachograph tokens create" in problem["detail"]
    assert (await api.get("/api/tokens"))["total"] == 0
    for scopes, expected in ((["admin"], (201, 204, 404)), (["read", "write", "ingest"], (403,))):
        _, token = api.service.database.run(partial(create_token, name="t", scopes=scopes))
        status, _ = await api.call(method, path, body, headers={"Authorization": f"Bearer {token}"})
        assert status in expected


async def test_even_an_open_service_gives_no_tokens_away(database_url: str, handlers: HandlerRegistry) -> None:
    async for api in serve(Config(database=database_url, is_insecure=True, grace_seconds=0.1), handlers):
        assert (await api.call("POST", "/api/tokens", {"name": "x"}))[0] == 401
        assert (await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]}))[0] == 201
