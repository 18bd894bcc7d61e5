"""Agents are answered at ``/mcp``, through the same gates as every other caller."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.command import tachograph
from tests.conftest import Api, running
from tests.views import planted

from tachograph.clock import NS
from tachograph.identity import workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config, ConfigError
from tachograph_exporter.store.tokens import create_token
from tachograph_exporter.store.workspaces import add_workspace

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult

pytestmark = pytest.mark.xdist_group("mcp tools")

SERVICE_TOKEN: Final = "the-token-of-the-service"
ASK: Final = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "runs", "arguments": {}}}
PING: Final = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
ACCEPT: Final = {"Accept": "application/json, text/event-stream"}


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    """A service that answers agents and requires tokens."""
    config = Config(database=any_database_url, grace_seconds=0.2, mcp=True, token=SERVICE_TOKEN)
    async with running(config, handlers) as api:
        yield api


def text_of(result: CallToolResult) -> str:
    from mcp_types import TextContent

    content = result.content[0]
    assert isinstance(content, TextContent)
    return content.text


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextlib.asynccontextmanager
async def agent(api: Api, token: str, mode: str = "auto", **headers: str) -> AsyncIterator[Client]:
    """The official client of the protocol."""
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    async with httpx2.AsyncClient(headers={**bearer(token), **headers}, timeout=60) as http:
        transport = streamable_http_client(f"{api.address}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


@pytest.mark.e2e
async def test_an_agent_finds_out_why_last_nights_run_was_slow(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    # Here, not for each worker of pytest that looks for tests: it takes more than a second.
    from mcp.shared.exceptions import MCPError
    from mcp_types import TextResourceContents

    """In at most three calls, by both generations of the protocol, in the workspace of its token and no other."""
    monkeypatch.setattr(planted, "END_NS", time.time_ns() - 7 * 3600 * NS)
    database = api.service.database
    workspace, run, _ = await asyncio.to_thread(planted.play, database, "a slow query", 1)
    await database.write(lambda c: add_workspace(c, "elsewhere", 1))

    def token_of(slug: str, *scopes: str) -> str:
        return database.run(
            lambda c: create_token(c, name=f"{slug} {scopes}", scopes=list(scopes), workspace_id=workspace_id(slug))
        )[1]

    token = await asyncio.to_thread(token_of, workspace, "read")
    for mode in ("auto", "legacy"):
        async with agent(api, token, mode) as client:
            listed = (await client.list_tools()).tools
            assert len(listed) == 8
            assert all(tool.output_schema and tool.annotations and tool.annotations.read_only_hint for tool in listed)
            calls = 0

            async def ask(name: str, client: Client = client, **given: Any) -> Any:
                nonlocal calls
                calls += 1
                result = await client.call_tool(name, given)
                assert not result.is_error, result.content
                assert "SELECT" not in result.structured_content["notice"]
                return result.structured_content, text_of(result)

            # Of the runs of last night the slowest is meant.
            runs, _ = await ask("runs", since="24h", workflow="nightly")
            slowest = max(runs["runs"], key=lambda line: line["duration_seconds"])
            why, text = await ask("why", run=slowest["run_id"])
            assert calls <= 3
            assert why["verdict"] == "slow"
            assert "SELECT orders" in why["causes"][0]["text"]
            assert "SELECT orders" in text.partition("why, the likeliest first:")[2].split("\n")[1]
            assert why["page"] == f"{api.address}/#/executions/{why['run_id']}"
            # Each claim says where its evidence is, and it is there.
            evidence = why["causes"][0]["evidence"]
            async with api.session.get(evidence, headers=bearer(token)) as response:
                assert response.status == 200, evidence
            # The numbers are those of the API.
            shown = await api.get(f"/api/workflows/executions/{why['run_id']}/why", headers=bearer(token))
            assert [cause["text"] for cause in shown["causes"]] == [cause["text"] for cause in why["causes"]]
            # Every run is a resource.
            resources = (await client.list_resources()).resources
            assert f"tachograph://runs/{run}" in [str(resource.uri) for resource in resources]
            templates = (await client.list_resource_templates()).resource_templates
            assert [template.uri_template for template in templates] == ["tachograph://runs/{run_id}"]
            content = (await client.read_resource(f"tachograph://runs/{run}")).contents[0]
            assert isinstance(content, TextResourceContents)
            assert "SELECT orders" in content.text and "the critical path in order:" in content.text  # noqa: PT018
            with pytest.raises(MCPError, match="resources are runs"):
                await client.read_resource("tachograph://tokens/1")
            # Whoever asks wrongly is told how to ask.
            wrong = await client.call_tool("why", {"run": "nightley"})
            assert wrong.is_error
            assert "did you mean ⟦nightly⟧?" in text_of(wrong)
    # Another workspace has none of it, and the id of a run does not help.
    other = await asyncio.to_thread(token_of, "elsewhere", "read")
    async with agent(api, other) as client:
        for name, given in (("runs", {}), ("failures", {}), ("late", {"since": "7d"})):
            result = await client.call_tool(name, given)
            assert not result.is_error
            assert "nightly" not in str(result), name
            assert run not in str(result), name
        assert (await client.list_resources()).resources == []
        for name in ("why", "compare", "critical_path", "timeline_map"):
            result = await client.call_tool(name, {"run": run})
            assert result.is_error, name
            assert "there is no" in text_of(result)
        with pytest.raises(MCPError, match="there is no"):
            await client.read_resource(f"tachograph://runs/{run}")
    # Who may be asked for, and by whom.
    write = await asyncio.to_thread(token_of, workspace, "write")
    for headers, answer in (
        ({}, (401, "unauthorized")),
        (bearer("wrong"), (401, "unauthorized")),
        (bearer(write), (403, "forbidden")),
        ({**bearer(token), "Origin": "http://evil.example"}, (403, "foreign_page")),
        ({**bearer(token), "Sec-Fetch-Site": "cross-site"}, (403, "foreign_page")),
        ({**bearer(other), "X-Workspace-Slug": workspace}, (404, "workspace_not_found")),
    ):
        status, body = await api.call("POST", "/mcp", ASK, headers={**ACCEPT, **headers})
        assert (status, body["code"]) == answer, headers


@pytest.mark.e2e
async def test_what_is_no_message_of_the_protocol_is_refused(
    database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Config(database=database_url, grace_seconds=0.2, mcp=True), handlers) as api:
        status, body = await api.call("POST", "/mcp", PING, headers=ACCEPT)
        assert (status, body["result"]) == (200, {})
        status, body = await api.call("POST", "/mcp", ASK, headers=ACCEPT)
        assert (status, body["result"]["structuredContent"]["total"]) == (200, 0)
        # A notification is accepted, and answered with nothing.
        notified = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await api.call("POST", "/mcp", notified, headers=ACCEPT))[0] == 202
        for method in ("GET", "DELETE", "PUT"):
            assert (await api.call(method, "/mcp"))[0] == 405
        for data, answer in (
            (b"{", (400, "invalid_json")),
            (b"[]", (422, "invalid_body")),
            (b"[" * 5_000, (422, "invalid_body")),
            (b'{"jsonrpc": "2.0"}', (422, "invalid_body")),
            (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\\u0000"}}', (422, "invalid_body")),
            (
                b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"' + b"x" * 300_000 + b'"}}',
                (413, "body_too_large"),
            ),
        ):
            headers = {"Content-Type": "application/json", **ACCEPT}
            async with api.session.post(f"{api.address}/mcp", data=data, headers=headers) as response:
                assert (response.status, (await response.json())["code"]) == answer, data[:60]
        async with api.session.post(
            f"{api.address}/mcp", data=b"{}", headers={"Content-Type": "text/plain"}
        ) as response:
            assert response.status == 415
        for message, code in (
            ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "delete"}}, -32602),
            ({"jsonrpc": "2.0", "id": 1, "method": "nothing"}, -32601),
            ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}, -32602),
            ({"jsonrpc": "2.0", "id": 1, "method": "resources/subscribe", "params": {"uri": "x:"}}, -32601),
        ):
            status, body = await api.call("POST", "/mcp", message, headers=ACCEPT)
            assert status < 500
            assert body["error"]["code"] == code, body
        # A page that was rebound to this address says its own name as the host.
        status, body = await api.call("POST", "/mcp", ASK, headers={**ACCEPT, "Host": "evil.example"})
        assert (status, body["code"]) == (421, "wrong_host")
        # So many at once, and no more.
        monkeypatch.setattr("tachograph_exporter.api.mcp.MAX_AT_ONCE", 0)
        status, body = await api.call("POST", "/mcp", ASK, headers=ACCEPT)
        assert (status, body["code"]) == (429, "too_many_requests")
        monkeypatch.undo()
        # What went wrong is in the log, and nowhere else.
        database = api.service.database
        read = database.read

        async def broken(work: Any, *lane: Any) -> Any:
            if "ask" in work.__qualname__:
                raise RuntimeError("the password is secret")
            return await read(work, *lane)

        monkeypatch.setattr(database, "read", broken)
        status, body = await api.call("POST", "/mcp", ASK, headers=ACCEPT)
        monkeypatch.undo()
        assert (status, body["result"]["isError"]) == (200, True)
        assert "secret" not in str(body)


@pytest.mark.e2e
async def test_agents_are_answered_only_if_the_service_was_told_to(
    database_url: str, handlers: HandlerRegistry
) -> None:
    async with running(Config(database=database_url, grace_seconds=0.2), handlers) as api:
        status, body = await api.call("POST", "/mcp", PING, headers=ACCEPT)
        assert (status, body["code"]) == (404, "mcp_not_served")
        assert "serve --mcp" in body["detail"]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("tachograph_exporter.config", "tachograph_exporter.cli.mcp"):
        monkeypatch.setattr(f"{module}.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'tachograph[mcp]'")):
        Config(mcp=True).check()
    said = tachograph(tmp_path, "mcp")
    assert (said.returncode, "pip install 'tachograph[mcp]'" in said.stderr) == (2, True)
