"""What steps told last, so that what their child processes do for them can be put beside it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from tachograph.events import StepStacks
from tachograph.folded_stacks import MAX_STACKS, FoldedStack
from tachograph.stacks.profile import step_of
from tachograph.stacks.taking import running_reporters
from tachograph.workflow.reporter import Reporter

CHILDREN_SECONDS: Final = 1.5
"""How long a step waits for what its child processes do: they ask every second."""
_MAX_REMEMBERED: Final = 1_000

_Key = tuple[str, str, int]
_told: Final[OrderedDict[_Key, StepStacks]] = OrderedDict()
_waiting: Final[set[_Key]] = set()
"""What is recorded in a moment."""


def record(told: Sequence[tuple[Reporter, StepStacks]], *, have_children: bool) -> None:
    """Record what steps of this process tell: at once, or once their child processes should have told their part."""
    for _, event in told:
        _told[_key(event)] = event
        while len(_told) > _MAX_REMEMBERED:
            _told.popitem(last=False)
    if not (have_children and _record_later(told)):
        for reporter, event in told:
            reporter.emit(event)


def _record_later(told: Sequence[tuple[Reporter, StepStacks]]) -> bool:
    def emit() -> None:
        for reporter, asked in told:
            _waiting.discard(_key(asked))
            event = _told.get(_key(asked), asked)
            if reporter.is_open and reporter.attempts.attempt == event.attempt:
                reporter.emit(event)

    timer = threading.Timer(CHILDREN_SECONDS, emit)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:
        return False  # No thread can be started now.
    _waiting.update(_key(event) for _, event in told)
    return True


def by_child(event: StepStacks) -> bool:
    """Take what a child process does for a step that runs here; False: the step does not run here."""
    reporters = running_reporters(event.execution.execution_id)
    own = next((each for each in reporters if step_of(each).step_id == event.step.step_id), None)
    if own is None:
        return False
    key = _key(event)
    before = _told.get(key)
    if before is not None and before.request == event.request:
        counts = {folded.stack: folded.count for folded in before.stacks}
        for folded in event.stacks:
            counts[folded.stack] = counts.get(folded.stack, 0) + folded.count
        stacks = tuple(FoldedStack(stack, count) for stack, count in counts.items())[:MAX_STACKS]
        _told[key] = merged = replace(before, stacks=stacks, time_ns=max(own.clock(), before.time_ns))
        if key not in _waiting:
            own.emit(merged)
    return True


def _key(event: StepStacks) -> _Key:
    return event.execution.execution_id, event.step.step_id, event.attempt


def _after_fork() -> None:
    _told.clear()
    _waiting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
