"""Attempts of a parent process that this process does a part of: work that was given to a process pool."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import OrderedDict
from threading import get_ident
from typing import Final

from tachograph.folded_stacks import frame_text
from tachograph.workflow.reporter import Reporter

_MAX_CHILDREN: Final = 1_000
_CHILD_SECONDS: Final = 3.0
"""How long after its last sign of life a child counts."""
_guests: Final[dict[int, Reporter]] = {}
_children: Final[OrderedDict[str, float]] = OrderedDict()
"""In a parent: when a child last gave a sign of life, by execution."""


def come(reporter: Reporter) -> None:
    """From now on, the calling thread does a part of a parent's attempt."""
    reporter.thread = get_ident()
    _guests[id(reporter)] = reporter


def go(reporter: Reporter) -> None:
    """The part is done."""
    _guests.pop(id(reporter), None)


def guests_of(execution_id: str) -> list[Reporter]:
    """Those of an execution."""
    return [each for each in list(_guests.values()) if each.step.execution.execution_id == execution_id]


def note_child(execution_id: str) -> None:
    """In the parent: a child process gave a sign of life of this execution."""
    _children[execution_id] = time.monotonic()
    _children.move_to_end(execution_id)
    while len(_children) > _MAX_CHILDREN:
        _children.popitem(last=False)


def have_guests(execution_id: str) -> bool:
    """In the parent: whether child processes work for an execution now."""
    return time.monotonic() - _children.get(execution_id, -_CHILD_SECONDS) < _CHILD_SECONDS


def process_root() -> str:
    """What begins the stacks of this process: ``[process NAME]``, without the number that a pool gives it."""
    name = multiprocessing.current_process().name
    return f"[process {frame_text(name.rstrip('0123456789').rstrip('-_:') or name)[:60]}]"


def _after_fork() -> None:
    _guests.clear()
    _children.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
