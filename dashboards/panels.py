"""Building blocks of all dashboards: panels with one look, one colour per status, a layout without gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

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

from tachograph_exporter.alerting.promql import RANGE

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
    "scheduled": "purple",
    "run": "green",
}
"""Each status has the same colour on every dashboard and on the web page."""
PER_HOUR: Final = "suffix: /h"
PER_SECOND: Final = "suffix: /s"
USD_PER_HOUR: Final = "suffix: $/h"
"""Units of rates."""

Link = tuple[str, str]
"""(title, URL) of what a click leads to."""
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
    limit: str = "",
    link: Link | None = None,
    low: float | None = 0,
    high: float | None = None,
    is_low_worst: bool = False,
) -> Any:
    """Lines (or bars) over time, with a table of values below, the worst first.

    ``limit``: the legend of the line that is drawn as a limit. ``low``, ``high``: limits of the y axis.
    """
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE)
    legend = legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True)
    legend = legend.calcs(["mean", "min" if is_low_worst else "max", "lastNotNull"])
    legend = legend.sort_by("Min" if is_low_worst else "Max").sort_desc(not is_low_worst)
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    order = common_models.SortOrder.ASCENDING if is_low_worst else common_models.SortOrder.DESCENDING
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .legend(legend)
        .tooltip(tooltip.sort(order))
        .line_width(1)
        .fill_opacity(60 if stacked or bars else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .thresholds(_thresholds(thresholds))
    )
    if len(thresholds) > 1:
        style = common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    if low is not None:
        panel = panel.min(low)
    if high is not None:
        panel = panel.max(high)
    if bars:
        panel = panel.draw_style(common_models.GraphDrawStyle.BARS).interval("1h")
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    for name, properties in _status_colours():
        panel = panel.override_by_name(name, properties)
    if limit:
        panel = panel.override_by_name(limit, _LIMIT)
    if link is not None:
        panel = panel.data_links([dashboard.DashboardLink(link[0]).url(link[1]).target_blank(True)])
    for query in _targets(queries, exemplar=exemplars):
        panel = panel.with_target(query)
    return panel


_LIMIT: Final = [
    models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": "red"}),
    models.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]}),
    models.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
]


def number(
    title: str,
    description: str,
    expression: str,
    unit: str,
    thresholds: Sequence[tuple[float | None, str]] = NEUTRAL,
    *,
    link: Link,
    decimals: int | None = None,
    empty: str = "0",
    texts: Mapping[str, tuple[str, str]] | None = None,
) -> Any:
    """One number, over a sparkline unless it is about the whole time range; a click leads to what is behind it.

    ``empty``: shown when the query returns nothing. ``texts``: (text, colour) shown instead of values.
    """
    # Asked once: each point of a sparkline would read the samples of the whole range again.
    is_total = RANGE in expression
    query = prometheus.Dataquery().expr(expression).legend_format(title).ref_id("A").datasource(SOURCE)
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_thresholds(thresholds))
        .graph_mode(common_models.BigValueGraphMode.NONE if texts or is_total else common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .no_value(empty)
        .data_links([dashboard.DashboardLink(link[0]).url(link[1])])
        .with_target(query.instant() if is_total else query.range())
    )
    if texts:
        panel = panel.mappings(texts_of(texts))
    return panel.decimals(decimals) if decimals is not None else panel


def texts_of(texts: Mapping[str, tuple[str, str]]) -> list[Any]:
    """Mappings that show (text, colour) instead of values."""
    """Value mappings: (text, colour) by value."""
    results = {value: models.ValueMappingResult(text=text, color=colour) for value, (text, colour) in texts.items()}
    return [models.ValueMap(options=results)]


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
    queries: Sequence[Query],
    unit: str,
    *,
    link: Link,
    thresholds: Sequence[tuple[float | None, str]] = NEUTRAL,
    high: float | None = None,
    texts: Mapping[str, tuple[str, str]] | None = None,
) -> Any:
    """Horizontal bars in the order of the queries, each of which sorts its own. ``texts``: as in `number`."""
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
        .data_links([dashboard.DashboardLink(link[0]).url(link[1])])
    )
    for i, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + i)).instant()
        panel = panel.with_target(query.datasource(SOURCE))
    if high is not None:
        panel = panel.max(high)
    return panel.mappings(texts_of(texts)) if texts else panel


def worst(expression: str, number: int = 10) -> str:
    """The greatest values, greatest first."""
    return f"sort_desc(topk({number}, {expression}))"


class Column(NamedTuple):
    """A column of a table. ``texts``: (text, colour) by value; ``empty``: shown where a row has no value."""

    name: str
    expression: str
    unit: str = "short"
    texts: Mapping[str, tuple[str, str]] | None = None
    empty: str = ""


def table(
    title: str,
    description: str,
    columns: Sequence[Column],
    *,
    order: Sequence[tuple[str, bool]],
    first: Sequence[str],
    hidden: Sequence[str] = (),
    link: Link | None = None,
) -> Any:
    """A table with a row for each set of labels.

    ``order``: (column, whether greatest first), most important first. ``first``: the labels on the left, before the
    columns; other labels follow. ``hidden``: labels that are not shown.
    """
    panel = tables.Panel().title(title).description(description).datasource(SOURCE)
    panel = panel.sort_by([common.TableSortByFieldState().display_name(name).desc(desc) for name, desc in order])
    rename: dict[str, str] = {}
    for i, column in enumerate(columns):
        ref = chr(ord("A") + i)
        panel = panel.with_target(target(column.expression, column.name, ref, instant=True))
        rename[f"Value #{ref}" if len(columns) > 1 else "Value"] = column.name
        properties = [models.DynamicConfigValue(id_val="unit", value=column.unit)]
        if column.texts:
            mappings = [{"type": "value", "options": {value: {"text": text, "color": colour}
                                                      for value, (text, colour) in column.texts.items()}}]  # fmt: skip
            properties.append(models.DynamicConfigValue(id_val="mappings", value=mappings))
            properties.append(models.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
        if column.empty:
            properties.append(models.DynamicConfigValue(id_val="noValue", value=column.empty))
        panel = panel.override_by_name(column.name, properties)
    if link is not None:
        panel = panel.data_links([dashboard.DashboardLink(link[0]).url(link[1])])
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    options = {
        "renameByName": rename,
        "excludeByName": dict.fromkeys(("Time", *hidden), True),
        "indexByName": {name: i for i, name in enumerate((*first, *rename))},
    }
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
