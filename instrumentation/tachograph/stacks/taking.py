"""Taking the stacks of running attempts, all at the same moment.

Which threads work for an attempt is known of the one that its code was called in, and of those that were started in a
copy of its context (``asyncio.to_thread``, ``copy_context().run``); of tasks, by their event loop or their context.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Iterable
from contextvars import Context
from types import FrameType
from typing import Any, Final

from tachograph.folded_stacks import SEPARATOR, frame_text
from tachograph.running_attempts import running
from tachograph.stacks import tasks
from tachograph.stacks.frames import FrameTexts, folded, inside_task, is_cut, module_of, stack_of, without_bootstrap
from tachograph.stacks.native import native_name
from tachograph.workflow.reporter import Reporter, current_reporter

MAX_HELPERS: Final = 256
"""Threads besides the attempts' own that are looked at."""
MAX_STACKS: Final = 200
"""Stacks of one attempt at one moment."""
_WORK_ITEM: Final = ("run", "concurrent.futures.thread")
_METHOD: Final[type] = type(Context().run)


def running_reporters(execution_id: str | None = None) -> list[Reporter]:
    """Attempts whose code runs in this process, those that began first before others; of one execution."""
    process = os.getpid()
    attempts = [each for each in list(running.values()) if isinstance(each, Reporter)]
    return [
        each
        for each in attempts
        if each.process == process and (execution_id is None or each.step.execution.execution_id == execution_id)
    ]


def take(attempts: Iterable[Reporter], texts: FrameTexts) -> dict[Reporter, list[str]]:
    """The folded stacks of attempts. Those of helpers begin with ``[thread NAME]`` or ``[task NAME]``."""
    taken: dict[Reporter, list[str]] = {attempt: [] for attempt in attempts}
    by_thread = sys._current_frames()
    own_thread = threading.get_ident()
    owners = {attempt.thread for attempt in taken}
    for attempt in taken:
        if attempt.task is not None:
            _of_task(attempt, attempt.task, by_thread, texts, taken, root="")
        elif (frame := by_thread.get(attempt.thread)) is not None:
            frames = stack_of(frame)
            text = folded(without_bootstrap(frames), texts, is_running=True, is_cut=is_cut(frames))
            _add(taken[attempt], text)
            if (loop := tasks.loop_in(frames)) is not None:
                _of_loop(attempt, loop, by_thread, texts, taken, is_inside=True)
    for loop, attempt in {id(a.task): (a.task.get_loop(), a) for a in taken if a.task is not None}.values():
        if hasattr(asyncio.Task, "get_context"):
            _of_loop(attempt, loop, by_thread, texts, taken, is_inside=False)
    _of_helpers({i: frame for i, frame in by_thread.items() if i != own_thread and i not in owners}, texts, taken)
    return taken


def _add(stacks: list[str], text: str, root: str = "") -> None:
    if text and len(stacks) < MAX_STACKS:
        stacks.append(f"{root}{SEPARATOR}{text}" if root else text)


def _of_task(
    attempt: Reporter,
    task: asyncio.Task[Any],
    by_thread: dict[int, FrameType],
    texts: FrameTexts,
    taken: dict[Reporter, list[str]],
    *,
    root: str,
) -> None:
    if tasks.is_running(task):
        if (frame := by_thread.get(attempt.thread)) is not None:
            frames = stack_of(frame)
            inside = inside_task(frames, tasks.first_frame(task))
            _add(taken[attempt], folded(inside, texts, is_running=True, is_cut=is_cut(frames)), root)
        return
    for frames in tasks.chains(task):
        _add(taken[attempt], folded(frames, texts, is_running=False, is_cut=is_cut(frames)), root)


def _of_loop(
    attempt: Reporter,
    loop: asyncio.AbstractEventLoop,
    by_thread: dict[int, FrameType],
    texts: FrameTexts,
    taken: dict[Reporter, list[str]],
    *,
    is_inside: bool,
) -> None:
    """Tasks of a loop that work for an attempt, besides those that are attempts themselves.

    ``is_inside``: the attempt itself runs the loop, so that all of its tasks work for it.
    """
    own = {id(each.task) for each in running_reporters() if each.task is not None}
    awaited = {id(getattr(task, "_fut_waiter", None)) for task in tasks.tasks_of(loop)}
    for task in tasks.tasks_of(loop):
        if id(task) in own or id(task) in awaited or task.done():
            continue
        if not is_inside:
            context = tasks.context_of(task)
            if context is None or context.get(current_reporter) is not attempt or _is_gathered(task, attempt):
                continue
        _of_task(attempt, task, by_thread, texts, taken, root=f"[task {_name(task.get_name())}]")


def _is_gathered(task: asyncio.Task[Any], attempt: Reporter) -> bool:
    """Whether the attempt's own task waits for this one, with others: then it is part of that stack."""
    return attempt.task is not None and any(child is task for child in tasks.awaited_by(attempt.task))


def _of_helpers(by_thread: dict[int, FrameType], texts: FrameTexts, taken: dict[Reporter, list[str]]) -> None:
    """Threads that were started in a copy of an attempt's context."""
    threads = [(thread, by_thread[thread.ident or 0]) for thread in threading.enumerate() if thread.ident in by_thread]
    for thread, frame in threads[:MAX_HELPERS]:
        frames = stack_of(frame)
        context = _context_of(thread, frames)
        attempt = context.get(current_reporter) if context is not None else None
        if attempt in taken:
            native = _work_in_c(frames)
            text = native or folded(without_bootstrap(frames), texts, is_running=True, is_cut=is_cut(frames))
            _add(taken[attempt], text, f"[thread {_name(thread.name)}]")


def _context_of(thread: threading.Thread, frames: list[FrameType]) -> Context | None:
    """The context that a thread works in, as far as whoever started it shows."""
    for call in (getattr(thread, "_context", None), getattr(thread, "_target", None)):
        if (context := _bound(call)) is not None:
            return context
    for frame in frames[:8]:
        if frame.f_code.co_name == _WORK_ITEM[0] and module_of(frame) == _WORK_ITEM[1]:
            # A frame of the standard library, which lasts as long as what is read here.
            return _bound(getattr(frame.f_locals.get("self"), "fn", None))
    return None


def _work_in_c(frames: list[FrameType]) -> str:
    """The C function that a pool's thread was given to call; "" if it has frames of its own."""
    last = frames[-1]
    if last.f_code.co_name != _WORK_ITEM[0] or module_of(last) != _WORK_ITEM[1]:
        return ""
    call = getattr(last.f_locals.get("self"), "fn", None)
    call = call.args[0] if isinstance(call, functools.partial) and call.args else None
    name = native_name(call)
    return f"{frame_text(name)} (native)" if name else ""


def _bound(call: object) -> Context | None:
    while isinstance(call, functools.partial):
        call = call.func
    if isinstance(call, Context):
        return call
    context = getattr(call, "__self__", None) if type(call) is _METHOD else None
    return context if isinstance(context, Context) else None


def _name(name: str) -> str:
    """A thread's or task's name without the number that pools give it: stacks of a pool's threads are folded."""
    return frame_text(name.rstrip("0123456789").rstrip("_-") or name)[:60]
