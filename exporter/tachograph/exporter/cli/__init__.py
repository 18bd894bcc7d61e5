"""The ``tachograph`` command."""

from __future__ import annotations

from tachograph.exporter.cli import dashboards, managing, records, running, serving, watching
from tachograph.exporter.cli.common import app

__all__ = ["app", "dashboards", "managing", "records", "running", "serving", "watching"]
