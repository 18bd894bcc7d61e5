"""The rules for Prometheus say of a history what the service says of it (promtool)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tachograph.clock import NS
from tachograph.expectation import Expectation
from tachograph_exporter.expectations.evaluation import Evaluation, evaluate
from tachograph_exporter.expectations.findings import FAILED, LATE, STUCK
from tachograph_exporter.expectations.history import History, Run
from tachograph_exporter.expectations.limits import limits_of
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e

HOUR, USUAL, DAYS = 3600, 600, 2
ALERTS = {FAILED: "WorkflowLastRunFailed", STUCK: "WorkflowRunStuck", LATE: "WorkflowLate"}
EDGE = 300
"""Seconds around a change in which the two may differ: scrapes, evaluations, and what alerts wait for."""


def history() -> list[Run]:
    """Runs of an hourly workflow: two that failed, two that are missing, one that hung for three hours, one failure."""
    runs = []
    for hour in range(1, DAYS * 24):
        if hour in (20, 21, 31, 32, 33):
            continue
        start = hour * HOUR + 5
        took, status = (
            (3 * HOUR, "completed") if hour == 30 else (USUAL, "failed" if hour in (10, 11, 40) else "completed")
        )
        runs.append(Run(str(hour), start * NS, (start + took) * NS, status))
    return runs


def known(runs: list[Run], now: int) -> list[Run]:
    return [
        run if (run.finished_ns or 0) <= now * NS else run._replace(finished_ns=None, status="running")
        for run in runs
        if run.started_ns <= now * NS
    ]


def values(value_at: Callable[[int], float | None]) -> str:
    """A series of promtool: a value for each minute, ``_`` for none."""
    minutes = (value_at(minute * 60) for minute in range(DAYS * 24 * 60))
    return " ".join("_" if value is None else f"{value:.0f}" for value in minutes)


def test_rules_and_service_agree_on_a_history(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (apt-get install prometheus)")
    runs = history()
    limits = limits_of(Expectation(schedule="0 * * * *"))

    def said(now: int) -> Evaluation:
        facts = History(runs=known(runs, now), usual_p95_seconds=USUAL)
        return evaluate(limits, facts, now * NS, now * NS)

    def newest(now: int, status: str) -> float | None:
        ends = [(run.finished_ns or 0) / NS for run in known(runs, now) if run.status == status]
        return max(ends, default=None)

    def oldest_running(now: int) -> float | None:
        return min((run.started_ns / NS for run in known(runs, now) if run.finished_ns is None), default=None)

    labels = '{workspace="team",workflow="hourly"}'
    series = {
        "workflow_execution_last_success_timestamp_seconds": values(lambda now: newest(now, "completed")),
        "workflow_execution_last_failure_timestamp_seconds": values(lambda now: newest(now, "failed")),
        "workflow_execution_oldest_running_start_timestamp_seconds": values(oldest_running),
        "workflow:execution_duration_seconds:usual_p95": values(lambda _: USUAL),
        "workflow_expected_start_timestamp_seconds": values(lambda now: (said(now).expected_start_ns or 0) / NS),
        "workflow_late": values(lambda now: float(said(now).of(LATE) is not None)),
    }
    tests, seen = [], dict.fromkeys(ALERTS, 0)
    for now in range(2 * HOUR, DAYS * 24 * HOUR, 900):
        around = [said(now + shift) for shift in (-EDGE, 0, EDGE)]
        for kind, alert in ALERTS.items():
            states = {evaluation.of(kind) is not None for evaluation in around}
            if len(states) == 1:
                (is_told,) = states
                seen[kind] += is_told
                tests.append({
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{now}s",
                    "exp_samples": [{"labels": "{}", "value": int(is_told)}],
                })  # fmt: skip
    # Two failures last two hours, and one lasts one; a run hangs for two and a half hours past its limit.
    assert all(count >= 5 for count in seen.values()), seen
    rules = yaml.safe_load((ROOT / "dashboards" / "prometheus" / "alerts.rules.yml").read_text())
    group = {**rules["groups"][0], "interval": "1m"}
    group["rules"] = [rule for rule in group["rules"] if rule["alert"] in ALERTS.values()]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [group]}))
    document = {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": name + labels, "values": text} for name, text in series.items()],
            "promql_expr_test": tests,
        }],
    }  # fmt: skip
    file = tmp_path / "history.yml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    result = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[:4000]
