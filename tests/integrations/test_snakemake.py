"""What Snakemake 9.27 handed to its logger plugins in real runs, record by record."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Api

from tachograph.integrations.snakemake import Records
from tachograph.report import runs

RECORDINGS = Path(__file__).parent / "recordings"
THREADS: dict[str, int] = {}


def record_of(told: dict[str, Any]) -> logging.LogRecord:
    record = logging.LogRecord("snakemake.logging", logging.INFO, "", 0, told["msg"], None, None)
    record.__dict__.update({name: value for name, value in told.items() if name not in ("msg", "thread")})
    record.thread = THREADS.setdefault(told["thread"], len(THREADS))
    if told["event"] is None:
        del record.__dict__["event"]
    return record


def recorded(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDINGS / f"snakemake9_{name}.jsonl").read_text().splitlines()]


async def played(api: Api, records: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """The timeline of a run of which these are the records."""
    runs._runs.clear()
    handler = Records(**options)
    for told in records:
        handler.handle(record_of(told))
    handler.close()
    handler.close()
    await asyncio.to_thread(api.service.recorder.flush, 60)
    page = await api.get("/api/workflows/executions")
    (execution,) = page["items"]
    timeline: dict[str, Any] = await api.get(f"/api/workflows/executions/{execution['execution_id']}/timeline")
    return timeline


def steps_of(timeline: dict[str, Any]) -> set[tuple[str, str | None, str, int]]:
    return {
        (step["step_name"], step["step_index"], step["status"], len(step["attempts"]))
        for step in timeline["step_timeline"]
    }


def edges_of(timeline: dict[str, Any]) -> set[tuple[str, str]]:
    names = {step["step_id"]: (step["step_name"], step["step_index"]) for step in timeline["step_timeline"]}
    shown = {key: name if index is None else f"{name}#{index}" for key, (name, index) in names.items()}
    return {(shown[key], shown[step["step_id"]]) for step in timeline["step_timeline"] for key in step["depends_on"]}


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def test_a_run(api: Api) -> None:
    records = recorded("nightly")
    timeline = await played(api, records)
    items = range(5)
    assert (timeline["workflow_name"], timeline["status"]) == ("shop", "completed")
    assert steps_of(timeline) == {
        ("extract", None, "completed", 1), *(("work", f"item={i}", "completed", 1) for i in items),
        ("merge", None, "completed", 1), ("flaky", None, "completed", 2), ("report", None, "completed", 1),
        ("nightly", None, "completed", 1),
    }  # fmt: skip
    assert edges_of(timeline) == {
        *(("extract", f"work#item={i}") for i in items), *((f"work#item={i}", "merge") for i in items),
        ("merge", "flaky"), ("flaky", "report"), ("extract", "report"), ("report", "nightly"),
    }  # fmt: skip
    by_name = {(step["step_name"], step["step_index"]): step for step in timeline["step_timeline"]}
    for told in records:
        if told["event"] == "job_info" and told["rule_name"] != "flaky":
            index = ",".join(f"{name}={value}" for name, value in told["wildcards"].items()) or None
            assert seconds(by_name[told["rule_name"], index]["started_at"]) == pytest.approx(told["created"], abs=1e-5)
    failed, again = by_name["flaky", None]["attempts"]
    assert (failed["status"], failed["error_type"], again["status"]) == ("failed", "CalledProcessError", "completed")
    # Five jobs, three cores: two of them were ready, and waited for a core.
    waited = [by_name["work", f"item={i}"]["attempts"][0]["queue_seconds"] for i in items]
    assert sum(seconds_ > 0.2 for seconds_ in waited) == 2, waited


async def test_a_job_failed_and_others_went_on(api: Api) -> None:
    timeline = await played(api, recorded("failing"), workflow="nightly")
    assert (timeline["workflow_name"], timeline["status"]) == ("nightly", "failed")
    assert timeline["error_type"] == "CalledProcessError"
    assert "returned non-zero exit status 1" in timeline["error_message"]
    assert steps_of(timeline) == {
        ("extract", None, "completed", 1), ("fragile", "item=0", "completed", 1), ("fragile", "item=1", "failed", 1),
        ("fragile", "item=2", "completed", 1), ("failed_merge", None, "skipped", 0), ("failing", None, "skipped", 0),
    }  # fmt: skip
    assert {skip["skip_reason"] for skip in timeline["step_timeline"]} == {None, "upstream_failed"}
    assert {edge for edge in edges_of(timeline) if edge[1].startswith("fail")} == {
        *((f"fragile#item={i}", "failed_merge") for i in range(3)), ("failed_merge", "failing")
    }  # fmt: skip


async def test_outputs_that_are_missing_fail_a_job(api: Api) -> None:
    timeline = await played(api, recorded("missing"))
    assert (timeline["status"], timeline["error_type"]) == ("failed", "MissingOutputException")
    assert steps_of(timeline) == {("missing", None, "failed", 1)}


async def test_an_interrupted_run_is_cancelled(api: Api) -> None:
    records = recorded("failing")
    at_work = max(number for number, told in enumerate(records) if told["event"] == "job_info")
    stop = {"event": None, "created": records[at_work]["created"] + 1, "thread": "MainThread",
            "msg": "Terminating processes on user request, this might take some time."}  # fmt: skip
    timeline = await played(api, [*records[: at_work + 1], stop])
    assert timeline["status"] == "cancelled"
    assert steps_of(timeline) == {
        ("extract", None, "completed", 1), *(("fragile", f"item={i}", "cancelled", 1) for i in range(3)),
        ("failed_merge", None, "skipped", 0), ("failing", None, "skipped", 0),
    }  # fmt: skip


async def test_what_goes_wrong_inside_reaches_nobody(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    dry = Records(is_dry_run=True)
    for told in recorded("nightly"):
        dry.handle(record_of(told))
    dry.close()
    # Records of another version, of which each lacks something; and one from before the run.
    bare = ("event", "created", "thread", "msg")
    records = [{"event": None, "created": 0.0, "thread": "MainThread", "msg": "hello"}]
    for told in recorded("failing"):
        records += [told, {name: told[name] for name in bare}] if told["event"] != "workflow_started" else [told]
    timeline = await played(api, records)
    assert len(steps_of(timeline)) == 6
    assert any("not reported" in record.message for record in caplog.records)
