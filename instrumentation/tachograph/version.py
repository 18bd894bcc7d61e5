"""The version of the installed distribution."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The installed version, or ``unknown`` when the distribution's metadata is missing."""
    try:
        return metadata.version("tachograph")
    except metadata.PackageNotFoundError:
        return "unknown"
