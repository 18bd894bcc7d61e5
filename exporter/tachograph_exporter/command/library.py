"""Modules of the library without the package's own ``__init__``, which loads OpenTelemetry and takes 0.3 s."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from types import ModuleType

_PACKAGE = "tachograph"


def module(name: str) -> ModuleType:
    """A module of the library, such as ``redaction``. Only for processes that do nothing but run a command."""
    if _PACKAGE not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec(_PACKAGE)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("the library is not installed", name=_PACKAGE)
        package = ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = importlib.machinery.ModuleSpec(_PACKAGE, None, is_package=True)
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")
