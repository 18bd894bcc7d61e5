"""Whether the views of a run agree, as the API answers it."""

from __future__ import annotations

from typing import Any

import msgspec


class Difference(msgspec.Struct):
    """One thing two views of a run say differently."""

    step_id: str
    field: str
    values: dict[str, Any]


class Reconciliation(msgspec.Struct, kw_only=True):
    """Whether the views of a run agree. ``views`` says which could be compared and how many steps each has.

    Rows are always there; events, spans and counters only in the process that recorded the run, and only for a while.
    """

    execution_id: str
    agrees: bool
    views: dict[str, int | None]
    differences: list[Difference]
