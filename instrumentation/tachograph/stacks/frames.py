"""Frames as text: what a stack says, and what it leaves out."""

from __future__ import annotations

from pathlib import PurePath
from types import CodeType, FrameType
from typing import Final

from tachograph.folded_stacks import MAX_DEPTH, OUTER, SEPARATOR, frame_text
from tachograph.redaction import mask_text
from tachograph.stacks.native import native_call

_MAX_CACHED: Final = 20_000
_BOOTSTRAP: Final = frozenset({"threading", "concurrent.futures.thread", "tachograph.workflow.worker_threads",
                               "tachograph.workflow.runner"})  # fmt: skip
"""Modules whose frames at the outer end only say that this is a thread."""
_WORK: Final = frozenset({("_called", "tachograph.runners.work"), ("__call__", "tachograph.recording.carried_run")})
"""Where a runner's worker calls a handler, and a pool's process a function: what is around it is the engine's."""
_HANDLE: Final = ("asyncio.events", "_run")
"""Where an event loop runs a task."""
_HANDLERS: Final = "tachograph.workflow.builtin."


def module_of(frame: FrameType) -> str:
    """The name of the module that a frame's code was written in; "" if it says none."""
    name = frame.f_globals.get("__name__")
    return name if type(name) is str else ""


def is_ours(module: str) -> bool:
    """Whether a module only records."""
    if module.startswith(_HANDLERS):
        return False
    return module == "tachograph" or module.startswith("tachograph.")


def short_file(file: str, module: str) -> str:
    """A file relative to the package of its module, or its name."""
    if file.startswith("<"):
        return file
    path = PurePath(file)
    names = module.split(".")
    for parts in ((*names[:-1], f"{names[-1]}.py"), (*names, "__init__.py")):
        if path.parts[-len(parts) :] == parts:
            return "/".join(parts)
    return path.name or "?"


class FrameTexts:
    """Texts of frames, remembered by code and line, because the same ones are seen again and again."""

    def __init__(self) -> None:
        self._places: dict[CodeType, tuple[str, str]] = {}
        self._texts: dict[tuple[CodeType, int], str] = {}

    def of(self, frame: FrameType) -> str:
        """``module.function (file:line)``."""
        code, line = frame.f_code, frame.f_lineno or 0
        text = self._texts.get((code, line))
        if text is None:
            place = self._places.get(code)
            if place is None:
                if len(self._places) > _MAX_CACHED:
                    self._places.clear()
                place = self._places[code] = _place(code, module_of(frame))
            if len(self._texts) > _MAX_CACHED:
                self._texts.clear()
            text = self._texts[code, line] = f"{place[0]} ({place[1]}:{line})"
        return text


def _place(code: CodeType, module: str) -> tuple[str, str]:
    name = f"{module}.{code.co_qualname}" if module else code.co_qualname
    # Names are usually no secrets; those of code that a program made may be anything.
    return frame_text(mask_text(name[:1000])), frame_text(mask_text(short_file(code.co_filename, module)[-200:]))


def stack_of(frame: FrameType | None) -> list[FrameType]:
    """The frames around a frame, outermost first; no more than `MAX_DEPTH` and one."""
    frames: list[FrameType] = []
    while frame is not None and len(frames) <= MAX_DEPTH:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    return frames


def folded(frames: list[FrameType], texts: FrameTexts, *, is_running: bool, is_cut: bool) -> str:
    """Frames (outermost first) as one text; "" if nothing of them is a program's own.

    ``is_running``: the innermost one is executing, so that what it calls may be native. ``is_cut``: outer ones are
    missing. Frames of this library that only pass a call on are left out.
    """
    last = len(frames) - 1
    kept = [texts.of(frame) for i, frame in enumerate(frames) if i == last or not is_ours(module_of(frame))]
    if not kept:
        return ""
    if is_running and (native := native_call(frames[-1])) is not None:
        kept.append(f"{frame_text(native)} (native)")
    return SEPARATOR.join([OUTER, *kept] if is_cut else kept)


def without_bootstrap(frames: list[FrameType]) -> list[FrameType]:
    """Frames of a thread without those that started it, and without a worker's around what it does."""
    for i in range(len(frames) - 2, -1, -1):
        if (frames[i].f_code.co_name, module_of(frames[i])) in _WORK:
            frames = frames[i + 1 :]
            break
    for i, frame in enumerate(frames):
        module = module_of(frame)
        if module not in _BOOTSTRAP and not is_ours(module):
            return frames[i:]
    return frames[-1:]


def inside_task(frames: list[FrameType], first: FrameType | None) -> list[FrameType]:
    """Frames of an event loop's thread from the task on that it runs now, whose first frame is ``first``.

    That is not always the one that the loop began: a task that starts eagerly runs inside the one that made it.
    """
    for i, frame in enumerate(frames):
        if frame is first:
            return frames[i:]
    for i in range(len(frames) - 1, -1, -1):
        frame = frames[i]
        if frame.f_code.co_name == _HANDLE[1] and module_of(frame) == _HANDLE[0]:
            return frames[i + 1 :]
    return frames


def is_cut(frames: list[FrameType]) -> bool:
    """Whether outer frames were left out of a stack (`stack_of`)."""
    return len(frames) > MAX_DEPTH
