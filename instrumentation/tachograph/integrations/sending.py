"""What is sent to a queue belongs to a run: which one, and where in it.

A run is what was sent together from outside of any task, and all that its tasks send. What was sent together: a group,
if the queue knows groups; what depends on one another; what was sent in a block `together`. Whatever else is sent
alone is a run of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from tachograph.identity import new_id
from tachograph.identity import traceparent as make_traceparent
from tachograph.integrations.places import Memory, Place, below, numbered
from tachograph.integrations.running import running_task
from tachograph.names import clean_name
from tachograph.report.safely import caller_traceparent

_together: ContextVar[Place | None] = ContextVar("tachograph_sent_together", default=None)
_ID_DIGITS: Final = 8


@contextmanager
def together(workflow: str, *, run_id: object = None) -> Iterator[None]:
    """Let all tasks that are sent in the block be one run of a workflow.

    It ends when all of them, and all that they send, have ended. What a task sends belongs to the run of that task
    anyway; there the block has no effect.

    Args:
        workflow: name of the workflow.
        run_id: what the run is called, unique in its workflow (default: a new id). The same name in two processes
            means the same run; then each task is sent by one of them only.
    """
    name = clean_name(workflow) or "?"
    identifier = new_id() if run_id is None else clean_name(run_id)
    token = _together.set(Place(name, identifier, "", "", "", "", None, 0.0, ""))
    try:
        yield
    finally:
        _together.reset(token)


def sent_together() -> Place | None:
    """The run of the block `together` that this code runs in, outside of any task."""
    return _together.get()


class Sending:
    """Gives places to the messages that this process sends for an engine."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._counts = Memory()
        self._keys = Memory()
        self._workflows = Memory()
        self._begun = Memory()

    def clear(self) -> None:
        """Forget all that was sent."""
        for memory in (self._counts, self._keys, self._workflows, self._begun):
            memory.clear()

    def place(
        self,
        name: str,
        task_id: str,
        *,
        due: float | None,
        group: str | None = None,
        run_id: str | None = None,
        after: Sequence[Place] = (),
        traceparent: str | None = None,
    ) -> Place:
        """The place of a message, which is reported as queued, or as planned.

        Args:
            name: of the task.
            task_id: the engine's id of the message.
            due: when it may run, unix seconds; None: it is sent later, once what it depends on has ended.
            group: the engine's id of what it is a member of.
            run_id: of a run of its own (default: ``group``, or ``task_id``).
            after: the places of what it depends on, as far as they are known.
            traceparent: of the span of the message, if another instrumentation made one and no span is current.
        """
        place = self.reserve(name, task_id, due=due, group=group, run_id=run_id, after=after, traceparent=traceparent)
        self.report(place, due=due, after=after)
        return place

    def reserve(
        self,
        name: str,
        task_id: str,
        *,
        due: float | None,
        group: str | None = None,
        run_id: str | None = None,
        after: Sequence[Place] = (),
        traceparent: str | None = None,
    ) -> Place:
        """The place of a message that may still turn out not to be sent: see `place`, and `report` it then."""
        sent_by = running_task()
        block = _together.get() if sent_by is None else None
        if block is not None:
            # The span that is current when the first message is sent may be inside the block.
            block = block._replace(traceparent=self._alone(name, block.run_id, traceparent).traceparent)
        root = sent_by or block or (after[0] if after else None)
        root = root or self._alone(name, run_id or group or task_id, traceparent)
        scope = f"{root.run_id}/{sent_by.path}" if sent_by is not None else root.run_id
        path = sent_by.path if sent_by is not None else ""
        number = None
        if group is not None:
            key = self._keys.get((scope, group, name)) or self._keys.put(
                (scope, group, name), self._numbered(scope, below(path, name))
            )
            number = self._counts.count((scope, group, key)) - 1
        elif sent_by is None and block is None and after and not self._begun.get(root.run_id):
            # Other processes may add a task of the same name to this run; only its id tells them apart.
            key = f"{below(path, name)}#{task_id[:_ID_DIGITS]}"
        else:
            key = self._numbered(scope, below(path, name))
        place = root._replace(
            key=key,
            around="",
            name=name,
            number=number,
            queued=0.0,
            attempt=1,
            engine=root.engine or self._engine,
            asked=0.0,
        )
        return place if due is None else place.asked_for(due)

    def report(self, place: Place, *, due: float | None, after: Sequence[Place] = ()) -> None:
        """A message with this place was sent, or is planned."""
        step, is_in_block = place.step, _together.get() is not None
        if running_task() is None and (not after or is_in_block) and not self._begun.get(place.run_id):
            self._begun.put(place.run_id, True)
            place.run.queued()
        step.depend_on(*[other.step for other in after if other.run_id == place.run_id])
        if due is None:
            step.planned()
        else:
            place.queue()

    @property
    def trace_ahead(self) -> str:
        """The ``traceparent`` of the run that the next message belongs to; "": not known before it is sent."""
        sent_by = running_task()
        if sent_by is not None:
            ref = sent_by.run.ref
            return make_traceparent(ref.trace_id, ref.span_id)
        block = _together.get()
        known = self._workflows.get(block.run_id) if block is not None else None
        return known[1] if known is not None else ""

    def _alone(self, name: str, run_id: str, sent_in: str | None) -> Place:
        """The place of what is sent on its own, or with its group: the first one names the run."""
        workflow, traceparent = self._workflows.get(run_id) or self._workflows.put(
            run_id, (name, caller_traceparent() or sent_in or "")
        )
        return Place(workflow, run_id, traceparent, "", "", "", None, 0.0, self._engine)

    def _numbered(self, scope: str, key: str) -> str:
        """The key, and a number if it was there before in this scope."""
        return numbered(key, self._counts.count((scope, key)))
