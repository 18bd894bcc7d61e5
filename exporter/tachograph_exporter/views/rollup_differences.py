"""Where the rollup row that counts an execution is not what its executions add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tachograph.clock import NS
from tachograph_exporter.store.rollups.checking import CountedRow
from tachograph_exporter.store.totals import StepTotals, Totals, WorkflowTotals
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.reconciliation import Difference


def rollup_differences(counted: CountedRow) -> Iterator[Difference]:
    """Where the row is not what its executions add up to, in what this execution is part of."""
    row = f"{counted.period} from {rfc3339(counted.start_s * NS)}"
    if counted.fault:
        yield Difference("", "rollups", {"rollups": None, "executions": 1}, message=f"{row}: {counted.fault}")
        return
    stored = counted.stored or WorkflowTotals()
    if stored.encode() == counted.counted.encode():
        return
    for less, more, times in ((stored, counted.counted, 0), (counted.counted, stored, 2)):
        # Is the difference exactly this execution?
        total = WorkflowTotals()
        total.add(less)
        total.add(counted.own)
        if total.encode() == more.encode():
            message = "it is counted twice" if times else "it is not counted"
            yield Difference("", "rollups", {"rollups": times, "executions": 1}, message=f"{message} ({row})")
            return
    message = f"the row {row} is not what its executions add up to"
    own = counted.own
    yield from _differing("", stored.executions, counted.counted.executions, own.executions, message)
    for name, own_step in own.steps.items():
        shown, due = stored.steps.get(name, StepTotals()), counted.counted.steps.get(name, StepTotals())
        yield from _differing(name, shown.by_status, due.by_status, own_step.by_status, message)
        for key in own_step.measures:
            if shown.measures.get(key) != due.measures.get(key):
                values = {"rollups": shown.measures.get(key), "executions": due.measures.get(key)}
                yield Difference("", f"measures.{key}", values, name, message)


def _differing(
    step: str,
    shown: Mapping[str, Totals],
    due: Mapping[str, Totals],
    statuses: Iterable[str],
    message: str,
) -> Iterator[Difference]:
    for status in statuses:
        shown_totals, due_totals = shown.get(status, Totals()), due.get(status, Totals())
        for field in _TOTALS:
            values: dict[str, Any] = {"rollups": getattr(shown_totals, field), "executions": getattr(due_totals, field)}
            if values["rollups"] != values["executions"]:
                yield Difference("", f"{status}.{field}", values, step, message)
        values = {"rollups": shown_totals.durations.positive, "executions": due_totals.durations.positive}
        if values["rollups"] != values["executions"]:
            yield Difference("", f"{status}.durations", values, step, message)


_TOTALS: Final = ("count", *(name for name in Totals.__slots__ if name != "durations"))
