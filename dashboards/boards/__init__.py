"""The dashboards, one module each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from grafana_foundation_sdk.builders import dashboard

from dashboards.boards.overview import overview
from dashboards.boards.self_monitoring import self_monitoring
from dashboards.boards.slo import slo
from dashboards.boards.step import step
from dashboards.boards.workflow import workflow

BOARDS: Final[dict[str, Callable[[], dashboard.Dashboard]]] = {
    "overview": overview,
    "workflow": workflow,
    "step": step,
    "slo": slo,
    "self_monitoring": self_monitoring,
}
"""Each dashboard's builder under the name of its file."""
