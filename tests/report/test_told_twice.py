"""Of an engine that is followed from outside, its spans may come first: it is one execution all the same."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from tests.conftest import Api, running

import tachograph
from tachograph.report import runs
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

SPANS = json.loads((Path(__file__).parents[1] / "ingest" / "recordings" / "prefect3_nightly.json").read_bytes())
(TRACE,) = {
    span["traceId"]
    for group in SPANS["resourceSpans"]
    for scope in group["scopeSpans"]
    for span in scope["spans"]
}  # fmt: skip


async def test_spans_that_were_there_first_are_part_of_a_reported_run(
    any_database_url: str, handlers: HandlerRegistry
) -> None:
    runs._runs.clear()
    async with running(Config(database=any_database_url, grace_seconds=0.2), handlers) as api:
        status, _ = await api.call("POST", "/v1/traces", SPANS)
        assert status == 200
        # A flow and its subflow.
        before = await executions(api, 2)
        # A run of another engine in the trace says nothing of these spans.
        tachograph.report.run("shop", run_id="1", engine="celery", trace_id=TRACE).begin(at=time.time() - 5).finished()
        tachograph.report.run("shop", run_id="2", engine="celery").begin(at=time.time() - 5).finished()
        assert set(before) < set(await executions(api, 4))
        told = tachograph.report.run("nightly", run_id="1", engine="prefect", trace_id=TRACE)
        told.begin(at=time.time() - 5)
        told.step("extract").started().finished()
        told.finished()
        assert set(await executions(api, 3)) == {"nightly", "shop"}


async def executions(api: Api, count: int) -> list[str]:
    """The workflows of all executions, once there are as many."""
    await asyncio.to_thread(api.service.recorder.flush, 60)
    async with asyncio.timeout(60):
        while True:
            page = await api.get("/api/workflows/executions")
            names = [item["workflow_name"] for item in page["items"]]
            if len(names) == count:
                return names
            await asyncio.sleep(0.05)
