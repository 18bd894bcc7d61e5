"""Variables, selectors, links and panels that the dashboards share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard

from dashboards import layout, panels
from dashboards.panels import Column, Link
from tachograph.metrics.self_metrics import EVENTS
from tachograph.metrics.specs import EXECUTION_DURATION, EXECUTIONS_STARTED, STEP_ATTEMPTS, HistogramSpec
from tachograph_exporter.alerting.promql import BAD, GOOD, RANGE, RATE, counted, quantile, selector, total
from tachograph_exporter.alerting.recording_rules import BUDGET_ALLOWED, BUDGET_SPENT, ENDED, last_failure, last_success

MATCHERS: Final = ('workspace=~"$workspace"', 'workflow=~"$workflow"')
"""What the variables of a dashboard about several workflows choose."""
OF_WORKFLOW: Final = ('workspace=~"$workspace"', 'workflow="$workflow"')
OF_STEP: Final = (*OF_WORKFLOW, 'step="$step"')
"""What those of a dashboard about one workflow, or one step of it, choose."""
FAILED_STATUSES: Final = "failed,timeout,lost"
PAGE_URL: Final = "${tachograph}"
WORKSPACE: Final = layout.variable(
    "workspace",
    "Workspace",
    f"label_values({EXECUTIONS_STARTED.name}, workspace)",
    "Workspaces with at least one run.",
)
_NAMES: Final = f'label_values({EXECUTIONS_STARTED.name}{{workspace=~"$workspace"}}, workflow)'
WORKFLOWS: Final = layout.variable("workflow", "Workflow", _NAMES, "Workflows of the selected workspaces.")
WORKFLOW: Final = layout.choice("workflow", "Workflow", _NAMES, "One workflow of the selected workspaces.")
STEP: Final = layout.choice(
    "step", "Step", f"label_values({STEP_ATTEMPTS.name}{selector(*OF_WORKFLOW)}, step)", "One step of the workflow."
)
INSTANCE: Final = layout.variable(
    "instance", "Instance", f"label_values({EVENTS.name}, instance)", "Scraped instances of the service."
)
ADDRESS: Final = layout.text(
    "tachograph", "Tachograph", "http://localhost:9923", "Address of the Tachograph web page, for links to runs."
)
TIME_RANGE: Final = "from=${__from:date:seconds}&to=${__to:date:seconds}"
_KEPT: Final = "${workspace:queryparam}&${datasource:queryparam}&${__url_time_range}"
TO_PAGE: Final[Link] = ("Runs in Tachograph", f"{PAGE_URL}/#/?workflow=${{__field.labels.workflow}}&{TIME_RANGE}")
TO_WORKFLOW: Final[Link] = (
    "This workflow", f"/d/tachograph-workflow?var-workflow=${{__field.labels.workflow}}&{_KEPT}"
)  # fmt: skip
ROW_TO_WORKFLOW: Final[Link] = (
    "This workflow", f"/d/tachograph-workflow?var-workflow=${{__data.fields.workflow}}&{_KEPT}"
)  # fmt: skip
TO_STEP: Final[Link] = (
    "This step", f"/d/tachograph-step?var-step=${{__field.labels.step}}&${{workflow:queryparam}}&{_KEPT}"
)  # fmt: skip
TO_FAILURE: Final[Link] = ("Failures of this cause", f"{PAGE_URL}/#/failures/${{__field.labels.group}}")
TO_SLO: Final[Link] = ("Error budgets", f"/d/tachograph-slo?${{workflow:queryparam}}&{_KEPT}")


def runs(*statuses: str, now: bool = False, of_workflow: bool = False) -> Link:
    """A link to the runs on the page: with these statuses, in the time range or ``now``, of all or of the workflow."""
    parts = ["workflow=${workflow}"] if of_workflow else []
    parts += [f"status={','.join(statuses)}"] if statuses else []
    parts += [] if now else [TIME_RANGE]
    return "Runs in Tachograph", f"{PAGE_URL}/#/?{'&'.join(parts)}"


def ended(*matchers: str, by: str = "") -> str:
    """How many runs ended in the time range, to the run: `increase` would estimate."""
    return total(f"sum_over_time({ENDED}:increase{selector(*matchers)}[{RANGE}])", by)


def success_rate(*matchers: str, by: str = "") -> str:
    """Runs of the time range that completed, as a fraction (0 to 1) of those that completed or failed."""
    judged = ended(*matchers, by=by)
    # If nothing completed there is no series to divide; the rate is then 0, not absent.
    return f"({ended(*matchers, GOOD, by=by)} or {judged} * 0) / ({judged} > 0)"


def last_result(*matchers: str) -> str:
    """By workflow: 1 where the last run failed, 0 where it completed."""
    failure, success = (last("5m", ", ".join(matchers)) for last in (last_failure, last_success))
    return f"(({failure}) > bool ({success}) or ({failure} unless {success}) ^ 0 or ({success} unless {failure}) * 0)"


def last_end(*matchers: str) -> str:
    """When the last run ended, by workflow."""
    failure, success = (last("5m", ", ".join(matchers)) for last in (last_failure, last_success))
    return f"({failure} > {success} or {success} or {failure})"


RESULTS: Final = {"1": ("failed", "red"), "0": ("completed", "green")}
"""Texts of `last_result`."""


def firing_alerts(*matchers: str, hidden: Sequence[str] = ()) -> Any:
    """The alerts that fire, the most severe first. ``hidden``: labels that need not be shown."""
    where, firing = selector(*matchers), selector(*matchers, 'alertstate="firing"')
    return panels.table(
        "Alerts firing",
        "What Prometheus alerts about, pages before tickets, the newest first. Needs the shipped rules.",
        [Column("For", f"time() - (ALERTS_FOR_STATE{where} and ignoring (alertstate) ALERTS{firing})", "s")],
        order=[("severity", False), ("For", False)],
        link=ROW_TO_WORKFLOW,
        first=("severity", "alertname", "workflow", "step"),
        hidden=("__name__", "job", *hidden),
    )


def budget_ranking(*matchers: str) -> Any:
    """What was spent of the error budgets, those that are overspent first."""
    where = selector(*matchers)
    return panels.ranking(
        "Error budget spent",
        "How many times the failures allowed in 30 days; ×1 is all of it, and bars end there. Where less than one "
        "failure is allowed, that says nothing: there are too few runs, and the last result counts.",
        [
            (panels.worst(f"{BUDGET_SPENT}{where} >= 1"), "{{workflow}}: overspent"),
            (panels.worst(f"{BUDGET_SPENT}{where} < 1"), "{{workflow}}"),
            (panels.worst(f"({BUDGET_ALLOWED}{where} < 1) * 0 - 1"), "{{workflow}}"),
        ],
        "prefix:×",
        thresholds=((None, "green"), (0.75, "orange"), (1, "red")),
        texts={"-1": ("too few runs", "text")},
        high=1,
        link=TO_WORKFLOW,
    )


def failures(*matchers: str) -> Any:
    """An annotation at every failed run."""
    failed = counted(EXECUTION_DURATION, selector(*matchers, BAD), RATE, "workflow")
    annotation = dashboard.AnnotationQuery().name("Failures").datasource(panels.SOURCE).enable(True).icon_color("red")
    return annotation.expr(f"{failed} > 0")


def percentiles(spec: HistogramSpec, where: str) -> list[panels.Query]:
    """Queries for the median, 95th and 99th percentile."""
    return [
        (quantile(q, spec, where), name)
        for q, name in ((0.5, "median"), (0.95, "95th percentile"), (0.99, "99th percentile"))
    ]
