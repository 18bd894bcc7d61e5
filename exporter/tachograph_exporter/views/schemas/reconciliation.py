"""Reconciliation of the views of an execution: response types."""

from __future__ import annotations

from typing import Any

import msgspec


class Difference(msgspec.Struct):
    """A field on which views of an execution disagree, or a value that cannot be.

    ``step_id`` is empty for the execution itself; ``step`` is the step's name. ``values``: by view, or by what bounds
    the value. ``message`` says what is wrong where the values alone do not.
    """

    step_id: str
    field: str
    values: dict[str, Any]
    step: str = ""
    message: str = ""


class Reconciliation(msgspec.Struct, kw_only=True):
    """Whether the views of an execution agree.

    ``views``: the number of steps in each, null if it was not compared. ``reasons``: why not, or why only in part.
    ``differences`` are the first thousand of ``difference_count``.
    """

    execution_id: str
    agrees: bool
    views: dict[str, int | None]
    differences: list[Difference]
    reasons: dict[str, str] = {}
    difference_count: int = 0
