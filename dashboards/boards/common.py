"""Variables, selectors and links that the dashboards share."""

from __future__ import annotations

from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.promql import (
    BAD,
    RATE,
    counted,
    quantile,
    selector,
)
from tachograph.metrics.self_metrics import EVENTS
from tachograph.metrics.specs import (
    EXECUTION_DURATION,
    EXECUTIONS_STARTED,
    STEP_ATTEMPTS,
    HistogramSpec,
)

WORKFLOW_MATCHERS: Final = ('workspace=~"$workspace"', 'workflow=~"$workflow"')
STEP_MATCHERS: Final = (*WORKFLOW_MATCHERS, 'step=~"$step"')
WORKFLOWS: Final = selector(*WORKFLOW_MATCHERS)
STEPS: Final = selector(*STEP_MATCHERS)
"""Selectors of what the variables of a dashboard choose."""
PAGE_URL: Final = "${tachograph}"
WORKSPACE: Final = panels.variable(
    "workspace",
    "Workspace",
    f"label_values({EXECUTIONS_STARTED.name}, workspace)",
    "Workspaces with at least one execution.",
)
WORKFLOW: Final = panels.variable(
    "workflow",
    "Workflow",
    f'label_values({EXECUTIONS_STARTED.name}{{workspace=~"$workspace"}}, workflow)',
    "Workflows of the selected workspaces.",
)
STEP: Final = panels.variable(
    "step", "Step", f"label_values({STEP_ATTEMPTS.name}{WORKFLOWS}, step)", "Steps of the selected workflows."
)
INSTANCE: Final = panels.variable(
    "instance", "Instance", f"label_values({EVENTS.name}, instance)", "Scraped instances of the service."
)
ADDRESS: Final = panels.text(
    "tachograph", "Tachograph", "http://localhost:9923", "Address of the Tachograph web page, for links to runs."
)
TARGET: Final = panels.text("target", "Target", "0.99", "The fraction of executions that should complete (0 to 1).")
TIME_RANGE: Final = "from=${__from:date:seconds}&to=${__to:date:seconds}"
TO_PAGE: Final = ("Runs in Tachograph", f"{PAGE_URL}/#/?workflow=${{__field.labels.workflow}}&{TIME_RANGE}")
TO_WORKFLOW: Final = (
    "This workflow",
    "/d/tachograph-workflow?var-workflow=${__field.labels.workflow}&${__url_time_range}",
)
TO_STEP: Final = (
    "This step",
    "/d/tachograph-step?var-step=${__field.labels.step}&${__url_time_range}&${workflow:queryparam}",
)


def failures() -> Any:
    """An annotation at every failed execution."""
    failed = counted(EXECUTION_DURATION, selector(*WORKFLOW_MATCHERS, BAD), RATE, "workflow")
    annotation = dashboard.AnnotationQuery().name("Failures").datasource(panels.SOURCE).enable(True).icon_color("red")
    return annotation.expr(f"{failed} > 0")


def percentiles(spec: HistogramSpec, where: str) -> list[panels.Query]:
    """Queries for the median, 95th and 99th percentile."""
    return [
        (quantile(q, spec, where), name)
        for q, name in ((0.5, "median"), (0.95, "95th percentile"), (0.99, "99th percentile"))
    ]
