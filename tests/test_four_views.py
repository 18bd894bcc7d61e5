"""One execution read four ways agrees: events, exported spans, counters and histograms, timeline JSON."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from tachograph.clock import NS
from tachograph.events import Event, StepFinished, StepRetrying, StepSkipped
from tachograph.spans import semconv as sc
from tachograph.workflow import HandlerRegistry
from tachograph_exporter import bundled_workflows, service
from tachograph_exporter.config import Config
from tests.conftest import Api, serve

CASES: list[tuple[str, dict[str, Any]]] = [
    *((path.stem, {}) for path in bundled_workflows.workflow_files()),
    ("conditional_workflow", {"mode": "thorough"}),
    ("conditional_workflow", {"mode": "none of them"}),
    ("data_pipeline", {"minimum_rows": 10**9}),
]


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(("name", "inputs"), CASES, ids=lambda value: str(value))
async def test_events_spans_metrics_and_timeline_agree(
    name: str, inputs: dict[str, Any], database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(service, "find_provider", lambda: provider)
    async for api in serve(Config(database=database_url), handlers):
        await check(api, name, inputs, memory)
    provider.shutdown()


async def check(api: Api, name: str, inputs: dict[str, Any], memory: InMemorySpanExporter) -> None:
    events: list[Event] = []
    recorder = api.service.recorder
    recorder.add("test", events.append)
    document = (bundled_workflows.workflow_directory() / f"{name}.json").read_bytes()
    status, _ = await api.call(
        "POST", "/api/workflows", None, data=document, headers={"Content-Type": "application/json"}
    )
    assert status == 201
    execution = await api.run(name, inputs)
    await asyncio.to_thread(recorder.flush)
    timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
    rows = {step["step_id"]: step for step in timeline["step_timeline"]}
    metrics = samples(await api.metrics())
    spans: dict[str, list[ReadableSpan]] = {}
    for span in memory.get_finished_spans():
        spans.setdefault(str((span.attributes or {}).get(sc.STEP_ID, "")), []).append(span)

    ended = {e.step.step_id: e for e in events if isinstance(e, StepFinished | StepSkipped)}
    assert set(ended) == set(rows) == set(spans) - {""}
    for step_id, event in ended.items():
        row, span = rows[step_id], max(spans[step_id], key=lambda s: (s.end_time or 0) - (s.start_time or 0))
        if any(named.name == event.step.name for named in spans[step_id]):
            (span,) = [named for named in spans[step_id] if named.name == event.step.name]
        attributes = dict(span.attributes or {})
        labels = {"workspace": "default", "workflow": name, "step": event.step.name}

        def metric(series: str, labels: dict[str, str] = labels, **more: str) -> float | None:
            return metrics.get((series, frozenset({**labels, **more}.items())))

        if isinstance(event, StepSkipped):
            assert row["status"] == attributes[sc.STEP_STATUS] == "skipped"
            assert row["skip_reason"] == attributes[sc.STEP_SKIP_REASON] == event.reason
            assert metric("workflow_steps_skipped_total", reason=event.reason.value) == 1
            assert span.start_time == span.end_time
            continue
        state = event.status.value
        assert row["status"] == attributes[sc.STEP_STATUS] == state
        # Attempts.
        retries = sum(isinstance(e, StepRetrying) and e.step.step_id == step_id for e in events)
        assert (
            event.attempt
            == attributes[sc.STEP_ATTEMPT]
            == len(row["attempts"])
            == row["retry_count"] + 1
            == retries + 1
        )
        assert len(spans[step_id]) == (1 if retries == 0 else 2 + retries)
        assert metric("workflow_step_retries_total") == retries
        attempts = [metric("workflow_step_attempts_total", outcome=o) or 0 for o in ("completed", "failed", "timeout")]
        assert sum(attempts) == event.attempt
        # Durations and waits.
        duration = event.duration_ns
        assert (span.end_time or 0) - (span.start_time or 0) == duration
        assert row["duration_seconds"] == duration / NS
        assert metric("workflow_step_duration_seconds_count", status=state) == 1
        assert metric("workflow_step_duration_seconds_sum", status=state) == pytest.approx(duration / NS)
        waits = [metric("workflow_step_wait_seconds_sum", reason=r) or 0 for r in ("dependency", "queue", "backoff")]
        assert waits == pytest.approx([row["wait"][key] for key in ("dependency", "queue", "backoff")])
        assert attributes[sc.STEP_WAIT] == pytest.approx(row["wait_seconds"])
        assert f"{span.context.span_id:016x}" == row["span_id"]
        assert {f"{link.context.span_id:016x}" for link in span.links} == {
            rows[d]["span_id"] for d in row["depends_on"]
        }
    (root,) = [span for span in memory.get_finished_spans() if span.name == f"run {name}"]
    assert f"{root.context.trace_id:032x}" == timeline["trace_id"]
    assert ((root.end_time or 0) - (root.start_time or 0)) / NS == timeline["total_duration_seconds"]
    exported = {f"{span.context.span_id:016x}": span.name for span in memory.get_finished_spans()}
    viewed = await api.get(f"/api/workflows/executions/{execution}/timeline?format=otlp")
    (group,) = viewed["resourceSpans"]
    assert {span["spanId"]: span["name"] for span in group["scopeSpans"][0]["spans"]} == exported
    key = frozenset({"workspace": "default", "workflow": name, "status": timeline["status"]}.items())
    assert metrics["workflow_execution_duration_seconds_sum", key] == pytest.approx(timeline["total_duration_seconds"])
    critical = sum(v for (series, _), v in metrics.items() if series == "workflow_step_critical_path_seconds_total")
    assert critical == pytest.approx(timeline["critical_path_seconds"])
    agreed = await api.get(f"/api/workflows/executions/{execution}/reconcile")
    assert agreed["differences"] == []
    assert agreed["agrees"]
    views = ("rows", "timeline", "list", "otlp", "spans", "metrics", "rollups")
    assert agreed["views"] == {**dict.fromkeys(views, len(rows)), "events": None}
    assert set(agreed["reasons"]) == {"events"}


def test_the_cases_are_all_examples() -> None:
    assert {name for name, _ in CASES} == {
        path.stem for path in Path(bundled_workflows.workflow_directory()).glob("*.json")
    }


async def test_reconcile_says_where_views_differ(api: Api) -> None:
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "a"}, {"name": "b"}]})
    execution = await api.run("w")
    from sqlalchemy import update

    from tachograph_exporter.store.schema import workflow_step_executions as steps

    await api.service.database.write(
        lambda c: c.execute(
            update(steps).where(steps.c.name == "a").values(status="failed", finished_ns=steps.c.finished_ns + 5)
        )
    )
    reconciliation = await api.get(f"/api/workflows/executions/{execution}/reconcile")
    assert not reconciliation["agrees"]
    differences = {(d["step"], d["field"]): d["values"] for d in reconciliation["differences"]}
    assert differences["", "completed_step_count"] == {"rows": 2, "timeline": 1, "list": 2}
    series = 'workflow_step_duration_seconds_count{step="a",status="failed"}'
    assert differences["a", series] == {"metrics": 0, "executions": 1}
    assert differences["a", "wait_ns + run_ns"]["possible"] - differences["a", "wait_ns + run_ns"]["timeline"] == 5
    assert ("a", "completed.count") in differences or ("a", "failed.count") in differences
