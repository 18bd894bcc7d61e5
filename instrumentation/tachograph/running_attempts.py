"""The attempts whose code runs in this process now, and where: whose stacks can be taken.

An attempt is entered when its code begins and leaves when it ends, which costs a dictionary access each. Nothing else
happens unless somebody asks (see `tachograph.stacks`).
"""

from __future__ import annotations

import asyncio
import os
from threading import get_ident
from typing import Any, Final, Protocol


class Profile(Protocol):
    """Samples of one attempt."""

    def end(self) -> None:
        """The attempt ends."""


class RunningAttempt(Protocol):
    """An attempt in this process: where its code runs, and what samples it."""

    thread: int
    task: asyncio.Task[Any] | None
    profile: Profile | None


running: Final[dict[int, RunningAttempt]] = {}
"""By the identity of the attempt's object."""


def begin(attempt: RunningAttempt, *, is_on_loop: bool = False) -> None:
    """The calling thread does the attempt's work from now on; ``is_on_loop``: the current task does."""
    attempt.thread = get_ident()
    if is_on_loop:
        attempt.task = asyncio.current_task()
    running[id(attempt)] = attempt


def pause(attempt: RunningAttempt) -> None:
    """The attempt's code pauses (a generator that yielded); `begin` goes on."""
    running.pop(id(attempt), None)
    attempt.task = None


def end(attempt: RunningAttempt) -> None:
    """The attempt's code has ended; what was sampled of it is recorded."""
    running.pop(id(attempt), None)
    attempt.task = None
    profile = attempt.profile
    if profile is not None:
        attempt.profile = None
        profile.end()


if hasattr(os, "register_at_fork"):
    # What runs in the parent does not run here.
    os.register_at_fork(after_in_child=running.clear)
