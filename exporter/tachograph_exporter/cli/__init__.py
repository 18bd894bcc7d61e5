"""The ``tachograph`` command."""

from __future__ import annotations

from tachograph_exporter.cli import dashboards, managing, records, running, serving, watching
from tachograph_exporter.cli.common import app

__all__ = ["app", "dashboards", "managing", "records", "running", "serving", "watching"]
