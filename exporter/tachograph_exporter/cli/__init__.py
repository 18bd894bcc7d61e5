"""The ``tachograph`` command.

A command imports what it needs itself: `watch` neither loads SQLAlchemy nor `timeline` the service, and ``--help``
loads no command.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def load(arguments: Sequence[str] = ()) -> typer.Typer:
    """The application with the command that ``arguments`` begin with; with all commands if they name none."""
    from tachograph_exporter.cli.application import COMMANDS, arrange

    name = arguments[0] if arguments else ""
    modules = [COMMANDS[name].module] if name in COMMANDS else [command.module for command in COMMANDS.values()]
    for module in dict.fromkeys(modules):
        importlib.import_module(f"{__name__}.{module}")
    from tachograph_exporter.cli.common import app

    arrange(app)
    return app


def application(arguments: Sequence[str]) -> typer.Typer:
    """What a process with these arguments needs: `load`, or less for help and version."""
    if not arguments or arguments[0] in ("--help", "-h", "--version"):
        from tachograph_exporter.cli.application import outline

        return outline()
    return load(arguments)
