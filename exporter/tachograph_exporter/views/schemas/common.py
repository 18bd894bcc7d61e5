"""What the API answers, as types. Field names are a contract; durations are seconds, times RFC 3339 UTC."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T]):
    """A page of a list: ``total`` is how many there are in all."""

    items: list[T]
    total: int
    skip: int
    limit: int
