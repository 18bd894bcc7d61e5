"""A dashboard's grid, its variables and what all dashboards have in common."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards.panels import SOURCE

GRID_WIDTH: Final = 24


class Span(StrEnum):
    """The time that all panels below a heading are about."""

    NOW = "Now"
    RANGE = "In the selected time range"
    OVER_TIME = "Over the selected time range"
    DAY = "Over time, each point for the day before it"
    MONTH = "In the last 30 days, as of the last full hour"
    MONTH_OVER_TIME = "Over time, each point for the 30 days before it"
    BURN = "Over time, each point for the windows in the title"


class Layout:
    """Places panels side by side, row by row. Every row fills all 24 columns."""

    def __init__(self, board: dashboard.Dashboard) -> None:
        self.board = board
        self._y = 0

    def section(self, span: Span, about: str = "") -> None:
        """Start a section with a heading, which says what time its panels are about."""
        title = f"{about}: {span[0].lower()}{span[1:]}" if about else str(span)
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
    option = _variable(name, label, query, description).multi(True).include_all(True).all_value(".*")
    return option.current(models.VariableOption(selected=True, text="All", value="$__all"))


def choice(name: str, label: str, query: str, description: str) -> Any:
    """A variable that is one value of a label."""
    return _variable(name, label, query, description).multi(False).include_all(False)


def _variable(name: str, label: str, query: str, description: str) -> Any:
    option = dashboard.QueryVariable(name).label(label).description(description).datasource(SOURCE)
    option = option.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return option.sort(models.VariableSort.ALPHABETICAL_ASC)


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
        .time("now-24h", "now")
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
