"""Where tasks of asyncio wait: the chain of what each awaits, from its own coroutine to the innermost one."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextvars import Context
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

from tachograph.folded_stacks import MAX_DEPTH

MAX_TASKS: Final = 200
"""Tasks that are looked at for one attempt."""
_MAX_CHILDREN: Final = 20
"""Tasks that one `asyncio.gather` waits for and that are followed."""
_LOOP: Final = ("run_forever", "asyncio/base_events.py")
_WAITING: Final = {
    ("taskgroups.py", "__aexit__"): "self", ("taskgroups.py", "_aexit"): "self", ("tasks.py", "wait_for"): "fut",
    ("tasks.py", "_wait"): "fs",
}  # fmt: skip
"""Functions of asyncio that wait for tasks through a future that does not know them, and the variable that does."""
_WRAPPERS: Final = frozenset(
    ("async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper")
)


def is_running(task: asyncio.Task[Any]) -> bool:
    """Whether the task's code is on the stack of its loop's thread now."""
    coroutine = task.get_coro()
    return bool(getattr(coroutine, "cr_running", False) or getattr(coroutine, "gi_running", False))


def first_frame(task: asyncio.Task[Any]) -> FrameType | None:
    """The frame of the task's own coroutine."""
    return next(iter(_frames(task.get_coro(), 1)), None)


def chains(task: asyncio.Task[Any]) -> Iterator[list[FrameType]]:
    """What a waiting task awaits, outermost first: one chain, or one for each task that it gathers."""
    yield from _chains(task, [], 0)


def _chains(task: asyncio.Task[Any], outer: list[FrameType], depth: int) -> Iterator[list[FrameType]]:
    own = _frames(task.get_coro())
    frames = [*outer, *own]
    if depth < _MAX_CHILDREN and len(frames) <= MAX_DEPTH:
        waiter = getattr(task, "_fut_waiter", None)
        if isinstance(waiter, asyncio.Task):
            yield from _chains(waiter, frames, depth + 1)
            return
        waiting = [each for each in _children(waiter, own) if each is not task and not each.done()][:_MAX_CHILDREN]
        if waiting:
            for child in waiting:
                yield from _chains(child, frames, depth + _MAX_CHILDREN // 2)
            return
    if frames:
        yield frames


def awaited_by(task: asyncio.Task[Any]) -> list[asyncio.Task[Any]]:
    """The tasks that a waiting task waits for together: `asyncio.gather`, a task group, `wait`, `wait_for`."""
    return _children(getattr(task, "_fut_waiter", None), _frames(task.get_coro()))


def _children(waiter: object, frames: list[FrameType]) -> list[asyncio.Task[Any]]:
    children: object = getattr(waiter, "_children", None)
    if children is None and frames:
        code = frames[-1].f_code
        name = _WAITING.get((code.co_filename.replace("\\", "/").rpartition("/asyncio/")[2], code.co_name))
        if name is not None:
            # Of a frame of the standard library, which ends when what it waits for does.
            children = frames[-1].f_locals.get(name)
            children = getattr(children, "_tasks", [children]) if name in ("self", "fut") else children
    if not isinstance(children, list | set | tuple):
        return []
    return [each for each in list(children) if isinstance(each, asyncio.Task)]


def _frames(awaited: Any, limit: int = MAX_DEPTH + 1) -> list[FrameType]:
    frames: list[FrameType] = []
    for _ in range(2 * limit):
        if awaited is None or len(frames) >= limit:
            break
        for frame_name, next_name in (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await")):
            frame = getattr(awaited, frame_name, None)
            if isinstance(frame, FrameType):
                frames.append(frame)
                awaited = getattr(awaited, next_name, None)
                break
        else:
            awaited = _wrapped(awaited)
    return frames


def _wrapped(awaited: object) -> object:
    """What an awaitable of Python itself stands for, such as the next item of an asynchronous generator."""
    if type(awaited).__name__ not in _WRAPPERS:
        return None
    for each in gc.get_referents(awaited):
        if isinstance(each, AsyncGeneratorType | CoroutineType | GeneratorType) or type(each).__name__ in _WRAPPERS:
            return each
    return None


def loop_in(frames: list[FrameType]) -> asyncio.AbstractEventLoop | None:
    """The event loop that these frames run, if any: the innermost one."""
    for frame in reversed(frames):
        code = frame.f_code
        if code.co_name == _LOOP[0] and code.co_filename.replace("\\", "/").endswith(_LOOP[1]):
            # Of a frame of the standard library that lasts as long as what is read here.
            loop = frame.f_locals.get("self")
            return loop if isinstance(loop, asyncio.AbstractEventLoop) else None
    return None


def tasks_of(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """Tasks of a loop that have not ended, no more than `MAX_TASKS`."""
    try:
        return list(asyncio.all_tasks(loop))[:MAX_TASKS]
    except RuntimeError:
        return []  # Too many come and go at the same time.


def context_of(task: asyncio.Task[Any]) -> Context | None:
    """The context that a task runs in; None where Python does not tell (before 3.12)."""
    get_context = getattr(task, "get_context", None)
    context = get_context() if get_context is not None else None
    return context if isinstance(context, Context) else None
