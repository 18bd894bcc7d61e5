"""Values and exceptions of the user: recording looks at them, and never raises, runs, hangs or slows by them."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import enum
import json
import shelve
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import tachograph
from tachograph.events import Event, ExecutionFinished, StepFinished
from tachograph.summary import LIMIT, as_text, failure, summarise
from tachograph.workflow.builder import WorkflowBuilder
from tachograph.workflow.executor import Executor
from tachograph.workflow.handlers import HandlerRegistry
from tachograph.workflow.runner import LocalRunner


class Touched(Exception):
    """Some code of the user's value was run."""


class Grenade:
    """Whatever is asked of it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise Touched(name)

    def __str__(self) -> str:
        raise Touched("str")

    __repr__ = __str__
    __format__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        raise Touched("iter")

    def __len__(self) -> int:
        raise Touched("len")

    def __bool__(self) -> bool:
        raise Touched("bool")

    def __eq__(self, _other: object) -> bool:
        raise Touched("eq")

    __hash__ = object.__hash__


class LyingProxy:
    """An unbound proxy: its very class cannot be asked for (as of werkzeug's and celery's)."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("working outside of a context")

    def __str__(self) -> str:
        raise RuntimeError("working outside of a context")


class BadDict(dict[str, Any]):
    def items(self) -> Any:
        raise Touched("items")

    __iter__ = items
    __len__ = items


class BadList(list[Any]):
    def __iter__(self) -> Any:
        raise Touched("iter")

    def __len__(self) -> int:
        raise Touched("len")


class BadStr(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise Touched("str")

    __len__ = __str__  # type: ignore[assignment]
    __getitem__ = None  # type: ignore[assignment]


class BadInt(int):
    def __str__(self) -> str:
        raise Touched("str")

    __repr__ = __str__
    __int__ = __str__  # type: ignore[assignment]


class LazyQuery:
    """A query of an ORM: iterating or printing it goes to the database."""

    def __iter__(self) -> Iterator[Any]:
        raise Touched("the query was executed")

    __len__ = __str__ = __repr__ = __iter__  # type: ignore[assignment]


class BadMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__", "__mro__"):
            raise Touched(name)
        return super().__getattribute__(name)


class OfBadMeta(metaclass=BadMeta):
    pass


@dataclasses.dataclass
class Point:
    x: int
    password: str

    @property
    def area(self) -> int:
        raise Touched("property")


class Colour(enum.Enum):
    RED = "red"

    def __str__(self) -> str:
        raise Touched("str")


def closed_shelf() -> Any:
    import tempfile

    shelf = shelve.open(str(Path(tempfile.mkdtemp()) / "shelf"))  # noqa: SIM115
    shelf["a"] = 1
    shelf.close()
    return shelf


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] * 50
    return value


HOSTILE: dict[str, Any] = {
    "huge int": 10**5000,
    "huge negative int": -(7**9000),
    "grenade": Grenade(),
    "proxy": LyingProxy(),
    "dict subclass": BadDict(a=1),
    "list subclass": BadList([1]),
    "str subclass": BadStr("text"),
    "int subclass": BadInt(5),
    "lazy query": LazyQuery(),
    "metaclass": OfBadMeta(),
    "class of metaclass": OfBadMeta,
    "closed shelf": closed_shelf(),
    "grenades inside": {"a": [Grenade(), {"b": Grenade()}]},
    "grenade as key": {Grenade(): 1},
    "surrogates": ["mod\udce8le", {"k\udce8y": "\ud83d"}],
    "wide and deep": nested(6),
    "deque": collections.deque([1, 2]),
    "bytes": b"x" * 10**6,
    "memoryview": memoryview(bytearray(100)),
    "nan": float("nan"),
    "ellipsis": ...,
    "generator": (i for i in range(3)),
    "recursion": None,
}
_cycle: list[Any] = []
_cycle.append({"self": _cycle})
HOSTILE["recursion"] = _cycle


@pytest.mark.parametrize("name", HOSTILE)
def test_a_summary_of_anything_is_json_and_touches_nothing(name: str) -> None:
    began = time.perf_counter()
    text = summarise(HOSTILE[name])
    assert time.perf_counter() - began < 60
    assert text is not None
    assert len(text) <= LIMIT
    json.loads(text)
    text.encode()


def test_what_is_known_is_shown() -> None:
    class Slotted:
        __slots__ = ("a",)

    point = json.loads(summarise(Point(1, "hunter2")) or "")
    assert point == {"x": 1, "password": "[masked]"}
    assert json.loads(summarise(Colour.RED) or "") == "Colour.RED"
    assert json.loads(summarise(collections.OrderedDict(a=1)) or "") == {"a": 1}
    assert "Slotted" in (summarise(Slotted()) or "")
    assert json.loads(summarise(Path("/data/x.csv")) or "") == "/data/x.csv"
    assert json.loads(summarise(range(3)) or "") == "range(0, 3)"
    assert "LazyQuery" in (summarise(LazyQuery()) or "")


def test_a_mapping_that_another_thread_changes_is_summarised() -> None:
    shared: dict[str, int] = {str(i): i for i in range(50)}
    stop = threading.Event()

    def change() -> None:
        i = 0
        while not stop.is_set():
            shared[f"new {i % 40}"] = i
            shared.pop(f"new {(i + 20) % 40}", None)
            i += 1

    worker = threading.Thread(target=change)
    worker.start()
    try:
        for _ in range(500):
            json.loads(summarise({"shared": shared}) or "")
    finally:
        stop.set()
        worker.join()


class BadException(Exception):
    def __str__(self) -> str:
        raise Touched("str")

    __repr__ = __str__


class ExitsInStr(Exception):
    def __str__(self) -> str:
        raise SystemExit(5)


class LongMessage(Exception):
    def __str__(self) -> str:
        return "x" * 10**7


@pytest.mark.parametrize(
    "error", [BadException(), ExitsInStr(), LongMessage(), Exception("\udce8"), Exception(10**5000)]
)
def test_any_exception_is_described(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        why = failure(caught)
    assert why.type
    assert why.message
    assert len(why.message) <= 4096
    why.message.encode()


def printed_by_python(argument: Any) -> list[BaseException]:
    return [kind(argument) for kind in (ValueError, KeyError, StopIteration, ImportError)]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_arguments_of_an_exception_are_not_printed_by_their_own_code(name: str) -> None:
    """As in ``raise ValueError(query)``: the built-in exceptions print what they were given."""
    for error in [*printed_by_python(HOSTILE[name]), OSError(2, "no such file", HOSTILE[name])]:
        try:
            try:
                raise error
            except BaseException as caught:
                raise LookupError("while") from caught
        except LookupError as outer:
            began = time.perf_counter()
            assert failure(error).message
            stack = failure(outer).stack
            assert time.perf_counter() - began < 60
            assert stack is not None
            assert "direct cause" in stack


def chained(length: int) -> BaseException:
    error: BaseException = ValueError("first")
    for number in range(length):
        outer = ValueError(number)
        outer.__cause__, error = error, outer
    return error


@pytest.mark.parametrize(
    "make_error",
    [lambda: chained(10_000), lambda: BaseExceptionGroup("many", [ValueError(i) for i in range(100_000)])],
    ids=["chain", "group"],
)
def test_a_stack_is_as_short_as_it_is_useful(make_error: Callable[[], BaseException]) -> None:
    error = make_error()
    try:
        raise error
    except BaseException as caught:
        began = time.perf_counter()
        why = failure(caught)
        assert time.perf_counter() - began < 60
    assert why.stack is not None
    assert len(why.stack) <= 16_385


def test_a_log_line_is_what_print_would_show_of_plain_values() -> None:
    assert as_text("text") == "text"
    assert as_text(5) == "5"
    assert as_text(Path("/data/x")) == "/data/x"
    assert as_text(ValueError("no luck")) == "no luck"
    assert as_text({"password": "hunter2", "n": 1}) == '{"password":"[masked]","n":1}'
    assert as_text(None) == "None"
    assert "LazyQuery" in as_text(LazyQuery())


class Seen:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def statuses(self) -> list[str]:
        return [str(event.status) for event in self.events if isinstance(event, StepFinished)]


def executor_with(work: Any) -> tuple[Executor, Any, Seen]:
    handlers = HandlerRegistry()
    handlers.register("work")(work)
    handlers.register("noop")(noop)
    seen = Seen()
    workflow = WorkflowBuilder("w").step("a", handler="work").step("b", handler="noop", after="a").build()
    return Executor(seen, handlers=handlers), workflow, seen


async def noop(_context: Any) -> None:
    return None


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "generator"])
@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
async def test_an_executor_run_settles_whatever_a_step_returns(name: str, in_thread: bool) -> None:
    async def work(_context: Any) -> Any:
        return HOSTILE[name]

    def work_in_thread(_context: Any) -> Any:
        return HOSTILE[name]

    executor, workflow, seen = executor_with(work_in_thread if in_thread else work)
    async with asyncio.timeout(60):
        result = await executor.run(workflow)
    assert result.status == "completed"
    assert seen.statuses() == ["completed", "completed"]
    assert result.outputs["a"] is HOSTILE[name]


class OutOfTime(BaseException):
    """What gevent.Timeout and pytest's own outcomes are: not an Exception."""


def raising(error: BaseException) -> Any:
    async def work(_context: Any) -> Any:
        raise error

    return work


ENDINGS: list[tuple[BaseException, str]] = [
    (OutOfTime(), "failed"),
    (GeneratorExit(), "failed"),
    (BaseExceptionGroup("group", [OutOfTime(), ValueError("x")]), "failed"),
    (ExceptionGroup("group", [ValueError("x")]), "failed"),
    (SystemExit(0), "completed"),
    (SystemExit(), "completed"),
    (SystemExit(3), "failed"),
    (SystemExit("message"), "failed"),
    (StopIteration(1), "failed"),
    (StopAsyncIteration(), "failed"),
    (asyncio.InvalidStateError(), "failed"),
    (BadException(), "failed"),
    (ExitsInStr(), "failed"),
]


@pytest.mark.parametrize(
    ("error", "status"), ENDINGS, ids=lambda value: repr(type(value)) if isinstance(value, BaseException) else value
)
@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
async def test_a_step_that_ends_in_any_way_settles(error: BaseException, status: str, in_thread: bool) -> None:
    def work_in_thread(_context: Any) -> Any:
        raise error

    executor, workflow, seen = executor_with(work_in_thread if in_thread else raising(error))
    async with asyncio.timeout(60):
        result = await executor.run(workflow)
    assert str(result.status) == status
    assert seen.statuses()[0] == status
    assert executor.open_executions == 0


@pytest.mark.parametrize(
    ("error", "status"), [(SystemExit(0), "completed"), (SystemExit(3), "failed"), (OutOfTime(), "failed")]
)
def test_a_plain_run_ends_as_its_program_does(error: BaseException, status: str) -> None:
    recorder = tachograph.configure(database="", registry=CollectorRegistry(), spans=False)
    seen: list[Event] = []
    recorder.add("test", seen.append)
    with pytest.raises(type(error)), tachograph.workflow("w"), tachograph.step("s"):
        raise error
    assert recorder.flush(60)
    assert [str(e.status) for e in seen if isinstance(e, StepFinished | ExecutionFinished)] == [status, status]
    recorder.close()


async def test_cancelling_the_task_of_submit_cancels_the_run_and_frees_its_slot() -> None:
    started = asyncio.Event()
    stopped = asyncio.Event()

    async def work(_context: Any) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    handlers = HandlerRegistry()
    handlers.register("work")(work)
    handlers.register("noop")(noop)
    seen = Seen()
    executor = Executor(seen, handlers=handlers, max_executions=1)
    slow = WorkflowBuilder("slow").step("a", handler="work").step("b", handler="noop", after="a").build()
    quick = WorkflowBuilder("quick").step("a", handler="noop").build()
    _, task = executor.submit(slow)
    await started.wait()
    waiting_ref, waiting = executor.submit(quick)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()
    async with asyncio.timeout(60):
        assert (await waiting).status == "completed"
    ends = [event for event in seen.events if isinstance(event, ExecutionFinished)]
    assert [str(event.status) for event in ends] == ["cancelled", "completed"]
    # One that still waits for its turn, too.
    _, again = executor.submit(slow)
    _, behind = executor.submit(quick)
    await asyncio.sleep(0)
    behind.cancel()
    with pytest.raises(asyncio.CancelledError):
        await behind
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    async with asyncio.timeout(60):
        assert (await executor.run(quick)).status == "completed"
        _, last = executor.submit(quick)
        assert (await last).status == "completed"
    assert executor.open_executions == 0
    assert waiting_ref.execution_id


SURROGATE = "mod\udce8le"


def test_names_that_are_no_text_are_made_text_once(tmp_path: Path) -> None:
    """As `os.fsdecode` gives them for file names in another encoding."""
    from prometheus_client import generate_latest

    registry = CollectorRegistry()
    recorder = tachograph.configure(
        database=f"sqlite:///{tmp_path}/x.db", registry=registry, spans=False, measures=["rows"]
    )
    with tachograph.workflow(f"w {SURROGATE}", version=SURROGATE), tachograph.step(f"s {SURROGATE}") as step:
        step.measure("rows", 1, SURROGATE)
        step.measure(SURROGATE, 1, SURROGATE)
        step.cost(1.0, model=SURROGATE)
        step.log(SURROGATE)
    with tachograph.workflow("nul\0name"), tachograph.step("x" * 1000):
        pass
    assert recorder.flush(60)
    assert recorder.queues["store"].dropped.total() == 0
    generate_latest(registry)
    from tachograph.metrics.exposition import render
    from tachograph.metrics.negotiation import Format

    for form in Format:
        render(registry, form)
    recorder.close()
    from tachograph.identity import workspace_id
    from tachograph_exporter.store import execution_list
    from tachograph_exporter.store.database import Database

    database = Database(f"sqlite:///{tmp_path}/x.db")
    rows = database.look(
        lambda c: execution_list.executions(c, execution_list.ExecutionFilter(workspace=workspace_id("default")), 0, 10)
    )
    assert sorted((row.workflow, row.status) for row in rows) == [("nul�name", "completed"), ("w mod?le", "completed")]
    database.close()


def test_a_barrier_of_a_thousand_steps_is_not_a_million_edges(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    recorder = tachograph.configure(database=f"sqlite:///{tmp_path}/x.db", registry=None, spans=False)
    finished: list[StepFinished] = []
    recorder.add("test", lambda event: finished.append(event) if isinstance(event, StepFinished) else None)
    barrier = threading.Barrier(300)

    def one(i: int, wave: str) -> None:
        with tachograph.step(f"{wave} {i}"):
            barrier.wait(60)

    with tachograph.workflow("w"), ThreadPoolExecutor(300) as pool:
        list(pool.map(one, range(300), ["first"] * 300))
        list(pool.map(one, range(300), ["second"] * 300))
    assert recorder.flush(60)
    recorder.close()
    by_id = {event.step.step_id: event for event in finished}
    second = [event for event in finished if event.step.name.startswith("second")]
    assert len(second) == 300
    for event in second:
        depends_on = event.step.depends_on
        assert 1 <= len(depends_on) <= 64
        assert all(by_id[step_id].step.name.startswith("first") for step_id in depends_on)
        # Those that held it back: the last to finish is among them.
        latest = max((e for e in finished if e.step.name.startswith("first")), key=lambda e: e.time_ns)
        assert latest.step.step_id in depends_on
    assert Path(tmp_path / "x.db").stat().st_size < 4_000_000


class Named(str):
    """Stands for a hostile value in an example: hypothesis itself would stumble over the value."""

    __slots__ = ()


ANYTHING = st.recursive(
    st.sampled_from([name for name in HOSTILE if name != "generator"]).map(Named)
    | st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
    | st.decimals() | st.fractions() | st.datetimes() | st.uuids() | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=10,
)  # fmt: skip


def built(example: Any) -> Any:
    if isinstance(example, Named):
        return HOSTILE[str(example)]
    if isinstance(example, list):
        return [built(item) for item in example]
    if isinstance(example, tuple):
        return tuple(built(item) for item in example)
    return {key: built(item) for key, item in example.items()} if isinstance(example, dict) else example


@pytest.fixture(scope="module")
def recorded() -> Iterator[tachograph.Recorder]:
    recorder = tachograph.configure(database="", registry=CollectorRegistry(), spans=False)
    yield recorder
    recorder.close()


def give(given: Any, say: Any) -> Any:
    tachograph.log(say)
    return given


def fail(given: Any) -> Any:
    raise ValueError(given)


def flow_of(give: Callable[..., Any], fail: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def flow(given: Any, say: Any) -> Any:
        with pytest.raises(ValueError) as caught:
            fail(given)
        assert caught.value.args[0] is given
        return give(given, say)

    return flow


def test_any_object_as_argument_output_exception_and_log_changes_nothing(recorded: tachograph.Recorder) -> None:
    bare, recording = flow_of(give, fail), tachograph.workflow(flow_of(tachograph.step(give), tachograph.step(fail)))
    more: list[float] = []

    @settings(max_examples=200, deadline=None, database=None)
    @given(example=ANYTHING, said=ANYTHING)
    def check(example: Any, said: Any) -> None:
        value, say = built(example), built(said)
        began = time.thread_time()
        assert bare(value, say) is value
        between = time.thread_time()
        assert recording(value, say) is value
        more.append(time.thread_time() - between - (between - began))

    check()
    # Three recordings (an execution and two steps), a millisecond each on an idle machine.
    assert sum(more) / len(more) < 0.03
    assert recorded.flush(60)
    assert recorded.queues["metrics"].dropped.total() == 0


def test_any_object_passes_through_the_executor(recorded: tachograph.Recorder) -> None:
    more: list[float] = []
    runner = LocalRunner()

    async def run(value: Any, say: Any, *, in_thread: bool) -> None:
        async def work(context: Any) -> Any:
            context.log(say)
            return value

        async def bad(_context: Any) -> Any:
            raise ValueError(value)

        def in_a_thread(context: Any) -> Any:
            assert context.outputs["a"] is value
            context.log(say)
            return value

        handlers = HandlerRegistry()
        handlers.register("work")(work)
        handlers.register("bad")(bad)
        handlers.register("then")(in_a_thread if in_thread else work)
        workflow = (
            WorkflowBuilder("w").step("a", handler="work").step("b", handler="bad")
            .step("c", handler="then", after=["a"]).build()
        )  # fmt: skip
        executor = Executor(recorded, handlers=handlers, runner=runner)
        began = time.thread_time()
        async with asyncio.timeout(60):
            result = await executor.run(workflow)
        more.append(time.thread_time() - began)
        assert {name: str(status) for name, status in result.steps.items()} == {
            "a": "completed", "b": "failed", "c": "completed"
        }  # fmt: skip
        assert result.outputs["a"] is value
        assert result.outputs["c"] is value

    @settings(max_examples=100, deadline=None, database=None)
    @given(example=ANYTHING, said=ANYTHING, in_thread=st.booleans())
    def check(example: Any, said: Any, in_thread: bool) -> None:
        asyncio.run(run(built(example), built(said), in_thread=in_thread))

    check()
    assert sum(more) / len(more) < 0.006
    assert recorded.flush(60)
