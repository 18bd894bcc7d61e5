"""The ``tachograph`` command.

A command imports what it needs itself: `watch` neither loads SQLAlchemy nor `timeline` the service.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import typer

COMMANDS: Final = {
    "dashboards": ("dashboards",),
    "definitions": ("seed", "validate"),
    "demo": ("demo",),
    "refused": ("refused",),
    "reports": ("compare", "metrics", "timeline", "trends"),
    "running": ("replay", "run"),
    "serving": ("serve",),
    "tokens": ("tokens",),
    "upkeep": ("archive", "rollups"),
    "watching": ("watch",),
    "workspaces": ("projects", "workspaces"),
}
"""The commands of each module."""


def load(arguments: Sequence[str] = ()) -> typer.Typer:
    """The application with the command that ``arguments`` begin with; with all commands if they name none."""
    name = arguments[0] if arguments else ""
    modules = [module for module, commands in COMMANDS.items() if name in commands] or list(COMMANDS)
    for module in modules:
        importlib.import_module(f"{__name__}.{module}")
    from tachograph_exporter.cli.common import app

    return app
