"""OpenLineage's own client sends events from another process to the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import programs
from tests.e2e.conftest import Server, environment, eventually, get

PROGRAM = """
import sys
from datetime import UTC, datetime, timedelta
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Dataset, Job, Run, RunEvent, RunState
from openlineage.client.facet_v2 import error_message_run, parent_run
from openlineage.client.uuid import generate_new_uuid

client = OpenLineageClient()
now = datetime.now(UTC) - timedelta(seconds=60)
root = str(generate_new_uuid())

def emit(state, seconds, run, job, facets=None, inputs=(), outputs=()):
    client.emit(RunEvent(
        eventType=state, eventTime=(now + timedelta(seconds=seconds)).isoformat(), producer="https://example.com/etl",
        run=Run(run, facets=facets or {}), job=Job("etl", job),
        inputs=[Dataset("db", name) for name in inputs], outputs=[Dataset("db", name) for name in outputs]))

def step(name, start, end, state=RunState.COMPLETE, error=None, **datasets):
    run = str(generate_new_uuid())
    parent = parent_run.ParentRunFacet(run=parent_run.Run(root), job=parent_run.Job("etl", "nightly"))
    emit(RunState.START, start, run, "nightly." + name, {"parent": parent}, **datasets)
    facets = {"parent": parent}
    if error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(error, "python")
    emit(state, end, run, "nightly." + name, facets, **datasets)

emit(RunState.START, 0, root, "nightly")
step("extract", 1, 3, outputs=["raw"])
step("load", 4, 6, RunState.FAIL, "disk full", inputs=["raw"])
emit(RunState.FAIL, 7, root, "nightly")
client.close()
"""


def run_client(transport: dict[str, Any], directory: Path) -> subprocess.CompletedProcess[str]:
    configuration = directory / "openlineage.yml"
    configuration.write_text(json.dumps({"transport": transport}))
    variables = environment(OPENLINEAGE_CONFIG=str(configuration))
    command = [sys.executable, "-c", PROGRAM]
    return programs.run(command, env=variables, capture_output=True, text=True, timeout=120, cwd=directory)


TRANSPORTS: tuple[dict[str, Any], ...] = (
    {"type": "http"},
    {"type": "http", "compression": "gzip", "endpoint": "api/v1/lineage"},
    {"type": "async_http"},
)


def test_the_clients_events_become_timelines(server: Callable[..., Server], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a token of some length")
    os.chmod(token, 0o600)
    service = server("--token-file", str(token))
    bearer = {"Authorization": f"Bearer {token.read_text()}"}
    for options in TRANSPORTS:
        own = {"url": service.address, "auth": {"type": "api_key", "apiKey": token.read_text()}}
        done = run_client(own | options, tmp_path)
        assert done.returncode == 0, done.stderr

    def ended() -> Any:
        _, page = get(f"{service.address}/api/workflows/executions", headers=bearer)
        items = page["items"]
        return items if len(items) == len(TRANSPORTS) and all(item["completed_at"] for item in items) else None

    for execution in eventually(ended):
        path = f"/api/workflows/executions/{execution['execution_id']}/timeline"
        _, timeline = get(service.address + path, headers=bearer)
        steps = {step["step_name"]: step for step in timeline["step_timeline"]}
        assert (timeline["workflow_name"], timeline["status"]) == ("nightly", "failed")
        assert {name: step["status"] for name, step in steps.items()} == {"extract": "completed", "load": "failed"}
        assert steps["load"]["error_message"] == "disk full"
        assert steps["load"]["depends_on"] == [steps["extract"]["step_id"]]
    # Whoever has the wrong token is told.
    done = run_client({"type": "http", "url": service.address, "auth": {"type": "api_key", "apiKey": "no"}}, tmp_path)
    assert done.returncode != 0
    assert "401" in done.stderr
