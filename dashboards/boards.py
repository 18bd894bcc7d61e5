"""The dashboards: what somebody on call asks, in the order it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards import kit
from dashboards.kit import OURS, PAGE, STEP
from dashboards.queries import (
    BAD,
    RANGE,
    RATE,
    count_rate,
    counted,
    heat,
    increase,
    quantile,
    rate,
    selector,
    success_ratio,
    sum_rate,
)
from dashboards.rules import BUDGET, BURN, ERROR_RATIO, WINDOWS
from tachograph.instrumentation.health import (
    BUILD_INFO,
    DELIVERED,
    DROPPED,
    EVENTS,
    LABEL_SETS,
    QUEUE_LENGTH,
    SCRAPE_DURATION,
    SCRAPE_SIZE,
    SERIES_LIMITED,
    STORE_WRITE,
    STREAM_CLIENTS,
    STREAM_LOST,
    STREAM_MESSAGES,
)
from tachograph.instrumentation.metrics import (
    CRITICAL_PATH,
    EXECUTION_DURATION,
    EXECUTIONS_RUNNING,
    EXECUTIONS_STARTED,
    LAST_SUCCESS,
    OLDEST_RUNNING,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_DURATION,
    STEP_MEASURE,
    STEP_RETRIES,
    STEP_TOKENS,
    STEP_WAIT,
    STEPS_RUNNING,
    STEPS_SKIPPED,
    HistogramSpec,
)

WORKSPACE: Final = kit.variable(
    "workspace", "Workspace", f"label_values({EXECUTIONS_STARTED.name}, workspace)", "Workspaces that ran something."
)
WORKFLOW: Final = kit.variable(
    "workflow",
    "Workflow",
    f'label_values({EXECUTIONS_STARTED.name}{{workspace=~"$workspace"}}, workflow)',
    "Workflows of these workspaces.",
)
STEPS: Final = kit.variable(
    "step", "Step", f"label_values({STEP_ATTEMPTS.name}{OURS}, step)", "Steps of these workflows."
)
INSTANCE: Final = kit.variable("instance", "Instance", f"label_values({EVENTS.name}, instance)", "Services.")
ADDRESS: Final = kit.text(
    "tachograph", "Tachograph", "http://localhost:9923", "Where the service's own page is, for links to runs."
)
TARGET: Final = kit.text("target", "Target", "0.99", "The part of executions that should complete (0 to 1).")
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


def _failures() -> Any:
    failed = counted(EXECUTION_DURATION, selector(OURS.strip("{}"), BAD), RATE, "workflow")
    found = dashboard.AnnotationQuery().name("Failures").datasource(kit.SOURCE).enable(True).icon_color("red")
    return found.expr(f"{failed} > 0")


def _percentiles(spec: HistogramSpec, where: str) -> list[kit.Query]:
    return [
        (quantile(q, spec, where), name)
        for q, name in ((0.5, "median"), (0.95, "95th percentile"), (0.99, "99th percentile"))
    ]


def overview() -> dashboard.Dashboard:
    """All workflows."""
    board = kit.base(
        "tachograph-overview",
        "Workflows overview",
        "What runs, what failed, what takes long, what it costs.",
        WORKSPACE,
        WORKFLOW,
        ADDRESS,
        TARGET,
    ).annotation(_failures())
    at = kit.Layout(board)
    at.section("Now")
    at.row(
        4,
        (4, kit.number("Running", "Executions that run now.", f"sum({EXECUTIONS_RUNNING.name}{OURS})", "short")),
        (
            4,
            kit.number(
                "Oldest running",
                "Since when the oldest of them runs.",
                f"time() - min({OLDEST_RUNNING.name}{OURS})",
                "s",
                ((None, "green"), (3600, "orange"), (86_400, "red")),
                empty="none",
            ),
        ),
        (
            4,
            kit.number(
                "Failed",
                "Executions that failed, timed out or were lost, in the time shown.",
                counted(EXECUTION_DURATION, selector(OURS.strip("{}"), BAD)) + " or vector(0)",
                "short",
                kit.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            4,
            kit.number(
                "Success rate",
                "Completed, of those that completed or failed, in the time shown.",
                success_ratio(OURS, RANGE),
                "percentunit",
                kit.GOOD_WHEN_HIGH,
                decimals=2,
                empty="–",
            ),
        ),
        (
            4,
            kit.number(
                "Executions",
                "Executions that started, in the time shown.",
                increase(EXECUTIONS_STARTED, OURS),
                "short",
                decimals=0,
            ),
        ),
        (
            4,
            kit.number(
                "Cost",
                "What steps reported as spent, in the time shown.",
                increase(STEP_COST, OURS) + " or vector(0)",
                "currencyUSD",
                decimals=2,
            ),
        ),
    )
    at.section("How it goes")
    at.row(
        8,
        (
            12,
            kit.lines(
                "Executions by outcome",
                "How many ended, and how.",
                [(counted(EXECUTION_DURATION, OURS, "$__interval", "status"), "{{status}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
        (
            12,
            kit.lines(
                "Success rate",
                "By workflow, over the last hour at each moment.",
                [(success_ratio(OURS, "1h", "workflow"), "{{workflow}}")],
                "percentunit",
                steps=kit.GOOD_WHEN_HIGH,
                link=TO_WORKFLOW,
                high=1,
            ),
        ),
    )
    at.row(
        8,
        (
            12,
            kit.lines(
                "Run time",
                "Median, 95th and 99th percentile of all executions that ended. Dots are traces.",
                _percentiles(EXECUTION_DURATION, OURS),
                "s",
                exemplars=True,
            ),
        ),
        (
            12,
            kit.heatmap_of("Run time, all of it", "How many executions took how long.", heat(EXECUTION_DURATION, OURS)),
        ),
    )
    at.section("Where to look first")
    at.row(
        9,
        (
            8,
            kit.ranking(
                "Slowest workflows",
                "95th percentile of the run time, in the time shown.",
                f"topk(10, {quantile(0.95, EXECUTION_DURATION, OURS, RANGE, 'workflow')})",
                "{{workflow}}",
                "s",
                link=TO_WORKFLOW,
            ),
        ),
        (
            8,
            kit.ranking(
                "Least reliable workflows",
                "Part of the executions that failed, in the time shown.",
                f"topk(10, 1 - ({success_ratio(OURS, RANGE, 'workflow')}))",
                "{{workflow}}",
                "percentunit",
                link=TO_WORKFLOW,
                steps=((None, "green"), (0.01, "orange"), (0.05, "red")),
            ),
        ),
        (
            8,
            kit.ranking(
                "Running for the longest",
                "Since when the oldest running execution of each workflow runs.",
                f"topk(10, time() - min by (workflow) ({OLDEST_RUNNING.name}{OURS}))",
                "{{workflow}}",
                "s",
                link=TO_PAGE,
            ),
        ),
    )
    at.section("Budget and cost")
    at.row(
        8,
        (
            12,
            kit.lines(
                "Error budget left",
                "Of what the target allows to fail in the time shown: 1 is all, below 0 is overspent.",
                [(f"1 - (1 - ({success_ratio(OURS, RANGE, 'workflow')})) / (1 - $target)", "{{workflow}}")],
                "percentunit",
                low=None,
                steps=((None, "red"), (0, "orange"), (0.25, "green")),
                link=TO_WORKFLOW,
            ),
        ),
        (
            12,
            kit.lines(
                "Cost",
                "US dollars an hour, by workflow.",
                [(f"3600 * {rate(STEP_COST, OURS, by='workflow')}", "{{workflow}}")],
                "currencyUSD",
                stacked=True,
                link=TO_WORKFLOW,
            ),
        ),
    )
    return board


def workflow() -> dashboard.Dashboard:
    """One workflow."""
    board = kit.base(
        "tachograph-workflow",
        "Workflow",
        "One workflow: how long, which step, since when.",
        WORKSPACE,
        WORKFLOW,
        ADDRESS,
    ).annotation(_failures())
    on_page = dashboard.DashboardLink("Runs on the page").type(models.DashboardLinkType.LINK).icon("external link")
    board = board.link(on_page.url(f"{PAGE}/#/?workflow=${{workflow}}&{FROM}").target_blank(True))
    at = kit.Layout(board)
    at.section("Now")
    at.row(
        4,
        (4, kit.number("Running", "Executions that run now.", f"sum({EXECUTIONS_RUNNING.name}{OURS})", "short")),
        (
            4,
            kit.number(
                "Longest running",
                "Since when the oldest of them runs.",
                f"time() - min({OLDEST_RUNNING.name}{OURS})",
                "s",
                empty="none",
            ),
        ),
        (
            4,
            kit.number(
                "Last success",
                "How long ago an execution last completed.",
                f"time() - max({LAST_SUCCESS.name}{OURS})",
                "s",
                ((None, "green"), (86_400, "orange"), (172_800, "red")),
                empty="never",
            ),
        ),
        (
            4,
            kit.number(
                "Success rate",
                "In the time shown.",
                success_ratio(OURS, RANGE),
                "percentunit",
                kit.GOOD_WHEN_HIGH,
                decimals=2,
                empty="–",
            ),
        ),
        (
            4,
            kit.number(
                "95th percentile",
                "Of the run time, in the time shown.",
                quantile(0.95, EXECUTION_DURATION, OURS, RANGE),
                "s",
                empty="–",
            ),
        ),
        (
            4,
            kit.number(
                "Retries",
                "Attempts that were followed by another, in the time shown.",
                increase(STEP_RETRIES, OURS),
                "short",
                decimals=0,
            ),
        ),
    )
    at.section("How long")
    at.row(
        9,
        (
            12,
            kit.heatmap_of(
                "Run time", "How many executions took how long. Dots are traces.", heat(EXECUTION_DURATION, OURS)
            ),
        ),
        (
            12,
            kit.lines(
                "Outcome",
                "How many ended, and how.",
                [(counted(EXECUTION_DURATION, OURS, "$__interval", "status"), "{{status}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
    )
    at.section("Which step")
    at.row(
        10,
        (
            12,
            kit.ranking(
                "Critical path by step",
                "Seconds that each step was what everything else waited for, in the time "
                "shown: what to speed up first.",
                f"topk(15, {increase(CRITICAL_PATH, OURS, by='step')})",
                "{{step}}",
                "s",
                link=TO_STEP,
            ),
        ),
        (
            12,
            kit.lines(
                "Steps, 95th percentile",
                "Of the time from a step's first attempt to the end of its last.",
                [(quantile(0.95, STEP_DURATION, OURS, by="step"), "{{step}}")],
                "s",
                exemplars=True,
                link=TO_STEP,
            ),
        ),
    )
    at.row(
        9,
        (
            8,
            kit.lines(
                "Waiting",
                "Seconds waited a second: for other steps, for a slot, for backoff to pass.",
                [(sum_rate(STEP_WAIT, OURS, by="reason"), "{{reason}}")],
                "s",
                stacked=True,
            ),
        ),
        (
            8,
            kit.lines(
                "Waiting for a slot, by step",
                "The 95th percentile before an attempt.",
                [(quantile(0.95, STEP_WAIT, selector(OURS.strip("{}"), 'reason="queue"'), by="step"), "{{step}}")],
                "s",
                link=TO_STEP,
            ),
        ),
        (
            8,
            kit.lines(
                "Retries",
                "An hour, by step.",
                [(f"3600 * {rate(STEP_RETRIES, OURS, by='step')}", "{{step}}")],
                "short",
                stacked=True,
                link=TO_STEP,
            ),
        ),
    )
    at.row(
        8,
        (
            12,
            kit.lines(
                "Steps running",
                "Attempts that run at the same time.",
                [(f"sum by (workflow) ({STEPS_RUNNING.name}{OURS})", "{{workflow}}")],
                "short",
            ),
        ),
        (
            12,
            kit.lines(
                "Skipped steps",
                "How many, and why.",
                [(f"sum by (reason) (increase({STEPS_SKIPPED.name}{OURS}[$__interval]))", "{{reason}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
    )
    return board


def step() -> dashboard.Dashboard:
    """One step."""
    board = kit.base(
        "tachograph-step",
        "Step",
        "One step: how long it takes, how it ends, what it waits for and costs.",
        WORKSPACE,
        WORKFLOW,
        STEPS,
        ADDRESS,
    )
    at = kit.Layout(board)
    share = f"{increase(CRITICAL_PATH, STEP)} / {increase(CRITICAL_PATH, OURS)}"
    failed = increase(STEP_ATTEMPTS, selector(STEP.strip("{}"), 'outcome=~"failed|timeout|lost"'))
    at.section("At a glance")
    at.row(
        4,
        (6, kit.number("Runs", "Times it ran, in the time shown.", counted(STEP_DURATION, STEP), "short", decimals=0)),
        (
            6,
            kit.number(
                "95th percentile",
                "From its first attempt to the end of its last, in the time shown.",
                quantile(0.95, STEP_DURATION, STEP, RANGE),
                "s",
                empty="–",
            ),
        ),
        (
            6,
            kit.number(
                "Failed attempts",
                "Of all attempts, in the time shown.",
                f"({failed} or vector(0)) / {increase(STEP_ATTEMPTS, STEP)}",
                "percentunit",
                ((None, "green"), (0.01, "orange"), (0.1, "red")),
                decimals=1,
                empty="–",
            ),
        ),
        (
            6,
            kit.number(
                "Share of the critical path",
                "Of its workflow's, in the time shown.",
                share,
                "percentunit",
                decimals=1,
                empty="–",
            ),
        ),
    )
    at.section("How long")
    at.row(
        9,
        (
            12,
            kit.heatmap_of(
                "Duration", "How many runs of the step took how long. Dots are traces.", heat(STEP_DURATION, STEP)
            ),
        ),
        (
            12,
            kit.lines(
                "Duration",
                "Median, 95th and 99th percentile. Dots are traces.",
                _percentiles(STEP_DURATION, STEP),
                "s",
                exemplars=True,
            ),
        ),
    )
    at.section("How it ends, what it waits for")
    at.row(
        9,
        (
            12,
            kit.lines(
                "Attempts by outcome",
                "How many attempts ended, and how.",
                [(f"sum by (outcome) (increase({STEP_ATTEMPTS.name}{STEP}[$__interval]))", "{{outcome}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
        (
            12,
            kit.lines(
                "Wait against work",
                "Seconds a second: running, and waiting by reason.",
                [(sum_rate(STEP_DURATION, STEP), "run"), (sum_rate(STEP_WAIT, STEP, by="reason"), "{{reason}}")],
                "s",
                stacked=True,
            ),
        ),
    )
    at.section("What it costs and measures")
    at.row(
        8,
        (
            8,
            kit.lines(
                "Cost",
                "US dollars an hour, by model.",
                [(f"3600 * {rate(STEP_COST, STEP, by='model')}", "{{model}}")],
                "currencyUSD",
                stacked=True,
            ),
        ),
        (
            8,
            kit.lines(
                "Tokens",
                "A second, by model and type.",
                [(rate(STEP_TOKENS, STEP, by="model, type"), "{{model}} {{type}}")],
                "short",
                stacked=True,
            ),
        ),
        (
            8,
            kit.lines(
                "Measured",
                "Mean of what the step reported under declared names.",
                [
                    (
                        f"{sum_rate(STEP_MEASURE, STEP, by='measure, unit')} / "
                        f"{count_rate(STEP_MEASURE, STEP, by='measure, unit')}",
                        "{{measure}} {{unit}}",
                    )
                ],
                "short",
            ),
        ),
    )
    return board


def slo() -> dashboard.Dashboard:
    """Burn rates and budgets, from the recording rules."""
    board = kit.base(
        "tachograph-slo",
        "SLO",
        "How fast each workflow spends what it may fail; needs the recording rules.",
        WORKSPACE,
        WORKFLOW,
    )
    at = kit.Layout(board)
    at.section("Budget")
    at.row(
        8,
        (
            12,
            kit.ranking(
                "Budget left in 30 days",
                "Of what the target allows to fail: 1 is all, below 0 is overspent.",
                f"{BUDGET}{OURS}",
                "{{workflow}}",
                "percentunit",
                steps=((None, "red"), (0, "orange"), (0.25, "green")),
            ),
        ),
        (
            12,
            kit.lines(
                "Budget left in 30 days",
                "How it went.",
                [(f"{BUDGET}{OURS}", "{{workflow}}")],
                "percentunit",
                low=None,
                steps=((None, "red"), (0, "orange"), (0.25, "green")),
            ),
        ),
    )
    at.section("Burn rate: 1 spends exactly the budget in 30 days; an alert of each kind looks at two windows")
    for short, long, factor, what in (
        ("5m", "1h", 14.4, "a page"),
        ("30m", "6h", 6, "a page"),
        ("6h", "3d", 1, "a ticket"),
    ):
        at.row(
            8,
            (
                24,
                kit.lines(
                    f"{short} and {long}",
                    f"Both above {factor:g} is {what}.",
                    [
                        (
                            f"{BURN}{selector(OURS.strip('{}'), f'window=~{chr(34)}{short}|{long}{chr(34)}')}",
                            "{{workflow}} {{window}}",
                        )
                    ],
                    "short",
                    steps=((None, "green"), (factor, "red")),
                ),
            ),
        )
    at.section("Failing executions")
    at.row(
        8,
        (
            24,
            kit.lines(
                "Part that fails", "By window.", [(f"{ERROR_RATIO}{OURS}", "{{workflow}} {{window}}")], "percentunit"
            ),
        ),
    )
    if not {"5m", "30m", "1h", "6h", "3d"} <= set(WINDOWS):
        raise ValueError("a window is not recorded")
    return board


def itself() -> dashboard.Dashboard:
    """Tachograph's own health."""
    here = selector('instance=~"$instance"')
    board = kit.base(
        "tachograph-itself", "Tachograph itself", "Is what the other dashboards show all there is?", INSTANCE
    )
    at = kit.Layout(board)
    at.section("Is anything lost?")
    at.row(
        4,
        (
            6,
            kit.number(
                "Events lost",
                "That a listener never got, in the time shown.",
                increase(DROPPED, here),
                "short",
                kit.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            6,
            kit.number(
                "Series beyond the limit",
                "Look-ups of label sets counted as `other` instead, in the time shown.",
                increase(SERIES_LIMITED, here),
                "short",
                kit.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            6,
            kit.number(
                "Stream clients refused",
                "Let go for being too slow, or not let in, in the time shown.",
                increase(STREAM_LOST, here),
                "short",
                kit.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (6, kit.number("Label sets", "Of all metrics about workflows.", f"sum({LABEL_SETS.name}{here})", "short")),
    )
    at.section("Events")
    at.row(
        8,
        (
            8,
            kit.lines(
                "Events",
                "Recorded a second, and taken by each listener.",
                [(rate(EVENTS, here), "recorded"), (rate(DELIVERED, here, by="listener"), "{{listener}}")],
                "short",
            ),
        ),
        (
            8,
            kit.lines(
                "Waiting",
                "Events that wait for a listener.",
                [(f"sum by (listener) ({QUEUE_LENGTH.name}{here})", "{{listener}}")],
                "short",
            ),
        ),
        (
            8,
            kit.lines(
                "Lost",
                "Events a listener never got, by reason.",
                [(rate(DROPPED, here, by="listener, reason"), "{{listener}} {{reason}}")],
                "short",
            ),
        ),
    )
    at.section("Store and scrapes")
    at.row(
        8,
        (
            8,
            kit.lines(
                "Commits",
                "How long a commit of events takes.",
                [(quantile(0.5, STORE_WRITE, here), "median"), (quantile(0.99, STORE_WRITE, here), "99th percentile")],
                "s",
            ),
        ),
        (
            8,
            kit.lines(
                "Scrape time",
                "How long a scrape takes to render.",
                [(quantile(0.99, SCRAPE_DURATION, here, by="format"), "{{format}}")],
                "s",
            ),
        ),
        (
            8,
            kit.lines(
                "Scrape size",
                "Bytes of the last scrape.",
                [(f"max by (format) ({SCRAPE_SIZE.name}{here})", "{{format}}")],
                "bytes",
            ),
        ),
    )
    at.section("Stream and process")
    at.row(
        8,
        (
            8,
            kit.lines(
                "Stream clients",
                "Who follows live events.",
                [(f"sum by (kind) ({STREAM_CLIENTS.name}{here})", "{{kind}}")],
                "short",
            ),
        ),
        (
            8,
            kit.lines(
                "Stream messages",
                "Put to clients, a second; clients refused an hour.",
                [
                    (rate(STREAM_MESSAGES, here), "messages"),
                    (f"3600 * {rate(STREAM_LOST, here, by='reason')}", "refused: {{reason}}"),
                ],
                "short",
            ),
        ),
        (
            8,
            kit.lines(
                "Process",
                "Processor seconds a second, and how much is resident, in GiB.",
                [
                    (f"sum(rate(process_cpu_seconds_total{here}[{RATE}]))", "processor"),
                    (f"sum(process_resident_memory_bytes{here}) / 2^30", "memory, GiB"),
                ],
                "short",
            ),
        ),
    )
    at.row(
        5,
        (
            24,
            kit.table(
                "Versions",
                "What runs where.",
                [("running", f"count by (instance, version) ({BUILD_INFO.name}{here})", "short")],
                "instance",
            ),
        ),
    )
    return board


BOARDS: Final[dict[str, Callable[[], dashboard.Dashboard]]] = {
    "overview": overview,
    "workflow": workflow,
    "step": step,
    "slo": slo,
    "itself": itself,
}


def built() -> Iterator[tuple[str, models.Dashboard]]:
    """Each dashboard under the name of its file."""
    for name, make in BOARDS.items():
        yield name, make().build()
