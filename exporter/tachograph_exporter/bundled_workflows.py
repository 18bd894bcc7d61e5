"""The example workflows and their handlers, in the installed package or in the source tree; loading of handlers."""

from __future__ import annotations

import importlib.util
import sys
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


def load_handlers() -> None:
    """Register the step handlers of the examples."""
    load_handler_file(_directory() / "handlers.py", "tachograph_example_handlers")


def load_handler_file(path: Path, name: str | None = None) -> None:
    """Import a Python file for the handlers that it registers, unless it is already imported."""
    name = name or f"tachograph_handlers_{path.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import handlers from {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def load(source: str) -> None:
    """Register handlers from ``examples``, a ``.py`` file, or an importable module. Raises ImportError."""
    if source == "examples":
        load_handlers()
    elif source.endswith(".py"):
        if not Path(source).is_file():
            raise ImportError(f"there is no file {source}")
        load_handler_file(Path(source))
    else:
        importlib.import_module(source)
