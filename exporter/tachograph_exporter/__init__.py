"""The Tachograph service: store, HTTP API, web page and command line. Needs the ``exporter`` extra."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the ``tachograph`` command."""
    if sys.argv[1:2] in (["exec"], ["step"]):
        # On the way of other commands, so nothing else is imported.
        from tachograph_exporter.command.run import main as run

        sys.exit(run(sys.argv[1], sys.argv[2:]))
    if sys.argv[1:2] == ["spool"]:
        # Needs the library only.
        from tachograph_exporter.command.spool import main as spool

        sys.exit(spool(sys.argv[2:]))
    # What is imported stays: looking for garbage while it is loaded costs a tenth of the time.
    gc.disable()
    try:
        from tachograph_exporter.cli import application

        app = application(sys.argv[1:])
    except ImportError as error:
        if (error.name or "").startswith("tachograph"):
            raise
        print(
            f"tachograph: the command needs the service's dependencies ({error.name} is missing): "
            "pip install 'tachograph[exporter]'",
            file=sys.stderr,
        )
        sys.exit(3)
    gc.freeze()
    gc.enable()
    app()
