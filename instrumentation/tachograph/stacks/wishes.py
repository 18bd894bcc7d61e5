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
from tachograph.folded_stacks import SEPARATOR, FoldedStack, LongAttempt, StacksKind, StackWish
from tachograph.quiet_log import QuietLog
from tachograph.running_attempts import running
from tachograph.stacks import told
from tachograph.stacks.frames import FrameTexts
from tachograph.stacks.guests import guests_of, have_guests, process_root
from tachograph.stacks.passing_on import attempts_elsewhere, pass_on
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
    """Attempts of an execution that have been running for a while, here or in a runner's workers, and are not sampled.

    Never raises.
    """
    try:
        return _long_attempts(execution_id)
    except Exception as error:
        # A heartbeat must go out, whatever it says besides.
        quiet.exception(type(error), "it is not known which attempts take long")
        return ()


def _long_attempts(execution_id: str) -> tuple[LongAttempt, ...]:
    reporters = [each for each in running_reporters(execution_id) if each.profile is None] if running else []
    reporters += [each.reporter for each in attempts_elsewhere(execution_id) if not each.is_sampled]
    long: list[LongAttempt] = []
    for reporter in reporters:
        running_ns = reporter.clock() - reporter.attempts.attempt_started_ns
        if running_ns >= LONG_NS:
            step = step_of(reporter)
            long.append(LongAttempt(step.step_id, step.name, running_ns))
    return tuple(sorted(long, key=lambda attempt: -attempt.running_ns)[:MAX_LONG])


def fulfil(wishes: Iterable[StackWish]) -> None:
    """Do what is asked, as far as the executions run here, and pass it on to who works for them. Never raises."""
    for wish in wishes:
        try:
            if wish.request:
                _tell(wish.execution_id, wish.request)
            # Afterwards: what children tell is put beside what was told here.
            pass_on(wish)
            if wish.step_ids:
                _sample(wish.execution_id, frozenset(wish.step_ids))
        except Exception as error:
            quiet.exception(type(error), "stacks could not be taken")


def tell(execution_id: str, request: str) -> int:
    """Record the stacks of an execution's attempts that run here, once a request; returns how many were told.

    Who works for it elsewhere is asked, too.
    """
    count = _tell(execution_id, request)
    pass_on(StackWish(execution_id, request))
    return count


def _tell(execution_id: str, request: str) -> int:
    reporters = running_reporters(execution_id)[:MAX_TOLD]
    guests = guests_of(execution_id)[: MAX_TOLD - len(reporters)]
    if not (reporters or guests) or request in _answered:
        return 0
    _answered[request] = None
    while len(_answered) > _MAX_REMEMBERED:
        _answered.popitem(last=False)
    own: list[tuple[Reporter, StepStacks]] = []
    for reporter, stacks in take([*reporters, *guests], FrameTexts()).items():
        if reporter in guests:
            # The process that has the step puts them beside its own.
            reporter.emit(_now(reporter, [f"{process_root()}{SEPARATOR}{stack}" for stack in stacks], request))
        else:
            own.append((reporter, _now(reporter, stacks, request)))
    told.record(own, have_children=have_guests(execution_id))
    return len(own)


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
