"""The time of a run, and where steps lie in it whose own times do not.

A step's times may lie outside its run's: its machine has another clock, or it went on after the run had ended. What is
shown are its own times. What is computed from them (waits, work, the critical path) uses its *place* in the run, so
that no wait is longer than the run and the critical path is not either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tachograph.critical_path import NamedStep


class Place(NamedTuple):
    """Where a step lies in its run. ``end_ns`` is None while it is open.

    ``shift_ns`` was added to its own times, before they were cut. ``outside_ns`` is how far its own times lie after the
    end of the run, or (negative) before its start; 0 if they lie within it.
    """

    start_ns: int
    end_ns: int | None
    shift_ns: int = 0
    outside_ns: int = 0


class RunWindow(NamedTuple):
    """The time of a run from start to end, or until now while it is open. Times are unix nanoseconds."""

    start_ns: int
    end_ns: int

    @classmethod
    def of(cls, start_ns: int, end_ns: int | None, now_ns: int) -> RunWindow:
        """The window of a run; ``end_ns`` is None while it is open. An end before the start counts as the start."""
        return cls(start_ns, max(start_ns, now_ns if end_ns is None else end_ns))

    def place(self, started_ns: int, ended_ns: int | None) -> Place:
        """Where a step lies.

        A step that lies outside the window and would fit into it had another clock: it is moved to the nearest edge.
        Any other step is cut to the window.
        """
        low, high = self
        end_ns = started_ns if ended_ns is None or ended_ns < started_ns else ended_ns
        if started_ns >= low and end_ns <= high:
            return Place(started_ns, None if ended_ns is None else end_ns)
        after, before = max(0, end_ns - high), max(0, low - started_ns)
        shift = 0
        if end_ns - started_ns <= high - low:
            if started_ns >= high:
                shift = -after
            elif end_ns <= low:
                shift = before
        placed_start, placed_end = self.cut(started_ns + shift), self.cut(end_ns + shift)
        outside = after if after >= before else -before
        return Place(placed_start, None if ended_ns is None else placed_end, shift, outside)

    def cut(self, time_ns: int) -> int:
        """The moment of the window that is nearest to ``time_ns``."""
        low, high = self
        if time_ns < low:
            return low
        return min(time_ns, high)


class PlacedStep:
    """A step with its place in the run instead of its own times; a `tachograph.critical_path.NamedStep`."""

    __slots__ = ("depends_on", "finished_ns", "folded", "name", "parent_step_id", "started_ns", "step_id")

    def __init__(self, step: NamedStep, place: Place) -> None:
        self.step_id = step.step_id
        self.name = step.name
        self.depends_on: Sequence[str] = step.depends_on
        self.parent_step_id = step.parent_step_id
        self.folded = getattr(step, "folded", None)
        self.started_ns: int | None = place.start_ns
        self.finished_ns = place.end_ns


def placed(steps: Iterable[NamedStep], window: RunWindow) -> list[NamedStep]:
    """The steps, with places for those whose own times do not lie within the window or end before they begin."""
    low, high = window
    result: list[NamedStep] = []
    for step in steps:
        started, ended = step.started_ns, step.finished_ns
        if started is None or (low <= started <= high and (ended is None or started <= ended <= high)):
            result.append(step)
        else:
            result.append(PlacedStep(step, window.place(started, ended)))
    return result
