"""The ``tachograph`` command.

A command imports what it needs itself: `watch` neither loads SQLAlchemy nor `timeline` the service, and ``--help``
loads no command.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import typer


COMPLETION: Final = "_TACHOGRAPH_COMPLETE"
"""The variable in which a shell asks for completions."""


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
    """What a process with these arguments needs: `load`, or less for help, version and completion."""
    if COMPLETION in os.environ:
        # The shell asks what may follow; it says so in the environment.
        arguments = os.environ.get("_TYPER_COMPLETE_ARGS", os.environ.get("COMP_WORDS", "")).split()[1:]
        if not arguments or arguments[0] not in _commands():
            arguments = []
    if not arguments or arguments[0].startswith("-"):
        from tachograph_exporter.cli.application import outline

        return outline()
    return load(arguments)


def _commands() -> Sequence[str]:
    from tachograph_exporter.cli.application import COMMANDS

    return tuple(COMMANDS)
