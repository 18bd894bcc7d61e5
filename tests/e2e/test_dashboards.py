"""Dashboards, rules and alerts with a real Prometheus and a real Alertmanager."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import yaml
from redis import Redis
from rq import Queue
from tests import programs
from tests.command import tachograph
from tests.conftest import ROOT
from tests.dashboards.test_boards import VARIABLES, documents, panels, queries
from tests.e2e.alertmanager import Alertmanager, alertmanager
from tests.e2e.conftest import TACHOGRAPH, Server, environment, eventually, get
from tests.e2e.gauges import Gauges
from tests.e2e.tsdb import create_block
from tests.engines import processes
from tools.dashboard_load import recorded_runs, run_examples, run_load, write_fast_rules
from tools.local_service import free_port

from tachograph.metrics.specs import (
    EXPECTED_START,
    FLAPPING,
    LAST_FAILURE,
    LAST_SUCCESS,
    LATE,
    OLDEST_RUNNING,
    OVERDUE,
    QUEUE_OLDEST,
    STEP_OVERDUE,
)
from tachograph_exporter.alerting.alerts import alerts
from tachograph_exporter.alerting.recording_rules import recording_rules
from tachograph_exporter.alerting.thresholds import read_thresholds

LOAD_SECONDS = 5
"""Then as long as something has no data."""
MINUTE = 60
HOUR = 3600
DAY = 24 * HOUR
WORKFLOW = 'workspace="team",workflow="nightly"'
FEATURES = "--enable-feature=native-histograms,exemplar-storage"


def has_data(address: str, expression: str) -> bool:
    """Whether a query over the last minute returns a number."""
    now = time.time()
    query = urlencode({"query": expression, "start": now - 45, "end": now, "step": 5})
    status, body = get(f"{address}/api/v1/query_range?{query}")
    assert status == 200, (expression, body)
    for series in body["data"]["result"]:
        if series.get("histograms") or any(
            value not in ("NaN", "+Inf", "-Inf") for _, value in series.get("values", [])
        ):
            return True
    return False


def usual_days(now: int) -> str:
    """OpenMetrics of what rules recorded of earlier runs of the load, which they compare it with."""
    workflow = 'workspace="default",workflow="agent_chain"'
    step = f'{workflow},step="plan"'
    values = {
        f"workflow:execution_duration_seconds:p95_1h{{{workflow}}}": 1.0,
        f"workflow:execution_success_gap_seconds:max_1h{{{workflow}}}": 3600.0,
        f"workflow_step:duration_seconds:mean_1h{{{step}}}": 1.0,
        f"workflow:step_queue_wait_seconds:mean_1h{{{workflow}}}": 1.0,
        f"workflow:step_cost_usd:increase_1h{{{workflow}}}": 1.0,
        f"workflow_execution_last_success_timestamp_seconds{{{workflow}}}": now - 2 * DAY,
    }
    lines = [
        f"{series} {value!r} {at}"
        for series, value in values.items()
        for at in range(now - 2 * DAY, now - HOUR, 5 * MINUTE)
    ]
    return "\n".join([*lines, "# EOF\n"])


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[str]:
    """The address of an engine's queue in a real Redis, in which a message waits."""
    if not processes.has_redis():
        pytest.skip("needs redis-server (apt-get install redis-server)")
    with processes.redis(tmp_path) as address, contextlib.closing(Redis.from_url(address)) as connection:
        Queue("shop", connection=connection).enqueue("shop.work")
        yield f"rq+{address}"


@pytest.mark.timeout(600)
def test_every_query_of_every_panel_and_every_rule_has_data(
    server: Callable[..., Server], prometheus: Callable[..., str], queue: str, tmp_path: Path
) -> None:
    """Two Prometheus servers scrape one service: one with native histograms and exemplars, one without."""
    expected = tmp_path / "expectations.toml"
    expected.write_text('[workflow.rare]\nschedule = "@yearly"\n')
    service = server(
        "--measure", "rows", "--measure", "database", "--expectations", str(expected), "--queue", queue
    )  # fmt: skip
    # Some alerts fire, and half a minute's runs are enough for an error budget, so that their panels have data.
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nsuccess_target = 0.5\n")
    rules = write_fast_rules(tmp_path, fire_at_once=True, limits=limits)
    configuration = (
        f"global:\n  scrape_interval: 1s\n  evaluation_interval: 2s\nrule_files: [{rules}]\nscrape_configs:\n"
        f"  - job_name: tachograph\n    static_configs: [{{targets: ['127.0.0.1:{service.port}']}}]\n"
    )
    create_block(usual_days(int(time.time())), tmp_path / "tsdb")
    shutil.copytree(tmp_path / "tsdb", tmp_path / "tsdb1")
    addresses = {"native": prometheus(configuration, FEATURES), "classic": prometheus(configuration)}
    # A client follows live events.
    follower = programs.Popen(
        [*TACHOGRAPH, "watch", "--url", service.address], stdout=subprocess.DEVNULL, env=environment()
    )
    try:
        with recorded_runs(service.address):
            run_load(service, LOAD_SECONDS)
            filled = {**VARIABLES, "$__rate_interval": "8s", "$__interval": "8s", "$__range": "30s"}
            expressions = []
            for name, panel, expression in queries():
                for variable, value in filled.items():
                    expression = expression.replace(variable, value)
                expressions.append((name, panel, expression))
            recorded = [rule for group in recording_rules(read_thresholds()) for rule in group["rules"]]
            expressions += [("rules", rule["record"], rule["record"]) for rule in recorded]
            empty = [(kind, *where) for kind in addresses for where in expressions]
            until = time.monotonic() + 300
            # Rates need several scrapes, and one that takes more than a second fails.
            while empty := [query for query in empty if not has_data(addresses[query[0]], query[-1])]:
                assert time.monotonic() < until, empty
                run_examples(service, 3)
        for address in addresses.values():
            check_variables(address, filled)
            status, body = get(f"{address}/api/v1/rules")
            evaluated = [rule for group in body["data"]["groups"] for rule in group["rules"]]
            assert (status, [rule["name"] for rule in evaluated if rule["health"] != "ok"]) == (200, [])
        # Each server really stores only its own kind of histogram.
        assert not has_data(addresses["native"], "workflow_step_duration_seconds_bucket")
        assert not has_data(addresses["classic"], "workflow_step_duration_seconds")
        query = urlencode({"query": "workflow_step_duration_seconds", "start": time.time() - 60, "end": time.time()})
        status, body = get(f"{addresses['native']}/api/v1/query_exemplars?{query}")
        assert any("trace_id" in exemplar["labels"] for series in body["data"] for exemplar in series["exemplars"])
    finally:
        follower.kill()
        follower.wait()


def check_variables(address: str, filled: dict[str, str]) -> None:
    """Every query variable has values."""
    for document in documents().values():
        for variable in document["templating"]["list"]:
            if variable["type"] != "query":
                continue
            arguments = variable["query"]["query"].removeprefix("label_values(").removesuffix(")")
            metric, _, label = arguments.rpartition(", ")
            for name, value in filled.items():
                metric = metric.replace(name, value)
            status, body = get(f"{address}/api/v1/label/{label}/values?{urlencode({'match[]': metric})}")
            assert (status, bool(body["data"])) == (200, True), variable["name"]


@pytest.mark.timeout(300)
def test_a_run_beyond_its_limits_is_visible(server: Callable[..., Server], prometheus: Callable[..., str]) -> None:
    """Panels that are empty while all is well have data when limits are exceeded."""
    service = server("--series-limit", "5", "--max-stream-clients", "1")
    address = prometheus(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: tachograph\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{service.port}']}}]\n"
    )
    # One client and many label sets more than allowed.
    command = [*TACHOGRAPH, "watch", "--url", service.address]
    followers = [programs.Popen(command, stdout=subprocess.DEVNULL, env=environment()) for _ in range(2)]
    try:
        run_load(service, 8)
        for expression in (
            'sum(increase(tachograph_stream_clients_refused_total{instance=~".*"}[2m])) > 0',
            'sum(increase(tachograph_series_limited_total{instance=~".*"}[2m])) > 0',
            "sum(workflow_execution_duration_seconds_count) > 0",
        ):

            def is_seen(expression: str = expression) -> bool:
                # What was counted before the first scrape is no increase.
                run_examples(service, 0.1)
                return has_data(address, expression)

            eventually(is_seen, 90)
    finally:
        for follower in followers:
            follower.kill()
            follower.wait()


@pytest.mark.timeout(120)
def test_lost_events_are_shown_and_alerted(
    server: Callable[..., Server], prometheus: Callable[..., str], tmp_path: Path
) -> None:
    """The database rejects steps: the lost events are counted, shown and alerted."""
    service = server()
    rules = write_fast_rules(tmp_path, fire_at_once=True)
    address = prometheus(
        f"global:\n  scrape_interval: 1s\nrule_files: [{rules}]\nscrape_configs:\n  - job_name: tachograph\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{service.port}']}}]\n"
    )
    service.post("/api/workflows", {"name": "quick", "steps": [{"name": "a"}]})
    eventually(lambda: has_data(address, "sum(tachograph_events_total)"))
    with contextlib.closing(sqlite3.connect(tmp_path / "serve.db", timeout=30)) as database:
        database.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON workflow_step_executions BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        database.commit()
    service.post("/api/workflows/quick/execute")
    expression = next(
        panel["targets"][0]["expr"]
        for panel in panels(documents()["self_monitoring"])
        if panel["title"] == "Events lost"
    )
    expression = expression.replace("$__range", "30s").replace("$instance", ".*")
    eventually(lambda: has_data(address, f"{expression} > 0"))
    eventually(lambda: has_data(address, 'ALERTS{alertname="TachographEventsLost", alertstate="firing"}'))


def history(now: int) -> str:
    """OpenMetrics of a week that ends badly, with a sample every one or five minutes."""
    lines: list[str] = []

    def add(name: str, labels: str, since: int, until: int, interval: int, value: Callable[[int], float]) -> None:
        lines.extend(
            f"{name}{{{labels}}} {value(time)!r} {time}" for time in range(now - since, now - until + 1, interval)
        )

    def since_start(span: int, each: float) -> Callable[[int], float]:
        return lambda at: max(0.0, (at - (now - span)) / MINUTE * each)

    # What a Prometheus that had been running has recorded: how much each counter rose in a minute, and usual hours.
    ended = "workflow:executions_ended:increase"
    add(ended, f'{WORKFLOW},status="completed"', 7 * HOUR, 0, MINUTE, lambda _: 4.0)
    add(ended, f'{WORKFLOW},status="failed"', 7 * HOUR, 0, MINUTE, lambda _: 1.0)
    add("workflow:execution_duration_seconds:p95_1h", WORKFLOW, 2 * DAY, 0, 5 * MINUTE, lambda _: 10.0)
    success = "workflow_execution_last_success_timestamp_seconds"
    add(success, WORKFLOW, 7 * DAY + HOUR, 7 * DAY - HOUR, MINUTE, lambda _: now - 8 * DAY)
    add("workflow:execution_success_gap_seconds:max_1h", WORKFLOW, 3 * DAY, 2 * DAY, 5 * MINUTE, lambda _: DAY)
    step = f'{WORKFLOW},step="load"'
    completed = f'{step},status="completed"'
    add("workflow_step_duration_seconds_sum", completed, HOUR, 0, MINUTE, since_start(HOUR, 30.0))
    add("workflow_step_duration_seconds_count", completed, HOUR, 0, MINUTE, since_start(HOUR, 1.0))
    add("workflow_step:duration_seconds:mean_1h", step, 7 * DAY + HOUR, DAY, 5 * MINUTE, lambda _: 2.0)
    add("workflow_step:retries:increase", step, HOUR, 0, MINUTE, lambda _: 4.0)
    add("workflow_step:attempts:increase", step, HOUR, 0, MINUTE, lambda _: 5.0)
    queue = f'{step},reason="queue"'
    add("workflow_step_wait_seconds_sum", queue, HOUR, 0, MINUTE, since_start(HOUR, 60.0))
    add("workflow_step_wait_seconds_count", queue, HOUR, 0, MINUTE, since_start(HOUR, 2.0))
    add("workflow:step_queue_wait_seconds:mean_1h", WORKFLOW, 6 * DAY, DAY, 5 * MINUTE, lambda _: 1.0)
    add("workflow:step_cost_usd:increase", WORKFLOW, HOUR, 0, MINUTE, lambda _: 1.0)
    add("workflow:step_cost_usd:increase_1h", WORKFLOW, 6 * DAY, DAY, 5 * MINUTE, lambda _: 2.0)
    service = 'job="tachograph",instance="b:9923"'
    add("tachograph_events_dropped_total", f'{service},listener="store",reason="queue_full"', 600, 0, 30,
        lambda at: 0 if at < now - 120 else 50)  # fmt: skip
    add("tachograph_queue_length", f'{service},listener="store"', 600, 0, 30, lambda _: 90_000)
    add(
        "tachograph_records_refused_total", f'{service},kind="event"', 600, 0, 30, lambda at: 0 if at < now - 120 else 3
    )
    add("tachograph_notices_total", f'{service},outcome="failed"', 600, 0, 30, lambda at: 0 if at < now - 120 else 1)
    add("tachograph_workflow_metrics_shown", service, 600, 0, 30, lambda _: 0)
    add("tachograph_series_limited_total", f'{service},metric="workflow_step_attempts_total"', 600, 0, 30,
        lambda at: 0 if at < now - 120 else 7)  # fmt: skip
    return "\n".join([*lines, "# EOF\n"])


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Alertmanager]:
    with alertmanager(tmp_path) as running:
        yield running


def test_every_alert_reaches_the_alertmanager(
    prometheus: Callable[..., str], manager: Alertmanager, tmp_path: Path
) -> None:
    rules = write_fast_rules(tmp_path, fire_at_once=True)
    now = int(time.time())
    create_block(history(now), tmp_path / "tsdb")
    gauges = Gauges()
    for gauge, hours in ((LAST_SUCCESS, 40), (LAST_FAILURE, 30), (OLDEST_RUNNING, 1)):
        gauges.set(gauge.name, now - hours * HOUR, workflow="nightly")
    # One of which something is expected: that says more than what is usual.
    gauges.set(EXPECTED_START.name, now - HOUR, workflow="expected")
    for gauge in (LATE, OVERDUE, FLAPPING):
        gauges.set(gauge.name, 1, workflow="expected")
    gauges.set(STEP_OVERDUE.name, 1, workflow="expected", step="load")
    gauges.set(QUEUE_OLDEST.name, now - HOUR, engine="rq", broker="redis:6379/0", queue="shop")
    with gauges.served():
        check_alerts(prometheus, manager, rules, gauges.port)


def check_alerts(prometheus: Callable[..., str], manager: Alertmanager, rules: Path, gauges_port: int) -> None:
    prometheus(
        f"global:\n  scrape_interval: 1s\n  evaluation_interval: 2s\nrule_files: [{rules}]\n"
        f"alerting:\n  alertmanagers: [{{static_configs: [{{targets: ['{manager.target}']}}]}}]\n"
        # Nothing listens on this port.
        f"scrape_configs:\n  - job_name: tachograph\n    static_configs: [{{targets: ['127.0.0.1:{free_port()}']}}]\n"
        f"  - job_name: gauges\n    static_configs: [{{targets: ['127.0.0.1:{gauges_port}']}}]\n",
        # Resend soon what fired before Prometheus had found the Alertmanager.
        "--rules.alert.resend-delay=2s",
    )
    expected = {rule["alert"] for group in alerts(read_thresholds()) for rule in group["rules"]}

    def fired() -> dict[str, Any]:
        status, body = get(f"{manager.address}/api/v2/alerts")
        assert status == 200
        return {alert["labels"]["alertname"]: alert for alert in body}

    until = time.monotonic() + 200
    while (missing := expected - fired().keys()) and time.monotonic() < until:
        time.sleep(0.5)
    assert missing == set(), sorted(fired())
    alerts_by_name = fired()
    burning = alerts_by_name["WorkflowErrorBudgetBurnFast"]
    assert burning["annotations"]["summary"] == "nightly (team) is failing far more often than its target allows"
    assert burning["receivers"] == [{"name": "pages"}]
    # A fast burn inhibits the slow one.
    assert alerts_by_name["WorkflowErrorBudgetBurnSlow"]["status"]["inhibitedBy"]
    assert alerts_by_name["WorkflowRetryStorm"]["receivers"] == [{"name": "tickets"}]


def test_prometheus_and_compose_accept_what_is_exported(tmp_path: Path) -> None:
    exported = tachograph(
        ROOT, "dashboards", "export", str(tmp_path / "m"), "--runbooks", "https://wiki.example/runbooks/"
    )
    assert exported.returncode == 0, exported.stderr
    root = tmp_path / "m"
    assert len(list((root / "grafana").glob("*.json"))) == 5
    text = (root / "prometheus" / "alerts.rules.yml").read_text()
    assert "https://wiki.example/runbooks/TachographDown.md" in text
    # As the compose file mounts them.
    shutil.copytree(root / "prometheus", root / "provisioning" / "prometheus" / "rules")
    configuration = root / "provisioning" / "prometheus" / "prometheus.yml"
    (tmp_path / "token").write_text("x")
    configuration.write_text(
        configuration.read_text().replace("/run/secrets/tachograph_token", str(tmp_path / "token"))
    )
    checked = subprocess.run(
        ["promtool", "check", "config", str(configuration)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # Prometheus 3.9 has two more settings, which the version here does not know.
    older = yaml.safe_load((ROOT / "dashboards/provisioning/prometheus/prometheus.yml").read_text())
    newer = yaml.safe_load((root / "provisioning" / "prometheus" / "prometheus-3.9.yml").read_text())
    (job,) = newer["scrape_configs"]
    assert job.pop("scrape_native_histograms") is job.pop("always_scrape_classic_histograms") is True
    assert newer == older
    compose = yaml.safe_load((root / "provisioning" / "compose.yml").read_text())
    assert compose["services"].keys() == {"tachograph", "prometheus", "alertmanager", "alerts", "grafana"}
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (root / "provisioning" / source).exists(), mount
    sources = yaml.safe_load((root / "provisioning" / "grafana" / "datasources.yml").read_text())["datasources"]
    assert {source["type"] for source in sources} == {"prometheus", "tempo", "jaeger"}


class FakeGrafana(http.server.BaseHTTPRequestHandler):
    """Answers like Grafana's HTTP API (https://grafana.com/docs/grafana/latest/developers/http_api/)."""

    accepted: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = 200, {}
        if self.headers["Authorization"] != "Bearer right":
            status, answer = 401, {"message": "Invalid API key"}
        elif self.path == "/api/folders":
            status = 409 if any(path == self.path for path, _ in self.accepted) else 200
        else:
            answer = {"url": f"/d/{body['dashboard']['uid']}/x", "status": "success"}
        if status == 200:
            self.accepted.append((self.path, body))
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def test_push_uploads_all_dashboards_and_can_be_repeated() -> None:
    FakeGrafana.accepted = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeGrafana) as grafana:
        threading.Thread(target=grafana.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{grafana.server_address[1]}"
        for _ in range(2):
            pushed = tachograph(ROOT, "dashboards", "push", "--url", url, GRAFANA_TOKEN="right")
            assert pushed.returncode == 0, pushed.stderr
            assert f"{url}/d/tachograph-overview/x" in pushed.stdout
        boards = [body for path, body in FakeGrafana.accepted if path == "/api/dashboards/db"]
        assert len(boards) == 10
        assert all(body["overwrite"] and body["dashboard"]["id"] is None for body in boards)
        refused = tachograph(ROOT, "dashboards", "push", "--url", url, GRAFANA_TOKEN="wrong")
        assert (refused.returncode, "the token is not valid" in refused.stderr) == (2, True)
        grafana.shutdown()
    assert "needs a token" in tachograph(ROOT, "dashboards", "push", "--url", url).stderr
    assert "does not answer" in tachograph(ROOT, "dashboards", "push", "--url", url, GRAFANA_TOKEN="right").stderr


def test_provisioned_data_sources_pass_grafanas_connection_test(server: Callable[..., Server]) -> None:
    """The requests with which Grafana tests a Tempo and a Jaeger data source."""
    service = server()

    async def ask() -> list[int]:
        async with aiohttp.ClientSession(service.address) as session:
            statuses = []
            for path in ("/tempo/api/echo", "/tempo/api/status/buildinfo", "/jaeger/api/services"):
                async with session.get(path) as response:
                    statuses.append(response.status)
            return statuses

    assert asyncio.run(ask()) == [200, 200, 200]
