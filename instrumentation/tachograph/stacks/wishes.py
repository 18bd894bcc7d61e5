"""What whoever stores an execution asks of the process that runs it: the answers to its heartbeats.

The process tells in its heartbeats which attempts have been running for a while; who stores them knows what is usual.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from tachograph.events import StepStacks
from tachograph.folded_stacks import FoldedStack, LongAttempt, StacksKind, StackWish
from tachograph.quiet_log import QuietLog
from tachograph.running_attempts import running
from tachograph.stacks.frames import FrameTexts
from tachograph.stacks.profile import step_of
from tachograph.stacks.sampler import sampler
from tachograph.stacks.taking import running_reporters, take
from tachograph.workflow.reporter import Reporter

quiet = QuietLog(logging.getLogger(__name__))

MAX_TOLD: Final = 100
"""Attempts whose stacks are told at once: those that began first."""
LONG_NS: Final = 2_000_000_000
"""From this running time on, heartbeats name an attempt."""
MAX_LONG: Final = 20
"""Attempts that one heartbeat names: those that began first."""
_MAX_REMEMBERED: Final = 1_000

_answered: OrderedDict[str, None] = OrderedDict()


def long_attempts(execution_id: str) -> tuple[LongAttempt, ...]:
    """Attempts of an execution that have been running here for a while and are not sampled. Never raises."""
    if not running:
        return ()
    try:
        return _long_attempts(execution_id)
    except Exception as error:
        # A heartbeat must go out, whatever it says besides.
        quiet.exception(type(error), "it is not known which attempts take long")
        return ()


def _long_attempts(execution_id: str) -> tuple[LongAttempt, ...]:
    long: list[LongAttempt] = []
    for reporter in running_reporters(execution_id):
        running_ns = reporter.clock() - reporter.attempts.attempt_started_ns
        if running_ns >= LONG_NS and reporter.profile is None:
            step = step_of(reporter)
            long.append(LongAttempt(step.step_id, step.name, running_ns))
    return tuple(sorted(long, key=lambda attempt: -attempt.running_ns)[:MAX_LONG])


def fulfil(wishes: Iterable[StackWish]) -> None:
    """Do what is asked, as far as the executions run here. Never raises."""
    for wish in wishes:
        try:
            if wish.request:
                tell(wish.execution_id, wish.request)
            if wish.step_ids:
                _sample(wish.execution_id, frozenset(wish.step_ids))
        except Exception as error:
            quiet.exception(type(error), "stacks could not be taken")


def tell(execution_id: str, request: str) -> int:
    """Record the stacks of an execution's attempts that run here, once a request; returns how many were told."""
    reporters = running_reporters(execution_id)[:MAX_TOLD]
    if not reporters or request in _answered:
        return 0
    _answered[request] = None
    while len(_answered) > _MAX_REMEMBERED:
        _answered.popitem(last=False)
    taken = take(reporters, FrameTexts())
    for reporter, stacks in taken.items():
        reporter.emit(_now(reporter, stacks, request))
    return len(taken)


def _now(reporter: Reporter, stacks: list[str], request: str) -> StepStacks:
    now = reporter.clock()
    counts: dict[str, int] = {}
    for stack in stacks:
        counts[stack] = counts.get(stack, 0) + 1
    return StepStacks(
        step=step_of(reporter),
        time_ns=now,
        attempt=reporter.attempts.attempt,
        kind=StacksKind.NOW,
        request=request,
        started_ns=now,
        stacks=tuple(FoldedStack(stack, count) for stack, count in counts.items()),
        samples=1,
    )


def _sample(execution_id: str, step_ids: frozenset[str]) -> None:
    for reporter in running_reporters(execution_id):
        if reporter.step.step_id in step_ids and reporter.profile is None:
            sampler.arm(reporter)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_answered.clear)
