"""Runs that are reported oddly: by several processes at once, after a fork, from the wrong end, with hostile values."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from tests.conftest import Api

import tachograph
from tachograph import running_attempts
from tachograph.recording import setup
from tachograph.recording.recorder import Recorder
from tachograph.report import runs

PROGRAM = """
import os, signal, sys, tachograph
recorder = tachograph.configure(url=sys.argv[1], spans=False, registry=None)
report = tachograph.report.run

def together():
    # Two processes begin and end the same run, and tell of the same steps.
    with report("together", run_id="1") as run:
        for number in range(20):
            run.step("work", index=number, depends_on=["split"]).queued().started(attempt=1).finished(number)

def forked():
    with report("forked", run_id="1") as run:
        step = run.step("outer").started()
        if (child := os.fork()) == 0:
            run.step("in child").started().finished()
            step.finished("the child")
            recorder.flush(60)
            os._exit(0)
        os.waitpid(child, 0)
        run.step("in parent").started().finished()
        step.finished("the parent")

def killed():
    run = report("killed", run_id="1").begin()
    run.step("extract").started().finished()
    run.step("load", depends_on=["extract"]).started()
    recorder.flush(60)
    os.kill(os.getpid(), signal.SIGKILL)

def resumed():
    with report("killed", run_id="1") as run:
        run.step("load", depends_on=["extract"]).started(attempt=2).finished()

def backwards():
    with report("backwards", run_id="1") as run:
        run.step("told twice").finished(1).started().failed("ValueError: too late")
        run.step("third").failed("ValueError: no item", attempt=3)
        run.step("elsewhere").retrying("ValueError: no", attempt=2).started(attempt=1).finished(attempt=3)
        run.step("earlier").started(at=2_000_000_000).finished(at=1_900_000_000)
    with report("backwards", run_id="1") as run:
        run.step("again").started().finished()

def hostile():
    odd = ["\\x00", "a" * 100_000, "\\ud800", "\\u202e evil", "<script>", "'; DROP TABLE x;--", "{}%s", "\\n\\t"]
    odd += [b"bytes", 7, None, float("nan"), "", "  ", [], object()]
    for value in odd:
        run = report(value, run_id=value).begin(inputs={"value": value})
        for other in odd:
            step = run.step(value, key=other, index=other, depends_on=[other], parent=value)
            step.queued(due=other).started(inputs=other, queued_at=other, due=value).finished(other)
        for index in (10**30, -1, 2**31, True):
            run.step("x", index=index).started().finished()
        run.finished()

for name in sys.argv[2:]:
    globals()[name]()
recorder.close(60)
"""


async def play(api: Api, *names: str) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, api.address, *names, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    return process.returncode or 0, errors


async def shown(api: Api, workflow: str) -> dict[str, Any]:
    """The only run of a workflow."""
    page = await api.get("/api/workflows/executions?limit=100")
    (execution_id,) = [item["execution_id"] for item in page["items"] if item["workflow_name"] == workflow]
    check = await api.get(f"/api/workflows/executions/{execution_id}/reconcile")
    # What cannot have been is shown as it was told, and found.
    expected = {"earlier", "again"} if workflow == "backwards" else set()
    assert {difference["step"] for difference in check["differences"]} == expected, check
    timeline: dict[str, Any] = await api.get(f"/api/workflows/executions/{execution_id}/timeline")
    return timeline


def steps_of(timeline: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
    return {
        step["step_name"]: (step["status"], [attempt["attempt"] for attempt in step["attempts"]])
        for step in timeline["step_timeline"]
    }


async def test_runs_that_are_reported_oddly(api: Api) -> None:
    ends = await asyncio.gather(
        play(api, "together", "killed"), play(api, "together", "forked", "backwards", "hostile")
    )
    assert [code for code, _ in ends] == [-9, 0]
    assert all(b"Traceback" not in errors for _, errors in ends), ends
    assert await play(api, "resumed") == (0, b"")
    together = await shown(api, "together")
    assert (together["status"], together["completed_step_count"]) == ("completed", 20)
    killed = await shown(api, "killed")
    assert steps_of(killed) == {"extract": ("completed", [1]), "load": ("completed", [2])}
    assert killed["status"] == "completed"
    assert steps_of(await shown(api, "forked")) == {
        "outer": ("completed", [1]), "in child": ("completed", [1]), "in parent": ("completed", [1]),
    }  # fmt: skip
    assert steps_of(await shown(api, "backwards")) == {
        "told twice": ("completed", [1]), "third": ("failed", [3]), "elsewhere": ("completed", [2, 3]),
        "earlier": ("completed", [1]), "again": ("completed", [1]),
    }  # fmt: skip
    page = await api.get("/api/workflows/executions?limit=100")
    assert {item["status"] for item in page["items"]} == {"completed"}


@pytest.mark.slow
async def test_ten_thousand_instances(api: Api) -> None:
    runs._runs.clear()
    setup.adopt(api.service.recorder)

    def report() -> str:
        with tachograph.report.run("many", run_id="1") as run:
            run.step("split").started().finished()
            for number in range(10_000):
                run.step("work", index=number, depends_on=["split"]).queued().started().finished(number)
            run.step("merge", depends_on=["work"]).started().finished()
        return run.execution_id

    execution_id = await asyncio.to_thread(report)
    await asyncio.to_thread(api.service.recorder.flush, 120)
    timeline = await api.get(f"/api/workflows/executions/{execution_id}/timeline")
    assert (timeline["status"], timeline["completed_step_count"]) == ("completed", 10_002)
    merge = next(step for step in timeline["step_timeline"] if step["step_name"] == "merge")
    assert len(merge["depends_on"]) == 10_000


@pytest.mark.parametrize("end", ["finished", "failed", "timed_out", "cancelled", "lost", "retrying", "skipped"])
def test_an_attempt_whose_end_cannot_be_told_runs_no_more(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(Recorder, "__call__", fail)
    # What tells that the run began, again and again until it is told.
    monkeypatch.setattr(runs.Run, "begin_if_needed", fail)
    step = tachograph.report.run("nightly", run_id=end).step("load").started().works_here()
    assert running_attempts.running
    getattr(step, end)()
    assert not running_attempts.running
