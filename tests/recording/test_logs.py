"""Records of `logging` become lines of the step in which they are emitted: all of them, bounded, and nothing else."""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import logging.config
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import tachograph
from tachograph import report
from tachograph.events import Event, StepFinished, StepLine, StepLines
from tachograph.recording import line_buffers, log_handler, setup
from tachograph.recording.recorder import Recorder
from tachograph.redaction import TEXT_LIMIT
from tachograph.runners import work
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import HandlerRegistry
from tachograph.workflow.reporter import engine_reporter

app = logging.getLogger("tests.app")


@pytest.fixture
def kept(recorder: Recorder, events: list[Event]) -> Iterator[Callable[..., list[StepLine]]]:
    """The lines that were recorded, of a step by its name."""
    setup.adopt(recorder)
    engine_reporter.set(None)  # A task of an engine that never ends, in another test, is in no context of this one.
    log_handler.install(logging.INFO)
    before = logging.root.level

    def lines(step: str | None = None, attempt: int | None = None) -> list[StepLine]:
        recorder.flush()
        told = [event for event in events if isinstance(event, StepLines)]
        return [
            line for event in told for line in event.lines
            if step in (None, event.step.name) and attempt in (None, event.attempt)
        ]  # fmt: skip

    yield lines
    log_handler.install(None)
    setup.release(recorder)
    logging.root.setLevel(before if type(before) is int else logging.WARNING)


def messages(lines: list[StepLine]) -> list[str]:
    return [line.message for line in lines]


def test_records_belong_to_the_step_around_them_in_every_thread_and_task(kept: Callable[..., list[StepLine]]) -> None:
    @tachograph.step
    def inner() -> None:
        app.warning("inner")

    @tachograph.step
    def outer() -> None:
        app.info("first")
        inner()
        thread = threading.Thread(target=app.info, args=("thread",))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(app.info, "pool").result()

        async def task() -> None:
            await asyncio.create_task(asyncio.to_thread(app.info, "task"))

        asyncio.run(task())
        app.debug("below the level")

    @tachograph.workflow
    def nightly() -> None:
        outer()
        app.info("between steps")

    nightly()
    app.info("outside")
    assert messages(kept("outer")) == ["first", "thread", "pool", "task"]
    assert messages(kept("inner")) == ["inner"]
    assert len(kept()) == 5
    (inner_line,) = kept("inner")
    assert (inner_line.severity, inner_line.logger, inner_line.number) == (13, "tests.app", 1)


def test_tasks_side_by_side_keep_their_own(kept: Callable[..., list[StepLine]]) -> None:
    @tachograph.step
    async def load(name: str) -> None:
        for n in range(3):
            app.info("%s %d", name, n)
            await asyncio.sleep(0)

    @tachograph.workflow
    async def nightly() -> None:
        await asyncio.gather(load("a"), load("b"))

    asyncio.run(nightly())
    by_number = {(line.message[0], line.number): line.message for line in kept("load")}
    assert by_number == {(name, n + 1): f"{name} {n}" for name in "ab" for n in range(3)}


def test_every_attempt_has_its_own_lines_and_they_come_before_its_end(
    kept: Callable[..., list[StepLine]], events: list[Event]
) -> None:
    tries: list[int] = []

    @tachograph.step(max_retries=1)
    def flaky() -> None:
        tries.append(1)
        app.info("try %d", len(tries))
        if len(tries) == 1:
            raise OSError("away")

    @tachograph.workflow
    def nightly() -> None:
        flaky()

    nightly()
    assert messages(kept("flaky", 1)) == ["try 1"]
    assert messages(kept("flaky", 2)) == ["try 2"]
    kinds = [type(event) for event in events]
    assert kinds.index(StepFinished) > max(i for i, kind in enumerate(kinds) if kind is StepLines)


def test_exceptions_come_with_their_stack_and_secrets_are_masked(kept: Callable[..., list[StepLine]]) -> None:
    @tachograph.step
    def load() -> None:
        app.info("connecting with password=%s", "hunter2")
        try:
            raise ValueError("token=hunter2")
        except ValueError:
            app.exception("failed")

    load()
    first, second = kept("load")
    assert first.message == "connecting with password=[masked]"
    assert second.failure is not None
    assert (second.failure.type, second.failure.message) == ("ValueError", "token=[masked]")
    assert "in load" in (second.failure.stack or "")
    assert "hunter2" not in repr((first, second))


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("message", "arguments", "shown"),
    [
        ("%d rows", ("many",), "%d rows (its arguments cannot be formatted: TypeError)"),
        ("%s", (Hostile(),), "%s (its arguments cannot be formatted: RuntimeError)"),
        (Hostile(), (), "<Hostile> (its arguments cannot be formatted: RuntimeError)"),
        ("lone \ud800 and nul \0", (), "lone ? and nul �"),
        ("\x1b[31mred\n<b>bold</b>", (), "\x1b[31mred\n<b>bold</b>"),
        (["a", 1], (), "['a', 1]"),
    ],
)
def test_hostile_messages(
    kept: Callable[..., list[StepLine]], message: Any, arguments: tuple[Any, ...], shown: str
) -> None:
    # What other handlers say of it is theirs.
    handler = tachograph.LogHandler()
    log_handler.install(None)
    logger = logging.Logger("hostile")
    logger.addHandler(handler)

    @tachograph.step
    def load() -> None:
        logger.warning(message, *arguments)

    load()
    assert messages(kept("load")) == [shown]


def test_a_flood_is_bounded_and_what_is_missing_is_known(kept: Callable[..., list[StepLine]]) -> None:
    before = line_buffers.dropped

    @tachograph.step
    def load() -> None:
        for n in range(5_000):
            app.info("%d %s", n, "x" * 10_000)

    load()
    lines = kept("load")
    # Now and then some were taken while it went on.
    numbers = [line.number for line in lines]
    assert numbers == sorted(set(numbers))
    assert numbers[-200:] == list(range(4_801, 5_001))
    assert {len(line.message) for line in lines} == {TEXT_LIMIT}
    assert line_buffers.dropped - before == 5_000 - len(lines)


def test_a_record_without_a_name_is_kept_and_raises_nothing(kept: Callable[..., list[StepLine]]) -> None:
    @tachograph.step
    def load() -> None:
        app.handle(logging.makeLogRecord({"msg": "from elsewhere", "levelno": logging.ERROR}))

    @tachograph.workflow
    def nightly() -> None:
        load()

    nightly()
    assert [(line.logger, line.message) for line in kept("load")] == [("None", "from elsewhere")]


def test_other_handlers_see_what_they_always_saw() -> None:
    stream, root = io.StringIO(), logging.root
    handler, before = logging.StreamHandler(stream), root.level
    root.addHandler(handler)
    explicit = logging.getLogger("tests.explicit")
    explicit.setLevel(logging.INFO)
    try:
        root.setLevel(logging.WARNING)
        log_handler.install(logging.INFO)
        assert app.isEnabledFor(logging.INFO)
        app.info("hidden")
        app.warning("shown")
        explicit.info("its own level")
        # Who configures logging afterwards decides.
        root.setLevel(logging.INFO)
        app.info("now shown")
        log_handler.install(None)
        assert root.level == logging.INFO
        root.setLevel(logging.WARNING)
        log_handler.install(logging.DEBUG)
        log_handler.install(None)
        assert root.level == logging.WARNING
    finally:
        log_handler.install(None)
        explicit.setLevel(logging.NOTSET)
        root.setLevel(before)
        root.removeHandler(handler)
    assert stream.getvalue().split("\n") == ["shown", "its own level", "now shown", ""]


def test_it_survives_a_configuration_of_logging_and_stands_in_one(kept: Callable[..., list[StepLine]]) -> None:
    handlers, level = logging.root.handlers[:], logging.root.level
    other = logging.Logger("kept.apart")
    try:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": True,
                "handlers": {"steps": {"class": "tachograph.LogHandler", "level": "INFO"}},
                "root": {"handlers": ["steps"], "level": "INFO"},
            }
        )

        @tachograph.step
        def load() -> None:
            logging.getLogger("tests.new").info("once, by both ways")
            app.info("its logger was disabled")
            other.info("it has no handlers at all")

        load()
        assert messages(kept("load")) == ["once, by both ways", "it has no handlers at all"]
    finally:
        app.disabled = False
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        for logger in logging.root.manager.loggerDict.values():
            if isinstance(logger, logging.Logger):
                logger.disabled = False


def test_what_recording_itself_says_is_no_line(kept: Callable[..., list[StepLine]], recorder: Recorder) -> None:
    class Store:
        def apply(self, events: Any) -> None:
            # As an engine does that is told to log its statements.
            logging.getLogger("sqlalchemy.engine").warning("INSERT")
            logging.getLogger("tachograph.recording").warning("stored")

    @tachograph.step
    def load() -> None:
        # The queue's thread starts inside the step.
        recorder.add("noisy", Store())
        app.info("one")
        logging.getLogger("tachograph_exporter.x").error("no")
        logging.getLogger("tachographs").error("another's")
        recorder.flush()
        app.info("two")
        recorder.flush()

    load()
    assert messages(kept("load")) == ["one", "another's", "two"]


def test_a_forked_child_tells_its_own_lines_and_not_its_parents(kept: Callable[..., list[StepLine]]) -> None:
    line_buffers.flush_all()

    @tachograph.step
    def load() -> None:
        app.info("parent")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                app.info("child")
                (buffer,) = [b for attempts in line_buffers._buffers.values() for b in attempts.values()]
                code = 0 if [line.message for line in buffer.lines] == ["child"] else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0

    load()
    assert messages(kept("load")) == ["parent"]


def test_lines_of_child_processes_reach_the_step(kept: Callable[..., list[StepLine]], events: list[Event]) -> None:
    @tachograph.step
    def load() -> None:
        app.info("parent")
        pid = os.fork()
        if pid == 0:
            app.info("child")
            recorder = setup.get_recorder()
            recorder.flush()
            os._exit(0)
        os.waitpid(pid, 0)

    @tachograph.workflow
    def nightly() -> None:
        load()

    nightly()
    assert sorted(messages(kept("load"))) == ["child", "parent"]
    writers = {event.writer for event in events if isinstance(event, StepLines)}
    assert len(writers) == 2


def test_a_step_that_is_reported_has_lines_while_its_code_runs_here(kept: Callable[..., list[StepLine]]) -> None:
    run = report.run("nightly", run_id="1", engine="mine").begin()
    step = run.step("load").started()
    app.info("the engine's own")
    with step.logs():
        app.info("inside")
        step.retrying("away", 0.0)
        app.info("between attempts")
        step.started()
        app.info("again")
        step.finished()
        app.info("after the end")
    app.info("after the block")
    run.finished()
    assert [(line.message, line.number) for line in kept("load", 1)] == [("inside", 1), ("between attempts", 2)]
    assert messages(kept("load", 2)) == ["again"]
    assert len(kept()) == 3


def test_repetitions_that_share_an_entry_share_its_lines(
    kept: Callable[..., list[StepLine]], events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tachograph.folding._limits", tachograph.folding.Limits(repetitions=2), raising=False)

    @tachograph.step
    def load(n: int) -> None:
        app.info("n %d", n)

    @tachograph.workflow
    def nightly() -> None:
        for n in range(6):
            load(n)

    nightly()
    assert messages(kept()) == [f"n {n}" for n in range(6)]
    told: dict[tuple[str, int], str] = {}
    for event in events:
        if isinstance(event, StepLines):
            for line in event.lines:
                assert told.setdefault((event.step.step_id, line.number), line.message) == line.message


@pytest.mark.parametrize(
    ("value", "level"), [("INFO", 20), ("warning", 30), ("15", 15), (10, 10), ("off", None), ("", None), (None, None)]
)
def test_levels(value: Any, level: int | None) -> None:
    assert log_handler.level_of(value) == level


@pytest.mark.parametrize("value", ["LOUD", -1, 0, True, "1e3", 10**6])
def test_what_is_no_level_is_refused(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no level"):
        log_handler.level_of(value)
    with pytest.raises(tachograph.SetupError, match="no level"):
        tachograph.configure(logs=value, registry=None, spans=False)


def test_a_wrong_variable_is_said_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHOGRAPH_LOGS", "LOUD")
    recorder = tachograph.configure(registry=None, spans=False)
    try:
        (problem,) = recorder.problems
        assert "TACHOGRAPH_LOGS" in problem.message
        assert log_handler.installed_level() is None
        monkeypatch.setenv("TACHOGRAPH_LOGS", "ERROR")
        recorder = tachograph.configure(registry=None, spans=False)
        assert log_handler.installed_level() == logging.ERROR
    finally:
        log_handler.install(None)
        recorder.close()
        setup.release(recorder)


def test_a_context_that_outlives_its_step_writes_no_lines(kept: Callable[..., list[StepLine]]) -> None:
    contexts: list[contextvars.Context] = []

    @tachograph.step
    def load() -> None:
        contexts.append(contextvars.copy_context())

    load()
    contexts[0].run(app.info, "late")
    assert kept() == []


@pytest.mark.parametrize("lines", [3, 700])
def test_what_a_step_logs_in_a_worker_comes_back(kept: Callable[..., list[StepLine]], lines: int) -> None:
    handlers = HandlerRegistry()

    @handlers.register("load")
    def load(_context: StepContext) -> str:
        for n in range(lines):
            app.info("row %d %s", n, "x" * 5_000)
            if n % 100 == 50:
                line_buffers.flush_all()
        with tachograph.step("inside"):
            app.info("inside")
        return "y" * (5 << 20)

    class Worker:
        is_local = False

        async def close(self) -> None: ...

        async def run(self, handler: Any, context: StepContext) -> Any:
            done = await asyncio.to_thread(work.perform, work.work_of(handler, context), handlers)
            assert len(done) <= work.MAX_BYTES
            return work.finish(done, context)

    flow = tachograph.WorkflowBuilder("nightly").step("load", handler="load").build()
    result = asyncio.run(tachograph.Executor(setup.get_recorder(), handlers=handlers, runner=Worker()).run(flow))
    assert result.status == "completed"
    back = kept("load", 1)
    assert [line.number for line in back][-min(lines, 200) :] == list(range(max(0, lines - 200) + 1, lines + 1))
    assert len(back) < 400
    assert messages(kept("inside")) == ["inside"]
