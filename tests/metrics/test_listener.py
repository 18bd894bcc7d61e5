"""Events as Prometheus metrics, and Tachograph's self-monitoring."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import make_execution, make_step

from tachograph import METRICS, MetricsListener, Recorder
from tachograph.clock import NS
from tachograph.events import StepFinished, StepMeasured, StepStarted, StepStatus
from tachograph.metrics.self_metrics import SELF_METRICS, WORKFLOW_METRICS_SHOWN, SelfMetrics, SelfMetricsCollector
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.workflow import Backoff, Executor, HandlerRegistry, StepContext, WorkflowBuilder, registry


@pytest.fixture
def prometheus(recorder: Recorder) -> CollectorRegistry:
    registry = CollectorRegistry()
    recorder.add("metrics", MetricsListener(registry))
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"workspace": "default", "workflow": "w", **labels})


async def test_a_run_is_counted_and_timed(recorder: Recorder, prometheus: CollectorRegistry) -> None:
    work: HandlerRegistry = registry.copy()

    @work.register("spend")
    async def spend(context: StepContext) -> None:
        context.cost(usd=0.5, tokens_in=10, tokens_out=3, model="m")

    flow = (
        WorkflowBuilder("w").step("a", handler="spend")
        .step("flaky", after="a", handler="fail", config={"times": 1}, max_retries=1,
              retry_backoff=Backoff(initial_seconds=0.02, jitter=0))
        .step("no", after="a", when="false").step("bad", handler="fail").step("after", after="bad")
    ).build()  # fmt: skip
    executor = Executor(recorder, handlers=work)
    result = await executor.run(flow)
    recorder.flush()
    r = prometheus
    assert value(r, "workflow_executions_started_total") == 1
    assert value(r, "workflow_executions_running") == 0
    assert value(r, "workflow_steps_running") == 0
    assert value(r, "workflow_execution_duration_seconds_count", status="failed") == 1
    took = (result.finished_ns - result.started_ns) / 1e9
    assert value(r, "workflow_execution_duration_seconds_sum", status="failed") == pytest.approx(took)
    assert value(r, "workflow_step_duration_seconds_count", step="a", status="completed") == 1
    assert value(r, "workflow_step_attempts_total", step="flaky", outcome="failed") == 1
    assert value(r, "workflow_step_attempts_total", step="flaky", outcome="completed") == 1
    assert value(r, "workflow_step_retries_total", step="flaky") == 1
    assert value(r, "workflow_step_wait_seconds_count", step="flaky", reason="backoff") == 1
    assert (value(r, "workflow_step_wait_seconds_sum", step="flaky", reason="backoff") or 0) >= 0.02
    assert value(r, "workflow_step_wait_seconds_count", step="flaky", reason="queue") == 2
    assert value(r, "workflow_step_wait_seconds_count", step="flaky", reason="dependency") == 1
    assert value(r, "workflow_steps_skipped_total", step="no", reason="condition") == 1
    assert value(r, "workflow_steps_skipped_total", step="after", reason="upstream_failed") == 1
    assert value(r, "workflow_step_cost_usd_total", step="a", model="m") == 0.5
    assert value(r, "workflow_step_tokens_total", step="a", model="m", type="input") == 10
    assert value(r, "workflow_step_tokens_total", step="a", model="m", type="output") == 3
    assert (value(r, "workflow_step_critical_path_seconds_total", step="flaky") or 0) >= 0.02
    assert value(r, "workflow_execution_last_success_timestamp_seconds") is None
    assert value(r, "workflow_execution_last_failure_timestamp_seconds") == result.finished_ns / NS
    assert value(r, "workflow_execution_oldest_running_start_timestamp_seconds") is None
    good = await executor.run(WorkflowBuilder("w").step("a").build())
    recorder.flush()
    assert value(r, "workflow_execution_last_success_timestamp_seconds") == good.finished_ns / NS
    assert value(r, "workflow_execution_last_failure_timestamp_seconds") == result.finished_ns / NS


async def test_the_oldest_running_execution_is_known_while_it_runs(
    recorder: Recorder, prometheus: CollectorRegistry
) -> None:
    executor = Executor(recorder)
    long = WorkflowBuilder("w").step("a", handler="sleep", config={"seconds": 30}).build()
    first, task = executor.submit(long)
    second, other = executor.submit(long)
    import asyncio

    await asyncio.sleep(0.05)
    recorder.flush()
    name = "workflow_execution_oldest_running_start_timestamp_seconds"
    oldest = value(prometheus, name)
    assert oldest is not None
    assert value(prometheus, "workflow_executions_running") == 2
    executor.cancel(first.execution_id)
    await task
    recorder.flush()
    newer = value(prometheus, name)
    assert newer is not None
    assert newer > oldest
    executor.cancel(second.execution_id)
    await other
    recorder.flush()
    assert value(prometheus, name) is None


async def test_running_steps_are_counted_on_while_other_executions_end(
    recorder: Recorder, prometheus: CollectorRegistry
) -> None:
    executor = Executor(recorder)
    long, task = executor.submit(WorkflowBuilder("w").step("a", handler="sleep", config={"seconds": 30}).build())
    for name in ("v", "v", "u"):
        await executor.run(WorkflowBuilder(name).step("a").build())
    recorder.flush()
    assert value(prometheus, "workflow_steps_running") == 1
    executor.cancel(long.execution_id)
    await task
    recorder.flush()
    assert value(prometheus, "workflow_steps_running") == 0


def test_a_lost_step_leaves_the_gauge_once_and_only_where_its_start_was_counted() -> None:
    registry = CollectorRegistry()
    listener = MetricsListener(registry)
    seen, unseen = (make_step(make_execution("w"), name) for name in ("seen", "unseen"))
    listener(StepStarted(step=seen, time_ns=1))
    assert value(registry, "workflow_steps_running") == 1
    for step in (seen, unseen):
        for status in (StepStatus.LOST, StepStatus.COMPLETED):
            listener(StepFinished(step=step, time_ns=3, status=status, attempt=1, started_ns=1, attempt_started_ns=1))
            assert value(registry, "workflow_steps_running") == 0


async def test_every_metric_named_in_the_code_is_exposed_with_its_labels_and_no_other(
    recorder: Recorder, prometheus: CollectorRegistry
) -> None:
    from prometheus_client import generate_latest

    listener = recorder.queues["metrics"].listener
    assert isinstance(listener, MetricsListener)
    prometheus.register(SelfMetricsCollector(recorder, listener.series))
    self_metrics = SelfMetrics(prometheus)
    self_metrics.store_committed(0.01)
    self_metrics.scraped("text", 0.01, 100)
    await Executor(recorder).run(WorkflowBuilder("w").step("a").build())
    recorder.flush()
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(prometheus).decode())}
    specs = {spec.name.removesuffix("_total"): spec for spec in (*METRICS, *SELF_METRICS)}
    # Only of a service.
    del specs[WORKFLOW_METRICS_SHOWN.name]
    # prometheus_client adds these itself.
    assert {name for name in families if not name.endswith("_created")} == set(specs)
    for name, spec in specs.items():
        assert families[name].type == spec.kind
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == set(spec.labels)
            assert not {"execution_id", "trace_id", "span_id"} & set(sample.labels)


def test_buckets_cover_milliseconds_to_a_day_and_can_be_chosen() -> None:
    chosen = CollectorRegistry()
    MetricsListener(chosen, buckets=(1, 2))
    default = CollectorRegistry()
    listener = MetricsListener(default)
    assert listener._histograms["workflow_step_duration_seconds"].bounds[0] == 0.005
    assert listener._histograms["workflow_step_duration_seconds"].bounds[-1] == 86_400
    listener.close()
    assert not list(default.collect())


async def test_what_is_lost_is_counted_by_listener_and_reason(recorder: Recorder) -> None:
    registry = CollectorRegistry()
    registry.register(SelfMetricsCollector(recorder, SeriesRegistry()))

    def broken(event: object) -> None:
        raise RuntimeError("no")

    recorder.add("broken", broken)
    await Executor(recorder).run(WorkflowBuilder("w").step("a").build())
    recorder.flush()
    lost = registry.get_sample_value("tachograph_events_dropped_total", {"listener": "broken", "reason": "error"})
    assert lost == registry.get_sample_value("tachograph_events_total") == 5


def test_only_declared_measures_become_series() -> None:
    registry = CollectorRegistry()
    listener = MetricsListener(registry, measures=["rows"])
    run = make_execution("etl")
    step = make_step(run, "load")
    for name, value in (("rows", 5.0), ("rows", 5e12), ("rows", -1.0), ("made up", 1.0)):
        listener(StepMeasured(step=step, time_ns=1, sequence=1, name=name, value=value, unit="row"))
    text = generate_latest(registry).decode()
    labels = 'measure="rows",step="load",unit="row",workflow="etl",workspace="default"'
    assert f"workflow_step_measure_count{{{labels}}} 3.0" in text
    assert f'workflow_step_measure_bucket{{le="5.0",{labels}}} 2.0' in text
    assert "made up" not in text
