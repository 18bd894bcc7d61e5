"""Which runs, and which failures: what somebody who reads asks for."""

from __future__ import annotations

from typing import NamedTuple


class RunQuery(NamedTuple):
    """Which runs: of a workflow (id or name), with one of these statuses, created in a range of unix nanoseconds.

    ``error`` is text in the error's type or message. ``id`` is the beginning or the end of the run's id.
    """

    workflow: str | None = None
    statuses: tuple[str, ...] = ()
    from_ns: int | None = None
    to_ns: int | None = None
    error: str | None = None
    id: str | None = None


class FailureQuery(NamedTuple):
    """Which failure groups: of a workflow (id or name), in a range of unix nanoseconds, in one of these states."""

    workflow: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    states: tuple[str, ...] = ()
    sort: str = "-last_seen"
