"""Kill, stop and restart: no execution stays running, and no acknowledged one is lost."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests import programs
from tests.e2e.conftest import Server, eventually, get

SLOW: dict[str, Any] = {
    "name": "slow",
    "steps": [
        {"name": "first"},
        {"name": "long", "depends_on_steps": ["first"], "config": {"handler": "sleep", "seconds": 60}},
        {"name": "after", "depends_on_steps": ["long"]},
    ],
}
SHORT: dict[str, Any] = {"name": "short", "steps": [{"name": "a"}, {"name": "b", "depends_on_steps": ["a"]}]}


def start_slow(server: Server) -> str:
    server.post("/api/workflows", SLOW)
    execution = str(server.post("/api/workflows/slow/execute")["execution_id"])
    eventually(lambda: server.get(f"/api/workflows/executions/{execution}/status")["running_steps"] == ["long"])
    return execution


def test_after_kill_9_a_running_execution_is_lost_and_its_spans_end_under_their_real_parent(
    server: Callable[..., Server],
) -> None:
    service = server()
    execution = start_slow(service)
    before = service.get(f"/api/workflows/executions/{execution}/timeline")
    service.stop(signal.SIGKILL)
    again = server(OTEL_TRACES_EXPORTER="console")
    timeline = again.get(f"/api/workflows/executions/{execution}/timeline")
    assert timeline["status"] == "lost"
    steps = {step["step_name"]: step for step in timeline["step_timeline"]}
    assert (steps["first"]["status"], steps["long"]["status"]) == ("completed", "lost")
    assert timeline["completed_at"] >= before["started_at"]
    assert timeline["last_seen_at"] == timeline["completed_at"]
    assert timeline["error_message"].startswith("its process died")
    stats = again.get("/api/workflows/executions/stats")
    assert (stats["running_executions"], stats["by_status"]) == (0, {"lost": 1})
    assert again.get(f"/api/workflows/executions/{execution}/reconcile")["agrees"]
    again.stop()
    spans = {span["name"]: span for span in read_spans(again.log)}
    ids = {step["step_name"]: step["span_id"] for step in before["step_timeline"]}
    assert spans["long"]["context"]["span_id"] == f"0x{ids['long']}"
    assert spans["long"]["parent_id"] == spans["run slow"]["context"]["span_id"] == f"0x{before['span_id']}"
    assert spans["run slow"]["context"]["trace_id"] == f"0x{before['trace_id']}"
    assert spans["run slow"]["status"]["status_code"] == "ERROR"


def read_spans(log: Path) -> list[dict[str, Any]]:
    """The spans that a console exporter printed between other lines."""
    decoder, text, spans = json.JSONDecoder(), log.read_text(), []
    at = text.find("{\n")
    while at >= 0:
        span, end = decoder.raw_decode(text, at)
        spans.append(span)
        at = text.find("{\n", end)
    return spans


def test_a_graceful_stop_waits_for_running_steps_and_skips_the_rest(server: Callable[..., Server]) -> None:
    quick = {**SLOW, "name": "quick", "steps": [
        {"name": "long", "config": {"handler": "sleep", "seconds": 1}}, {"name": "after", "depends_on_steps": ["long"]}
    ]}  # fmt: skip
    service = server("--grace", "200")
    service.post("/api/workflows", quick)
    execution = service.post("/api/workflows/quick/execute")["execution_id"]
    eventually(lambda: service.get(f"/api/workflows/executions/{execution}/status")["running_steps"] == ["long"])
    started = time.monotonic()
    assert service.stop(signal.SIGTERM, 150) == 0
    assert time.monotonic() - started < 100
    state = server().get(f"/api/workflows/executions/{execution}/timeline")
    assert state["status"] == "cancelled"
    assert {s["step_name"]: s["status"] for s in state["step_timeline"]} == {"long": "completed", "after": "skipped"}
    assert "shut down" in state["error_message"]


def test_beyond_the_grace_period_running_steps_are_cancelled(server: Callable[..., Server]) -> None:
    service = server("--grace", "0.2")
    execution = start_slow(service)
    assert service.stop(signal.SIGINT) == 0
    state = server().get(f"/api/workflows/executions/{execution}/timeline")
    assert {s["step_name"]: s["status"] for s in state["step_timeline"]}["long"] == "cancelled"


def test_acknowledged_executions_survive_kill_9_under_load(server: Callable[..., Server]) -> None:
    service = server()
    service.post("/api/workflows", SHORT)
    acknowledged: list[str] = []

    def hammer(_: int) -> None:
        for _ in range(200):
            try:
                status, body = get(f"{service.address}/api/workflows/short/execute", method="POST", body={})
            except OSError:
                return
            if status == 202:
                acknowledged.append(body["execution_id"])

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(hammer, i) for i in range(4)]
        eventually(lambda: len(acknowledged) > 60)
        service.stop(signal.SIGKILL)
        for future in done:
            future.result()
    again = server()
    assert len(acknowledged) > 60
    for execution in acknowledged:
        state = again.get(f"/api/workflows/executions/{execution}/status")
        assert state["status"] in ("completed", "lost")
        assert again.get(f"/api/workflows/executions/{execution}/reconcile")["agrees"]
    assert again.get("/api/workflows/executions/stats")["running_executions"] == 0


def test_an_address_in_use_or_open_without_a_token_is_refused(server: Callable[..., Server], tmp_path: Path) -> None:

    from tests.e2e.conftest import TACHOGRAPH, environment

    service = server()

    def refused(listen: str) -> str:
        command = [*TACHOGRAPH, "serve", "--listen", listen, "--database", f"sqlite:///{tmp_path}/o.db"]
        ran = programs.run(command, capture_output=True, text=True, env=environment(), timeout=60, check=False)
        assert ran.returncode == 2
        return str(ran.stderr)

    assert "cannot listen" in refused(f"127.0.0.1:{service.port}")
    assert "token" in refused("0.0.0.0:0")
