"""The shipped dashboards, rules and provisioning files, in the installed package or in the source tree."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

PARTS: Final = ("grafana", "prometheus", "provisioning")
RECORD: Final = ".tachograph-export.json"
"""In the directory of an export: the SHA-256 of every file as it was written, by its path there."""
_SUFFIXES: Final = (".json", ".yml", ".py")
_INSTALLED: Final = Path(__file__).parent / "dashboards"
_SOURCE: Final = Path(__file__).resolve().parents[2] / "dashboards"


def directory() -> Path:
    """Directory of the files."""
    return _INSTALLED if _INSTALLED.exists() else _SOURCE


def dashboards() -> list[dict[str, Any]]:
    """Every dashboard as Grafana JSON."""
    return [json.loads(path.read_text()) for path in sorted((directory() / "grafana").glob("*.json"))]


class State(StrEnum):
    """What an export has to do with a file that may be there already."""

    NEW = "new"
    CHANGED = "changed"
    """It is as an earlier export wrote it, and there is another content for it now."""
    UNCHANGED = "unchanged"
    EDITED = "edited"
    """It was edited since it was exported, and what is exported is the same as then."""
    CONFLICT = "conflict"
    """It was edited, and there is another content for it now."""


class PlannedFile(NamedTuple):
    """A file of an export: where it goes, what it should hold, and what is there."""

    path: Path
    content: bytes
    state: State


def plan(target: Path, *, thresholds: Path | None = None, runbooks: str | None = None) -> list[PlannedFile]:
    """What an export to a directory would do; nothing is written.

    ``thresholds``: a file with limits for the rules (see `alerting.thresholds`). ``runbooks`` replaces the base URL of
    the runbooks. Raises `InvalidThresholds`; OSError.
    """
    digests = _digests(target)
    return [
        PlannedFile(target / name, content, _state(target / name, content, digests.get(name)))
        for name, content in _contents(thresholds, runbooks)
    ]


def write(target: Path, files: Sequence[PlannedFile], *, overwrite: bool = False) -> None:
    """Write the files of a plan, those that were edited only with ``overwrite``. Raises OSError."""
    digests = dict(_digests(target))
    for path, content, state in files:
        if state in (State.EDITED, State.CONFLICT) and not overwrite:
            continue
        if state is not State.UNCHANGED:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, content)
        digests[path.relative_to(target).as_posix()] = _digest(content)
    _replace(target / RECORD, (json.dumps(digests, indent=2, sort_keys=True) + "\n").encode())


def _contents(thresholds: Path | None, runbooks: str | None) -> Iterator[tuple[str, bytes]]:
    from tachograph_exporter.alerting.alerts import RUNBOOKS
    from tachograph_exporter.alerting.rule_files import rule_files
    from tachograph_exporter.alerting.thresholds import read_thresholds

    rules = dict(rule_files(read_thresholds(thresholds))) if thresholds is not None else {}
    for part in PARTS:
        for path in sorted((directory() / part).rglob("*")):
            if path.suffix not in _SUFFIXES:
                continue
            text = rules.get(path.name) or path.read_text()
            if runbooks is not None:
                text = text.replace(RUNBOOKS, runbooks.rstrip("/"))
            yield path.relative_to(directory()).as_posix(), text.encode()


def _digests(target: Path) -> Mapping[str, str]:
    try:
        digests = json.loads((target / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return {}  # Never exported, or by an earlier version: nothing says that a file was not edited.
    return {str(name): str(digest) for name, digest in digests.items()} if isinstance(digests, dict) else {}


def _state(path: Path, content: bytes, exported: str | None) -> State:
    try:
        present = path.read_bytes()
    except FileNotFoundError:
        return State.NEW
    if present == content:
        return State.UNCHANGED
    if _digest(present) == exported:
        return State.CHANGED
    return State.EDITED if _digest(content) == exported else State.CONFLICT


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Write a file at once: half of one would look edited."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
