"""What stacks say: the innermost frame is what the step does, whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import tachograph
from tachograph.events import Event, StepStacks
from tachograph.folded_stacks import MAX_DEPTH, OUTER, FoldedStack, cleaned
from tachograph.recording.setup import get_recorder
from tachograph.running_attempts import running
from tachograph.stacks.frames import FrameTexts, short_file
from tachograph.stacks.taking import running_reporters, take
from tachograph.stacks.wishes import tell

LOCK = threading.Lock()
STOP = threading.Event()


@pytest.fixture(autouse=True)
def recorder() -> Iterator[Any]:
    STOP.clear()
    recorder = tachograph.configure(database="", url="", registry=None, spans=False)
    yield recorder
    recorder.close()


def a_lock() -> None:
    if LOCK.acquire(timeout=60):
        LOCK.release()


def a_with_block() -> None:
    with LOCK:
        pass


def a_sleep() -> None:
    time.sleep(0.2)


def a_pattern() -> None:
    re.fullmatch(r"(a+)+", "a" * 22 + "b")


def a_child() -> None:
    subprocess.run([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=PIPE[0], check=True)


def a_socket() -> None:
    SOCKETS[0].recv(1)


def a_poll() -> None:
    select.select([SOCKETS[0]], [], [], 0.2)


def a_loop() -> None:
    x = 0
    for i in range(1_000_000):
        x += i


async def an_await() -> None:
    await asyncio.sleep(0.2)


SOCKETS: tuple[socket.socket, socket.socket]
PIPE: tuple[int, int]


@contextmanager
def step_running(work: Callable[[], Any], wait_until: Callable[..., Any]) -> Iterator[None]:
    """A step that does ``work`` again and again, in a thread of its own."""
    global SOCKETS, PIPE
    import os

    SOCKETS, PIPE = socket.socketpair(), os.pipe()

    @tachograph.step
    def busy() -> None:
        while not STOP.is_set():
            work()

    @tachograph.step(name="busy")
    async def busy_async() -> None:
        while not STOP.is_set():
            await work()

    is_async = asyncio.iscoroutinefunction(work)
    thread = threading.Thread(target=(lambda: asyncio.run(busy_async())) if is_async else busy)
    LOCK.acquire()
    try:
        thread.start()
        wait_until(lambda: bool(running))
        yield
    finally:
        STOP.set()
        LOCK.release()
        SOCKETS[1].send(b"xx")
        SOCKETS[1].close()
        os.close(PIPE[1])
        thread.join()
        SOCKETS[0].close()
        os.close(PIPE[0])


@pytest.mark.parametrize(
    ("work", "function", "innermost"),
    [
        (a_lock, "a_lock", "lock.acquire (native)"),
        (a_with_block, "a_with_block", "__enter__ (native)"),
        (a_sleep, "a_sleep", "time.sleep (native)"),
        (a_pattern, "re.fullmatch", "fullmatch (native)"),
        (a_child, "subprocess.Popen._try_wait", "posix.waitpid (native)"),
        (a_socket, "a_socket", "recv (native)"),
        (a_poll, "a_poll", "select.select (native)"),
        (a_loop, "a_loop", "a_loop"),
        (an_await, "an_await", "asyncio.tasks.sleep"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_innermost_frame_is_what_the_step_does(
    work: Callable[[], Any], function: str, innermost: str, wait_until: Callable[..., Any]
) -> None:
    texts = FrameTexts()

    def is_seen() -> bool:
        ((_, stacks),) = take(running_reporters(), texts).items()
        frames = [
            re.sub(r" \(.*:\d+\)", "", frame).removeprefix(f"{__name__}.") for s in stacks for frame in s.split(";")
        ]
        return frames[-1:] == [innermost] and function in frames

    with step_running(work, wait_until):
        # It may be seen on its way there; and the first sample after a call into C sees the call.
        wait_until(is_seen)
    assert not running


def test_stacks_hold_no_frames_of_the_recording_and_no_paths() -> None:
    @tachograph.step
    def outer() -> list[str]:
        return inner()

    @tachograph.step
    def inner() -> list[str]:
        (inside, around) = sorted(running_reporters(), key=lambda r: r.step.name)
        taken: dict[str, list[str]] = {}
        thread = threading.Thread(target=lambda: taken.update({"": take([inside], FrameTexts())[inside]}))
        thread.start()
        thread.join()
        assert around.thread == inside.thread
        return taken[""]

    (stack,) = outer()
    assert "tachograph.recording" not in stack
    assert "(/" not in stack
    names = [frame.partition(" (")[0].rpartition(".")[2] for frame in stack.split(";")]
    assert names[names.index("outer") + 1] == "inner"


def test_files_are_those_of_packages() -> None:
    assert short_file("/home/ann/project/pkg/sub/mod.py", "pkg.sub.mod") == "pkg/sub/mod.py"
    assert short_file("/home/ann/project/pkg/__init__.py", "pkg") == "pkg/__init__.py"
    assert short_file("/home/ann/job.py", "__main__") == "job.py"
    assert short_file("<string>", "__main__") == "<string>"


def test_deep_recursion_is_cut_at_the_outer_end() -> None:
    def deep(depth: int) -> str:
        if depth:
            return deep(depth - 1)
        (reporter,) = running_reporters()
        texts: list[str] = []
        thread = threading.Thread(target=lambda: texts.extend(take([reporter], FrameTexts())[reporter]))
        thread.start()
        thread.join()
        return texts[0]

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        with tachograph.step("deep"):
            stack = deep(5_000).split(";")
    finally:
        sys.setrecursionlimit(limit)
    assert stack[0] == OUTER
    assert len(stack) <= MAX_DEPTH + 4


def test_hostile_names_are_one_line_without_controls_and_secrets_are_masked() -> None:
    bad = "f\x1b[31m;evil\nname password=hunter2hunter2"
    namespace: dict[str, Any] = {"__name__": "m\x1b;x", "probe": lambda: probe()}
    code = compile("def f(): return probe()", "/home/ann/\x1b[2J\nbad;file.py", "exec")
    exec(code, namespace)
    namespace["f"].__code__ = namespace["f"].__code__.replace(co_name=bad, co_qualname=bad)

    def probe() -> str:
        (reporter,) = running_reporters()
        texts: list[str] = []
        thread = threading.Thread(target=lambda: texts.extend(take([reporter], FrameTexts())[reporter]))
        thread.start()
        thread.join()
        return texts[0]

    with tachograph.step("hostile"):
        stack = namespace["f"]()
    assert stack.isprintable()
    assert "evil" in stack
    assert "hunter2" not in stack
    assert "/home" not in stack


def test_threads_and_tasks_that_work_for_a_step_are_in_its_stacks() -> None:
    release = threading.Event()
    started = threading.Barrier(3)

    def help_(name: str) -> None:
        started.wait()
        release.wait(60)

    @tachograph.step
    async def parent() -> list[str]:
        context = contextvars.copy_context()
        plain = threading.Thread(target=context.run, args=(help_, "a"), name="own-1")
        plain.start()
        helper = asyncio.create_task(asyncio.to_thread(help_, "b"))
        await asyncio.to_thread(started.wait)
        (reporter,) = running_reporters()
        try:
            return (await asyncio.to_thread(take, [reporter], FrameTexts()))[reporter]
        finally:
            release.set()
            plain.join()
            await helper

    stacks = asyncio.run(parent())
    roots = {stack.split(";")[0] for stack in stacks}
    assert {"[thread own]", "[thread asyncio]"} <= roots
    assert sum("help_" in stack for stack in stacks) == 2


def test_what_a_gathering_step_waits_for_is_shown_branch_by_branch() -> None:
    async def left() -> None:
        await asyncio.sleep(60)

    async def right() -> None:
        await asyncio.Event().wait()

    async def main() -> list[str]:
        @tachograph.step
        async def both() -> None:
            await asyncio.gather(left(), right())

        task = asyncio.create_task(both())
        for _ in range(10):
            await asyncio.sleep(0)
        reporters = running_reporters()
        stacks = (await asyncio.to_thread(take, reporters, FrameTexts()))[reporters[0]]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return stacks

    stacks = asyncio.run(main())
    assert len(stacks) == 2
    assert any("left" in stack and "asyncio.tasks.sleep" in stack.split(";")[-1] for stack in stacks)
    assert any("right" in stack and "asyncio.locks.Event.wait" in stack.split(";")[-1] for stack in stacks)


async def leaf() -> None:
    await asyncio.sleep(60)


async def items() -> AsyncIterator[int]:
    await leaf()
    yield 1


async def items_of_items() -> AsyncIterator[int]:
    async for item in items():
        yield item


@contextlib.asynccontextmanager
async def resource() -> AsyncIterator[None]:
    await leaf()
    yield


async def loops() -> None:
    async for _ in items_of_items():
        pass


async def asks_for_one() -> None:
    await anext(items(), None)


async def enters() -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(resource())


async def groups() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leaf())
        group.create_task(loops())


async def waits() -> None:
    await asyncio.wait([asyncio.ensure_future(leaf()), asyncio.ensure_future(leaf())])


async def waits_not_for_ever() -> None:
    await asyncio.wait_for(leaf(), 50)


@pytest.mark.parametrize(
    ("work", "stacks"), [(loops, 1), (asks_for_one, 1), (enters, 1), (groups, 2), (waits, 2), (waits_not_for_ever, 1)]
)
def test_asynchronous_generators_and_groups_of_tasks_are_followed_to_what_they_wait_for(
    work: Callable[[], Coroutine[Any, Any, None]], stacks: int
) -> None:
    async def main() -> list[str]:
        task = asyncio.create_task(tachograph.step(work)())
        for _ in range(10):
            await asyncio.sleep(0)
        reporters = running_reporters()
        taken = (await asyncio.to_thread(take, reporters, FrameTexts()))[reporters[0]]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return taken

    taken = asyncio.run(main())
    assert len(taken) == stacks
    for stack in taken:
        functions = [frame.partition(" (")[0].rpartition(".")[2] for frame in stack.split(";")]
        assert functions[0] == work.__name__
        assert functions[-2:] == ["leaf", "sleep"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly from Python 3.12 on")
def test_a_step_whose_task_starts_eagerly_has_its_own_stack_and_not_its_makers() -> None:
    seen: dict[str, list[str]] = {}

    @tachograph.step
    async def eager() -> None:
        def look() -> None:
            seen.update({r.step.name: take([r], FrameTexts())[r] for r in running_reporters()})

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        await asyncio.sleep(0)

    @tachograph.step
    async def maker() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        await asyncio.create_task(eager())

    asyncio.run(maker())
    functions = {name: [frame.partition(" (")[0] for frame in stack.split(";")] for name, (stack, *_) in seen.items()}
    assert not any(frame.endswith("maker") for frame in functions["eager"])
    assert any(frame.endswith("eager") for frame in functions["eager"])
    assert any(frame.endswith("maker") for frame in functions["maker"])


def test_a_request_is_answered_once_by_every_running_step_and_by_none_that_has_ended(recorder: Any) -> None:
    events: list[Event] = []
    recorder.add("probe", events.append)
    told: list[int] = []

    @tachograph.step
    def outer() -> None:
        inner()

    @tachograph.step
    def inner() -> None:
        execution_id = running_reporters()[0].step.execution.execution_id
        told.extend([tell(execution_id, "r1"), tell(execution_id, "r1"), tell("another", "r2")])

    outer()
    assert told == [2, 0, 0]
    recorder.flush()
    stacks = [event for event in events if isinstance(event, StepStacks)]
    assert {event.step.name for event in stacks} == {"outer", "inner"}
    assert all(event.request == "r1" and event.stacks[0].stack.split(";")[-1] for event in stacks)
    assert tell(stacks[0].execution.execution_id, "r3") == 0


def test_a_generator_that_pauses_has_no_stack() -> None:
    @tachograph.step
    def numbers() -> Iterator[int]:
        yield from range(2)

    source = numbers()
    next(source)
    assert not running
    assert list(source) == [1]
    assert not running


def test_stacks_from_outside_are_bounded_and_cleaned() -> None:
    stacks = tuple(FoldedStack(";".join(["x\x1b" * 400] * 300), -5) for _ in range(2_000))
    kept = cleaned(stacks)
    assert 0 < len(kept) <= 1_000
    assert sum(len(each.stack) for each in kept) <= 256_000
    assert all(each.count == 1 and each.stack.isprintable() for each in kept)
    assert get_recorder() is not None


def test_a_reported_step_whose_work_is_done_here_tells_its_stacks(recorder: Any) -> None:
    events: list[Event] = []
    recorder.add("probe", events.append)
    run = tachograph.report.run("nightly", run_id="17")
    step = run.step("load")
    step.started()
    step.works_here()
    assert tell(step.ref.execution.execution_id, "r9") == 1
    step.finished()
    assert not running
    assert tell(step.ref.execution.execution_id, "r10") == 0
    recorder.flush()
    (told,) = [event for event in events if isinstance(event, StepStacks)]
    assert "test_a_reported_step" in told.stacks[0].stack
