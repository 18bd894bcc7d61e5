"""The dashboards, rules and provisioning files that come with Tachograph: in the package, or in its source tree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

PARTS: Final = ("grafana", "prometheus", "provisioning")
RUNBOOKS: Final = "https://github.com/tachograph/tachograph/blob/main/docs/runbooks"
"""Where alerts lead to unless another address is given; written into the rules when they are made."""
_INSTALLED: Final = Path(__file__).parent / "dashboards"
_SOURCE: Final = Path(__file__).resolve().parents[2] / "dashboards"


def directory() -> Path:
    """Where the files are."""
    return _INSTALLED if _INSTALLED.exists() else _SOURCE


def dashboards() -> list[dict[str, Any]]:
    """Every dashboard, as Grafana reads it."""
    return [json.loads(path.read_text()) for path in sorted((directory() / "grafana").glob("*.json"))]


def export(target: Path, runbooks: str | None = None) -> list[Path]:
    """Write all files below a directory; which ones. ``runbooks``: where alerts lead to instead."""
    written = []
    for part in PARTS:
        for path in sorted((directory() / part).rglob("*")):
            if path.suffix not in (".json", ".yml"):
                continue
            to = target / path.relative_to(directory())
            to.parent.mkdir(parents=True, exist_ok=True)
            if runbooks is not None and path.name.endswith(".rules.yml"):
                to.write_text(path.read_text().replace(RUNBOOKS, runbooks.rstrip("/")))
            else:
                shutil.copyfile(path, to)
            written.append(to)
    return written
