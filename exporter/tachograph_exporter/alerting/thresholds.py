"""Alert thresholds per workflow, read from `thresholds.toml` and a user's file of the same form.

That may be the file of what is expected of workflows (docs/expectations.md), which says more: that is left to the
service.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

SHIPPED: Final = Path(__file__).parent / "thresholds.toml"
"""The limits that hold where a user's file says nothing else, each with its meaning and unit."""
_SECTIONS: Final = ("default", "workflow")
_OTHER_SECTIONS: Final = ("workspace", "notify", "link")
_OTHER_NAMES: Final = frozenset(
    {
        "schedule",
        "timezone",
        "grace",
        "grace_seconds",
        "deadline",
        "deadline_seconds",
        "is_paused",
        "severity",
        "steps",
    }
)
"""What a file of expectations says besides."""


def _escaped(name: str) -> str:
    """A name as a part of a regular expression in a matcher, in PromQL's notation of texts."""
    return _quoted("".join("\\" + c if c in r".*+?()[]{}|^$\\" else c for c in name))


def _quoted(name: str) -> str:
    """A name in PromQL's notation of texts."""
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class InvalidThresholds(ValueError):
    """A file of thresholds that cannot be used; the message says where and why."""


class WorkflowThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one workflow. `thresholds.toml` explains each field and its unit."""

    success_target: float
    burn_runs: float
    last_failed_seconds: float
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
                yield f'workflow="{_quoted(name)}"', limits
        else:
            yield "", self.default


def read_thresholds(path: Path | None = None) -> Thresholds:
    """The shipped limits, changed by those of a file.

    Raises `InvalidThresholds` for TOML that cannot be read, names that no limit has, and values that are no limit;
    OSError.
    """
    shipped = tomllib.loads(SHIPPED.read_text())
    document = _document(path) if path is not None else {}
    default = {**shipped["default"], **_without_others(document.get("default", {}))}
    overrides = {name: _without_others(table) for name, table in document.get("workflow", {}).items()}
    workflows = {name: {**default, **limits} for name, limits in overrides.items() if limits}
    return Thresholds(
        _limits(default, path, "[default]"),
        {name: _limits(limits, path, f"[workflow.{name}]") for name, limits in workflows.items()},
    )


def _without_others(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in _OTHER_NAMES}


def _document(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidThresholds(f"{path} is not valid TOML: {error}") from error
    if unknown := document.keys() - {*_SECTIONS, *_OTHER_SECTIONS}:
        raise InvalidThresholds(f"{path} has the unknown section [{min(unknown)}]; expected [default], [workflow.NAME]")
    sections = {name: table for name, table in document.items() if name not in _OTHER_SECTIONS}
    for section in (sections, document.get("workflow", {})):
        for name, table in section.items() if isinstance(section, dict) else ():
            if not isinstance(table, dict):
                raise InvalidThresholds(f"{path}: {name} is not a section; expected [default] and [workflow.NAME]")
    return document


def _limits(values: Mapping[str, Any], path: Path | None, section: str) -> WorkflowThresholds:
    where = f"{path or SHIPPED} at {section}"
    try:
        limits = msgspec.convert(values, WorkflowThresholds)
    except msgspec.ValidationError as error:
        names = ", ".join(WorkflowThresholds.__struct_fields__)
        raise InvalidThresholds(f"{where}: {error}; the limits are {names}") from error
    for name in WorkflowThresholds.__struct_fields__:
        if not 0 <= getattr(limits, name) < float("inf"):
            raise InvalidThresholds(f"{where}: {name} is {getattr(limits, name)}; it must be a number from 0 on")
    if limits.success_target >= 1:
        raise InvalidThresholds(f"{where}: success_target is {limits.success_target:g}; it must be less than 1")
    return limits
