"""The shipped dashboards, rules and provisioning files, in the installed package or in the source tree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

PARTS: Final = ("grafana", "prometheus", "provisioning")
RUNBOOKS: Final = "https://github.com/tachograph/tachograph/blob/main/docs/runbooks"
"""Base URL of the runbooks that the generated alert rules link to."""
_INSTALLED: Final = Path(__file__).parent / "dashboards"
_SOURCE: Final = Path(__file__).resolve().parents[2] / "dashboards"


def directory() -> Path:
    """Directory of the files."""
    return _INSTALLED if _INSTALLED.exists() else _SOURCE


def dashboards() -> list[dict[str, Any]]:
    """Every dashboard as Grafana JSON."""
    return [json.loads(path.read_text()) for path in sorted((directory() / "grafana").glob("*.json"))]


def export(target: Path, runbooks: str | None = None) -> list[Path]:
    """Write all files below ``target`` and return their paths. ``runbooks`` replaces the base URL of the runbooks."""
    written = []
    for part in PARTS:
        for path in sorted((directory() / part).rglob("*")):
            if path.suffix not in (".json", ".yml"):
                continue
            destination = target / path.relative_to(directory())
            destination.parent.mkdir(parents=True, exist_ok=True)
            if runbooks is not None and path.name.endswith(".rules.yml"):
                destination.write_text(path.read_text().replace(RUNBOOKS, runbooks.rstrip("/")))
            else:
                shutil.copyfile(path, destination)
            written.append(destination)
    return written
