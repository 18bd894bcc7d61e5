"""Write the dashboards and rules (``make dashboards``). With ``--check``, only report which files are out of date."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402

from dashboards.boards import BOARDS  # noqa: E402
from tachograph_exporter.alerting.rule_files import rule_files  # noqa: E402
from tachograph_exporter.alerting.thresholds import Thresholds, read_thresholds  # noqa: E402


def board_json(board: Any) -> str:
    """A dashboard in Grafana's JSON."""
    return json.dumps(json.loads(JSONEncoder(sort_keys=True, indent=2).encode(board)), indent=2, sort_keys=True) + "\n"


def files(thresholds: Thresholds) -> Iterator[tuple[Path, str]]:
    """Every generated file and its content."""
    for name, build_board in BOARDS.items():
        yield HERE / "grafana" / f"{name}.json", board_json(build_board().build())
    for name, content in rule_files(thresholds):
        yield HERE / "prometheus" / name, content


def main(check: bool) -> int:
    """Write the files, or report those that differ. Returns the exit code."""
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
