"""The installed version."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The installed version."""
    try:
        return metadata.version("tachograph")
    except metadata.PackageNotFoundError:
        return "unknown"
