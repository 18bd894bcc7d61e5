"""The built-in handlers, against a real HTTP server and a real shell."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tachograph.events import Event
from tachograph.workflow import Backoff, ExecutionResult, Executor, HandlerRegistry, WorkflowBuilder, registry


async def run_step(config: dict[str, Any], *, allow: bool = False, **fields: Any) -> ExecutionResult:
    events: list[Event] = []
    handlers = registry.copy(["shell"] if allow else [])
    flow = WorkflowBuilder("w").step("a", handler=config.pop("handler"), config=config, **fields)
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    return await Executor(events.append, handlers=handlers, carrier=lambda: carrier).run(flow.build())


@pytest.fixture
async def server() -> Any:
    app = web.Application()
    seen: list[dict[str, Any]] = []
    failures = {"left": 2}

    async def echo(request: web.Request) -> web.Response:
        seen.append({"headers": dict(request.headers), "body": await request.text(), "method": request.method})
        return web.json_response({"ok": True})

    async def flaky(_request: web.Request) -> web.Response:
        failures["left"] -= 1
        return web.Response(status=503 if failures["left"] >= 0 else 200, text="done")

    async def missing(_request: web.Request) -> web.Response:
        seen.append({})
        return web.Response(status=404)

    async def away(_request: web.Request) -> web.Response:
        raise web.HTTPFound("file:///etc/passwd")

    app.router.add_route("*", "/echo", echo)
    app.router.add_get("/flaky", flaky)
    app.router.add_get("/missing", missing)
    app.router.add_get("/away", away)
    running = TestServer(app)
    await running.start_server()
    yield str(running.make_url("")).rstrip("/"), seen
    await running.close()


async def test_http_sends_json_and_the_trace_context_and_reads_json(server: Any) -> None:
    address, seen = server
    result = await run_step({"handler": "http", "url": f"{address}/echo", "method": "post", "json": {"x": 1}})
    assert result.outputs["a"] == {"status": 200, "body": {"ok": True}}
    assert seen[0]["method"] == "POST"
    assert seen[0]["body"] == '{"x":1}'
    assert seen[0]["headers"]["traceparent"].startswith("00-0af7651916cd43dd")


async def test_http_retries_what_may_help_and_nothing_else(server: Any) -> None:
    address, seen = server
    quick = Backoff(initial_seconds=0.001)
    good = await run_step({"handler": "http", "url": f"{address}/flaky"}, max_retries=3, retry_backoff=quick)
    assert good.outputs["a"]["body"] == "done"
    bad = await run_step({"handler": "http", "url": f"{address}/missing"}, max_retries=3, retry_backoff=quick)
    assert len(seen) == 1
    assert bad.failure is not None
    assert "answered 404" in bad.failure.message


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/relative"])
async def test_http_speaks_no_other_scheme(url: str, server: Any) -> None:
    result = await run_step({"handler": "http", "url": url})
    assert result.failure is not None
    assert "http and https only" in result.failure.message
    away = await run_step({"handler": "http", "url": f"{server[0]}/away"})
    assert away.failure is not None


async def test_http_says_when_nobody_answers() -> None:
    result = await run_step({"handler": "http", "url": "http://127.0.0.1:9/x", "timeout_seconds": 2})
    assert result.failure is not None
    assert "refused" in result.failure.message


async def test_shell_runs_with_the_trace_context_in_its_environment() -> None:
    result = await run_step({"handler": "shell", "command": "echo $TRACEPARENT $X", "env": {"X": "y"}}, allow=True)
    assert result.outputs["a"]["stdout"] == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 y\n"
    exact = await run_step({"handler": "shell", "command": ["printf", "%s", "a b;c"]}, allow=True)
    assert exact.outputs["a"]["stdout"] == "a b;c"


async def test_shell_fails_with_the_exit_code_and_the_last_line() -> None:
    result = await run_step({"handler": "shell", "command": "echo one >&2; echo two >&2; exit 3"}, allow=True)
    assert result.failure is not None
    assert result.failure.message == 'step "a": command ended with exit code 3: two'


async def test_a_shell_that_times_out_is_killed_with_all_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = f"sleep 300 & echo $! > {mark}; sleep 300"
    result = await run_step({"handler": "shell", "command": command}, allow=True, timeout_seconds=1.5)
    assert str(result.steps["a"]) == "timeout"
    status = Path(f"/proc/{mark.read_text().strip()}/status")

    def is_over() -> bool:
        """Whether it has ended, though nobody may have asked how."""
        try:
            return "State:\tZ" in status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    async with asyncio.timeout(60):
        while not is_over():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_handlers_are_found_by_entry_point_and_never_replaced_by_one() -> None:
    handlers = HandlerRegistry()
    handlers.load_entry_points()
    assert handlers.find("shell") is None
    assert registry.find("shell") is not None
    assert not registry.is_allowed(registry.find("shell"))  # type: ignore[arg-type]
