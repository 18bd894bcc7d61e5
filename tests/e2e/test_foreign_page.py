"""A page of another site in a real browser tries to drive a service that listens on loopback without a token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser
from tests.e2e.browser import chromium
from tests.e2e.conftest import Server

WORKFLOW = {"name": "mine", "steps": [{"name": "s"}]}
ATTACKS = """
async ([target, workflow]) => {
  const results = {};
  const attempt = async (name, action) => {
    try { results[name] = await action(); } catch (error) { results[name] = "blocked"; }
  };
  const body = JSON.stringify(workflow), token = JSON.stringify({name: "stolen", scopes: ["admin"]});
  const post = (path, body, more) => fetch(target + path, {method: "POST", mode: "no-cors", body, ...more})
    .then(response => response.type);
  await attempt("blob", () => post("/api/workflows", new Blob([body])));
  await attempt("array", () => post("/api/workflows", new TextEncoder().encode(body)));
  await attempt("text", () => post("/api/workflows", body));
  await attempt("typed blob", () => post("/api/workflows", new Blob([body], {type: "text/plain"})));
  await attempt("json", () => post("/api/workflows", body, {headers: {"Content-Type": "application/json"}}));
  await attempt("cors", () => fetch(target + "/api/workflows", {
    method: "POST", body, headers: {"Content-Type": "application/json"}}).then(response => response.status));
  await attempt("token", () => post("/api/tokens", new Blob([token])));
  await attempt("trace", () => post("/v1/traces", new Blob(["{}"])));
  await attempt("run", () => post("/api/workflows/known/execute"));
  await attempt("run with a body", () => post("/api/workflows/known/execute", new Blob(["{}"])));
  await attempt("quiet run", () => post("/api/workflows/known/execute", undefined, {referrerPolicy: "no-referrer"}));
  await attempt("delete", () => fetch(target + "/api/workflows/known", {method: "DELETE"}).then(r => r.status));
  await attempt("beacon", () => navigator.sendBeacon(target + "/api/workflows", new Blob([body])));
  await attempt("read", () => fetch(target + "/api/workflows").then(response => response.text()));
  await attempt("events", () => new Promise(resolve => {
    const source = new EventSource(target + "/api/stream");
    source.onopen = () => resolve("open");
    source.onerror = () => { source.close(); resolve("refused"); };
  }));
  await attempt("quiet events", () => Promise.race([
    post("/api/stream", undefined, {method: "GET"}), new Promise(resolve => setTimeout(resolve, 3000, "waits"))]));
  await attempt("socket", () => new Promise(resolve => {
    const socket = new WebSocket(target.replace("http", "ws") + "/ws/workflows/stream", ["tachograph"]);
    socket.onopen = () => resolve("open");
    socket.onerror = () => resolve("refused");
  }));
  const frame = document.createElement("iframe");
  frame.name = "sink";
  document.body.append(frame);
  for (const [encoding, path] of [
    ["application/x-www-form-urlencoded", "/api/workflows/known/execute"], ["text/plain", "/api/workflows"],
    ["multipart/form-data", "/api/workflows/known/execute"]]) {
    const form = document.createElement("form");
    Object.assign(form, {method: "POST", action: target + path, enctype: encoding, target: "sink"});
    if (path === "/api/workflows") {
      const input = document.createElement("input");
      input.name = body.slice(0, -1) + ',"description":"';
      input.value = '"}';
      form.append(input);
    }
    document.body.append(form);
    await new Promise(resolve => { frame.onload = resolve; form.submit(); });
  }
  return results;
}
"""


pytestmark = pytest.mark.xdist_group("foreign page")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as instance:
        yield instance


@pytest.fixture
def foreign_site() -> Iterator[int]:
    """A server of an empty page on another port; its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>evil</title><body></body>")

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("host", "target"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"),
                                              ("localhost", "127.0.0.1")])  # fmt: skip
def test_a_page_of_another_site_drives_nothing(
    browser: Browser, server: Callable[..., Server], foreign_site: int, host: str, target: str
) -> None:
    service = server()
    service.post("/api/workflows", {**WORKFLOW, "name": "known"})
    before = service.get("/api/workflows")
    page = browser.new_page()
    answers: list[tuple[str, int]] = []
    page.on("response", lambda response: answers.append((response.url, response.status)))
    page.goto(f"http://{host}:{foreign_site}/")
    results = page.evaluate(ATTACKS, [f"http://{target}:{service.port}", WORKFLOW])
    assert (results["events"], results["socket"]) == ("refused", "refused")
    # The service refuses what the browser lets through.
    assert results["blob"] in ("opaque", "blocked")
    assert results["quiet events"] in ("opaque", "blocked")
    assert (results["cors"], results["delete"], results["read"]) == ("blocked", "blocked", "blocked")
    statuses = {status for url, status in answers if f":{service.port}/" in url and not url.endswith("/api/workflows")}
    assert statuses <= {403, 405}, answers
    assert service.get("/api/workflows") == before
    assert service.get("/api/tokens")["total"] == 0
    assert service.get("/api/workflows/executions")["items"] == []
    page.close()


def test_the_pages_of_the_service_itself_may(browser: Browser, server: Callable[..., Server]) -> None:
    service = server()
    page = browser.new_page()
    page.goto(f"{service.address}/")
    headers = {"Content-Type": "application/json"}
    status = page.evaluate(
        "([body, headers]) => fetch('/api/workflows', {method: 'POST', body, headers}).then(r => r.status)",
        [msgspec.json.encode(WORKFLOW).decode(), headers],
    )
    assert status == 201
    opened = page.evaluate(
        """() => Promise.all([
          new Promise(resolve => { new EventSource('/api/stream').onopen = () => resolve('open'); }),
          new Promise(resolve => {
            new WebSocket(`ws://${location.host}/ws/workflows/stream`, ['tachograph']).onopen = () => resolve('open');
          })])"""
    )
    assert opened == ["open", "open"]
    page.close()
