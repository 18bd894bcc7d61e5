"""Loading step handlers: from a module, from a Python file, or those of the example workflows."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Final
from zlib import crc32

from tachograph_exporter import bundled_workflows

EXAMPLES: Final = "examples"
"""Names the handlers of the example workflows."""


def load(source: str) -> None:
    """Register the handlers of `EXAMPLES`, a ``.py`` file, or an importable module. Raises ImportError."""
    if source == EXAMPLES:
        _load_file(bundled_workflows.handler_file(), "tachograph_example_handlers")
    elif source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise ImportError(f"there is no file {source}")
        # Files of the same name in different directories are different modules.
        _load_file(path, f"tachograph_handlers_{path.stem}_{crc32(os.fsencode(path.resolve())):08x}")
    else:
        importlib.import_module(source)


def _load_file(path: Path, name: str) -> None:
    """Import a Python file as the module ``name``, unless it is already imported."""
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
