"""The ``tachograph`` command."""

from __future__ import annotations

from tachograph_exporter.cli import (
    dashboards,
    definitions,
    demo,
    refused,
    reports,
    running,
    serving,
    tokens,
    upkeep,
    watching,
    workspaces,
)
from tachograph_exporter.cli.common import app

__all__ = [
    "app",
    "dashboards",
    "definitions",
    "demo",
    "refused",
    "reports",
    "running",
    "serving",
    "tokens",
    "upkeep",
    "watching",
    "workspaces",
]
