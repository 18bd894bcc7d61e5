"""Trace files in the format of Nextflow 26, by its documentation and source: Nextflow itself was not run."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.conftest import Api
from typer.testing import CliRunner

from tachograph.integrations import nextflow
from tachograph.report import runs
from tachograph_exporter.cli import load

DEFAULT = """\
task_id|hash|native_id|name|status|exit|submit|duration|realtime|%cpu|peak_rss|peak_vmem|rchar|wchar
1|a4/6d0840|3794|INDEX|COMPLETED|0|2026-11-25 03:00:05.683|10.4s|9.9s|150.0%|1.5 GB|2 GB|1 MB|0
3|7f/2465f6|3801|SHOP:QC (s2)|COMPLETED|0|2026-11-25 03:00:16.756|1m 39s|1m 30s|99.6%|472.1 MB|683.4 MB|107.8 MB|92 B
2|ba/347cb5|3918|SHOP:QC (s1)|FAILED|137|2026-11-25 03:00:16.119|568ms|68ms|-|-|-|-|-
4|c1/11aa22|3919|SHOP:QC (s1)|COMPLETED|0|2026-11-25 03:00:17.119|2.5s|2s|0.0%|0|0|0|0
""".replace("|", "\t")
RAW = """\
task_id|hash|process|tag|name|status|exit|attempt|error_action|submit|start|complete|realtime|%cpu|peak_rss
1|a4/6d0840|INDEX|-|INDEX (1)|CACHED|0|1|-|1700000000000|1700000001000|1700000002000|1000|10.0|1048576
2|b4/6d0840|MAP|lane|MAP (lane)|FAILED|1|1|RETRY|1800000000000|1800000001000|1800000002500|1500|50.0|1048576
3|b5/6d0840|MAP|lane|MAP (lane)|COMPLETED|0|1|-|1800000000100|1800000001000|1800000002000|1000|50.0|1048576
4|b6/6d0840|MAP|lane|MAP (lane)|FAILED|1|2|IGNORE|1800000003000|1800000004000|1800000005000|1000|50.0|1048576
5|c4/6d0840|REPORT|-|REPORT (1)|COMPLETED|0|1|-|1800000006000|1800000007000|1800000008000|1000|50.0|1048576
""".replace("|", "\t")
BROKEN = """\
task_id|hash|native_id|name|status|exit|submit|duration|realtime
1|a4/6d0840|1|FETCH (a)|FAILED|127|2026-11-25 03:00:00.000|5s|4s
2|a5/6d0840|2|FETCH (b)|ABORTED|-|2026-11-25 03:00:00.000|-|-
3|a6/6d0840|-|FETCH (c)|SUBMITTED|-|2026-11-25 03:00:01.000|-|-
""".replace("|", "\t")


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def steps_of(timeline: dict[str, Any]) -> set[tuple[str, int | str | None, str, int]]:
    return {
        (step["step_name"], step["step_index"], step["status"], len(step["attempts"]))
        for step in timeline["step_timeline"]
    }


async def timeline_of(api: Api, path: Path, **options: Any) -> dict[str, Any]:
    run = nextflow.import_trace(path, **options)
    await asyncio.to_thread(api.service.recorder.flush, 60)
    timeline: dict[str, Any] = await api.get(f"/api/workflows/executions/{run.execution_id}/timeline")
    runs._runs.clear()
    # Once more, as another process would.
    assert nextflow.import_trace(path, **options).execution_id == run.execution_id
    await asyncio.to_thread(api.service.recorder.flush, 60)
    assert await api.get(f"/api/workflows/executions/{run.execution_id}/timeline") == timeline
    runs._runs.clear()
    return timeline


async def test_a_trace(api: Api, tmp_path: Path) -> None:
    directory = tmp_path / "shop" / "pipeline_info"
    directory.mkdir(parents=True)
    path = directory / "trace.txt"
    path.write_text(DEFAULT)
    timeline = await timeline_of(api, path, timezone=ZoneInfo("Europe/Berlin"))
    assert (timeline["workflow_name"], timeline["status"]) == ("shop", "completed")
    assert steps_of(timeline) == {
        ("INDEX", None, "completed", 1), ("SHOP:QC", "s1", "completed", 2), ("SHOP:QC", "s2", "completed", 1)
    }  # fmt: skip
    by_index = {(step["step_name"], step["step_index"]): step for step in timeline["step_timeline"]}
    index, retried = by_index["INDEX", None], by_index["SHOP:QC", "s1"]
    moment = datetime.fromisoformat
    submitted = at("2026-11-25 03:00:05.683", "Europe/Berlin")
    assert moment(timeline["started_at"]).timestamp() == pytest.approx(submitted, abs=0.001)
    # The trace says when a task was submitted, how long until it was complete, and for how long it ran.
    assert moment(index["started_at"]).timestamp() == pytest.approx(submitted + 0.5, abs=0.001)
    assert moment(index["completed_at"]).timestamp() == pytest.approx(submitted + 10.4, abs=0.001)
    assert index["attempts"][0]["resources"]["cpu_seconds"] == pytest.approx(14.85)
    assert index["attempts"][0]["resources"]["peak_memory_bytes"] == 3 << 29
    assert [attempt["status"] for attempt in retried["attempts"]] == ["failed", "completed"]
    assert retried["attempts"][0]["error_message"] == "137"


async def test_raw_numbers_and_what_nextflow_says_of_errors(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(RAW)
    timeline = await timeline_of(api, path, workflow="nightly", run_id="goofy_kilby")
    # A failure that is ignored fails no run; a cached task did not run; a tag may belong to several tasks.
    assert (timeline["workflow_name"], timeline["status"]) == ("nightly", "completed")
    assert steps_of(timeline) == {
        ("INDEX", None, "skipped", 0), ("MAP", "lane", "failed", 2), ("MAP", "lane#2", "completed", 1),
        ("REPORT", None, "completed", 1),
    }  # fmt: skip
    assert datetime.fromisoformat(timeline["started_at"]).timestamp() == 1_800_000_000
    assert datetime.fromisoformat(timeline["completed_at"]).timestamp() == 1_800_000_008


async def test_a_run_that_failed(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(BROKEN)
    timeline = await timeline_of(api, path, workflow="nightly")
    assert (timeline["status"], timeline["error_type"], timeline["error_message"]) == ("failed", "ExitStatus", "127")
    assert steps_of(timeline) == {
        ("FETCH", "a", "failed", 1), ("FETCH", "b", "cancelled", 0), ("FETCH", "c", "cancelled", 0)
    }  # fmt: skip


def test_the_command(tmp_path: Path) -> None:
    app, runner = load(["import"]), CliRunner()
    path, database = tmp_path / "trace.txt", f"sqlite:///{tmp_path / 'shop.db'}"
    path.write_text(DEFAULT)
    options = ["import", "nextflow", str(path), "--database", database]
    result = runner.invoke(app, [*options, "--workflow", "nightly", "--timezone", "Europe/Berlin"])
    assert (result.exit_code, result.output.rpartition(" ")[0]) == (0, "nightly")
    assert runner.invoke(app, [*options, "--timezone", "Europe/Nowhere"]).exit_code == 2
    for text, says in (
        (None, "cannot read"),
        ("", "is no trace of Nextflow"),
        ("name\tstatus\n", "without submit"),
        (DEFAULT.partition("\n")[0] + "\n", "has no tasks"),
        (DEFAULT.replace("10.4s", "soon"), "line 2 of the trace"),
        (DEFAULT.replace("2026-11-25 03:00:05.683", "yesterday"), "line 2 of the trace"),
        (DEFAULT.replace("1.5 GB", "1.5 shoes"), "line 2 of the trace"),
        ("name\tstatus\tsubmit\nx\tCOMPLETED\t" + "9" * 400, "line 2 of the trace"),
        ("name\tstatus\tsubmit\n" + "x" * 200_000 + "\tCOMPLETED\t1", "is not what Nextflow writes"),
    ):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(nextflow.NextflowError, match=says):
            nextflow.import_trace(path, workflow="nightly")
