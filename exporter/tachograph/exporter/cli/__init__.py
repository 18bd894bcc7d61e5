"""The ``tachograph`` command."""

from __future__ import annotations

from tachograph.exporter.cli import managing, records, running, serving, watching
from tachograph.exporter.cli.common import app

__all__ = ["app", "managing", "records", "running", "serving", "watching"]
