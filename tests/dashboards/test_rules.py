"""Every alert fires when it should, with exactly these labels and words, and is silent otherwise; by promtool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml
from dashboards.alerts import alerts
from dashboards.recording_rules import recording_rules
from dashboards.thresholds import read_thresholds
from tests.conftest import ROOT

from tachograph_exporter.dashboard_files import RUNBOOKS

pytestmark = pytest.mark.e2e

RULES = [ROOT / "dashboards" / "prometheus" / name for name in ("recording.rules.yml", "alerts.rules.yml")]
WHO = 'workspace="team", workflow="nightly"'
LABELS = {"workspace": "team", "workflow": "nightly"}
ITSELF = 'job="tachograph", instance="a:9923"'
DURATION = "workflow_execution_duration_seconds"


class Case(NamedTuple):
    """Series (by minute unless said otherwise), when to look, what then fires; ``silent``: series without it."""

    alert: str
    series: dict[str, str]
    at: str
    labels: dict[str, str]
    summary: str
    description: str
    silent: dict[str, str]
    interval: str = "1m"


CASES = [
    Case(
        "WorkflowErrorBudgetBurnFast",
        {f'{DURATION}_count{{{WHO}, status="failed"}}': "0+1x120",
         f'{DURATION}_count{{{WHO}, status="completed"}}': "0+4x120"},
        "70m", {**LABELS, "severity": "critical"}, "nightly (team) fails far more often than it may",
        "Executions fail 20 times as often as the target of 99 % allows; at this rate the budget of 30 days is gone "
        "within days.",
        {f'{DURATION}_count{{{WHO}, status="failed"}}': "0+1x120",
         f'{DURATION}_count{{{WHO}, status="completed"}}': "0+24x120"},
    ),
    Case(
        "WorkflowErrorBudgetBurnSlow",
        {f'{DURATION}_count{{{WHO}, status="timeout"}}': "0+1x240",
         f'{DURATION}_count{{{WHO}, status="completed"}}': "0+24x240"},
        "200m", {**LABELS, "severity": "warning"}, "nightly (team) fails more often than it may",
        "Executions fail 4 times as often as the target of 99 % allows.",
        # Cancelled ones count neither way.
        {f'{DURATION}_count{{{WHO}, status="cancelled"}}': "0+1x240",
         f'{DURATION}_count{{{WHO}, status="completed"}}': "0+24x240"},
    ),
    Case(
        "WorkflowRunStuck",
        {f"workflow_execution_oldest_running_start_timestamp_seconds{{{WHO}}}": "0x30",
         f"workflow:execution_duration_seconds:p95_7d{{{WHO}}}": "100x30"},
        "10m", {**LABELS, "severity": "warning"}, "nightly (team): a run takes far longer than usual",
        "The oldest running execution runs for 10m 0s, more than 3 times the usual 95th percentile.",
        {f"workflow_execution_oldest_running_start_timestamp_seconds{{{WHO}}}": "0x30",
         f"workflow:execution_duration_seconds:p95_7d{{{WHO}}}": "300x30"},
    ),
    Case(
        "WorkflowNoSuccess",
        {f"workflow_execution_last_success_timestamp_seconds{{{WHO}}}": "0x500"},
        "37h", {**LABELS, "severity": "warning"}, "nightly (team) has not completed for too long",
        "The last success was 1d 13h 0m 0s ago.",
        {f"workflow_execution_last_success_timestamp_seconds{{{WHO}}}": "7200x500"},
        "5m",
    ),
    Case(
        "WorkflowStepRegression",
        {f'workflow_step:duration_seconds:p95_1h{{{WHO}, step="load"}}': "2x2016 7x30"},
        "10200m", {**LABELS, "step": "load", "severity": "warning"},
        "load of nightly (team) takes longer than a week ago",
        "The 95th percentile of the last hour is 7s, more than 1.5 times that of a week ago.",
        # Three times as long, and still nobody waits for it.
        {f'workflow_step:duration_seconds:p95_1h{{{WHO}, step="load"}}': "0.2x2016 0.6x30"},
        "5m",
    ),
    Case(
        "WorkflowRetryStorm",
        {f'workflow_step_retries_total{{{WHO}, step="load"}}': "0+4x60",
         f'workflow_step_attempts_total{{{WHO}, step="load", outcome="failed"}}': "0+4x60",
         f'workflow_step_attempts_total{{{WHO}, step="load", outcome="completed"}}': "0+1x60"},
        "30m", {**LABELS, "step": "load", "severity": "warning"}, "load of nightly (team) is tried again and again",
        "80% of its attempts in the last quarter of an hour were followed by another.",
        {f'workflow_step_retries_total{{{WHO}, step="load"}}': "0+4x60",
         f'workflow_step_attempts_total{{{WHO}, step="load", outcome="failed"}}': "0+4x60",
         f'workflow_step_attempts_total{{{WHO}, step="load", outcome="completed"}}': "0+5x60"},
    ),
    Case(
        "WorkflowQueueWaitGrowing",
        {f"workflow:step_queue_wait_seconds:mean_15m{{{WHO}}}": "1x300 60x20"},
        "318m", {**LABELS, "severity": "warning"}, "Steps of nightly (team) wait longer and longer for a slot",
        "On the average 1m 0s, more than 3 times the day's mean.",
        {f"workflow:step_queue_wait_seconds:mean_15m{{{WHO}}}": "0.1x300 4x20"},
    ),
    Case(
        "WorkflowCostJump",
        {f"workflow:step_cost_usd:increase_1h{{{WHO}}}": "2x300 25x20"},
        "310m", {**LABELS, "severity": "warning"}, "nightly (team) costs far more than usual",
        "$25 in the last hour, more than 3 times the week's mean.",
        {f"workflow:step_cost_usd:increase_1h{{{WHO}}}": "0.01x300 0.5x20"},
    ),
    Case(
        "TachographEventsLost",
        {f'tachograph_events_dropped_total{{{ITSELF}, listener="store", reason="queue_full"}}': "0x5 4x10"},
        "6m", {"job": "tachograph", "instance": "a:9923", "listener": "store", "reason": "queue_full",
               "severity": "critical"},
        "a:9923 loses events",
        "4 events never reached the listener store in five minutes (queue_full): what it shows is not all there is.",
        {f'tachograph_events_dropped_total{{{ITSELF}, listener="store", reason="queue_full"}}': "4x15"},
    ),
    Case(
        "TachographQueueGrowing",
        {f'tachograph_queue_length{{{ITSELF}, listener="store"}}': "60000x10"},
        "5m", {"job": "tachograph", "instance": "a:9923", "listener": "store", "severity": "warning"},
        "a:9923: the listener store does not keep up",
        "60k events wait for it; when the queue is full, events are lost.",
        {f'tachograph_queue_length{{{ITSELF}, listener="store"}}': "60000 10x10"},
    ),
    Case(
        "TachographSeriesLimitReached",
        {f'tachograph_series_limited_total{{{ITSELF}, metric="workflow_step_attempts_total"}}': "0x5 9x20"},
        "8m", {"job": "tachograph", "instance": "a:9923", "metric": "workflow_step_attempts_total",
               "severity": "warning"},
        "a:9923: workflow_step_attempts_total has more label sets than the limit",
        "New label sets are counted as `other`; something makes up names.",
        {f'tachograph_series_limited_total{{{ITSELF}, metric="workflow_step_attempts_total"}}': "9x20"},
    ),
    Case(
        "TachographDown",
        {f"up{{{ITSELF}}}": "1x3 0x10"},
        "7m", {"job": "tachograph", "instance": "a:9923", "severity": "critical"}, "a:9923 cannot be scraped",
        "Prometheus has not reached it for two minutes: nothing is known of its workflows.",
        {f"up{{{ITSELF}}}": "1x3 0 1x10"},
    ),
    Case(
        "TachographSilent",
        {},
        "7m", {"job": "tachograph", "severity": "critical"}, "No Tachograph is scraped",
        "There is no series of any: the target is gone from the configuration, or has been down for long.",
        {f"tachograph_events_total{{{ITSELF}}}": "1x20"},
    ),
]  # fmt: skip


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (apt-get install prometheus)")
    return subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)


def check(directory: Path, rules: list[Path], tests: list[dict[str, Any]]) -> None:
    interval = tests[0]["interval"]
    document = {"rule_files": [str(path) for path in rules], "evaluation_interval": interval, "tests": tests}
    file = directory / "test.yml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    ran = promtool("test", "rules", str(file))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def series(found: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in found.items()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_it_fires_with_these_words_and_is_silent_otherwise(case: Case, tmp_path: Path) -> None:
    expected = {
        "exp_labels": case.labels,
        "exp_annotations": {
            "summary": case.summary,
            "description": case.description,
            "runbook_url": f"{RUNBOOKS}/{case.alert}.md",
        },
    }
    fires = {"eval_time": case.at, "alertname": case.alert, "exp_alerts": [expected]}
    silent = {**fires, "exp_alerts": []}
    check(
        tmp_path,
        RULES,
        [
            {"interval": case.interval, "input_series": series(case.series), "alert_rule_test": [fires]},
            {"interval": case.interval, "input_series": series(case.silent), "alert_rule_test": [silent]},
        ],
    )


def test_every_alert_has_a_test_a_runbook_and_what_it_needs() -> None:
    rules = [rule for group in alerts(read_thresholds()) for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == {case.alert for case in CASES}
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        runbook = ROOT / "docs" / "runbooks" / f"{rule['alert']}.md"
        text = runbook.read_text()
        for part in ("## Meaning", "## First look", "## Causes", "## Fixes"):
            assert part in text, (runbook.name, part)


def test_promtool_takes_the_rules() -> None:
    checked = promtool("check", "rules", *map(str, RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_is_expected_of_one_workflow_can_differ(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.toml"
    file.write_text(
        (ROOT / "dashboards" / "thresholds.toml").read_text()
        + '\n[workflow."nightly"]\nstale_seconds = 3600\n[workflow."a+b"]\nstale_seconds = 60\n'
    )
    thresholds = read_thresholds(file)
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [*recording_rules(thresholds), *alerts(thresholds)]}))
    assert promtool("check", "rules", str(rules)).returncode == 0
    name = "workflow_execution_last_success_timestamp_seconds"
    inputs = {f'{name}{{workspace="team", workflow="{workflow}"}}': "0x200" for workflow in ("nightly", "a+b", "other")}
    said = [
        {"exp_labels": {"workspace": "team", "workflow": workflow, "severity": "warning"},
         "exp_annotations": {"summary": f"{workflow} (team) has not completed for too long",
                             "description": "The last success was 1h 10m 0s ago.",
                             "runbook_url": f"{RUNBOOKS}/WorkflowNoSuccess.md"}}
        for workflow in ("nightly", "a+b")
    ]  # fmt: skip
    fires = {"eval_time": "70m", "alertname": "WorkflowNoSuccess", "exp_alerts": said}
    check(tmp_path, [rules], [{"interval": "1m", "input_series": series(inputs), "alert_rule_test": [fires]}])
    file.write_text(file.read_text().replace("stale_seconds = 60", "stale_secs = 60"))
    with pytest.raises(msgspec.ValidationError, match="stale_secs"):
        read_thresholds(file)
