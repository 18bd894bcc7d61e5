"""A real Prometheus, configured as the README says, scrapes a real service."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.e2e.conftest import Server, eventually, get

from tachograph.histogram import ExponentialHistogram
from tachograph.metrics.exposition import render
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import BUCKETS


def configuration(port: int) -> str:
    """The scrape configuration of the README, with another port and interval."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```yaml\n(scrape_configs:.*?)```", readme, re.DOTALL)
    assert block is not None
    text = block[1].replace("127.0.0.1:9923", f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in text
    return "global:\n  scrape_interval: 1s\n" + text.replace("scrape_interval: 15s", "scrape_interval: 1s")


def seed_and_run(server: Server) -> None:
    for template in server.get("/api/workflows/templates"):
        server.post("/api/workflows", template)
    for name in ("basic_sequence", "with_retries", "data_pipeline", "basic_sequence"):
        execution = server.post(f"/api/workflows/{name}/execute")["execution_id"]
        path = f"/api/workflows/executions/{execution}/status"
        eventually(lambda p=path: server.get(p)["status"] == "completed")  # type: ignore[misc]


def test_histogram_quantile_works(
    server: Callable[..., Server], prometheus: Callable[[str], str], tmp_path: Path
) -> None:
    service = server()
    seed_and_run(service)
    address = prometheus(configuration(service.port))

    def query(expression: str) -> list[dict[str, Any]]:
        _, body = get(f"{address}/api/v1/query?query={urllib.parse.quote(expression)}")
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    up = eventually(lambda: query("up == 1"))
    assert up[0]["metric"]["job"] == "tachograph"
    # A series is zero before it has its first value, and zeros have no quantile.
    by_step = "histogram_quantile(0.95, sum by (step, le) (workflow_step_duration_seconds_bucket)) > 0"
    quantiles = eventually(lambda: query(by_step))
    values = {item["metric"]["step"]: float(item["value"][1]) for item in quantiles}
    assert {"initialize", "process", "finalize", "extract", "load", "read_index"} <= values.keys()
    assert all(0 < value < 60 for value in values.values())
    (count,) = query('workflow_execution_duration_seconds_count{workflow="basic_sequence",status="completed"}')
    assert float(count["value"][1]) == 2
    retried = eventually(lambda: query("workflow_step_retries_total > 0"))
    assert retried[0]["metric"]["step"] == "read_index"
    assert query("tachograph_build_info")
    assert query("time() - workflow_execution_last_success_timestamp_seconds < 600")


@pytest.mark.parametrize("accept", ["text/plain;version=0.0.4", "application/openmetrics-text;version=1.0.0"])
def test_promtool_finds_no_faults(server: Callable[..., Server], accept: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs the prometheus package (apt-get install prometheus)")
    service = server()
    seed_and_run(service)
    request = urllib.request.Request(f"{service.address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request) as response:
        text = response.read()
        assert response.headers["Content-Type"].startswith(accept.partition(";")[0])
    if accept.startswith("text/plain"):
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    else:
        from prometheus_client.openmetrics.parser import text_string_to_metric_families

        assert len(list(text_string_to_metric_families(text.decode()))) > 15  # type: ignore[no-untyped-call]


def test_native_histograms_and_exemplars_agree_with_the_timelines(
    server: Callable[..., Server], prometheus: Callable[..., str]
) -> None:
    service = server()
    seed_and_run(service)
    durations: list[float] = []
    traces: dict[str, str] = {}
    for _ in range(30):
        execution = service.post("/api/workflows/basic_sequence/execute")["execution_id"]
        path = f"/api/workflows/executions/{execution}"
        eventually(lambda p=path: service.get(f"{p}/status")["status"] == "completed")  # type: ignore[misc]
    page = service.get("/api/workflows/basic_sequence/executions?limit=100")
    for item in page["items"]:
        timeline = service.get(f"/api/workflows/executions/{item['execution_id']}/timeline")
        (step,) = [step for step in timeline["step_timeline"] if step["step_name"] == "initialize"]
        durations.append(step["duration_seconds"])
        traces[timeline["trace_id"]] = step["span_id"]
    assert len(durations) == 32
    durations.sort()
    address = prometheus(configuration(service.port), "--enable-feature=native-histograms,exemplar-storage")

    def query(path: str, **parameters: Any) -> Any:
        _, body = get(f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        return body["data"]

    series = 'workflow_step_duration_seconds{workflow="basic_sequence",step="initialize",status="completed"}'
    (result,) = eventually(lambda: query("query", query=f"histogram_count({series}) == 32")["result"])
    assert result["metric"]["status"] == "completed"
    for quantile in (0.5, 0.9, 0.99):
        (answer,) = query("query", query=f"histogram_quantile({quantile}, {series})")["result"]
        exact = durations[max(0, math.ceil(quantile * len(durations)) - 1)]
        # Both lie in the same bucket, whose bounds differ by a factor (0.3 % at schema 8; the durations of one step
        # fit into 160 buckets of that or nearly that resolution).
        spread = ExponentialHistogram.of(durations).base
        below = durations[max(0, math.floor(quantile * len(durations)) - 1)]
        assert below / spread <= float(answer["value"][1]) <= exact * spread
    exemplars = query(
        "query_exemplars", query="workflow_step_duration_seconds_bucket", start=time.time() - 600, end=time.time() + 5
    ) or query("query_exemplars", query=series, start=time.time() - 600, end=time.time() + 5)
    labels = [e["labels"] for item in exemplars if item["seriesLabels"].get("step") == "initialize" and
              item["seriesLabels"].get("workflow") == "basic_sequence" for e in item["exemplars"]]  # fmt: skip
    assert labels
    assert all(traces[exemplar["trace_id"]] == exemplar["span_id"] for exemplar in labels)


def test_all_formats_give_the_same_classic_quantiles(server: Callable[..., Server]) -> None:
    service = server()
    seed_and_run(service)

    def counts(accept: str) -> dict[str, float]:
        request = urllib.request.Request(f"{service.address}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request) as response:
            lines = response.read().decode().splitlines()
        return {
            line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if "_step_duration_seconds_bucket{" in line
        }

    counts("text/plain")  # New series are shown as zero first.
    text = counts("text/plain")
    assert text == counts("application/openmetrics-text;version=1.0.0")
    assert len(text) > 100


@pytest.mark.timeout(300)
def test_churning_series_stay_within_the_limits_and_in_constant_memory() -> None:
    series = SeriesRegistry(family_limit=10_000, total_limit=15_000)
    histogram = series.histogram("h_seconds", "h", ["workflow", "step"], buckets=BUCKETS)
    counter = series.counter("c_total", "c", ["workflow", "step"])
    draw = random.Random(7)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    sizes = []
    for _ in range(10):
        for _ in range(20_000):
            key = draw.randrange(50_000)
            labels = (f"workflow-{key % 100}", f"step-{key}")
            histogram.labels(*labels).observe(draw.random())
            counter.labels(*labels).inc()
        render(series)
        sizes.append(resident())
    assert len(histogram) <= 10_001
    assert series.label_sets <= 15_000
    assert sum(sample.value for sample in counter.samples() if sample.name == "c_total") == 200_000
    assert sum(sample.value for sample in histogram.samples() if sample.name == "h_seconds_count") == 200_000
    # Once the limits are reached, memory no longer grows.
    assert sizes[-1] - sizes[3] < 30_000_000
