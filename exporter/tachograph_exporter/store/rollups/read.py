"""Reading the rollups."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, cast

from sqlalchemy import Connection, and_, or_, select

from tachograph.clock import NS
from tachograph_exporter.store.rollups.counting import Key, count_exactly
from tachograph_exporter.store.rollups.cover import RowRange, cover
from tachograph_exporter.store.rollups.periods import DAY, FINE, HOUR, floor
from tachograph_exporter.store.rollups.rows import Head, head_of
from tachograph_exporter.store.schema import (
    rollup_heads,
    workflow_rollups,
)
from tachograph_exporter.store.totals import WorkflowTotals

_heads = rollup_heads.c

_rollups = workflow_rollups.c


def _rows(connection: Connection, key: Key, pieces: Sequence[RowRange], *columns: Any) -> Sequence[Any]:
    if not pieces:
        return ()
    wanted = or_(
        *(and_(_rollups.period == p.kind, _rollups.start_s >= p.low_s, _rollups.start_s < p.high_s) for p in pieces)
    )
    statement = select(*columns).where(_rollups.workspace_id == key[0], _rollups.workflow_id == key[1], wanted)
    return cast("Sequence[Any]", connection.execute(statement).all())


class SumCache:
    """Sums of rollup rows that were read before, for as long as nothing in them has changed.

    A dashboard asks for the same weeks again and again; only the newest hour of them is new each time.
    """

    LIMIT: Final = 500

    def __init__(self) -> None:
        self._sums: OrderedDict[tuple[Key, RowRange], tuple[int, WorkflowTotals]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, piece: RowRange, closed: int) -> WorkflowTotals | None:
        """The sum of a piece, if it was kept at this revision. It must not be changed."""
        with self._lock:
            found = self._sums.get((key, piece))
            if found is None or found[0] != closed:
                return None
            self._sums.move_to_end((key, piece))
            return found[1]

    def put(self, key: Key, piece: RowRange, closed: int, pack: WorkflowTotals) -> None:
        """Keep the sum of a piece."""
        with self._lock:
            self._sums[key, piece] = (closed, pack)
            while len(self._sums) > self.LIMIT:
                self._sums.popitem(last=False)


def read(
    connection: Connection, key: Key, from_ns: int | None = None, to_ns: int | None = None, *, steps: bool = True
) -> WorkflowTotals:
    """Everything of a workflow that ended in a range (unix nanoseconds, the end exclusive)."""
    return read_from(connection, key, head_of(connection, key), from_ns, to_ns, steps=steps)


def read_from(
    connection: Connection,
    key: Key,
    head: Head | None,
    from_ns: int | None,
    to_ns: int | None,
    *,
    steps: bool = True,
    kept: SumCache | None = None,
) -> WorkflowTotals:
    """`read`, by who knows the head already, and may keep sums for the next time."""
    found = cover(head.start_s if head is not None else None, from_ns, to_ns)
    total = WorkflowTotals()
    missing: list[RowRange] = []
    for piece in found.pieces:
        known = kept.get(key, piece, head.closed) if kept is not None and head is not None and steps else None
        if known is not None:
            total.add(known)
        else:
            missing.append(piece)
    columns = (_rollups.period, _rollups.start_s, _rollups.executions, *((_rollups.steps,) if steps else ()))
    sums: dict[RowRange, WorkflowTotals] = {piece: WorkflowTotals() for piece in missing}
    for kind, start, executions, *rest in _rows(connection, key, missing, *columns):
        pack = WorkflowTotals.decoded(executions, rest[0] if rest else None)
        piece = next(one for one in missing if one.kind == kind and one.low_s <= start < one.high_s)
        sums[piece].add(pack)
    for piece, pack in sums.items():
        total.add(pack)
        if kept is not None and head is not None and steps and piece.kind != "5m":
            kept.put(key, piece, head.closed, pack)
    for low, high in found.edges:
        exact = count_exactly(connection, key, low, high)
        if exact is not None:
            total.add(exact)
    return total


def series(
    connection: Connection,
    key: Key,
    low_s: int,
    high_s: int,
    unit: int,
) -> dict[int, WorkflowTotals]:
    """What ended in each ``unit`` (five minutes, an hour, a day) of a range of whole units, by its start."""
    head = head_of(connection, key)
    coarsest = {FINE: "5m", HOUR: "1h", DAY: "1d"}[unit]
    found = cover(head.start_s if head is not None else None, low_s * NS, high_s * NS, coarsest=coarsest)
    buckets: dict[int, WorkflowTotals] = {}
    for start, executions, steps in _rows(
        connection, key, found.pieces, _rollups.start_s, _rollups.executions, _rollups.steps
    ):
        pack, bucket = WorkflowTotals.decoded(executions, steps), floor(start, unit)
        if bucket in buckets:
            buckets[bucket].add(pack)
        else:
            buckets[bucket] = pack
    return buckets


def totals(connection: Connection, workspace: str) -> dict[str, WorkflowTotals]:
    """All that ever ended in a workspace, by workflow id; executions only."""
    heads = connection.execute(select(_heads.workflow_id, _heads.head_s).where(_heads.workspace_id == workspace)).all()
    found: dict[str, WorkflowTotals] = {}
    wanted = [
        and_(
            _rollups.workflow_id == workflow,
            or_(*(and_(_rollups.period == p.kind, _rollups.start_s >= p.low_s, _rollups.start_s < p.high_s)
                  for p in cover(head, None, None).pieces)),
        )
        for workflow, head in heads
    ]  # fmt: skip
    for i in range(0, len(wanted), 50):
        statement = select(_rollups.workflow_id, _rollups.executions).where(
            _rollups.workspace_id == workspace, or_(*wanted[i : i + 50])
        )
        for workflow, executions in connection.execute(statement):
            found.setdefault(workflow, WorkflowTotals()).add(WorkflowTotals.decoded(executions, None))
    return found
