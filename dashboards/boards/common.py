"""What the dashboards share: variables, links."""

from __future__ import annotations

from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.panels import OURS, PAGE
from dashboards.promql import (
    BAD,
    RATE,
    counted,
    quantile,
    selector,
)
from tachograph.metrics.self_metrics import (
    EVENTS,
)
from tachograph.metrics.specs import (
    EXECUTION_DURATION,
    EXECUTIONS_STARTED,
    STEP_ATTEMPTS,
    HistogramSpec,
)

WORKSPACE: Final = panels.variable(
    "workspace", "Workspace", f"label_values({EXECUTIONS_STARTED.name}, workspace)", "Workspaces that ran something."
)
WORKFLOW: Final = panels.variable(
    "workflow",
    "Workflow",
    f'label_values({EXECUTIONS_STARTED.name}{{workspace=~"$workspace"}}, workflow)',
    "Workflows of these workspaces.",
)
STEPS: Final = panels.variable(
    "step", "Step", f"label_values({STEP_ATTEMPTS.name}{OURS}, step)", "Steps of these workflows."
)
INSTANCE: Final = panels.variable("instance", "Instance", f"label_values({EVENTS.name}, instance)", "Services.")
ADDRESS: Final = panels.text(
    "tachograph", "Tachograph", "http://localhost:9923", "Where the service's own page is, for links to runs."
)
TARGET: Final = panels.text("target", "Target", "0.99", "The part of executions that should complete (0 to 1).")
FROM: Final = "from=${__from:date:seconds}&to=${__to:date:seconds}"
TO_PAGE: Final = ("Runs on the page", f"{PAGE}/#/?workflow=${{__field.labels.workflow}}&{FROM}")
TO_WORKFLOW: Final = (
    "This workflow",
    "/d/tachograph-workflow?var-workflow=${__field.labels.workflow}&${__url_time_range}",
)
TO_STEP: Final = (
    "This step",
    "/d/tachograph-step?var-step=${__field.labels.step}&${__url_time_range}&${workflow:queryparam}",
)


def failures() -> Any:
    failed = counted(EXECUTION_DURATION, selector(OURS.strip("{}"), BAD), RATE, "workflow")
    found = dashboard.AnnotationQuery().name("Failures").datasource(panels.SOURCE).enable(True).icon_color("red")
    return found.expr(f"{failed} > 0")


def percentiles(spec: HistogramSpec, where: str) -> list[panels.Query]:
    return [
        (quantile(q, spec, where), name)
        for q, name in ((0.5, "median"), (0.95, "95th percentile"), (0.99, "99th percentile"))
    ]
