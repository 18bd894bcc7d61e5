"""Write dashboards and rules: ``make dashboards``. With ``--check``, only says whether they are up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import yaml  # noqa: E402
from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402

from dashboards.alerts import FILES  # noqa: E402
from dashboards.boards import built  # noqa: E402
from dashboards.thresholds import Thresholds, read_thresholds  # noqa: E402

_NOTE = "# Made by `make dashboards` from dashboards/*.py and dashboards/thresholds.toml.\n"


def board_json(board: Any) -> str:
    """A dashboard as Grafana reads it."""
    return json.dumps(json.loads(JSONEncoder(sort_keys=True, indent=2).encode(board)), indent=2, sort_keys=True) + "\n"


def rules_yaml(groups: list[dict[str, Any]]) -> str:
    """Rules as Prometheus reads them."""
    return _NOTE + yaml.safe_dump({"groups": groups}, sort_keys=False, width=10_000, allow_unicode=True)


def files(thresholds: Thresholds) -> Iterator[tuple[Path, str]]:
    """Every file and what should be in it."""
    for name, board in built():
        yield HERE / "grafana" / f"{name}.json", board_json(board)
    for name, make in FILES.items():
        yield HERE / "prometheus" / name, rules_yaml(make(thresholds))


def main(check: bool) -> int:
    """Write, or say what differs."""
    stale = 0
    for path, content in files(read_thresholds()):
        if path.exists() and path.read_text() == content:
            continue
        stale += 1
        if check:
            print(f"{path.name} is out of date: run `make dashboards`")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
