"""Every alert fires when it should, with exactly these labels and texts, and stays silent otherwise (promtool)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tests.conftest import ROOT

from tachograph_exporter.alerting.alerts import RUNBOOKS, alerts
from tachograph_exporter.alerting.rule_files import RULE_FILES, rule_files
from tachograph_exporter.alerting.thresholds import InvalidThresholds, read_thresholds

pytestmark = pytest.mark.e2e

RULES = [ROOT / "dashboards" / "prometheus" / name for name in ("recording.rules.yml", "alerts.rules.yml")]
WORKFLOW = 'workspace="team", workflow="nightly"'
LABELS = {"workspace": "team", "workflow": "nightly"}
SERVICE = 'job="tachograph", instance="a:9923"'
QUEUE = 'engine="rq", broker="redis:6379/0", queue="high"'
DURATION = "workflow_execution_duration_seconds"


class Case(NamedTuple):
    """Input series, when to evaluate, and the alert that fires; ``silent``: series for which it does not."""

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
        {f'{DURATION}_count{{{WORKFLOW}, status="failed"}}': "0+1x120",
         f'{DURATION}_count{{{WORKFLOW}, status="completed"}}': "0+4x120"},
        "70m", {**LABELS, "severity": "critical"}, "nightly (team) is failing far more often than its target allows",
        "Executions fail 20 times as often as the target of 99 % allows. At this rate the 30-day error budget is gone "
        "within days.",
        {f'{DURATION}_count{{{WORKFLOW}, status="failed"}}': "0+1x120",
         f'{DURATION}_count{{{WORKFLOW}, status="completed"}}': "0+24x120"},
    ),
    Case(
        "WorkflowErrorBudgetBurnSlow",
        {f'{DURATION}_count{{{WORKFLOW}, status="timeout"}}': "0+1x240",
         f'{DURATION}_count{{{WORKFLOW}, status="completed"}}': "0+24x240"},
        "200m", {**LABELS, "severity": "warning"}, "nightly (team) is failing more often than its target allows",
        "Executions fail 4 times as often as the target of 99 % allows.",
        # Cancelled executions do not count either way.
        {f'{DURATION}_count{{{WORKFLOW}, status="cancelled"}}': "0+1x240",
         f'{DURATION}_count{{{WORKFLOW}, status="completed"}}': "0+24x240"},
    ),
    Case(
        "WorkflowLastRunFailed",
        {f"workflow_execution_last_success_timestamp_seconds{{{WORKFLOW}}}": "300x29",
         f"workflow_execution_last_failure_timestamp_seconds{{{WORKFLOW}}}": "_x9 600x20"},
        "20m", {**LABELS, "severity": "warning"}, "The last run of nightly (team) failed",
        "It failed 10m 0s ago, and no run has succeeded since. The alert ends with the next success.",
        # It has succeeded since.
        {f"workflow_execution_last_success_timestamp_seconds{{{WORKFLOW}}}": "_x14 900x15",
         f"workflow_execution_last_failure_timestamp_seconds{{{WORKFLOW}}}": "_x9 600x20"},
    ),
    Case(
        "WorkflowLate",
        {f"workflow_expected_start_timestamp_seconds{{{WORKFLOW}}}": "600x40",
         f"workflow_late{{{WORKFLOW}}}": "0x19 1x20"},
        "22m", {**LABELS, "severity": "warning"}, "nightly (team) has not started",
        "It was due 12m 0s ago. The alert ends when it starts.",
        # It has started.
        {f"workflow_expected_start_timestamp_seconds{{{WORKFLOW}}}": "600x19 87000x20",
         f"workflow_late{{{WORKFLOW}}}": "0x40"},
    ),
    Case(
        "WorkflowOverdue",
        {f"workflow_overdue{{{WORKFLOW}}}": "0x9 1x20"},
        "12m", {**LABELS, "severity": "warning"}, "nightly (team) runs past its deadline",
        "A run is taking longer than it may. The alert ends when it does.",
        {f"workflow_overdue{{{WORKFLOW}}}": "1x9 0x20"},
    ),
    Case(
        "WorkflowStepOverdue",
        {f'workflow_step_overdue{{{WORKFLOW}, step="load"}}': "_x9 1x20"},
        "12m", {**LABELS, "step": "load", "severity": "warning"}, "load of nightly (team) runs for too long",
        "The step is running past its deadline or, if it has none, for far longer than usual. The alert ends when it "
        "ends.",
        {f'workflow_step_overdue{{{WORKFLOW}, step="load"}}': "1x9 stale"},
    ),
    Case(
        "WorkflowFlapping",
        # Its failure is not told twice.
        {f"workflow_flapping{{{WORKFLOW}}}": "0x9 1x30",
         f"workflow_execution_last_success_timestamp_seconds{{{WORKFLOW}}}": "300x39",
         f"workflow_execution_last_failure_timestamp_seconds{{{WORKFLOW}}}": "_x9 600x30"},
        "22m", {**LABELS, "severity": "warning"}, "nightly (team) fails and succeeds by turns",
        "It failed again soon after it had recovered from a failure. The alert ends when it has succeeded three times "
        "in a row.",
        # It succeeded in time.
        {f"workflow_flapping{{{WORKFLOW}}}": "0x9 1x8 0x20"},
    ),
    Case(
        "WorkflowRunStuck",
        {f"workflow_execution_oldest_running_start_timestamp_seconds{{{WORKFLOW}}}": "0x30",
         f"workflow:execution_duration_seconds:usual_p95{{{WORKFLOW}}}": "100x30"},
        "10m", {**LABELS, "severity": "warning"}, "nightly (team): a run is taking far longer than usual",
        "The oldest running execution has been running for 10m 0s, more than 3 times the usual 95th percentile.",
        {f"workflow_execution_oldest_running_start_timestamp_seconds{{{WORKFLOW}}}": "0x30",
         f"workflow:execution_duration_seconds:usual_p95{{{WORKFLOW}}}": "300x30"},
    ),
    Case(
        "WorkflowNoSuccess",
        {f"workflow_execution_last_success_timestamp_seconds{{{WORKFLOW}}}": "0x650",
         f"workflow:execution_success_gap_seconds:max_15d{{{WORKFLOW}}}": "86400x650"},
        "200h", {**LABELS, "severity": "warning"}, "nightly (team) has not succeeded for too long",
        "The last success was 8d 8h 0m 0s ago.",
        # Once a week is usual.
        {f"workflow_execution_last_success_timestamp_seconds{{{WORKFLOW}}}": "0x650",
         f"workflow:execution_success_gap_seconds:max_15d{{{WORKFLOW}}}": "604800x650"},
        "20m",
    ),
    Case(
        "WorkflowStepRegression",
        {f'workflow_step:duration_seconds:unusual{{{WORKFLOW}, step="load"}}': "0x10 7x30"},
        "30m", {**LABELS, "step": "load", "severity": "warning"},
        "load of nightly (team) is slower than usual",
        "In the last hour it ran, it took 7s on average, more than 1.5 times what it usually takes.",
        # Usual again in the next hour in which it ran.
        {f'workflow_step:duration_seconds:unusual{{{WORKFLOW}, step="load"}}': "0x10 7x10 0x10"},
    ),
    Case(
        "WorkflowRetryStorm",
        {f'workflow_step_retries_total{{{WORKFLOW}, step="load"}}': "0+4x60",
         f'workflow_step_attempts_total{{{WORKFLOW}, step="load", outcome="failed"}}': "0+4x60",
         f'workflow_step_attempts_total{{{WORKFLOW}, step="load", outcome="completed"}}': "0+1x60"},
        "30m", {**LABELS, "step": "load", "severity": "warning"}, "load of nightly (team) keeps retrying",
        "80% of its attempts were retried, in the last 15 minutes or the last day.",
        {f'workflow_step_retries_total{{{WORKFLOW}, step="load"}}': "0+4x60",
         f'workflow_step_attempts_total{{{WORKFLOW}, step="load", outcome="failed"}}': "0+4x60",
         f'workflow_step_attempts_total{{{WORKFLOW}, step="load", outcome="completed"}}': "0+5x60"},
    ),
    Case(
        "WorkflowQueueWaitGrowing",
        {f"workflow:step_queue_wait_seconds:unusual{{{WORKFLOW}}}": "0x10 60x20"},
        "28m", {**LABELS, "severity": "warning"}, "nightly (team): steps wait longer than usual for a slot",
        "1m 0s on average when it last ran, more than 3 times the usual wait.",
        {f"workflow:step_queue_wait_seconds:unusual{{{WORKFLOW}}}": "0x30"},
    ),
    Case(
        "WorkflowQueueOldestMessage",
        {f"workflow_queue_oldest_message_timestamp_seconds{{{QUEUE}}}": "0x30"},
        "20m", {"engine": "rq", "broker": "redis:6379/0", "queue": "high", "severity": "warning"},
        "high (rq): nobody takes the messages", "The oldest message has waited for 20m 0s.",
        {f"workflow_queue_oldest_message_timestamp_seconds{{{QUEUE}}}": "0x10 600x20"},
    ),
    Case(
        "WorkflowCostJump",
        {f"workflow:step_cost_usd:unusual{{{WORKFLOW}}}": "0x10 25x20"},
        "20m", {**LABELS, "severity": "warning"}, "nightly (team) costs far more than usual",
        "$25 in the last hour it ran, more than 3 times what such an hour usually costs.",
        {f"workflow:step_cost_usd:unusual{{{WORKFLOW}}}": "0x30"},
    ),
    Case(
        "TachographNoticesNotSent",
        {f'tachograph_notices_total{{{SERVICE}, outcome="failed"}}': "0x5 3x10"},
        "6m", {"job": "tachograph", "instance": "a:9923", "outcome": "failed", "severity": "warning"},
        "a:9923 could not tell somebody",
        "3 messages about notices were given up, or may not have arrived, in the last 15 minutes (failed). "
        "`tachograph notices list` shows which, and why.",
        {f'tachograph_notices_total{{{SERVICE}, outcome="retried"}}': "0x5 3x10"},
    ),
    Case(
        "TachographEventsLost",
        {f'tachograph_events_dropped_total{{{SERVICE}, listener="store", reason="queue_full"}}': "0x5 4x10"},
        "6m", {"job": "tachograph", "instance": "a:9923", "listener": "store", "reason": "queue_full",
               "severity": "critical"},
        "a:9923 is losing events",
        "4 events did not reach the listener store in the last 5 minutes (queue_full). What it shows is incomplete.",
        {f'tachograph_events_dropped_total{{{SERVICE}, listener="store", reason="queue_full"}}': "4x15"},
    ),
    Case(
        "TachographQueueGrowing",
        {f'tachograph_queue_length{{{SERVICE}, listener="store"}}': "60000x10"},
        "5m", {"job": "tachograph", "instance": "a:9923", "listener": "store", "severity": "warning"},
        "a:9923: the listener store cannot keep up",
        "60k events are queued for it. Once the queue is full, events are lost.",
        {f'tachograph_queue_length{{{SERVICE}, listener="store"}}': "60000 10x10"},
    ),
    Case(
        "TachographSeriesLimitReached",
        {f'tachograph_series_limited_total{{{SERVICE}, metric="workflow_step_attempts_total"}}': "0x5 9x20"},
        "8m", {"job": "tachograph", "instance": "a:9923", "metric": "workflow_step_attempts_total",
               "severity": "warning"},
        "a:9923: workflow_step_attempts_total has reached its series limit",
        "New label sets are counted as `other`. Something generates unbounded label values.",
        {f'tachograph_series_limited_total{{{SERVICE}, metric="workflow_step_attempts_total"}}': "9x20"},
    ),
    Case(
        "TachographRecordsRefused",
        {f'tachograph_records_refused_total{{{SERVICE}, kind="trace"}}': "0x5 3x30"},
        "15m", {"job": "tachograph", "instance": "a:9923", "kind": "trace", "severity": "warning"},
        "a:9923 set records aside",
        "The store refused 3 records (trace) in the last 15 minutes. Their neighbours are stored; "
        "`tachograph refused list` shows them with the reason.",
        {f'tachograph_records_refused_total{{{SERVICE}, kind="trace"}}': "3x40"},
    ),
    Case(
        "TachographWorkflowMetricsMissing",
        {f"tachograph_workflow_metrics_shown{{{SERVICE}}}": "0x20",
         'tachograph_workflow_metrics_shown{job="tachograph", instance="b:9923"}': "1x4 0x20"},
        "8m", {"job": "tachograph", "severity": "critical"}, "No Tachograph shows the workflow metrics",
        "Services are up, but none of them has shown the metrics of its database for two minutes. The alerts about "
        "workflows are silent meanwhile.",
        # Another service took over.
        {f"tachograph_workflow_metrics_shown{{{SERVICE}}}": "0x5 1x20",
         'tachograph_workflow_metrics_shown{job="tachograph", instance="b:9923"}': "1x4 0x20"},
    ),
    Case(
        "TachographDown",
        {f"up{{{SERVICE}}}": "1x3 0x10"},
        "7m", {"job": "tachograph", "instance": "a:9923", "severity": "critical"}, "a:9923 cannot be scraped",
        "Prometheus has not reached it for two minutes. The state of its workflows is unknown.",
        {f"up{{{SERVICE}}}": "1x3 0 1x10"},
    ),
    Case(
        "TachographSilent",
        {},
        "7m", {"job": "tachograph", "severity": "critical"}, "No Tachograph is being scraped",
        "Prometheus has no series of any instance: the target is missing from its configuration or has been down for "
        "long.",
        {f"tachograph_events_total{{{SERVICE}}}": "1x20"},
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
    result = promtool("test", "rules", str(file))
    assert result.returncode == 0, result.stdout + result.stderr


def rules_behind(alert: str, directory: Path) -> list[Path]:
    """The shipped rules of an alert and of all that it reads: the others take most of the time."""
    groups_by_path = {path: yaml.safe_load(path.read_text())["groups"] for path in RULES}
    rules = [rule for groups in groups_by_path.values() for group in groups for rule in group["rules"]]
    behind = [rule for rule in rules if rule.get("alert") == alert]
    assert behind, alert
    for rule in behind:
        read = (other for other in rules if other.get("record", "\n") in rule["expr"])
        behind.extend(other for other in read if other not in behind)
    files = []
    for path, groups in groups_by_path.items():
        kept = [{**group, "rules": [rule for rule in group["rules"] if rule in behind]} for group in groups]
        files.append(directory / path.name)
        files[-1].write_text(yaml.safe_dump({"groups": [group for group in kept if group["rules"]]}))
    return files


def series(values_by_name: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in values_by_name.items()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_with_these_texts_and_is_silent_otherwise(case: Case, tmp_path: Path) -> None:
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
        rules_behind(case.alert, tmp_path),
        [
            {"interval": case.interval, "input_series": series(case.series), "alert_rule_test": [fires]},
            {"interval": case.interval, "input_series": series(case.silent), "alert_rule_test": [silent]},
        ],
    )


def test_every_alert_has_a_test_a_severity_and_a_runbook() -> None:
    rules = [rule for group in alerts(read_thresholds()) for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == {case.alert for case in CASES}
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        runbook = ROOT / "docs" / "runbooks" / f"{rule['alert']}.md"
        text = runbook.read_text()
        for part in ("## Meaning", "## First look", "## Causes", "## Fixes"):
            assert part in text, (runbook.name, part)


def test_promtool_accepts_the_rules() -> None:
    result = promtool("check", "rules", *map(str, RULES))
    assert result.returncode == 0, result.stdout + result.stderr


def test_one_workflow_can_have_its_own_thresholds(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.toml"
    names = ("nightly", "a+b", 'say "\\d" twice')
    file.write_text(
        "[default]\nstale_unknown_seconds = 1_000_000\n"
        "[workflow.nightly]\nstale_seconds = 3600\n[workflow.'a+b']\nstale_seconds = 60\n"
        "[workflow.'say \"\\d\" twice']\nstale_seconds = 60\n"
    )
    thresholds = read_thresholds(file)
    assert (
        thresholds.default.stale_unknown_seconds == thresholds.workflows["nightly"].stale_unknown_seconds == 1_000_000
    )
    assert thresholds.default.success_target == read_thresholds().default.success_target
    rules = []
    for name, content in rule_files(thresholds):
        rules.append(tmp_path / name)
        rules[-1].write_text(content)
        assert yaml.safe_load(content) == {"groups": RULE_FILES[name](thresholds)}
    assert promtool("check", "rules", *map(str, rules)).returncode == 0
    metric = "workflow_execution_last_success_timestamp_seconds"
    # `other` learns from its rhythm, which is not known yet.
    inputs = {
        f'{metric}{{workspace="team", workflow={json.dumps(name)}}}': "0x200" for name in (*names, "other", "aab")
    }
    expected = [
        {"exp_labels": {"workspace": "team", "workflow": workflow, "severity": "warning"},
         "exp_annotations": {"summary": f"{workflow} (team) has not succeeded for too long",
                             "description": "The last success was 1h 10m 0s ago.",
                             "runbook_url": f"{RUNBOOKS}/WorkflowNoSuccess.md"}}
        for workflow in names
    ]  # fmt: skip
    fires = {"eval_time": "70m", "alertname": "WorkflowNoSuccess", "exp_alerts": expected}
    check(tmp_path, rules, [{"interval": "1m", "input_series": series(inputs), "alert_rule_test": [fires]}])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "[workflow.nightly]\nstale_secs = 60\n",
            r"at \[workflow.nightly\]: .*stale_secs.*the limits are .*stale_seconds",
        ),
        ('[default]\nretry_ratio = "half"\n', r"at \[default\]: Expected `float`, got `str`.*retry_ratio"),
        ("[default]\nsuccess_target = 1\n", "success_target is 1; it must be less than 1"),
        ("[default]\nstuck_seconds = -1\n", "stuck_seconds is -1"),
        ("[default]\nstuck_seconds = nan\n", "stuck_seconds is nan"),
        ("[workflows.nightly]\nstale_seconds = 60\n", r"unknown section \[workflows\]"),
        ("[workflow]\nnightly = 3\n", "nightly is not a section"),
        ("workflow = 3\n", "workflow is not a section"),
        ("[default\n", "is not valid TOML"),
    ],
)
def test_a_fault_in_a_file_of_thresholds_says_where_it_is(text: str, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "thresholds.toml"
    file.write_text(text)
    with pytest.raises(InvalidThresholds, match=fault) as raised:
        read_thresholds(file)
    assert str(file) in str(raised.value)


def counted(directory: Path, inputs: dict[str, str], expected: dict[str, float]) -> None:
    """What the increments of the workflows add up to after an hour, with a scrape every 15 s."""
    expression = "sum by (workflow) (sum_over_time(workflow:executions_ended:increase[1h]))"
    samples = [{"labels": f'{{workflow="{name}"}}', "value": value} for name, value in expected.items() if value]
    test = {"interval": "15s", "input_series": series(inputs),
            "promql_expr_test": [{"expr": expression, "eval_time": "1h", "exp_samples": samples}]}  # fmt: skip
    document = {"rule_files": [str(path) for path in RULES], "evaluation_interval": "1m", "tests": [test]}
    file = directory / "counted.yml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    result = promtool("test", "rules", str(file))
    assert result.returncode == 0, result.stdout + result.stderr


def test_increments_count_every_execution_exactly_once(tmp_path: Path) -> None:
    def count(workflow: str, instance: str = "tachograph", status: str = "completed") -> str:
        return f'{DURATION}_count{{workspace="w", workflow="{workflow}", status="{status}", instance="{instance}"}}'

    counted(
        tmp_path,
        {
            count("idle"): "0x240",
            count("one"): "0x100 1x139",
            # 0 in a single scrape, between two evaluations.
            count("born"): "_x101 0 1x137",
            count("born_and_busy"): "_x101 0 1 2 3+1x134",
            # Prometheus is new, the database is not.
            count("old"): "500x100 501x139",
            # 40 s without a service; something ended meanwhile.
            count("restarted"): "7x100 stale _x1 9x136",
            # Ten minutes, and half an hour.
            count("away"): "7x100 stale _x39 9x98",
            count("away_for_long"): "7x60 stale _x119 12x58",
            # As another service takes over: with the same `instance`, although the first one's target fails later.
            count("taken_over"): "7x100 8 stale 9x137",
            # And with an `instance` of its own, where only what ended in the last minute is lost.
            count("not_relabelled", "a"): "7x100 8x4 9 stale _x132",
            count("not_relabelled", "b"): "_x107 9 10x131",
            # A program of its own is started again: its counters are reset.
            count("reset"): "7x100 9x4 1x134",
            count("two_programs", "a"): "0+1x239",
            count("two_programs", "b"): "0x50 3x188",
        },
        {
            "idle": 0, "one": 1, "born": 1, "born_and_busy": 137, "old": 1, "restarted": 2, "away": 2,
            "away_for_long": 5, "taken_over": 2, "not_relabelled": 2, "reset": 3, "two_programs": 242,
        },
    )  # fmt: skip
