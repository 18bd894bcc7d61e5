"""Reconciliation of the views of an execution: response types."""

from __future__ import annotations

from typing import Any

import msgspec


class Difference(msgspec.Struct):
    """A field on which views of an execution disagree; ``step_id`` is empty for the execution itself."""

    step_id: str
    field: str
    values: dict[str, Any]


class Reconciliation(msgspec.Struct, kw_only=True):
    """Whether the views of an execution agree. ``views`` is the number of steps in each, null if not available.

    Rows are always available; events, spans and counters only for a while in the process that recorded the execution.
    """

    execution_id: str
    agrees: bool
    views: dict[str, int | None]
    differences: list[Difference]
