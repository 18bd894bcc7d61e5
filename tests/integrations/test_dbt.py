"""What dbt 1.10 left of `dbt build` (models, an ephemeral one, a seed, tests; one model and one test failed), and its
callback."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from tests.conftest import Api
from typer.testing import CliRunner

from tachograph.integrations import dbt as integration
from tachograph_exporter.cli import load

RECORDING = Path(__file__).parent / "recordings" / "dbt"
RESULTS = json.loads((RECORDING / "run_results.json").read_text())
MANIFEST = json.loads((RECORDING / "manifest.json").read_text())
STATUSES = {"success": "completed", "pass": "completed", "error": "failed", "fail": "failed", "skipped": "skipped"}


def ids_above(unique_id: str) -> set[str]:
    """What dbt's own map says: a model that is not built hands on what it waits for."""
    ran = {result["unique_id"] for result in RESULTS["results"]}
    above: set[str] = set()
    for parent in MANIFEST["parent_map"].get(unique_id, ()):
        above |= {parent} if parent in ran else ids_above(parent)
    return above


async def timeline_of(api: Api) -> dict[str, Any]:
    await asyncio.to_thread(api.service.recorder.flush, 60)
    page = await api.get("/api/workflows/executions")
    assert page["total"] == 1
    timeline: dict[str, Any] = await api.get(f"/api/workflows/executions/{page['items'][0]['execution_id']}/timeline")
    return timeline


async def test_a_target_directory_is_a_run(api: Api) -> None:
    for _ in range(2):
        run = integration.import_target(RECORDING)
    timeline = await timeline_of(api)
    assert (timeline["workflow_name"], timeline["status"]) == ("shop build", "failed")
    assert timeline["execution_id"] == run.execution_id
    assert timeline["completed_at"] == RESULTS["metadata"]["generated_at"]
    steps = {step["step_name"]: step for step in timeline["step_timeline"]}
    names = {unique_id: node["name"] for unique_id, node in MANIFEST["nodes"].items()}
    assert len(steps) == len(RESULTS["results"])
    shown = {step["step_id"]: step["step_name"] for step in timeline["step_timeline"]}
    for result in RESULTS["results"]:
        unique_id = result["unique_id"]
        step = steps[names[unique_id]]
        assert step["status"] == STATUSES[result["status"]]
        assert {shown[other] for other in step["depends_on"]} == {
            names[other] for other in ids_above(result["unique_id"])
        }
        if result["timing"]:
            assert step["started_at"] == result["timing"][0]["started_at"]
            assert step["completed_at"] == result["timing"][-1]["completed_at"]
    assert steps["totals"]["depends_on"]
    assert steps["raw_orders"]["measures"][0]["value"] == 2
    assert steps["raw_orders"]["wait_seconds"] > 10  # dbt reads the project first.
    assert "Conversion Error" in steps["broken"]["error_message"]
    assert steps["report"]["skip_reason"] == "upstream_failed"


def event(name: str, **data: Any) -> Any:
    return SimpleNamespace(info=SimpleNamespace(name=name, invocation_id="one"), data=SimpleNamespace(**data))


async def test_an_invocation_is_in_the_trace_of_dbts_own_spans(api: Api) -> None:
    tracer = TracerProvider().get_tracer("dbt")
    hear = integration.callback()
    info = SimpleNamespace(unique_id="a", node_name="a", resource_type="model", materialized="table")
    told = [
        event("ArtifactWritten", artifact_path=str(RECORDING / "manifest.json")), event("NodeStart", node_info=info),
        event("CommandCompleted"),
    ]  # fmt: skip
    with tracer.start_as_current_span("dbt.invocation") as span:
        for each in told:
            each.info.invocation_id = "traced"
            hear(each)
    timeline = await timeline_of(api)
    assert timeline["trace_id"] == f"{span.get_span_context().trace_id:032x}"


async def test_the_callback_tells_live(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    hear = integration.callback()
    for name in ("manifest.json", "semantic_manifest.json"):
        hear(event("ArtifactWritten", artifact_path=str(RECORDING / name)))
    for result in RESULTS["results"]:
        node = MANIFEST["nodes"][result["unique_id"]]
        info = SimpleNamespace(
            unique_id=result["unique_id"], node_name=node["name"], resource_type=node["resource_type"],
            node_status=result["status"], materialized="table",
        )  # fmt: skip
        hear(event("NodeStart", node_info=info))
        told = SimpleNamespace(status=result["status"], message=result["message"] or "", adapter_response={})
        hear(event("NodeFinished", node_info=info, run_result=told))
    hear(event("NodeStart"))
    hear(None)
    hear(event("CommandCompleted"))
    timeline = await timeline_of(api)
    assert (timeline["workflow_name"], timeline["status"]) == ("shop run", "failed")
    shown = {step["step_name"]: step["status"] for step in timeline["step_timeline"]}
    names = {unique_id: node["name"] for unique_id, node in MANIFEST["nodes"].items()}
    assert shown == {names[result["unique_id"]]: STATUSES[result["status"]] for result in RESULTS["results"]}
    assert [step["skip_reason"] for step in timeline["step_timeline"] if step["skip_reason"]] == ["upstream_failed"]
    assert sum(len(step["depends_on"]) for step in timeline["step_timeline"]) == 7
    assert sum("not reported" in record.message for record in caplog.records) == 2


def test_the_command(tmp_path: Path) -> None:
    app, runner = load(["import"]), CliRunner()
    database = f"sqlite:///{tmp_path / 'shop.db'}"
    result = runner.invoke(app, ["import", "dbt", str(RECORDING), "--database", database])
    assert (result.exit_code, result.output.rpartition(" ")[0]) == (0, "shop build")
    for name, text, says in (
        ("manifest.json", "[]", "is not what dbt writes"),
        ("manifest.json", None, "cannot read"),
        ("run_results.json", '{"results": [{"unique_id": 1}]}', "is not what dbt writes"),
        ("run_results.json", "\xff", "is not what dbt writes"),
    ):
        directory = tmp_path / "target"
        shutil.copytree(RECORDING, directory, dirs_exist_ok=True)
        (directory / name).unlink()
        if text is not None:
            (directory / name).write_text(text, encoding="latin-1")
        with pytest.raises(integration.DbtError, match=says):
            integration.import_target(directory)
    result = runner.invoke(app, ["import", "dbt", str(tmp_path), "--database", database, "--url", "http://x"])
    assert result.exit_code == 2
