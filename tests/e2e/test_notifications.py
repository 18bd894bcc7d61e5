"""Workflows of three rhythms that fail, recover and fall silent: the right notifications, of real components."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.alertmanager import alertmanager
from tests.e2e.conftest import eventually, get
from tests.e2e.gauges import Gauges
from tests.e2e.tsdb import create_block
from tools.dashboard_load import write_fast_rules

from tachograph.metrics.specs import LAST_FAILURE, LAST_SUCCESS

HOUR = 3600
DAY = 24 * HOUR
WEEK = 7 * DAY
RHYTHMS = {"hourly": HOUR, "nightly": DAY, "weekly": WEEK}
SUCCESS, FAILURE = LAST_SUCCESS.name, LAST_FAILURE.name
LAST_FAILED = "WorkflowLastRunFailed"
NO_SUCCESS = "WorkflowNoSuccess"
SITUATIONS: dict[str, tuple[float | None, float | None, set[str], set[str]]] = {
    # How long ago it last succeeded and last failed, in periods; what fires; what is notified of it.
    "healthy": (0.5, 3, set(), set()),
    "failed_once": (1.2, 0.2, {LAST_FAILED}, {LAST_FAILED}),
    "failed_twice": (2.2, 0.2, {LAST_FAILED, NO_SUCCESS}, {LAST_FAILED}),
    "recovered": (0.1, 0.2, set(), set()),
    "silent": (2.2, None, {NO_SUCCESS}, {NO_SUCCESS}),
}
NEW = "only_ever_failed"


def rhythms_of_a_fortnight(now: int) -> str:
    """OpenMetrics of what a Prometheus would have recorded: how far apart successes were, and that of a week ago."""
    lines = []
    for rhythm, period in RHYTHMS.items():
        for situation in SITUATIONS:
            labels = f'{{workspace="team",workflow="{rhythm}_{situation}"}}'
            gap = f"workflow:execution_success_gap_seconds:max_1h{labels} {period}"
            lines += [f"{gap} {at}" for at in range(now - 3 * DAY, now - 2 * DAY, 300)]
            success = f"{SUCCESS}{labels} {now - 8 * DAY}"
            lines += [f"{success} {at}" for at in range(now - WEEK - HOUR, now - WEEK + HOUR, 60)]
    return "\n".join([*lines, "# EOF\n"])


@pytest.mark.timeout(500)
def test_each_workflow_is_notified_of_what_it_is_and_of_nothing_else(
    prometheus: Callable[..., str], tmp_path: Path
) -> None:
    now = int(time.time())
    create_block(rhythms_of_a_fortnight(now), tmp_path / "tsdb")
    gauges = Gauges()
    firing: dict[str, set[str]] = {NEW: {LAST_FAILED}}
    notified: set[tuple[str, str]] = {(NEW, LAST_FAILED)}
    gauges.set(FAILURE, now - HOUR, workflow=NEW)
    for rhythm, period in RHYTHMS.items():
        for situation, (success, failure, fires, tells) in SITUATIONS.items():
            workflow = f"{rhythm}_{situation}"
            if success is not None:
                gauges.set(SUCCESS, now - success * period, workflow=workflow)
            if failure is not None:
                gauges.set(FAILURE, now - failure * period, workflow=workflow)
            firing[workflow] = fires
            notified |= {(workflow, alert) for alert in tells}
    rules = write_fast_rules(tmp_path, fire_at_once=True)
    with gauges.served(), alertmanager(tmp_path) as manager:
        prometheus(
            f"global:\n  scrape_interval: 1s\n  evaluation_interval: 2s\nrule_files: [{rules}]\n"
            f"alerting:\n  alertmanagers: [{{static_configs: [{{targets: ['{manager.target}']}}]}}]\n"
            "scrape_configs:\n  - job_name: tachograph\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{gauges.port}']}}]\n",
            # Resend soon what fired before Prometheus had found the Alertmanager.
            "--rules.alert.resend-delay=2s",
        )

        def active() -> dict[str, set[str]]:
            status, body = get(f"{manager.address}/api/v2/alerts")
            assert status == 200
            by_workflow: dict[str, set[str]] = {workflow: set() for workflow in firing}
            for labels in (alert["labels"] for alert in body):
                if "workflow" in labels:
                    by_workflow[labels["workflow"]].add(labels["alertname"])
            return by_workflow

        def told(status: str) -> set[tuple[str, str]]:
            """The workflow and alert of each line that was printed about a workflow."""
            # Until the first scrape, no Tachograph is known.
            words = [line.split("  ") for line in manager.lines() if "Tachograph" not in line.split("  ")[2]]
            assert all(len(word) == 5 and word[1] == "warning" for word in words), words
            return {
                (next(name for name in sorted(firing, key=len, reverse=True) if name in summary), alert)
                for state, _, alert, summary, _ in words
                if state == status
            }

        eventually(lambda: active() == firing, 120)
        eventually(lambda: told("FIRING") == notified, 120)
        assert told("RESOLVED") == set()
        # All succeed.
        for workflow in firing:
            gauges.set(SUCCESS, time.time(), workflow=workflow)
        eventually(lambda: told("RESOLVED") >= notified, 200)
        # Rules are evaluated one after the other: on a busy machine the one that inhibits may end seconds before.
        inhibited = {(workflow, alert) for workflow, fires in firing.items() for alert in fires} - notified
        assert told("RESOLVED") - notified <= inhibited
        assert told("FIRING") - notified <= inhibited
        eventually(lambda: active() == {workflow: set() for workflow in firing})
