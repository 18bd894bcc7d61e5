"""How recent executions ended according to one listener, kept so that the views of a run can be compared."""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

from tachograph.events import Event, ExecutionFinished, StepFinished, StepSkipped

MAX_EXECUTIONS: Final = 512
MAX_ENTRIES: Final = 200_000


FOLDED: Final = "folded"


class Entry(NamedTuple):
    """A step as a listener saw it; ``attempts`` is 0 for a skipped one. The execution's own entry has the id ``""``.

    Folded steps have one entry, with the status `FOLDED`, all their attempts and the sum of their durations.
    """

    status: str
    attempts: int
    duration_ns: int


class Outcomes:
    """Entries by execution and step id, for the newest `MAX_EXECUTIONS` executions and at most `MAX_ENTRIES` in all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Plain tuples: creating an `Entry` for every step would cost more than everything else here.
        self._runs: dict[str, dict[str, tuple[str, int, int]]] = {}
        self._count = 0

    def note(self, execution_id: str, step_id: str, status: str, attempts: int, duration_ns: int) -> None:
        """Keep how a step ended, or with an empty step id how the execution did."""
        run = self._runs.get(execution_id)
        if run is None:
            run = self._begin(execution_id)
        run[step_id] = (status, attempts, duration_ns)
        self._count += 1

    def fold(self, execution_id: str, step_id: str, attempts: int, duration_ns: int) -> None:
        """Keep how a folded step ended, added to those it is folded with."""
        run = self._runs.get(execution_id)
        if run is None:
            run = self._begin(execution_id)
        entry = run.get(step_id)
        if entry is None:
            self._count += 1
            run[step_id] = (FOLDED, attempts, duration_ns)
        else:
            run[step_id] = (FOLDED, entry[1] + attempts, entry[2] + duration_ns)

    def _begin(self, execution_id: str) -> dict[str, tuple[str, int, int]]:
        with self._lock:
            while self._runs and (len(self._runs) >= MAX_EXECUTIONS or self._count > MAX_ENTRIES):
                oldest = next(iter(self._runs))
                self._count -= len(self._runs.pop(oldest))
            return self._runs.setdefault(execution_id, {})

    def execution(self, execution_id: str) -> dict[str, Entry] | None:
        """The entries of one execution by step id; None when it is unknown or no longer kept."""
        run = self._runs.get(execution_id)
        return {step_id: Entry(*entry) for step_id, entry in run.items()} if run is not None else None


class EventOutcomes:
    """A listener that keeps what the events themselves say."""

    def __init__(self) -> None:
        self.outcomes = Outcomes()

    def __call__(self, event: Event) -> None:
        """Keep how a step or an execution ended."""
        if isinstance(event, StepFinished):
            key = (event.execution.execution_id, event.step.step_id)
            if event.step.folded_as is not None:
                self.outcomes.fold(*key, event.attempt, event.duration_ns)
            else:
                self.outcomes.note(*key, event.status, event.attempt, event.duration_ns)
        elif isinstance(event, StepSkipped):
            self.outcomes.note(event.execution.execution_id, event.step.step_id, "skipped", 0, 0)
        elif isinstance(event, ExecutionFinished):
            self.outcomes.note(event.execution.execution_id, "", event.status, 0, event.duration_ns)
