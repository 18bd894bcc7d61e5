"""Work in other processes: its steps are steps of the run that submitted it, in every view, whatever happens."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tachograph.folded_stacks import StackWish
from tachograph.identity import workspace_id
from tachograph.recording.relay import RelayClient, RelayServer
from tachograph_exporter.store import execution_list, executions
from tachograph_exporter.store.database import Database
from tachograph_exporter.views.timeline import build_timeline
from tests import programs
from tests.e2e.conftest import environment

pytestmark = pytest.mark.usefixtures("runs_database")

METHODS = ("fork", "spawn", "forkserver")

HEAD = """
import json, multiprocessing, os, sys, time, threading
import tachograph
from tachograph.workflow.definition import Backoff

AT_ONCE = Backoff(initial_seconds=0.001, jitter=0.0)

@tachograph.step
def fetch():
    time.sleep(0.01)
    return list(range(4))

@tachograph.step(max_retries=2, backoff=AT_ONCE)
def crunch(n):
    key = f"{os.environ['DIRECTORY']}/{n}"
    if not os.path.exists(key):
        open(key, "w").close()
        raise ValueError("first time")
    time.sleep(0.1)
    tachograph.measure("rows", n)
    return n

@tachograph.step
def notify():
    time.sleep(0.01)

def metrics():
    from prometheus_client import REGISTRY
    print(json.dumps({
        s.name + "".join(f" {v}" for k, v in sorted(s.labels.items()) if k not in ("workspace",)): s.value
        for f in REGISTRY.collect() for s in f.samples if "workflow" in s.labels and "le" not in s.labels
    }))
"""


def run(tmp_path: Path, source: str, *, status: int = 0, timeout: float = 250, **variables: str) -> Any:
    program = tmp_path / "program.py"
    program.write_text(HEAD + source)
    ran = programs.run(
        [sys.executable, "-W", "error", str(program)], capture_output=True, text=True, timeout=timeout, check=False,
        env=environment(DIRECTORY=str(tmp_path), TACHOGRAPH_DATABASE_URL=f"sqlite:///{tmp_path}/runs.db", **variables),
    )  # fmt: skip
    assert ran.returncode == status, ran.stderr[-3000:]
    return ran


def stored(tmp_path: Path) -> dict[str, list[tuple[Any, Any]]]:
    """(list item, timeline) of each run, by workflow."""
    database = Database(f"sqlite:///{tmp_path}/runs.db")
    workspace = workspace_id("default")
    runs: dict[str, list[tuple[Any, Any]]] = {}

    def read(connection: Any) -> None:
        query = execution_list.ExecutionFilter(workspace=workspace)
        for row in execution_list.executions(connection, query, 0, 100):
            run = executions.run(connection, workspace, row.execution_id)
            assert run is not None
            runs.setdefault(row.workflow, []).append((row, build_timeline(run, now_ns=time.time_ns())))

    database.look(read)
    database.close()
    return runs


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_is_part_of_the_graph(method: str, tmp_path: Path) -> None:
    ran = run(tmp_path, f"""
if __name__ == "__main__":
    with tachograph.workflow("nightly"):
        numbers = fetch()
        with multiprocessing.get_context("{method}").Pool(2) as pool:
            assert pool.map(crunch, numbers, chunksize=1) == numbers
        notify()
    assert tachograph.get_recorder().flush(60)
    metrics()
""")  # fmt: skip
    (((row, timeline),),) = stored(tmp_path).values()
    assert (row.status, row.step_count, row.completed_step_count) == ("completed", 6, 6)
    assert row.work_ns >= 4 * 100_000_000
    steps = {step.step_name: step for step in timeline.step_timeline}
    crunched = [step for step in timeline.step_timeline if step.step_name == "crunch"]
    assert [len(step.attempts) for step in crunched] == [2] * 4
    assert all(step.depends_on for step in crunched)
    # What holds `notify` back is the last of the pool's work, not what came before it.
    crunched_ids = {step.step_id for step in crunched}
    assert set(steps["notify"].depends_on) <= crunched_ids
    path = [part.step_name for part in timeline.critical_path]
    assert path[0] == "fetch"
    assert path[-2:] == ["crunch", "notify"]
    metrics = json.loads(ran.stdout)
    assert metrics["workflow_step_attempts_total completed crunch nightly"] == 4
    assert metrics["workflow_step_attempts_total failed crunch nightly"] == 4
    assert metrics["workflow_step_retries_total crunch nightly"] == 4
    assert metrics["workflow_steps_running nightly"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_that_outlives_runs_serves_the_one_that_submits(method: str, tmp_path: Path) -> None:
    run(tmp_path, f"""
if __name__ == "__main__":
    with tachograph.workflow("first"):
        pool = multiprocessing.get_context("{method}").Pool(1)
        pool.map(crunch, [1])
    with tachograph.workflow("second"):
        pool.map(crunch, [2])
    pool.map(crunch, [3])
    pool.terminate()
    pool.join()
""")  # fmt: skip
    runs = stored(tmp_path)
    names = {name: [[s.step_name for s in timeline.step_timeline] for _, timeline in of] for name, of in runs.items()}
    assert names == {"first": [["crunch"]], "second": [["crunch"]], "crunch": [["crunch"]]}
    assert all(row.status == "completed" for of in runs.values() for row, _ in of)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_inside_a_step_in_another_process(method: str, tmp_path: Path) -> None:
    run(tmp_path, f"""
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    with tachograph.workflow("flow"), tachograph.step("outer"):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("{method}")) as pool:
            list(pool.map(crunch, range(3)))
        process = multiprocessing.get_context("{method}").Process(target=notify)
        process.start()
        process.join()
""")  # fmt: skip
    (((row, timeline),),) = stored(tmp_path).values()
    outer = next(step for step in timeline.step_timeline if step.step_name == "outer")
    inner = [step for step in timeline.step_timeline if step is not outer]
    assert sorted(step.step_name for step in inner) == ["crunch"] * 3 + ["notify"]
    assert {step.parent_step_id for step in inner} == {outer.step_id}
    assert (row.step_count, row.completed_step_count) == (5, 5)


@pytest.mark.parametrize(("method", "count"), [("fork", 2), ("spawn", 1)])
def test_children_tell_their_stacks_and_are_sampled(method: str, count: int, tmp_path: Path) -> None:
    ran = run(tmp_path, f"""
from tachograph.events import Heartbeat, StepStacks
from tachograph.folded_stacks import StackWish
from tachograph.stacks.wishes import fulfil

END = os.environ["DIRECTORY"] + "/end"

@tachograph.step
def hold(number):
    while not os.path.exists(END):
        time.sleep(0.02)

def plain(number):
    while not os.path.exists(END):
        time.sleep(0.02)

def in_processes():
    *_, last = [None, *(e for e in events if isinstance(e, StepStacks) and e.step.name == "outer")]
    return sum(each.count for each in last.stacks if each.stack.startswith("[process ")) if last else 0

def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

def told(kind):
    return {{e.step.step_id: e for e in events if isinstance(e, StepStacks) and e.kind == kind}}

if __name__ == "__main__":
    events = []
    recorder = tachograph.get_recorder()
    recorder.add("probe", events.append)
    with tachograph.workflow("nightly") as scope:
        with multiprocessing.get_context("{method}").Pool({count}) as pool:
            answers = pool.map_async(hold, range({count}), chunksize=1)
            until(lambda: any(isinstance(e, Heartbeat) and len(e.long) == {count} for e in events))
            *_, beat = [e for e in events if isinstance(e, Heartbeat) and len(e.long) == {count}]
            # Children's signs of life are part of those of the one process that has the run.
            beats = [e.time_ns for e in events if isinstance(e, Heartbeat)]
            assert all(after - before > 1_000_000_000 for before, after in zip(beats, beats[1:])), beats
            execution_id = beat.execution.execution_id
            fulfil([StackWish(execution_id, "r1")])
            until(lambda: len(told("now")) == {count})
            fulfil([StackWish(execution_id, "", tuple(a.step_id for a in beat.long))])
            until(lambda: len(told("profile")) == {count})
            open(END, "w").close()
            answers.get(60)
        os.remove(END)
        # What a pool does for a step, and is no step itself, is part of that one's stacks.
        with tachograph.step("outer"), multiprocessing.get_context("{method}").Pool({count}) as pool:
            answers = pool.map_async(plain, range({count}), chunksize=1)
            for number in range(2, 60):
                fulfil([StackWish(execution_id, f"r{{number}}")])
                deadline = time.monotonic() + 5
                while time.monotonic() < deadline and in_processes() < {count}:
                    time.sleep(0.02)
                if in_processes() == {count}:
                    break
            open(END, "w").close()
            answers.get(60)
        assert recorder.flush(60)
    *_, both = [e for e in events if isinstance(e, StepStacks) and e.step.name == "outer"]
    inner = [each.stack.split(";") for each in both.stacks if each.stack.startswith("[process ")]
    assert {{frames[0] for frames in inner}} == {{"[process {method.title()}PoolWorker]"}}, inner
    # Nothing of the pool is around it.
    assert all(".plain " in frames[1] for frames in inner), inner
    assert len(both.stacks) > len(inner)
    events = [e for e in events if not isinstance(e, StepStacks) or e.step.name != "outer"]
    for event in (*told("now").values(), *told("profile").values()):
        print(event.request, event.stacks[0].stack)
""")  # fmt: skip
    lines = ran.stdout.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["r1"] * count + [""] * count
    for line in lines:
        functions = [frame.partition(" (")[0].rpartition(".")[2] for frame in line.partition(" ")[2].split(";")]
        assert functions[functions.index("hold") :][1] in ("sleep", "exists"), line
    (((row, _),),) = stored(tmp_path).values()
    assert (row.status, row.step_count) == ("completed", count + 1)


def test_a_killed_child_is_lost_with_the_run(tmp_path: Path) -> None:
    ran = run(tmp_path, """
@tachograph.step
def endless(queue):
    queue.put(1)
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with tachograph.workflow("flow"):
        queue = context.SimpleQueue()
        process = context.Process(target=endless, args=(queue,))
        process.start()
        queue.get()
        # The start of the step is on its way while the child is killed.
        deadline = time.monotonic() + 10
        from prometheus_client import REGISTRY
        labels = {"workspace": "default", "workflow": "flow"}
        while not REGISTRY.get_sample_value("workflow_steps_running", labels) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
    assert tachograph.get_recorder().flush(60)
    metrics()
""")  # fmt: skip
    (((row, timeline),),) = stored(tmp_path).values()
    assert (row.status, row.step_count) == ("completed", 1)
    (step,) = timeline.step_timeline
    assert (step.status, step.error_type) == ("lost", "Abandoned")
    assert json.loads(ran.stdout)["workflow_steps_running flow"] == 0


def test_a_child_whose_parent_is_killed_records_on_its_own(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(HEAD + """
def child():
    with tachograph.workflow("of the child"):
        notify()
        os.kill(os.getppid(), 9)
        deadline = time.monotonic() + 10
        while os.getppid() != 1 and os.getppid() == PARENT and time.monotonic() < deadline:
            time.sleep(0.01)
        notify()
    tachograph.get_recorder().flush(60)

if __name__ == "__main__":
    with tachograph.workflow("of the parent"):
        notify()
        tachograph.get_recorder().flush(60)
        PARENT = os.getpid()
        if os.fork() == 0:
            child()
            os._exit(0)
        time.sleep(60)
""")  # fmt: skip
    process = programs.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(DIRECTORY=str(tmp_path), TACHOGRAPH_DATABASE_URL=f"sqlite:///{tmp_path}/runs.db"),
    )  # fmt: skip
    # The child holds the pipe open until it is done, too.
    output, _ = process.communicate(timeout=250)
    assert process.returncode == -signal.SIGKILL, output
    runs = stored(tmp_path)
    ((row, timeline),) = runs["of the child"]
    assert (row.status, row.step_count) == ("completed", 2)
    assert [step.status for step in timeline.step_timeline] == ["completed", "completed"]


def test_children_of_many_runs_at_once(tmp_path: Path) -> None:
    run(tmp_path, """
def flow(i):
    with tachograph.workflow(f"flow {i}"):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.map(crunch, range(4 * i, 4 * i + 4))
        notify()

if __name__ == "__main__":
    threads = [threading.Thread(target=flow, args=(i,)) for i in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
""")  # fmt: skip
    runs = stored(tmp_path)
    assert sorted(runs) == ["flow 0", "flow 1", "flow 2"]
    for ((row, timeline),) in runs.values():
        assert (row.status, row.step_count, row.completed_step_count) == ("completed", 5, 5)
        assert sorted(step.step_name for step in timeline.step_timeline) == ["crunch"] * 4 + ["notify"]


def test_without_a_run_nothing_is_wrapped(tmp_path: Path) -> None:
    ran = run(tmp_path, """
class Unpicklable:
    def __call__(self): return 1

if __name__ == "__main__":
    with tachograph.workflow("before"):
        pass
    recorder = tachograph.get_recorder()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(abs, [-1]) == [1]
    assert recorder._relay is None
    print("ok")
""")  # fmt: skip
    assert ran.stdout == "ok\n"


class Taken:
    asks = False

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, events: Any) -> list[StackWish]:
        self.events += events
        return [StackWish("asked", f"r{i}", ("step",) * 100) for i in range(50)] if self.asks else []


def heartbeat() -> Any:
    from tachograph.events import Heartbeat
    from tachograph.identity import new_execution_ref

    ref = new_execution_ref(workspace="default", workflow="w", workflow_id="w")
    return Heartbeat(execution=ref, time_ns=1)


def test_the_relay_serves_its_children_whatever_else_connects() -> None:
    taken = Taken()
    server = RelayServer(taken)
    strangers = []
    for data in (b"", b"x", b"x" * 16, b"x" * 100_000, server.address.token, server.address.token + b"\xff" * 8,
                 server.address.token + b"\0\0\0\4garb", server.address.token[:8]):  # fmt: skip
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stranger.connect(server.address.path)
        with contextlib.suppress(OSError):  # Refused already.
            stranger.sendall(data)
        strangers.append(stranger)
    clients = [RelayClient(server.address) for _ in range(20)]
    event = heartbeat()
    for _ in range(3):
        for client in clients:
            client.send([event] * 10)
    assert taken.events == [event] * 600
    taken.asks = True
    assert [wish.request for wish in clients[0].send([event])] == [f"r{i}" for i in range(50)]
    taken.asks = False
    assert clients[0].send([event]) == []
    for stranger in strangers:
        stranger.close()
    server.close()
    for client in (clients[0], RelayClient(server.address)):
        with pytest.raises(OSError):
            client.send([event])
    for client in clients:
        client.close()
    assert not Path(server.address.path).parent.exists()


def test_a_fork_while_other_threads_record_does_not_hang_the_child(tmp_path: Path) -> None:
    run(tmp_path, """
if __name__ == "__main__":
    stop = threading.Event()

    def record():
        while not stop.is_set():
            with tachograph.step("busy"):
                pass
            time.sleep(0.0002)

    with tachograph.workflow("flow"):
        threads = [threading.Thread(target=record) for _ in range(4)]
        for thread in threads: thread.start()
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                notify()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        for thread in threads: thread.join()
""", timeout=50)  # fmt: skip
    (((row, timeline),),) = stored(tmp_path).values()
    assert row.status == "completed"
    assert sum(step.step_name == "notify" for step in timeline.step_timeline) == 20


def test_names_that_are_no_texts(tmp_path: Path) -> None:
    run(tmp_path, """
from pathlib import Path

class Grim:
    def __str__(self): raise RuntimeError

if __name__ == "__main__":
    with tachograph.workflow(5, version=2.5, workspace=None):
        for name in (Path("/data"), 7, 1.5, Grim(), ("a", 1)):
            with tachograph.step(name):
                pass
""")  # fmt: skip
    (((row, timeline),),) = stored(tmp_path).values()
    assert (row.workflow, row.version) == ("5", "2.5")
    assert [step.step_name for step in timeline.step_timeline] == ["/data", "7", "1.5", "<Grim>", "<tuple>"]
