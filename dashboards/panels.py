"""What all dashboards are made of: one look for panels, one colour language for statuses, a layout without holes."""

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

from dashboards.promql import selector

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
"""The same colour for the same word on every dashboard; the page's own."""
OURS: Final = selector('workspace=~"$workspace"', 'workflow=~"$workflow"')
STEP: Final = selector('workspace=~"$workspace"', 'workflow=~"$workflow"', 'step=~"$step"')
PAGE: Final = "${tachograph}"
GRID: Final = 24

Query = tuple[str, str]
"""(PromQL, legend)"""


def target(expression: str, legend: str, ref: str, *, instant: bool = False, exemplar: bool = False) -> Any:
    """One query of a panel."""
    made = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref).datasource(SOURCE)
    made = made.instant().format(prometheus_models.PromQueryFormat.TABLE) if instant else made.range()
    return made.exemplar(exemplar)


def _refs(queries: Sequence[Query], **how: Any) -> list[Any]:
    return [target(expression, legend, chr(ord("A") + i), **how) for i, (expression, legend) in enumerate(queries)]


def _steps(*steps: tuple[float | None, str]) -> Any:
    found = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


GOOD_WHEN_HIGH: Final = ((None, "red"), (0.95, "orange"), (0.99, "green"))
GOOD_WHEN_ZERO: Final = ((None, "green"), (1, "red"))
NEUTRAL: Final = ((None, "blue"),)


def colours() -> list[tuple[str, list[Any]]]:
    """Overrides that give series named after a status its colour."""
    return [
        (name, [models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})])
        for name, colour in STATUS_COLOURS.items()
    ]


def lines(
    title: str,
    about: str,
    queries: Sequence[Query],
    unit: str,
    *,
    stacked: bool = False,
    exemplars: bool = False,
    bars: bool = False,
    steps: Sequence[tuple[float | None, str]] = NEUTRAL,
    link: tuple[str, str] | None = None,
    low: float | None = 0,
    high: float | None = None,
) -> Any:
    """Lines (or bars) over time with a table of values below."""
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE)
    legend = (
        legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True).calcs(["mean", "max", "lastNotNull"])
    )
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .legend(legend)
        .tooltip(tooltip.sort(common_models.SortOrder.DESCENDING))
        .line_width(1)
        .fill_opacity(60 if stacked else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .thresholds(_steps(*steps))
    )
    if low is not None:
        panel = panel.min(low)
    if high is not None:
        panel = panel.max(high)
    if bars:
        panel = panel.draw_style(common_models.GraphDrawStyle.BARS)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    for name, properties in colours():
        panel = panel.override_by_name(name, properties)
    if link is not None:
        panel = panel.data_links([dashboard.DashboardLink(link[0]).url(link[1]).target_blank(True)])
    for one in _refs(queries, exemplar=exemplars):
        panel = panel.with_target(one)
    return panel


def number(
    title: str,
    about: str,
    expression: str,
    unit: str,
    steps: Sequence[tuple[float | None, str]] = NEUTRAL,
    *,
    decimals: int | None = None,
    empty: str = "0",
) -> Any:
    """One figure, with how it went behind it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_steps(*steps))
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .no_value(empty)
        .with_target(target(expression, title, "A"))
    )
    return panel.decimals(decimals) if decimals is not None else panel


def heatmap_of(title: str, about: str, expression: str, unit: str = "s") -> Any:
    """A histogram over time; exemplars are dots that lead to a trace."""
    options = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    query = target(expression, "{{le}}", "A", exemplar=True).format(prometheus_models.PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
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
    about: str,
    expression: str,
    legend: str,
    unit: str,
    *,
    link: tuple[str, str] | None = None,
    steps: Sequence[tuple[float | None, str]] = NEUTRAL,
) -> Any:
    """Bars, the greatest first."""
    query = prometheus.Dataquery().expr(f"sort_desc({expression})").legend_format(legend).ref_id("A").instant()
    panel = (
        bargauge.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_steps(*steps))
        .min(0)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .with_target(query.datasource(SOURCE))
    )
    if link is not None:
        panel = panel.data_links([dashboard.DashboardLink(link[0]).url(link[1])])
    return panel


def table(title: str, about: str, columns: Sequence[tuple[str, str, str]], key: str) -> Any:
    """A table with a row for each value of a label; columns are (name, PromQL, unit)."""
    panel = tables.Panel().title(title).description(about).datasource(SOURCE)
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
    """Puts panels beside each other, row by row; a row has 24 columns, none left over."""

    def __init__(self, board: dashboard.Dashboard) -> None:
        self.board = board
        self._y = 0

    def section(self, title: str) -> None:
        """A heading."""
        self.board.with_row(dashboard.Row(title).grid_pos(models.GridPos(h=1, w=GRID, x=0, y=self._y)))
        self._y += 1

    def row(self, height: int, *panels: tuple[int, Any]) -> None:
        """Panels with their widths. Raises ValueError where they do not fill the row."""
        if sum(width for width, _ in panels) != GRID:
            raise ValueError(f"a row of {[width for width, _ in panels]} does not fill {GRID} columns")
        x = 0
        for width, panel in panels:
            self.board.with_panel(panel.grid_pos(models.GridPos(h=height, w=width, x=x, y=self._y)))
            x += width
        self._y += height


def variable(name: str, label: str, query: str, about: str) -> Any:
    """A variable with the values of a label; all of them by default."""
    found = dashboard.QueryVariable(name).label(label).description(about).datasource(SOURCE)
    found = found.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    found = found.sort(models.VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True).all_value(".*")
    return found.current(models.VariableOption(selected=True, text="All", value="$__all"))


def text(name: str, label: str, value: str, about: str) -> Any:
    """A variable that is typed in."""
    found = dashboard.TextBoxVariable(name).label(label).description(about).default_value(value)
    return found.current(models.VariableOption(selected=True, text=value, value=value))


def source() -> Any:
    """The variable for the Prometheus data source."""
    found = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").multi(False)
    return found.current(models.VariableOption(selected=True, text="default", value="default"))


def base(uid: str, title: str, about: str, *variables: Any) -> dashboard.Dashboard:
    """A dashboard without panels, with links to its siblings."""
    found = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["tachograph"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .editable()
    )
    siblings = dashboard.DashboardLink("Tachograph").type(models.DashboardLinkType.DASHBOARDS).tags(["tachograph"])
    found = found.link(siblings.as_dropdown(True).include_vars(True).keep_time(True))
    found = found.with_variable(source())
    for one in variables:
        found = found.with_variable(one)
    return found
