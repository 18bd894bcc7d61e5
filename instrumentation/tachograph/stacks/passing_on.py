"""What is asked of an execution, for the other processes that do work of it: workers of a runner, and children.

A runner registers the attempts that its workers do, and brings what is asked to them. Children ask themselves: their
signs of life reach the process that started them, whose answers say what is asked.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tachograph.events import StepStacks
from tachograph.folded_stacks import StacksKind, StackWish
from tachograph.workflow.reporter import Reporter

_KEPT_SECONDS: Final = 10.0
"""How long something asked is kept for children: they ask more often."""
_MAX_KEPT: Final = 1_000


class AttemptElsewhere:
    """An attempt that a worker does. ``ask`` brings it what is asked, later; it never blocks."""

    def __init__(self, reporter: Reporter, ask: Callable[[StackWish], None]) -> None:
        self.reporter = reporter
        self.is_sampled = False
        self._ask = ask
        self._requests: deque[str] = deque(maxlen=16)

    def pass_on(self, wish: StackWish) -> None:
        """Ask the worker, once a request. The same is asked again and again while it is open."""
        request = "" if wish.request in self._requests else wish.request
        is_late = not self.is_sampled and self.reporter.step.step_id in wish.step_ids
        if not request and not is_late:
            return
        if request:
            self._requests.append(request)
        self.is_sampled = self.is_sampled or is_late
        # Said each time: a worker that did not get it samples from now on.
        step_ids = (self.reporter.step.step_id,) if self.is_sampled else ()
        self._ask(StackWish(wish.execution_id, request, step_ids))


_elsewhere: Final[dict[str, dict[int, AttemptElsewhere]]] = {}
"""By execution."""
_kept: Final[OrderedDict[str, tuple[float, StackWish]]] = OrderedDict()


@contextlib.contextmanager
def done_elsewhere(reporter: Reporter, ask: Callable[[StackWish], None]) -> Iterator[AttemptElsewhere]:
    """A worker does an attempt while the code inside waits for it."""
    attempt = AttemptElsewhere(reporter, ask)
    execution_id = reporter.step.execution.execution_id
    _elsewhere.setdefault(execution_id, {})[id(attempt)] = attempt
    try:
        yield attempt
    finally:
        attempts = _elsewhere.get(execution_id, {})
        attempts.pop(id(attempt), None)
        if not attempts:
            _elsewhere.pop(execution_id, None)


def attempts_elsewhere(execution_id: str) -> list[AttemptElsewhere]:
    """The attempts of an execution that workers do for this process."""
    return list(_elsewhere.get(execution_id, {}).values())


def pass_on(wish: StackWish) -> None:
    """Ask workers at once, and children when they give a sign of life."""
    for attempt in attempts_elsewhere(wish.execution_id):
        attempt.pass_on(wish)
    _, before = _kept.pop(wish.execution_id, (0.0, wish))
    step_ids = tuple(dict.fromkeys((*before.step_ids, *wish.step_ids)))[:_MAX_KEPT]
    merged = StackWish(wish.execution_id, wish.request or before.request, step_ids)
    _kept[wish.execution_id] = (time.monotonic() + _KEPT_SECONDS, merged)
    while len(_kept) > _MAX_KEPT:
        _kept.popitem(last=False)


def kept_for(execution_ids: Iterable[str]) -> list[StackWish]:
    """What was asked of these executions a moment ago."""
    if not _kept:
        return []
    now = time.monotonic()
    wishes = []
    for execution_id in execution_ids:
        until, wish = _kept.get(execution_id, (0.0, None))
        if wish is None:
            continue
        if until < now:
            _kept.pop(execution_id, None)
        else:
            wishes.append(wish)
    return wishes


class StackBox:
    """Stacks that an attempt in a worker has told of, until they are fetched; of each step and kind the newest.

    ``send``: takes them at once, so that none need be fetched.
    """

    def __init__(self, send: Callable[[StepStacks], None] | None = None) -> None:
        self._send = send
        self._newest: dict[tuple[str, int, StacksKind], StepStacks] = {}
        self._has_news = False

    def put(self, event: StepStacks) -> None:
        """Note what was told. Safe to use from any thread."""
        if self._send is not None:
            self._send(event)
        else:
            self._newest[event.step.step_id, event.attempt, event.kind] = event
            self._has_news = True

    def news(self) -> list[StepStacks] | None:
        """All that was told; None if nothing was since the last call."""
        if not self._has_news:
            return None
        self._has_news = False
        return list(self._newest.values())

    def profiles(self) -> list[StepStacks]:
        """What was sampled."""
        return [event for event in list(self._newest.values()) if event.kind is StacksKind.PROFILE]


def _after_fork() -> None:
    _elsewhere.clear()
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
