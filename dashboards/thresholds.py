"""Alert thresholds per workflow, read from `thresholds.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

HERE: Final = Path(__file__).parent


def _escaped(name: str) -> str:
    return "".join("\\\\" + c if c in r".*+?()[]{}|^$\\" else c for c in name)


class WorkflowThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one workflow. `thresholds.toml` explains each field and its unit."""

    success_target: float
    failed_ratio: float
    stuck_factor: float
    stuck_seconds: float
    stuck_unknown_seconds: float
    stale_seconds: float
    stale_factor: float
    stale_min_seconds: float
    stale_unknown_seconds: float
    regression_factor: float
    regression_seconds: float
    retry_ratio: float
    retry_count: float
    queue_factor: float
    queue_seconds: float
    cost_factor: float
    cost_usd: float


class Thresholds(msgspec.Struct, frozen=True):
    """The default limits, and those of the workflows that differ."""

    default: WorkflowThresholds
    workflows: Mapping[str, WorkflowThresholds] = {}

    def by_matcher(self) -> Iterator[tuple[str, WorkflowThresholds]]:
        """Each set of limits with its matcher on the label ``workflow``. Together they match every workflow once."""
        if self.workflows:
            yield f'workflow!~"{"|".join(map(_escaped, sorted(self.workflows)))}"', self.default
            for name, limits in sorted(self.workflows.items()):
                yield f'workflow="{name}"', limits
        else:
            yield "", self.default


def read_thresholds(path: Path = HERE / "thresholds.toml") -> Thresholds:
    """Read the file. Raises `msgspec.ValidationError` for unknown names and values of the wrong type."""
    document = tomllib.loads(path.read_text())
    default = document["default"]
    workflows = {name: {**default, **overrides} for name, overrides in document.get("workflow", {}).items()}
    return msgspec.convert({"default": default, "workflows": workflows}, Thresholds)
