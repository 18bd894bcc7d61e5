"""Building blocks of all dashboards: panels with one look, one colour per status, a layout without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
STATUS_COLOURS: Final = {
    "completed": "green",
    "failed": "red",
    "timeout": "dark-orange",
    "lost": "purple",
    "cancelled": "yellow",
    "running": "blue",
    "retrying": "light-yellow",
    "skipped": "text",
    "success": "green",
    "skip": "text",
    "dependency": "text",
    "queue": "orange",
    "backoff": "yellow",
    "run": "green",
}
"""Each status has the same colour on every dashboard and on the web page."""
GRID_WIDTH: Final = 24

Query = tuple[str, str]
"""(PromQL, legend)"""


def target(expression: str, legend: str, ref: str, *, instant: bool = False, exemplar: bool = False) -> Any:
    """One query of a panel."""
    query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref).datasource(SOURCE)
    query = query.instant().format(prometheus_models.PromQueryFormat.TABLE) if instant else query.range()
    return query.exemplar(exemplar)


def _targets(queries: Sequence[Query], **options: Any) -> list[Any]:
    return [target(expression, legend, chr(ord("A") + i), **options) for i, (expression, legend) in enumerate(queries)]


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> Any:
    thresholds = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)


GOOD_WHEN_HIGH: Final = ((None, "red"), (0.95, "orange"), (0.99, "green"))
GOOD_WHEN_ZERO: Final = ((None, "green"), (1, "red"))
NEUTRAL: Final = ((None, "blue"),)
BUDGET_THRESHOLDS: Final = ((None, "red"), (0, "orange"), (0.25, "green"))
BUDGET_MIN, BUDGET_MAX = -1, 1
"""Limits of what is drawn of an error budget, as a fraction: one failure of a nightly workflow is three budgets."""


def budget(left: str) -> str:
    """The fraction of an error budget that is left, within the limits of what is drawn."""
    return f"clamp({left}, {BUDGET_MIN}, {BUDGET_MAX})"


def _budget_mappings() -> list[Any]:
    overspent = models.ValueMappingResult(text="-100% or less", color="red")
    return [models.RangeMap(options=models.DashboardRangeMapOptions(to=BUDGET_MIN, result=overspent))]


def budget_lines(title: str, description: str, left: str, link: tuple[str, str] | None = None) -> Any:
    """The error budget left by workflow over time."""
    panel = lines(
        title,
        f"{description} Below 0 it is overspent; what is below -100 % is drawn as -100 %.",
        [(budget(left), "{{workflow}}")],
        "percentunit",
        low=BUDGET_MIN,
        high=BUDGET_MAX,
        thresholds=BUDGET_THRESHOLDS,
        link=link,
    )
    return panel.mappings(_budget_mappings())


def budget_ranking(title: str, description: str, left: str) -> Any:
    """The error budget left by workflow now."""
    panel = ranking(title, description, budget(left), "{{workflow}}", "percentunit", thresholds=BUDGET_THRESHOLDS)
    return panel.min(BUDGET_MIN).max(BUDGET_MAX).mappings(_budget_mappings())


def _status_colours() -> list[tuple[str, list[Any]]]:
    """Overrides that colour each series named after a status."""
    return [
        (name, [models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})])
        for name, colour in STATUS_COLOURS.items()
    ]


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    *,
    stacked: bool = False,
    exemplars: bool = False,
    bars: bool = False,
    thresholds: Sequence[tuple[float | None, str]] = NEUTRAL,
    link: tuple[str, str] | None = None,
    low: float | None = 0,
    high: float | None = None,
) -> Any:
    """Lines (or bars) over time, with a table of values below. ``low``, ``high``: limits of the y axis."""
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE)
    legend = (
        legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True).calcs(["mean", "max", "lastNotNull"])
    )
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .legend(legend)
        .tooltip(tooltip.sort(common_models.SortOrder.DESCENDING))
        .line_width(1)
        .fill_opacity(60 if stacked else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .thresholds(_thresholds(thresholds))
    )
    if low is not None:
        panel = panel.min(low)
    if high is not None:
        panel = panel.max(high)
    if bars:
        # A bar counts what ended within $__rate_interval, which is little longer than the bar from a minute on.
        panel = panel.draw_style(common_models.GraphDrawStyle.BARS).interval("1m")
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    for name, properties in _status_colours():
        panel = panel.override_by_name(name, properties)
    if link is not None:
        panel = panel.data_links([dashboard.DashboardLink(link[0]).url(link[1]).target_blank(True)])
    for query in _targets(queries, exemplar=exemplars):
        panel = panel.with_target(query)
    return panel


def number(
    title: str,
    description: str,
    expression: str,
    unit: str,
    thresholds: Sequence[tuple[float | None, str]] = NEUTRAL,
    *,
    decimals: int | None = None,
    empty: str = "0",
) -> Any:
    """One number over a sparkline. ``empty``: shown when the query returns nothing."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_thresholds(thresholds))
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .no_value(empty)
        .with_target(target(expression, title, "A"))
    )
    return panel.decimals(decimals) if decimals is not None else panel


def heatmap_of(title: str, description: str, expression: str, unit: str = "s") -> Any:
    """A histogram over time. Exemplars are dots that link to a trace."""
    options = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    query = target(expression, "{{le}}", "A", exemplar=True).format(prometheus_models.PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .calculate(False)
        .color(options.scale(heatmap_models.HeatmapColorScale.EXPONENTIAL).exponent(0.5).fill("dark-blue"))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .exemplars_color("rgba(255,0,255,0.7)")
        .show_legend()
        .cell_gap(1)
        .with_target(query)
    )


def ranking(
    title: str,
    description: str,
    expression: str,
    legend: str,
    unit: str,
    *,
    link: tuple[str, str] | None = None,
    thresholds: Sequence[tuple[float | None, str]] = NEUTRAL,
) -> Any:
    """Horizontal bars, greatest first."""
    query = prometheus.Dataquery().expr(f"sort_desc({expression})").legend_format(legend).ref_id("A").instant()
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_thresholds(thresholds))
        .min(0)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .with_target(query.datasource(SOURCE))
    )
    if link is not None:
        panel = panel.data_links([dashboard.DashboardLink(link[0]).url(link[1])])
    return panel


def table(title: str, description: str, columns: Sequence[tuple[str, str, str]], key: str) -> Any:
    """A table with one row per value of the label ``key``. Columns are (name, PromQL, unit)."""
    panel = tables.Panel().title(title).description(description).datasource(SOURCE)
    rename: dict[str, str] = {}
    exclude = {"Time": True}
    for i, (name, expression, unit) in enumerate(columns):
        ref = chr(ord("A") + i)
        panel = panel.with_target(target(expression, name, ref, instant=True))
        rename[f"Value #{ref}"] = name
        panel = panel.override_by_name(name, [models.DynamicConfigValue(id_val="unit", value=unit)])
    if len(columns) == 1:
        rename["Value"] = columns[0][0]
    panel = panel.with_transformation(
        models.DataTransformerConfig(id_val="joinByField", options={"byField": key, "mode": "outer"})
    )
    return panel.with_transformation(
        models.DataTransformerConfig(id_val="organize", options={"renameByName": rename, "excludeByName": exclude})
    )


class Layout:
    """Places panels side by side, row by row. Every row fills all 24 columns."""

    def __init__(self, board: dashboard.Dashboard) -> None:
        self.board = board
        self._y = 0

    def section(self, title: str) -> None:
        """Start a section with a heading."""
        self.board.with_row(dashboard.Row(title).grid_pos(models.GridPos(h=1, w=GRID_WIDTH, x=0, y=self._y)))
        self._y += 1

    def row(self, height: int, *panels: tuple[int, Any]) -> None:
        """Add a row of (width, panel). Raises ValueError if the widths do not fill the row."""
        if sum(width for width, _ in panels) != GRID_WIDTH:
            raise ValueError(f"a row of {[width for width, _ in panels]} does not fill {GRID_WIDTH} columns")
        x = 0
        for width, panel in panels:
            self.board.with_panel(panel.grid_pos(models.GridPos(h=height, w=width, x=x, y=self._y)))
            x += width
        self._y += height


def variable(name: str, label: str, query: str, description: str) -> Any:
    """A variable that offers the values of a label. All of them are selected by default."""
    option = dashboard.QueryVariable(name).label(label).description(description).datasource(SOURCE)
    option = option.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    option = option.sort(models.VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True).all_value(".*")
    return option.current(models.VariableOption(selected=True, text="All", value="$__all"))


def text(name: str, label: str, value: str, description: str) -> Any:
    """A free-text variable."""
    option = dashboard.TextBoxVariable(name).label(label).description(description).default_value(value)
    return option.current(models.VariableOption(selected=True, text=value, value=value))


def data_source() -> Any:
    """The variable that selects the Prometheus data source."""
    option = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").multi(False)
    return option.current(models.VariableOption(selected=True, text="default", value="default"))


def base(uid: str, title: str, description: str, *variables: Any) -> dashboard.Dashboard:
    """A dashboard without panels, linked to the other dashboards."""
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["tachograph"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .editable()
    )
    siblings = dashboard.DashboardLink("Tachograph").type(models.DashboardLinkType.DASHBOARDS).tags(["tachograph"])
    board = board.link(siblings.as_dropdown(True).include_vars(True).keep_time(True))
    board = board.with_variable(data_source())
    for option in variables:
        board = board.with_variable(option)
    return board
