"""The night at one look: response types."""

from __future__ import annotations

import msgspec


class NightRun(msgspec.Struct, kw_only=True, gc=False):
    """A run in a window; `GET /api/workflows/executions/{execution_id}` has the rest."""

    execution_id: str
    status: str
    started_at: str | None
    completed_at: str | None
    expected_end_at: str | None
    parent_execution_id: str | None


class NightStart(msgspec.Struct, kw_only=True, gc=False):
    """A time at which a workflow was expected to start.

    ``state`` is ``started``, ``late`` (it started after the grace), ``missing`` (it did not), ``held`` (it did not,
    because an earlier run took too long), or ``due`` (it may yet).
    """

    at: str
    state: str
    started_at: str | None


class NightWorkflow(msgspec.Struct, kw_only=True):
    """What a workflow did in a window, and what was expected of it. ``missing``, ``failed`` and ``running`` count."""

    workflow: str
    workflow_id: str | None
    missing: int
    failed: int
    running: int
    expected: list[NightStart]
    runs: list[NightRun]


class NightEdge(msgspec.Struct, kw_only=True, gc=False):
    """Two runs (ids) of which one waited for the other, or was started by it.

    ``kind``: ``nested`` (``target`` ran inside ``source``, in ``step``, which waited for it), ``trigger`` (``source``
    started ``target``, in ``step``, and did not wait), or ``dataset`` (``target`` read ``datasets`` that ``source`` had
    written last before).
    """

    kind: str
    source: str
    target: str
    step: str | None
    datasets: list[str]


class Night(msgspec.Struct, kw_only=True):
    """All workflows of a window: those with missing starts first, then those that failed, then those that run.

    ``edges`` say who waited for whom. ``is_complete``: no run, start or edge was left out because there are too many.
    """

    start: str
    end: str
    now: str
    workflows: list[NightWorkflow]
    edges: list[NightEdge]
    is_complete: bool
