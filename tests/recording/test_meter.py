"""What a step uses of the machine: beside getrusage, for planted loads, and where steps share a process."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph import counters, meter, step_kinds, unmeasured
from tachograph.events import Event, StepFinished, StepRetrying
from tachograph.identity import workflow_id
from tachograph.recording.recorder import Recorder
from tachograph.resources import Resources, UseTotals, cleaned, decoded, total_of
from tachograph.step_kinds import Kind
from tachograph.unmeasured import Unmeasured
from tachograph.workflow.builtin.shell import ShellConfig, shell
from tachograph.workflow.context import StepContext
from tachograph.workflow.definition import Step, Workflow
from tachograph.workflow.executor import Executor
from tachograph.workflow.handlers import HandlerRegistry
from tachograph.workflow.reporter import current_reporter

MIB = 1 << 20
SAY = "import resource\nu = resource.getrusage(0)\nprint([u.ru_utime + u.ru_stime, u.ru_maxrss * 1024])"
BURN = "import time\nwhile time.thread_time() < {}: sum(range(1000))\n"


def burn(seconds: float) -> None:
    """Use a processor for this long: processor time, so a busy machine only makes it take longer."""
    began = time.thread_time()
    while time.thread_time() < began + seconds:
        sum(range(1000))
    with _burning:
        _burnt.append(time.thread_time() - began)


_burning = threading.Lock()
_burnt: list[float] = []
"""What `burn` used in this test."""
_began = [0.0]
"""What the process had used before this test."""


@pytest.fixture(autouse=True)
def nothing_burnt() -> None:
    _burnt.clear()
    _began[0] = time.process_time() + used_by_children()


def used_by_children() -> float:
    """Processor time of all child processes that have been waited for, those of earlier tests as well."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def used_by_others() -> float:
    """Processor time of what else ran during the test: threads of earlier tests, processes that these had started."""
    return max(0.0, time.process_time() + used_by_children() - _began[0] - sum(_burnt))


class Record:
    """Records steps, and what they used by their name."""

    def __init__(self) -> None:
        self.events: list[StepFinished | StepRetrying] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepFinished | StepRetrying):
            self.events.append(event)

    def all(self, name: str) -> list[Resources | None]:
        assert tachograph.get_recorder().flush(60)
        return [event.resources for event in self.events if event.step.name == name]

    def used(self, name: str) -> Resources:
        (use,) = self.all(name)
        assert use is not None
        return use


@pytest.fixture(autouse=True)
def no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service of another test may run in this process."""
    monkeypatch.setattr(counters, "services", 0)


@pytest.fixture
def record() -> Iterator[Record]:
    recorder = tachograph.get_recorder()
    listener = Record()
    recorder.add("meter-test", listener)
    yield listener
    recorder.remove("meter-test")


def usage(who: int = resource.RUSAGE_SELF) -> float:
    use = resource.getrusage(who)
    return use.ru_utime + use.ru_stime


def measured(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(processor time of this process, of its children, the result) as `getrusage` says, without tachograph."""
    before, children_before = usage(), usage(resource.RUSAGE_CHILDREN)
    result = work()
    return usage() - before, usage(resource.RUSAGE_CHILDREN) - children_before, result


def is_roughly(value: float | None, other: float) -> bool:
    """Of a process: what other threads of it use (those that deliver records, too) may be in it."""
    return value is not None and 0.8 * other - 0.02 <= value <= 1.2 * other + 0.02 + used_by_others()


def begin(outer: meter.Meter | None = None, *, is_dispatched: bool = False) -> meter.Meter:
    running = meter.start(outer, False, is_dispatched)
    assert running is not None
    return running


def is_near(value: float | None, other: float) -> bool:
    return value == pytest.approx(other, rel=0.05)


def test_planted_loads_are_what_getrusage_says(record: Record, tmp_path: Path) -> None:
    kept: list[bytearray] = []

    def loop() -> None:
        burn(0.3)

    def child() -> None:
        subprocess.run([sys.executable, "-S", "-c", BURN.format(0.3)], check=True)

    def pool() -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(burn, [0.1] * 4))

    def allocate() -> None:
        kept.append(bytearray(b"x" * MIB) * 200)

    truth = {}
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def planted(load: Callable[[], None]) -> None:
        # Inside the step: what it costs to record it is not its work.
        own, children, _ = measured(load)
        truth[load.__name__] = own + children

    for load in (loop, child, pool, allocate):
        time.sleep(0.1)  # The size of the process is not read as often as this on a busy machine.
        tachograph.step(name=load.__name__)(planted)(load)
    for name in ("loop", "child", "pool"):
        use = record.used(name)
        assert is_near(use.cpu_seconds, truth[name]), (name, use, truth)
        assert not use.is_shared
    assert is_near(record.used("loop").thread_cpu_seconds, 0.3)
    assert (record.used("pool").thread_cpu_seconds or 0) < 0.2
    allocated = record.used("allocate")
    assert is_near(allocated.memory_growth_bytes, 200 * MIB)
    # Exact if the process never was as large before, in another test.
    if (now := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) > largest:
        assert allocated.peak_memory_bytes == pytest.approx(now * 1024, rel=0.05)


def test_what_is_written_is_counted_where_storage_counts_it(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "written"

    @tachograph.step
    def write() -> None:
        with path.open("wb") as file:
            file.write(b"x" * 50_000_000)
            file.flush()
            os.fsync(file.fileno())
        time.sleep(meter.LONG_NS / 1e9)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_oublock
    write()
    counted = (resource.getrusage(resource.RUSAGE_SELF).ru_oublock - before) * 512
    use = record.used("write")
    assert use.written_bytes == pytest.approx(counted, rel=0.05)
    if counted:  # Not where the directory is in memory.
        assert is_near(use.written_bytes, 50_000_000)
    assert use.voluntary_switches


def test_what_is_read_from_storage_is_counted_and_what_the_cache_has_is_not(record: Record) -> None:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(os.urandom(20 * MIB))
        file.flush()
        os.fsync(file.fileno())

        def read(*, is_cached: bool) -> None:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
            if not is_cached:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while len(os.pread(file.fileno(), 20 * MIB, 0)) < 20 * MIB:
                pass
            time.sleep(meter.LONG_NS / 1e9)
            truth[is_cached] = (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before) * 512

        truth = dict[bool, int]()
        for is_cached in (False, True):
            tachograph.step(name=f"cached {is_cached}")(read)(is_cached=is_cached)
    for is_cached, counted in truth.items():
        assert record.used(f"cached {is_cached}").read_bytes == pytest.approx(counted, rel=0.05, abs=1 << 16)
    # Not where the directory is in memory, or on storage that is not counted.
    if truth[False]:
        assert truth[False] > 15 * MIB
        assert truth[True] < MIB


def test_how_often_a_step_waited_and_was_held_up_is_what_the_kernel_counts(record: Record) -> None:
    stop = threading.Event()

    @tachograph.step
    def wait() -> None:
        before = resource.getrusage(resource.RUSAGE_THREAD)
        for _ in range(50):
            time.sleep(0.001)
        burn(0.1)
        after = resource.getrusage(resource.RUSAGE_THREAD)
        truth.extend([after.ru_nvcsw - before.ru_nvcsw, after.ru_nivcsw - before.ru_nivcsw])

    truth: list[int] = []
    # Another thread wants the interpreter, so the step gives it up now and then, too.
    other = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    other.start()
    wait()
    stop.set()
    other.join()
    use = record.used("wait")
    assert truth[0] >= 50
    # What the kernel counts between the step's start and its first line is the step's, too.
    assert use.voluntary_switches == pytest.approx(truth[0], rel=0.05, abs=5)
    assert use.involuntary_switches == pytest.approx(truth[1], rel=0.05, abs=10)


def test_short_steps_only_say_their_processor_time_and_tiny_ones_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.disable()
    try:
        for passed in (meter.SHORT_NS - 1, meter.LONG_NS - 1):
            monkeypatch.setattr(meter, "_now_ns", iter([0, passed]).__next__)
            use = begin().stop()
            if passed < meter.SHORT_NS:
                assert use is None
            else:
                assert use is not None
                assert use.cpu_seconds
                assert use == Resources(use.cpu_seconds)
    finally:
        gc.enable()


def test_tiny_steps_share_a_reading_of_their_threads_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, readings = 10**18, 0

    def thread_time_ns() -> int:
        nonlocal readings
        readings += 1
        return 5_000_000 + now - 10**18

    monkeypatch.setattr(meter, "_now_ns", lambda: now)
    monkeypatch.setattr(meter, "_thread_time_ns", thread_time_ns)
    gc.disable()
    try:
        begin().stop()
        readings = 0
        for _ in range(100):
            step = begin()
            now += 20_000
            assert step.stop() is None
        assert readings <= 100 * 20_000 // meter._CLOCK_FRESH_NS + 1
        # What is between the reading and a longer step is not that step's.
        now += 30_000
        step = begin()
        now += 2_000_000
        assert step.stop() == Resources(0.002)
        # If the thread did not work since, the step lacks so much, and no more.
        step = begin()
        now += meter.SHORT_NS
        monkeypatch.setattr(meter, "_thread_time_ns", lambda: 5_000_000 + now - 10**18 - 150_000)
        assert step.stop() == Resources(0.0)
    finally:
        gc.enable()


def test_a_waiting_step_uses_next_to_nothing(record: Record) -> None:
    @tachograph.step
    def wait() -> None:
        time.sleep(0.2)

    wait()
    use = record.used("wait")
    assert use.cpu_seconds is not None
    assert use.cpu_seconds < 0.1
    assert use.voluntary_switches


def test_pauses_by_the_garbage_collector_are_told_with_those_of_full_collections(record: Record) -> None:
    """They are those that callbacks of one's own measure."""
    pauses: list[tuple[int, float]] = []
    began = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses.append((info["generation"], time.perf_counter() - began))

    @tachograph.step
    def collect() -> None:
        gc.callbacks.append(note)
        kept = [[number] for number in range(300_000)]
        gc.collect()
        burn(0.02)
        del kept
        gc.callbacks.remove(note)

    gc.collect()
    collect()
    use = record.used("collect")
    assert use.gc_count == pytest.approx(len(pauses), abs=1)
    assert use.gc_seconds == pytest.approx(sum(seconds for _, seconds in pauses), rel=0.05, abs=0.001)
    full = sum(seconds for generation, seconds in pauses if generation == 2)
    assert full > 0
    assert use.gc_full_seconds == pytest.approx(full, rel=0.05, abs=0.001)


def test_a_step_inside_another_belongs_to_it_and_neither_is_shared(record: Record) -> None:
    @tachograph.step
    def inner() -> None:
        burn(0.05)

    @tachograph.step
    def outer() -> None:
        inner()
        burn(0.05)

    outer()
    assert is_roughly(record.used("inner").cpu_seconds, 0.05)
    assert is_roughly(record.used("outer").cpu_seconds, 0.1)
    assert not record.used("outer").is_shared
    assert not record.used("inner").is_shared


def test_steps_of_several_threads_have_their_own_processor_time_and_are_shared(record: Record) -> None:
    started = threading.Barrier(2)

    @tachograph.step
    def work() -> None:
        started.wait(60)
        burn(0.1)

    @tachograph.workflow
    def both() -> None:
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    both()
    uses = record.all("work")
    assert len(uses) == 2
    for use in uses:
        assert use is not None
        assert use.is_shared
        assert is_near(use.cpu_seconds, 0.1)


def test_the_outer_step_of_a_pool_has_all_of_it_and_is_not_shared(record: Record) -> None:
    @tachograph.step
    def part() -> None:
        burn(0.05)

    @tachograph.step
    def whole() -> None:
        with ThreadPoolExecutor(2) as pool:
            contexts = [contextvars.copy_context() for _ in range(4)]
            list(pool.map(lambda context: context.run(part), contexts))

    whole()
    assert not record.used("whole").is_shared
    assert is_roughly(record.used("whole").cpu_seconds, 0.2)
    assert all(use is not None and use.is_shared and is_near(use.cpu_seconds, 0.05) for use in record.all("part"))


def test_of_tasks_that_share_an_event_loop_no_processor_time_is_claimed(record: Record) -> None:
    @tachograph.step
    async def task() -> None:
        await asyncio.sleep(0.02)
        burn(0.02)

    @tachograph.step
    async def alone() -> None:
        await asyncio.sleep(0.02)
        burn(0.05)

    @tachograph.step
    def plain() -> None:
        burn(0.02)

    @tachograph.workflow
    async def run() -> None:
        await alone()
        plain()
        await asyncio.gather(task(), task())

    asyncio.run(run())
    assert is_roughly(record.used("alone").cpu_seconds, 0.05)
    assert is_roughly(record.used("plain").cpu_seconds, 0.02)
    for use in record.all("task"):
        assert use is not None
        assert use.is_shared
        assert use.cpu_seconds is None
        assert use.written_bytes is None


def test_a_generator_counts_what_it_does_and_not_what_its_caller_does(record: Record) -> None:
    @tachograph.step
    def numbers() -> Iterator[int]:
        for number in range(3):
            burn(0.02)
            yield number

    for _ in numbers():
        burn(0.05)
    assert is_roughly(record.used("numbers").cpu_seconds, 0.06)


def test_every_attempt_has_its_own(record: Record) -> None:
    attempts = []

    @tachograph.step(max_retries=1, backoff=tachograph.Backoff(initial_seconds=0.0))
    def unsteady() -> None:
        attempts.append(1)
        burn(0.02 * len(attempts))
        if len(attempts) == 1:
            raise ValueError

    unsteady()
    first, second = record.all("unsteady")
    assert first is not None
    assert second is not None
    assert is_roughly(first.cpu_seconds, 0.02)
    assert is_roughly(second.cpu_seconds, 0.04)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_counts_from_its_own_start(record: Record) -> None:
    @tachograph.step
    def parent() -> int:
        burn(0.03)
        reporter = current_reporter.get()
        assert reporter is not None
        assert isinstance(reporter.meter, meter.Meter)
        around = begin(reporter.meter)
        pid = os.fork()
        if pid == 0:
            # What was measured in the parent means nothing here; what starts here is alone again.
            own = begin()
            burn(0.03)
            use = own.stop()
            is_right = around.stop() is None and use is not None and not use.is_shared
            os._exit(0 if is_right and is_roughly(use.cpu_seconds if use else None, 0.03) else 1)
        around.stop()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    own, children, code = measured(parent)
    assert code == 0
    assert is_roughly(record.used("parent").cpu_seconds, own + children)


def test_what_delivering_records_uses_is_not_the_work_of_a_step(tmp_path: Path) -> None:
    def deliver() -> None:
        burn(0.1)
        with (tmp_path / "records").open("wb") as file:
            file.write(b"x" * 1_000_000)
            file.flush()
            os.fsync(file.fileno())
        counters.note_own_thread()

    running = begin()
    thread = threading.Thread(target=deliver)
    thread.start()
    thread.join()
    use = running.stop()
    assert use is not None
    assert not use.is_shared
    assert use.cpu_seconds is not None
    assert use.cpu_seconds < 0.08
    assert use.written_bytes is not None
    assert use.written_bytes < 500_000


def test_what_ends_in_another_thread_says_nothing_of_a_thread(record: Record) -> None:
    running = begin()
    burn(0.02)
    uses: list[Resources | None] = []
    thread = threading.Thread(target=lambda: uses.append(running.stop()))
    thread.start()
    thread.join()
    (use,) = uses
    assert use is not None
    assert use.thread_cpu_seconds is None
    assert use.voluntary_switches is None
    assert running.stop() is None


def test_a_thread_does_not_start_from_the_counters_of_one_before_it_with_the_same_number() -> None:
    uses: list[Resources | None] = []

    def work() -> None:
        running = begin()
        for _ in range(20):
            time.sleep(0.002)
        uses.append(running.stop())

    for _ in range(4):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(uses) == 4
    for use in uses:
        assert use is not None
        assert use.cpu_seconds is not None
        assert 15 <= (use.voluntary_switches or 0) <= 200
        assert use.read_bytes is not None
        assert use.read_bytes >= 0


def test_many_meters_at_once_are_all_shared_and_none_stays_behind() -> None:
    together = threading.Barrier(8)
    uses: list[Resources | None] = []

    def work() -> None:
        for _ in range(20):
            together.wait(60)
            running = begin(is_dispatched=True)
            together.wait(60)
            burn(0.001)
            uses.append(running.stop())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(uses) == 160
    assert all(use is not None and use.is_shared for use in uses)
    last = begin(is_dispatched=True)
    burn(0.001)
    alone = last.stop()
    assert alone is not None
    assert not alone.is_shared


async def test_the_executor_measures_handlers_and_commands_even_where_the_process_serves_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = Record()
    recorder = Recorder()
    recorder.add("test", record)
    registry = HandlerRegistry()

    @registry.register("work")
    def work(context: StepContext) -> None:
        burn(0.05)

    @registry.register("tasks")
    async def tasks(context: StepContext) -> None:
        burn(0.05)
        await asyncio.sleep(0.02)

    registry.register("shell", config=ShellConfig)(shell)
    # More than this process ever had: a child starts with that.
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 100 * MIB
    command = [sys.executable, "-S", "-c", BURN.format(0.2) + f"kept = b'x' * {size}\ndel kept\n" + SAY]
    steps = (
        Step(name="work", config={"handler": "work"}),
        Step(name="tasks", config={"handler": "tasks"}, depends_on_steps=("work",)),
        Step(name="command", config={"handler": "shell", "command": command}, depends_on_steps=("tasks",)),
    )
    workflow = Workflow(name="measured", steps=steps)
    for serves in (False, True):
        monkeypatch.setattr(counters, "services", int(serves))
        record.events.clear()
        executor = Executor(recorder, handlers=registry)
        await executor.run(workflow)
        assert recorder.flush(60)
        uses = {event.step.name: event.resources for event in record.events}
        for name in ("work", "command"):
            use = uses[name]
            assert use is not None
            assert use.is_shared is (serves and name == "work")
        assert uses["work"] is not None
        assert is_roughly(uses["work"].cpu_seconds, 0.05)
        assert uses["command"] is not None
        (output,) = [e.output for e in record.events if e.step.name == "command" and isinstance(e, StepFinished)]
        cpu, peak = json.loads(json.loads(output or "")["stdout"])
        assert is_near(uses["command"].cpu_seconds, cpu)
        assert uses["command"].peak_memory_bytes == pytest.approx(peak, rel=0.05)
        assert uses["tasks"] is not None
        assert (uses["tasks"].cpu_seconds is None) is serves
    recorder.close()


def test_measuring_can_be_turned_off(record: Record) -> None:
    meter.set_enabled(False)
    try:
        tachograph.step(name="off")(lambda: None)()
    finally:
        meter.set_enabled(True)
    assert record.all("off") == [None]


def test_values_that_cannot_be_are_left_out() -> None:
    wrong = Resources(-1.0, -5, 1 << 70, 4, float("nan"), -7, float("inf"), is_shared=True)
    assert cleaned(wrong) == Resources(None, None, None, 4, None, -7, is_shared=True)
    assert decoded('{"cpu_seconds": 1.5, "unknown": 1}') == Resources(1.5)
    for text in (None, "", "[]", '{"cpu_seconds": "x"}', '{"peak_memory_bytes": 1e400}'):
        assert decoded(text) is None


def test_totals_do_not_depend_on_order_and_stop_at_63_bits() -> None:
    uses = [
        Resources(0.1, 5 * MIB, 1, 2, gc_seconds=0.5),
        Resources(1e9, 1 << 60),
        Resources(0.2, 7, is_shared=True),
    ] * 20
    whole, other, part = UseTotals(), UseTotals(), UseTotals()
    for use in uses:
        whole.observe(use, 10)
    for use in reversed(uses[:31]):
        part.observe(use, 10)
    for use in uses[31:]:
        other.observe(use, 10)
    other.add(part)
    assert whole == other
    assert whole.cpu_ns == whole.memory_sum == (1 << 63) - 1
    assert (whole.cpu_count, whole.memory_count, whole.read_bytes, whole.written_bytes) == (60, 40, 20, 40)
    assert total_of([]) is None
    assert total_of([Resources(1.0, 5), Resources(None, 9, 3)]) == Resources(1.0, 9, 3)


@contextlib.contextmanager
def taken_for_tiny(kind: Kind) -> Iterator[None]:
    """Steps of this kind have been tiny."""
    step_kinds.scores[kind] = step_kinds.MAX_SCORE
    step_kinds.note_tiny(kind)
    try:
        yield
    finally:
        step_kinds.forget()


TINY: Kind = ("w", "tiny")


class Moments:
    """A clock, and the processor time of a thread that works all the time but where it is told to wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.waited, self.readings = 10**18, 0, 0
        monkeypatch.setattr(meter, "_now_ns", lambda: self.now)
        monkeypatch.setattr(meter, "_thread_time_ns", self._thread_time_ns)

    def _thread_time_ns(self) -> int:
        self.readings += 1
        return self.now - self.waited - 10**17

    def step(self, took_ns: int, outer: meter.Meter | Unmeasured | None = None) -> Resources | None:
        running, began = unmeasured.start_step(outer, False, TINY), self.now
        assert running is not None
        self.now += took_ns
        return running.stop(began - 7, self.now - 7)  # The clock of an execution is another one.


def test_what_was_tiny_many_times_is_only_measured_if_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = Moments(monkeypatch)
    gc.disable()
    try:
        with taken_for_tiny(TINY):
            for _ in range(1_000):
                assert moments.step(20_000) is None
            assert 0 < moments.readings <= 1_000 * 20_000 // unmeasured.CLOCK_FRESH_NS + 1
            assert not meter._active
            # A longer one begins so much after a tiny one read the clock that this makes no difference.
            moments.now += unmeasured.CLOCK_FRESH_NS
            assert moments.step(1_000) is None
            assert moments.step(2_000_000) == Resources(0.002)
            # The thread may have waited since the clock was read: nothing is said rather than something wrong.
            moments.now += unmeasured.CLOCK_FRESH_NS
            assert moments.step(1_000) is None
            moments.now += 200_000
            assert moments.step(3_000_000) is None
            # Others run meanwhile. They learn of it, and its own processor time is all that is said.
            other = begin()
            moments.now += unmeasured.CLOCK_FRESH_NS
            assert moments.step(1_000) is None
            assert not other._is_alone
            other._is_alone = True
            assert moments.step(30_000_000) == Resources(0.03, is_shared=True)
            assert not other._is_alone
            other.stop()
            # From now on it is measured from its start.
            assert isinstance(unmeasured.start_step(None, False, TINY), meter.Meter)
    finally:
        gc.enable()
        meter._active.clear()


def test_a_step_inside_one_that_is_taken_for_tiny_is_inside_what_is_around_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = Moments(monkeypatch)
    gc.disable()
    try:
        with taken_for_tiny(TINY):
            around = unmeasured.start_step(None, False, ("w", "around"))
            assert isinstance(around, meter.Meter)
            tiny = unmeasured.start_step(around, False, TINY)
            assert isinstance(tiny, Unmeasured)
            inner = unmeasured.start_step(tiny, False, ("w", "inner"))
            moments.now += 2_000_000
            assert inner is not None
            assert inner.stop(0, 0) == Resources(0.002)
            assert moments.step(1_000, unmeasured.start_step(tiny, False, TINY)) is None
            assert around.stop() == Resources(0.002001)
    finally:
        gc.enable()


def test_a_long_step_that_was_taken_for_tiny_says_what_is_true_or_nothing(record: Record) -> None:
    lengths = (0.0, 0.0, 0.3)

    @tachograph.step(name="sometimes long")
    def work(seconds: float) -> None:
        if seconds:
            burn(seconds)

    @tachograph.workflow
    def run() -> None:
        for seconds in lengths:
            work(seconds)

    with taken_for_tiny((workflow_id("default", "run"), "sometimes long")):
        run()
        *_, use = record.all("sometimes long")
        assert record.events[-1].step.execution.workflow_id == workflow_id("default", "run")
    # Nothing if the machine held up what read the clock before it, or measured if it held up the tiny ones.
    if use is not None:
        assert is_near(use.cpu_seconds, 0.3)
        assert use.is_shared or is_near(use.thread_cpu_seconds, 0.3)


def test_brief_steps_start_from_older_counters_and_long_ones_say_what_these_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments, taken = Moments(monkeypatch), 0
    kind, take = ("w", "brief"), counters.take

    def count(of: counters.Thread, now: int, *, reads_size: bool = False) -> counters.Sample:
        nonlocal taken
        taken += 1
        return take(of, now, reads_size=reads_size)

    def step(took_ns: int) -> Resources | None:
        running = unmeasured.start_step(None, False, kind)
        assert isinstance(running, meter.Meter)
        moments.now += took_ns
        return running.stop()

    monkeypatch.setattr(counters, "take", count)
    counters.local.thread = None  # An earlier test may have been at a later time.
    gc.disable()
    try:
        for _ in range(step_kinds.TAKEN_FOR_BRIEF):
            assert step(3_000_000) == Resources(0.003)
        assert taken >= step_kinds.TAKEN_FOR_BRIEF // 2
        taken = 0
        for _ in range(60):
            assert step(1_000_000) == Resources(0.001)
        assert taken <= 4
        # Counters that are a tenth as old as the step took say nothing of it; a twentieth is near enough.
        moments.now += meter.LONG_NS
        step(1_000_000)
        moments.now += 2_000_000
        assert step(30_000_000) == Resources(0.03)
        # It was long: the next one of its name starts from new ones.
        moments.now += 3_000_000
        use = step(30_000_000)
        assert use is not None
        assert use.peak_memory_bytes is not None
        for _ in range(step_kinds.TAKEN_FOR_BRIEF):
            step(1_000_000)
        moments.now += 2_000_000
        use = step(3_000_000_000)
        assert use is not None
        assert use.peak_memory_bytes is not None
    finally:
        gc.enable()
        step_kinds.forget()
        meter._active.clear()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_resident_set_is_read_though_its_descriptor_was_closed_or_is_another_file_now(tmp_path: Path) -> None:
    size = counters.resident_bytes()
    assert size is not None
    descriptor = counters._statm
    assert descriptor is not None
    path = tmp_path / "other"
    for text in ("", "1 2 3 4 5 6", "a b c d e f g"):
        path.write_text(text)
        other = os.open(path, os.O_RDONLY)
        os.dup2(other, descriptor)
        again = counters.resident_bytes()
        assert again is not None
        assert again > size // 4
        assert os.lseek(other, 0, os.SEEK_CUR) == 0
        os.close(other)
        os.close(descriptor)  # Nobody closed what is another file.
        assert counters._statm != descriptor
        descriptor = counters._statm
        assert descriptor is not None
    os.close(descriptor)
    assert counters.resident_bytes() is not None
    # A forked child has its own.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # What is mapped from files is not its own yet, however large it was for the parent.
        before = counters.resident_bytes()
        more = bytearray(b"y" * (128 * MIB))
        os.write(writer, f"{before} {counters.resident_bytes()}".encode())
        os._exit(int(len(more) == 0))
    os.waitpid(child, 0)
    os.close(writer)
    before, after = map(int, os.read(reader, 100).split())
    assert after > before + 96 * MIB
    os.close(reader)
