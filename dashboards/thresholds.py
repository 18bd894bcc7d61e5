"""Thresholds of the alerts, per workflow."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

HERE: Final = Path(__file__).parent


def _escaped(name: str) -> str:
    return "".join("\\\\" + c if c in r".*+?()[]{}|^$\\" else c for c in name)


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is expected of a workflow; see `thresholds.toml`."""

    success_target: float
    stuck_factor: float
    stuck_seconds: float
    stale_seconds: float
    regression_factor: float
    regression_seconds: float
    retry_ratio: float
    retry_count: float
    queue_factor: float
    queue_seconds: float
    cost_factor: float
    cost_usd: float


class Thresholds(msgspec.Struct, frozen=True):
    """What is expected of all workflows, and of some in particular."""

    default: Expected
    workflows: Mapping[str, Expected] = {}

    def each(self) -> Iterator[tuple[str, Expected]]:
        """A matcher on the label ``workflow`` for each set of expectations; together they match every workflow once."""
        if self.workflows:
            yield f'workflow!~"{"|".join(map(_escaped, sorted(self.workflows)))}"', self.default
            for name, expected in sorted(self.workflows.items()):
                yield f'workflow="{name}"', expected
        else:
            yield "", self.default


def read_thresholds(path: Path = HERE / "thresholds.toml") -> Thresholds:
    """The file's expectations. Raises `msgspec.ValidationError` for unknown names and wrong values."""
    document = tomllib.loads(path.read_text())
    default = document["default"]
    workflows = {name: {**default, **own} for name, own in document.get("workflow", {}).items()}
    return msgspec.convert({"default": default, "workflows": workflows}, Thresholds)
