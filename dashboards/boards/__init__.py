"""The dashboards, one file each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

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


def built() -> Iterator[tuple[str, models.Dashboard]]:
    """Each dashboard under the name of its file."""
    for name, build in BOARDS.items():
        yield name, build().build()
