"""A step that does nothing, through a service of Tachograph and through other engines, as `peers/run.py` measures them.

Each peer is installed in its own environment; one that does not run here is left out.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table
from summary import SCALE, Line, against


def _peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_run", Path(__file__).parent / "peers" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(console: Console) -> list[Line]:
    """Print the table."""
    peers: Any = _peers()
    # Only to see whether it works, no peer is installed.
    names = list(peers.PEERS) if SCALE >= 1 else ["tachograph"]
    measured: dict[str, dict[str, float]] = {}
    for name in names:
        try:
            figures = peers.measured(name, peers.environment(name, peers.CACHE))
        except (OSError, subprocess.SubprocessError) as error:
            console.print(f"{name} is not measured: {error}")
            continue
        if figures is not None:
            measured[name] = figures
    table = Table("engine", "overhead per step, one after another, ms", "all at once, ms", "timeline, ms")
    for name, figures in measured.items():
        table.add_row(name, *[f"{figures[key]:.2f}" if key in figures else "–" for key in ("step", "wide", "query")])
    console.print(table)
    ours = measured.get("tachograph")
    if ours is None:
        return []
    return [
        against(f"a step of a service, {how}", ours[key], "ms", name.capitalize(), figures[key])
        for key, how in (("step", "one after another"), ("wide", "100 at once"))
        for name, figures in measured.items()
        if name != "tachograph"
    ]


if __name__ == "__main__":
    main(Console())
