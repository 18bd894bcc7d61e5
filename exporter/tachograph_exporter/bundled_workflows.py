"""Where the example workflows and their handlers are: in the installed package, or in the source tree."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _directory() -> Path:
    # ``examples/`` is copied beside this file into the wheel; in a source tree it is at the top.
    for candidate in (_HERE / "examples", *(parent / "examples" for parent in _HERE.parents[:4])):
        if (candidate / "workflows").is_dir():
            return candidate
    raise FileNotFoundError("the example workflows are not installed")


def workflow_directory() -> Path:
    """The directory of the example workflows."""
    return _directory() / "workflows"


def workflow_files() -> Sequence[Path]:
    """The example workflows, by name."""
    return sorted(workflow_directory().glob("*.json"))


def load_handlers() -> None:
    """Register the examples' step handlers."""
    load_handler_file(_directory() / "handlers.py", "tachograph_example_handlers")


def load_handler_file(path: Path, name: str | None = None) -> None:
    """Import a Python file chosen by whoever starts the process, for the handlers it registers."""
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


def load(wanted: str) -> None:
    """Register handlers from ``examples``, from a ``.py`` file, or from an importable module. Raises ImportError."""
    if wanted == "examples":
        load_handlers()
    elif wanted.endswith(".py"):
        if not Path(wanted).is_file():
            raise ImportError(f"there is no file {wanted}")
        load_handler_file(Path(wanted))
    else:
        importlib.import_module(wanted)
