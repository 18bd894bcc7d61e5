"""Access control: tokens, scopes and workspaces, on every route."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.api.test_api import RETRY, register
from tests.conftest import Api, serve

from tachograph.recording import setup
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.guard import find_caller
from tachograph_exporter.config import Config, ConfigError
from tachograph_exporter.service import Service
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.tokens import SCOPES, create_token, tokens

SERVICE_TOKEN = "the-services-own-token-0123"


@pytest.fixture
async def guarded(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.2, token=SERVICE_TOKEN), handlers):
        yield api


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def token_for(api: Api, **fields: Any) -> str:
    status, body = await api.call("POST", "/api/tokens", {"name": "t", **fields}, headers=bearer(SERVICE_TOKEN))
    assert status == 201, body
    return str(body["token"])


def filled(path: str, **ids: str) -> str:
    for name, value in ids.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path, path
    return path


async def test_every_route_responds_to_a_foreign_workspace_with_404(guarded: Api) -> None:
    api = guarded
    status, body = await api.call("POST", "/api/workspaces", {"slug": "theirs"}, headers=bearer(SERVICE_TOKEN))
    assert status == 201
    status, workflow = await api.call("POST", "/api/workflows", RETRY, headers=bearer(SERVICE_TOKEN))
    _, run = await api.call("POST", f"/api/workflows/{workflow['id']}/execute", {}, headers=bearer(SERVICE_TOKEN))
    own_workspace, execution = workflow["workspace_id"], run["execution_id"]
    _, silence = await api.call("POST", "/api/silences", {"duration": "1h"}, headers=bearer(SERVICE_TOKEN))
    theirs = await token_for(api, scopes=list(SCOPES), workspace="theirs")
    walked = 0
    for route in ROUTES:
        ids = {"workflow_id": workflow["id"], "execution_id": execution, "workspace": own_workspace}
        ids |= {"trace_id": run["trace_id"], "service": "tachograph", "tag": "service.name", "step_id": "x"}
        ids |= {"silence_id": silence["id"], "failure_id": "x", "workflow": "w", "run": "r", "action": "log"}
        ids["token_id"] = (await api.call("GET", "/api/tokens", headers=bearer(SERVICE_TOKEN)))[1]["items"][0]["id"]
        path = filled(route.path, **ids)
        query = f"?a={execution}&b={execution}" if path.endswith("/compare") else ""
        if "{" in route.path or query:
            if "token_id" in route.path:
                continue
            if "{step_id}" in route.path and "{workflow_id}" not in route.path:
                # Step events are sent to subscribers of the same workspace only.
                status, body = await api.call(route.method, path, headers=bearer(theirs))
                assert (status, body["code"]) == (426, "upgrade_required")
                continue
            if "{service}" in route.path or "{tag}" in route.path:
                # These query by names that every workspace may use; the results are the caller's own.
                status, body = await api.call(route.method, path, headers=bearer(theirs))
                assert (status, body.get("data", body.get("tagValues"))) == (200, []), route.path
                continue
            if "{workflow}" in route.path and "{action}" not in route.path:
                # What is expected of a workflow is the caller's own, also of one that is not known.
                status, body = await api.call(route.method, path, {}, headers=bearer(theirs))
                assert status < 500, route.path
                assert own_workspace not in str(body), route.path
                continue
            walked += 1
            # With their token, the id alone is not found.
            asked = {"action": "mute"} if "{failure_id}" in route.path else {}
            status, body = await api.call(route.method, path + query, asked, headers=bearer(theirs))
            assert (status, body["code"].endswith("_not_found")) == (404, True), (route.path, body)
        if route.in_workspace:
            walked += 1
            # Naming the other workspace does not help.
            for headers in ({"X-Workspace-Slug": "default"}, {"X-Workspace-Id": own_workspace}):
                status, body = await api.call(route.method, path + query, {}, headers={**headers, **bearer(theirs)})
                assert (status, body["code"]) == (404, "workspace_not_found"), (route.path, body)
    assert walked > 25
    assert (await api.get("/api/workflows", headers=bearer(theirs)))["total"] == 0
    assert (await api.get("/api/workflows/executions", headers=bearer(theirs)))["items"] == []
    assert [w["slug"] for w in (await api.get("/api/workspaces", headers=bearer(theirs)))["items"]] == ["theirs"]
    for path in ("/metrics", "/api/queues", "/api/queues/"):
        status, body = await api.call("GET", path, headers=bearer(theirs))
        assert (status, body["code"]) == (403, "forbidden")
    # Their admin creates and sees tokens of that workspace only.
    status, body = await api.call("POST", "/api/tokens", {"name": "x", "workspace": "default"}, headers=bearer(theirs))
    assert (status, body["code"]) == (404, "workspace_not_found")
    status, body = await api.call("POST", "/api/tokens", {"name": "x"}, headers=bearer(theirs))
    assert body["workspace"] == "theirs"
    assert {t["workspace"] for t in (await api.get("/api/tokens", headers=bearer(theirs)))["items"]} == {"theirs"}
    status, body = await api.call("POST", "/api/workspaces", {"slug": "more"}, headers=bearer(theirs))
    assert (status, body["code"]) == (403, "forbidden")


async def test_every_route_responds_to_a_missing_scope_with_403_and_to_no_token_with_401(guarded: Api) -> None:
    given = {scope: await token_for(guarded, scopes=[scope]) for scope in SCOPES}
    for route in ROUTES:
        names = ("workflow_id", "execution_id", "workspace", "token_id", "trace_id", "service", "tag", "step_id",
                 "silence_id", "failure_id", "workflow", "run", "action")  # fmt: skip
        path = filled(route.path, **dict.fromkeys(names, "x"))
        status, body = await guarded.call(route.method, path, {})
        assert status == 200 if route.scope is None else (status, body["code"]) == (401, "unauthorized"), route.path
        if route.scope is None:
            continue
        # The stream of an unknown execution: other streams never end.
        query = "?execution_id=x" if path == "/api/stream" else ""
        for scope, token in given.items():
            status, body = await guarded.call(route.method, path + query, {}, headers=bearer(token))
            may = scope in (route.scope, "admin")
            assert (status == 403) is not may, (route.path, scope, body)
            assert may or body["code"] == "forbidden"


async def test_tokens_expire_are_revoked_and_are_stored_as_digests(guarded: Api) -> None:
    token = await token_for(guarded, scopes=["read"], expires_in_days=1)
    assert token.startswith("tgr_")
    page = await guarded.get("/api/tokens", headers=bearer(SERVICE_TOKEN))
    (info,) = page["items"]
    assert (info["state"], info["scopes"], "token" in info) == ("active", ["read"], False)
    assert (await guarded.call("GET", "/api/workflows", headers=bearer(token)))[0] == 200
    assert (await guarded.call("DELETE", f"/api/tokens/{info['id']}", headers=bearer(SERVICE_TOKEN)))[0] == 204
    status, body = await guarded.call("GET", "/api/workflows", headers=bearer(token))
    assert (status, body["code"]) == (401, "unauthorized")
    database = guarded.service.database
    _, old = database.run(lambda c: create_token(c, name="old", scopes=["read"], expires_ns=1))
    assert database.look(lambda c: find_caller(c, old)) is None
    path = database.url.database
    assert path is not None
    everything = b"".join(file.read_bytes() for file in Path(path).parent.glob(Path(path).name + "*"))
    assert old.encode() not in everything
    assert token.encode() not in everything
    assert [row.name for row in database.look(tokens)] == ["old", "t"]


async def test_on_loopback_no_token_is_required_but_a_given_one_is_checked(api: Api) -> None:
    await register(api, RETRY)
    token = api.service.database.run(lambda c: create_token(c, name="r", scopes=["read"]))[1]
    assert (await api.get("/api/workflows"))["total"] == 1
    assert (await api.get("/api/workflows", headers=bearer(token)))["total"] == 1
    assert (await api.call("POST", "/api/workflows", RETRY, headers=bearer(token)))[0] == 403
    assert (await api.call("GET", "/api/workflows", headers=bearer("tgr_nonsense")))[0] == 401
    assert (await api.call("GET", "/api/workflows", headers={"Authorization": "Basic eDp5"}))[0] == 401


async def test_metrics_may_be_public_and_loopback_may_require_a_token(
    database_url: str, handlers: HandlerRegistry
) -> None:
    config = Config(
        database=database_url, token=SERVICE_TOKEN, open_metrics=True, is_token_required=True, grace_seconds=0.1
    )
    async for api in serve(config, handlers):
        assert (await api.call("GET", "/metrics"))[0] == 200
        assert (await api.call("GET", "/api/workflows"))[0] == 401


async def test_beyond_loopback_the_service_starts_only_if_a_token_exists(database_url: str) -> None:
    config = Config(database=database_url, host="0.0.0.0")
    with pytest.raises(ConfigError, match="tokens create"):
        Service(config)
    database = Database(database_url)
    database.run(lambda c: create_token(c, name="x", scopes=["read"]))
    database.close()
    await Service(config).close()
    with pytest.raises(ConfigError, match="none exists"):
        Config(is_token_required=True).check()
    Config(host="0.0.0.0", is_insecure=True).check()


def test_a_service_with_faulty_rules_leaves_nothing_behind(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text("[[rule]\n")
    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match=r"rules\.toml"):
        Service(Config(database=database_url, mapping=tmp_path / "rules.toml"))
    assert set(threading.enumerate()) == before
    assert setup._recorder is None


async def test_workspaces_and_projects(api: Api) -> None:
    status, workspace = await api.call("POST", "/api/workspaces", {"slug": "ship-ping", "name": "Shipping"})
    assert (status, workspace["name"]) == (201, "Shipping")
    assert (await api.call("POST", "/api/workspaces", {"slug": "ship-ping"}))[1]["code"] == "workspace_exists"
    assert (await api.call("POST", "/api/workspaces", {"slug": "No Slug"}))[0] == 422
    assert (await api.get("/api/workspaces/ship-ping"))["id"] == workspace["id"]
    base = f"/api/workspaces/{workspace['id']}/projects"
    assert [p["slug"] for p in (await api.get(base))["items"]] == ["default"]
    assert (await api.call("POST", base, {"slug": "nightly"}))[0] == 201
    assert (await api.call("POST", base, {"slug": "nightly"}))[1]["code"] == "project_exists"
    status, workflow = await api.call("POST", "/api/workflows?workspace_slug=ship-ping&project_id=nightly", RETRY)
    assert (status, workflow["project_id"]) == (201, "nightly")
    assert (await api.get("/api/workflows?workspace_slug=ship-ping&project_id=default"))["total"] == 0
