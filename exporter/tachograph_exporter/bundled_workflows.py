"""The example workflows and the file with their handlers, in the installed package or in the source tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _directory() -> Path:
    # The wheel has a copy of ``examples/`` beside this file; in a source tree it is at the top.
    for candidate in (_HERE / "examples", *(parent / "examples" for parent in _HERE.parents[:4])):
        if (candidate / "workflows").is_dir():
            return candidate
    raise FileNotFoundError(f"the example workflows are missing: there is no directory {_HERE / 'examples'}")


def workflow_directory() -> Path:
    """Directory of the example definitions."""
    return _directory() / "workflows"


def workflow_files() -> Sequence[Path]:
    """The example definitions, sorted by name."""
    return sorted(workflow_directory().glob("*.json"))


def handler_file() -> Path:
    """The Python file with the step handlers of the examples."""
    return _directory() / "handlers.py"
