"""What keeps a bridge from starting."""

from __future__ import annotations

from tachograph.errors import TachographError


class BridgeError(TachographError):
    """A bridge cannot start; the message says why."""
