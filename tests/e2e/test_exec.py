"""Commands as runs: `tachograph exec` and `step`, with a real service, real signals and real kills."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import TACHOGRAPH, Server, environment, eventually

from tachograph_exporter.command.child import MAX_LINES

pytestmark = pytest.mark.xdist_group("exec")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("exec")
    server = Server(directory, "--database", f"sqlite:///{directory}/runs.db",
                    TACHOGRAPH_SPOOL_DIR=str(directory / "spool"))  # fmt: skip
    server.start()
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture
def variables(service: Server) -> dict[str, str]:
    spool = service.variables["TACHOGRAPH_SPOOL_DIR"]
    return environment(TACHOGRAPH_URL=service.address, TACHOGRAPH_SPOOL_DIR=spool)


def start(verb: str, *arguments: str, env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*TACHOGRAPH, verb, *arguments], env=env, **options)


def run(verb: str, *arguments: str, env: dict[str, str], **options: Any) -> tuple[int, bytes, bytes]:
    """(exit code, output, errors) of a recorded command."""
    process = start(verb, *arguments, env=env, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def timeline(server: Server, name: str, number: int = 0) -> Any:
    """The newest run of a workflow, once it has ended."""

    def ended() -> Any:
        items = [i for i in server.get("/api/workflows/executions?limit=1000")["items"] if i["workflow_name"] == name]
        return items[number] if len(items) > number and items[number]["completed_at"] else None

    return server.get(f"/api/workflows/executions/{eventually(ended, 60)['execution_id']}/timeline")


def test_output_and_exit_code_are_the_commands_and_the_run_has_them(service: Server, variables: dict[str, str]) -> None:
    script = (
        "import sys; [print(i) for i in range(100_000)]; sys.stdout.flush(); print('oh no', file=sys.stderr); exit(3)"
    )
    noise = bytes(range(256)) * 3
    command = ["sh", "-c", 'cat; "$0" -c "$1" --password hunter2', sys.executable, script]
    process = start("exec", "--name", "outputs", "--", *command, env=variables, stdin=subprocess.PIPE)
    out, err = process.communicate(noise, timeout=60)
    assert (process.returncode, out) == (3, noise + b"".join(b"%d\n" % i for i in range(100_000)))
    assert err == b"oh no\n"
    shown = timeline(service, "outputs")
    (step,) = shown["step_timeline"]
    assert (shown["status"], step["error_type"], step["error_message"]) == ("failed", "ExitCode", "exit code 3: oh no")
    assert step["output_summary"] == {"exit_code": 3}
    assert [log["message"] for log in step["logs"]][:-1] == [str(i) for i in range(100_001 - MAX_LINES, 100_000)]
    assert (step["logs"][-1]["message"], step["logs"][-1]["level"]) == ("oh no", "warning")
    assert "hunter2" not in json.dumps(shown)
    assert step["input_summary"]["command"][:2] == ["sh", "-c"]


def test_what_a_command_used_is_what_the_kernel_says(
    service: Server, variables: dict[str, str], tmp_path: Path
) -> None:
    load = (
        "import os, resource, sys, tempfile, time, json, subprocess\n"
        "block = b'x' * (120 << 20)\n"
        "while time.process_time() < 0.7: pass\n"
        "child = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "subprocess.run([sys.executable, '-c', child])\n"
        # On a disk: of a file system in memory nothing is counted.
        "with tempfile.TemporaryFile(dir='/var/tmp') as file:\n"
        "    file.write(b'x' * (8 << 20)); file.flush(); os.fsync(file.fileno())\n"
        "use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        "said = {'cpu': sum(u.ru_utime + u.ru_stime for u in use), 'peak': max(u.ru_maxrss for u in use) * 1024,\n"
        " 'written': sum(u.ru_oublock for u in use) * 512}\n"
        "with open(sys.argv[1], 'w') as file: file.write(json.dumps(said))\n"
        "os._exit(0)\n"
    )
    said, timed = tmp_path / "said.json", tmp_path / "timed"
    # The same command is measured by GNU time, whose own few pages and instructions do not count.
    clock = ["/usr/bin/time", "-f", "%U %S %M %O %c %w", "-o", str(timed)] if Path("/usr/bin/time").exists() else []
    code, _, err = run("exec", "--name", "load", "--", *clock, sys.executable, "-c", load, str(said), env=variables)
    assert (code, err) == (0, b"")
    (step,) = timeline(service, "load")["step_timeline"]
    expected, use = json.loads(said.read_text()), step["resources"]
    assert use["cpu_seconds"] == pytest.approx(expected["cpu"], rel=0.05)
    assert use["peak_memory_bytes"] == pytest.approx(expected["peak"], rel=0.05)
    assert use["written_bytes"] == pytest.approx(expected["written"], rel=0.05)
    assert use["cpu_seconds"] > 1.1
    if clock:
        user, system, peak_kib, written, forced, waits = map(float, timed.read_text().split())
        assert use["cpu_seconds"] == pytest.approx(user + system, rel=0.05)
        assert use["peak_memory_bytes"] == pytest.approx(peak_kib * 1024, rel=0.05)
        assert use["written_bytes"] == pytest.approx(written * 512, rel=0.05)
        assert use["involuntary_switches"] == pytest.approx(forced, rel=0.05, abs=10)
        assert use["voluntary_switches"] == pytest.approx(waits, rel=0.05, abs=10)
    assert step["attempts"][0]["resources"] == use


def test_steps_of_a_script_are_a_timeline_also_side_by_side(
    service: Server, variables: dict[str, str], tmp_path: Path
) -> None:
    tachograph = " ".join(TACHOGRAPH)
    script = tmp_path / "nightly.sh"
    script.write_text(
        f"{tachograph} step extract -- echo extracted\n"
        f"{tachograph} step left -- sh -c 'touch {tmp_path}/l; until test -e {tmp_path}/r; do sleep 0.02; done' &\n"
        f"{tachograph} step right -- sh -c 'touch {tmp_path}/r; until test -e {tmp_path}/l; do sleep 0.02; done' &\n"
        "wait\n"
        f"{tachograph} exec --name load -- sh -c '{tachograph} step inside -- true; echo $TRACEPARENT'\n"
        f"{tachograph} step extract -- false || exit 4\n"
    )
    trace = {"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01"}
    code, out, _ = run("exec", "--", "sh", str(script), env=variables | trace)
    assert code == 4
    shown = timeline(service, "sh")
    steps = {(step["step_name"], step["step_index"] or 0): step for step in shown["step_timeline"]}
    ids = {step["step_id"]: name for name, step in steps.items()}
    assert {name: (step["status"], sorted([ids[i] for i in step["depends_on"]])) for name, step in steps.items()} == {
        ("sh", 0): ("failed", []),
        ("extract", 0): ("completed", []),
        ("left", 0): ("completed", [("extract", 0)]),
        ("right", 0): ("completed", [("extract", 0)]),
        ("load", 0): ("completed", [("left", 0), ("right", 0)]),
        ("inside", 0): ("completed", []),
        ("extract", 1): ("failed", [("load", 0)]),
    }
    assert ids[steps["inside", 0]["parent_step_id"]] == ("load", 0)
    assert (shown["step_count"], shown["completed_step_count"], shown["failed_step_count"]) == (7, 5, 2)
    assert (shown["trace_id"], out.split()[-1]) == (
        "a" * 32,
        f"00-{'a' * 32}-{steps['load', 0]['span_id']}-01".encode(),
    )
    report = service.get(f"/api/workflows/executions/{shown['execution_id']}/reconcile")
    assert report["differences"] == []


def test_make_and_parallel_commands_are_a_timeline(service: Server, variables: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    tachograph = " ".join(TACHOGRAPH)
    meet = f"touch {tmp_path}/$@; until test -e {tmp_path}/left && test -e {tmp_path}/right; do sleep 0.02; done"
    recipe = f'\t{tachograph} step $@ -- sh -c "{meet}"\n'
    make = f"all: left right\n\t{tachograph} step $@ -- true\nleft right:\n{recipe}"
    (tmp_path / "Makefile").write_text(make)
    names = "printf '%s\\n' one two three"
    script = f"make -j2 -C {tmp_path} && {names} | xargs -P 3 -I{{}} {tachograph} step {{}} -- true"
    code, _, err = run("exec", "--name", "made", "--", "sh", "-c", script, env=variables)
    assert (code, err) == (0, b"")
    shown = timeline(service, "made")
    steps = {step["step_name"]: step for step in shown["step_timeline"]}
    ids = {step["step_id"]: name for name, step in steps.items()}
    assert {step["status"] for step in steps.values()} == {"completed"}
    after = {name: sorted(ids[i] for i in step["depends_on"]) for name, step in steps.items()}
    assert (after["left"], after["right"], after["all"]) == ([], [], ["left", "right"])
    assert {after[name][0] for name in ("one", "two", "three")} <= {"all", "one", "two", "three"}


def test_attempts_timeouts_and_signals(service: Server, variables: dict[str, str], tmp_path: Path) -> None:
    flaky = f"test -e {tmp_path}/there && exit 0; touch {tmp_path}/there; exit 5"
    arguments = ("--name", "flaky", "--retries=3", "--retry-delay", "50ms")
    assert run("exec", *arguments, "--", "sh", "-c", flaky, env=variables)[0] == 0
    attempts = timeline(service, "flaky")["step_timeline"][0]["attempts"]
    assert [a["status"] for a in attempts] == ["failed", "completed"]
    assert all(a["resources"] for a in attempts)

    pid = tmp_path / "pid"
    hang = f"sleep 1000 & echo $! > {pid}; wait"
    assert run("exec", "--name", "hang", "--timeout", "2", "--", "sh", "-c", hang, env=variables)[0] == 124
    assert timeline(service, "hang")["status"] == "timeout"
    # With all that it had started.
    eventually(lambda: not Path(f"/proc/{pid.read_text().strip()}/stat").exists() or is_zombie(int(pid.read_text())))

    assert run("exec", "--", "sh", "-c", "kill -KILL $$", env=variables)[0] == 128 + signal.SIGKILL
    assert run("exec", "--", str(tmp_path / "no such thing"), env=variables)[0] == 127
    assert timeline(service, "no such thing")["error_type"] == "CannotStart"

    trap = f"trap 'echo got it; exit 9' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    process = start("exec", "--name", "trap", "--retries", "5", "--", "sh", "-c", trap, env=variables)
    eventually((tmp_path / "ready").exists, 60)
    process.terminate()
    assert process.communicate(timeout=60)[0] == b"got it\n"
    assert process.returncode == 9
    assert timeline(service, "trap")["status"] == "cancelled"


def test_a_full_disk_loses_nothing_but_the_spool(service: Server, variables: dict[str, str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    full = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    fill = f"{{ cat /dev/zero >{disk}/fill 2>/dev/null; true; }}"
    mount = f"mount -t tmpfs -o size=16k tmpfs {disk} && mkdir {disk}/spool && {fill}"
    if subprocess.run([*full, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of his own")
    command = shlex.join([*TACHOGRAPH, "exec", "--name", "really full", "--", "sh", "-c", "echo fine; exit 6"])
    for address, complaints in ((service.address, 1), ("http://127.0.0.1:1", 2)):
        env = variables | {"TACHOGRAPH_SPOOL_DIR": f"{disk}/spool", "TACHOGRAPH_URL": address}
        ran = subprocess.run([*full, f"{mount} && {command}"], env=env, capture_output=True, timeout=60, check=False)
        assert (ran.returncode, ran.stdout) == (6, b"fine\n")
        assert b"No space left on device" in ran.stderr
        assert ran.stderr.count(b"tachograph: ") == complaints
    shown = timeline(service, "really full")
    assert [log["message"] for log in shown["step_timeline"][0]["logs"]] == ["fine"]


def test_what_is_odd_about_the_environment_changes_nothing(
    service: Server, variables: dict[str, str], tmp_path: Path
) -> None:
    away = variables | {"TACHOGRAPH_URL": "http://127.0.0.1:1", "TACHOGRAPH_SPOOL_DIR": str(tmp_path / "spool")}
    nowhere = {name: value for name, value in variables.items() if name != "TACHOGRAPH_URL"}
    tachograph = shlex.join([*TACHOGRAPH, "exec", "--name", "closed", "--"])
    for redirection in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        for env in (away, nowhere):
            inner = "echo GARBAGE; echo GARBAGE >&2; test -e /proc/self/fd/1 && exit 5 || exit 6"
            shell = f"{tachograph} sh -c {shlex.quote(inner)} {redirection}"
            ran = subprocess.run(["sh", "-c", shell], env=env, capture_output=True, timeout=60, check=False)
            assert ran.returncode == (6 if ">&-" in redirection.replace("2>&-", "") else 5), (redirection, ran)
    journals = list((tmp_path / "spool").rglob("*.jsonl"))
    assert len(journals) == 4
    assert not [path for path in journals if b"\nGARBAGE" in path.read_bytes()]

    # Where no spool can be written, the service is told all the same.
    full = variables | {"TACHOGRAPH_SPOOL_DIR": "/proc/nothing"}
    code, out, err = run("exec", "--name", "no spool", "--", "sh", "-c", "echo fine; exit 6", env=full)
    assert (code, out) == (6, b"fine\n")
    assert err.count(b"tachograph: ") == 1
    shown = timeline(service, "no spool")
    assert [log["message"] for log in shown["step_timeline"][0]["logs"]] == ["fine"]

    # A signal at any moment of the start ends the command, as it would without us.
    for tenth in range(0, 30, 4):
        process = start("exec", "--name", "early", "--", "sleep", "1000", env=variables)
        time.sleep(tenth / 100)
        process.terminate()
        assert process.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        process.communicate()


def test_cron_starts_it_with_next_to_nothing(service: Server, tmp_path: Path) -> None:
    """As Debian's cron does: a short PATH, no locale, no terminal, the home as directory, and perhaps no such home."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "tachograph").write_text(f'#!/bin/sh\nexec {shlex.join(TACHOGRAPH)} "$@"\n')
    (bin_ / "tachograph").chmod(0o755)
    inside = "tachograph step inside -- pwd; tty; echo ${LC_CTYPE-no} locale; exit 3"
    line = f"tachograph exec --name 'café nightly' -- sh -c 'echo naïve; {inside}'"
    given = {"SHELL": "/bin/sh", "PATH": f"/usr/bin:/bin:{bin_}", "LOGNAME": "nobody", "TMPDIR": str(tmp_path),
             "TACHOGRAPH_URL": service.address}  # fmt: skip
    for number, home in enumerate((str(tmp_path), "/nonexistent", None)):
        env = given | ({"HOME": home} if home is not None else {"XDG_STATE_HOME": str(tmp_path)})
        ran = subprocess.run(
            ["/bin/sh", "-c", line], env=env, stdin=subprocess.DEVNULL, capture_output=True, cwd="/",
            start_new_session=True, timeout=60, check=False,
        )  # fmt: skip
        # What it prints, cron sends by mail: nothing of ours is in it.
        assert (ran.returncode, ran.stderr, ran.stdout.decode()) == (3, b"", "naïve\n/\nnot a tty\nno locale\n"), home
        eventually(lambda n=number: len(named(service, "café nightly")) == n + 1, 60)  # type: ignore[misc]
    shown = timeline(service, "café nightly")
    steps = {step["step_name"]: step for step in shown["step_timeline"]}
    assert {name: step["status"] for name, step in steps.items()} == {"café nightly": "failed", "inside": "completed"}
    assert [log["message"] for log in steps["café nightly"]["logs"]] == ["naïve", "/", "not a tty", "no locale"]


def named(server: Server, name: str) -> list[Any]:
    items = server.get("/api/workflows/executions?limit=1000")["items"]
    return [item for item in items if item["workflow_name"] == name and item["completed_at"]]


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_command_runs_whatever_happens_to_its_recording(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for variables in (
        {},
        {"TACHOGRAPH_URL": "nonsense", "TACHOGRAPH_SPOOL_DIR": str(tmp_path / "a")},
        {"TACHOGRAPH_URL": "http://127.0.0.1:1", "TACHOGRAPH_SPOOL_DIR": str(file)},
        {"TACHOGRAPH_URL": "http://127.0.0.1:1", "TACHOGRAPH_SPOOL_DIR": str(tmp_path / "b"),
         "TACHOGRAPH_SPOOL_MAX_BYTES": "10", "TACHOGRAPH_STEP": '{"notes": 7}'},
    ):  # fmt: skip
        code, out, err = run("exec", "--", "sh", "-c", "echo fine; exit 6", env=environment(**variables))
        assert (code, out) == (6, b"fine\n")
        assert err.startswith(b"tachograph: "), err
        assert b"Traceback" not in err
    assert run("exec", env=environment())[0] == 2
    assert run("step", "--", "true", env=environment())[0] == 2


def test_with_a_database_alone_the_run_is_stored_by_a_process_of_its_own(tmp_path: Path, database_url: str) -> None:
    variables = environment(TACHOGRAPH_DATABASE_URL=database_url, TACHOGRAPH_SPOOL_DIR=str(tmp_path / "spool"))
    assert run("exec", "--name", "short", "--", "true", env=variables) == (0, b"", b"")
    eventually(lambda: not list((tmp_path / "spool").rglob("*.jsonl")), 60)
    process = start("exec", "--name", "long", "--", "cat", env=variables, stdin=subprocess.PIPE)
    eventually(lambda: statuses(database_url).get("long") == "running", 60)
    process.communicate(b"", timeout=60)
    eventually(lambda: statuses(database_url) == {"short": "completed", "long": "completed"}, 60)


def statuses(url: str) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        return dict(database.execute("SELECT workflow, status FROM workflow_executions").fetchall())


@pytest.fixture
def commands() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Commands that a test started; those that still run are killed after it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_night_of_commands_on_a_service_that_is_killed_is_there_once(
    tmp_path: Path, server: Callable[..., Server], commands: list[subprocess.Popen[bytes]]
) -> None:
    """Twenty commands. The service is killed and restarted, some commands are killed, some lose their child, and for
    some the spool is full."""
    chance = random.Random(os.urandom(8))
    spool, full = str(tmp_path / "spool"), str(tmp_path / "full")
    service = server(TACHOGRAPH_SPOOL_DIR=spool)
    variables = environment(TACHOGRAPH_URL=service.address, TACHOGRAPH_SPOOL_DIR=spool)
    fates = ["well"] * 8 + ["full"] * 2 + ["exec killed"] * 5 + ["child killed"] * 5
    chance.shuffle(fates)
    outages = sorted(chance.sample([n for n in range(20) if fates[n] != "full"], 1))
    expected: dict[str, tuple[str, int | None]] = {}
    for number, fate in enumerate(fates):
        begun = tmp_path / f"begun-{number}"
        script = f"echo line {number}; touch {begun}; read x; exit {number}"
        # A spool of a few bytes is what a full disk is: nothing can be written there.
        small = {"TACHOGRAPH_SPOOL_DIR": full, "TACHOGRAPH_SPOOL_MAX_BYTES": "30"} if fate == "full" else {}
        arguments = ("--name", f"job {number}", "--", "sh", "-c", script)
        commands.append(start("exec", *arguments, env=variables | small, stdin=subprocess.PIPE))
        if number in outages:
            service.stop(signal.SIGKILL)
            if chance.random() < 0.5:
                eventually(begun.exists, 60)
            service.start()
    for number, (fate, process) in enumerate(zip(fates, commands, strict=True)):
        eventually((tmp_path / f"begun-{number}").exists, 60)
        name = f"job {number}"
        if fate == "child killed":
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGKILL)
            expected[name] = ("failed", 137)
        elif fate == "exec killed":
            process.kill()
            expected[name] = ("lost", None)
        else:
            expected[name] = ("completed" if number == 0 else "failed", number)
    service.stop(signal.SIGKILL)
    codes = {}
    # Half of them end while it is away; those that cannot write anything need it.
    for order, number in enumerate(sorted(range(20), key=lambda n: fates[n] == "full")):
        if order == 9:
            service.start()
        errors = commands[number].communicate(b"\n", timeout=60)[1]
        codes[f"job {number}"] = commands[number].returncode
        assert b"Traceback" not in errors
    assert codes == {name: -9 if code is None else code for name, (_, code) in expected.items()}

    def recorded() -> dict[str, str]:
        items = service.get("/api/workflows/executions?limit=100")["items"]
        assert len({item["workflow_name"] for item in items}) == len(items)
        return {item["workflow_name"]: item["status"] for item in items}

    eventually(lambda: recorded() == {name: status for name, (status, _) in expected.items()}, 90)
    for name, (_, code) in expected.items():
        if code is not None:
            (step,) = timeline(service, name)["step_timeline"]
            assert step["output_summary"]["exit_code"] == code
            assert [log["message"] for log in step["logs"]] == [f"line {name.split()[1]}"]
            assert step["resources"]["cpu_seconds"] >= 0
    assert not list((tmp_path / "spool").rglob("*.jsonl"))


def test_output_is_seen_while_the_command_runs_and_stays_if_exec_is_killed(
    service: Server, variables: dict[str, str]
) -> None:
    script = "import sys\nfor i in range(500): print('line', i, flush=True)\nsys.stdin.read()"
    command = ("--name", "told", "--", sys.executable, "-c", script)
    process = start("exec", *command, env=variables, stdin=subprocess.PIPE)

    def lines() -> Any:
        items = [
            i for i in service.get("/api/workflows/executions?limit=1000")["items"] if i["workflow_name"] == "told"
        ]
        if not items:
            return None
        assert items[0]["status"] == "running"
        page = service.get(f"/api/workflows/executions/{items[0]['execution_id']}/logs?last=1000")
        return page if page["items"] and page["items"][-1]["message"] == "line 499" else None

    try:
        page = eventually(lines, 60)
    finally:
        process.kill()
        # The command ends with its input.
        process.communicate(timeout=60)
    assert [line["message"] for line in page["items"]] == [f"line {i}" for i in range(300, 500)]
    assert page["dropped_count"] == 300
    assert {(line["level"], line["attempt"], line["source"]) for line in page["items"]} == {("info", 1, "recorded")}


RUNS_INSIDE = """
import os, subprocess, sys, threading
import tachograph

@tachograph.step
def load(rows):
    return rows

@tachograph.workflow
def nightly(rows):
    return load(rows)

@tachograph.workflow
def broken():
    raise ValueError("no rows")

nightly(1)
nightly(2)
thread = threading.Thread(target=nightly, args=(3,))
thread.start()
thread.join()
try:
    broken()
except ValueError:
    pass
with tachograph.report.run("reported", run_id=sys.argv[1]) as run:
    run.step("extract").started().finished()
if os.fork() == 0:
    load(4)
    tachograph.get_recorder().flush()
    os._exit(0)
os.wait()
engine = tachograph.report.run("of an engine", engine="celery")
engine.begin()
engine.finished()
if os.fork() == 0:
    with tachograph.workflow("killed"):
        tachograph.get_recorder().flush()
        os.kill(os.getpid(), 9)
os.wait()
"""


def test_recorded_functions_inside_a_command_are_nested_runs_of_it(
    service: Server, variables: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "inside.py"
    script.write_text(RUNS_INSIDE)
    command = [*TACHOGRAPH, "step", "python", "--", sys.executable, str(script), tmp_path.name]
    code, _, err = run("exec", "--name", "around", "--", *command, env=variables)
    assert (code, err) == (0, b"")
    shown = timeline(service, "around")
    steps = {step["step_id"]: step for step in shown["step_timeline"]}
    assert {(s["step_name"], s["step_index"] or 0): s["status"] for s in steps.values()} == {
        ("around", 0): "completed", ("python", 0): "completed", ("nightly", 0): "completed",
        ("nightly", 1): "completed", ("nightly", 2): "completed", ("broken", 0): "failed",
        ("reported", 0): "completed", ("load", 0): "completed",
        ("killed", 0): "lost",
    }  # fmt: skip
    nested = [step for step in steps.values() if step["step_type"] == "workflow"]
    (python,) = [step for step in steps.values() if step["step_name"] == "python"]
    assert len(nested) == 7
    for step in nested:
        inner = service.get(f"/api/workflows/executions/{step['child_execution_id']}/timeline")
        assert (inner["workflow_name"], step["parent_step_id"]) == (step["step_name"], python["step_id"])
        assert (inner["parent_execution_id"], inner["parent_step_id"]) == (shown["execution_id"], step["step_id"])
        assert inner["trace_id"] == shown["trace_id"]
    # They came one after the other.
    (second,) = [s for s in nested if (s["step_name"], s["step_index"]) == ("nightly", 1)]
    assert [steps[i]["step_name"] for i in second["depends_on"]] == ["nightly"]
    assert timeline(service, "of an engine")["parent_execution_id"] is None
    report = service.get(f"/api/workflows/executions/{shown['execution_id']}/reconcile")
    assert report["differences"] == []

    # What is recorded elsewhere can refer to nothing here.
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    source = f"import tachograph; tachograph.configure(database={elsewhere!r})\nwith tachograph.workflow('alone'): pass"
    assert run("exec", "--name", "elsewhere", "--", sys.executable, "-c", source, env=variables)[0] == 0
    assert timeline(service, "elsewhere")["step_count"] == 1
    assert statuses(elsewhere) == {"alone": "completed"}


def test_spans_of_a_command_and_of_what_runs_inside_are_one_trace(
    service: Server, variables: dict[str, str], tmp_path: Path
) -> None:
    tachograph = " ".join(TACHOGRAPH)
    script = tmp_path / "exported.sh"
    source = "import tachograph\nwith tachograph.workflow('inner'):\n with tachograph.step('load'): pass"
    script.write_text(f'{tachograph} step extract -- true\n{tachograph} step python -- "$0" -c "$1"\nexit 3\n')
    # The service takes spans too: they are not a second run.
    exported = variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": service.address}
    command = ["sh", "-c", f". {script}", sys.executable, source]
    code, _, err = run("exec", "--name", "exported", "--", *command, env=exported)
    assert (code, err) == (3, b"")
    shown = timeline(service, "exported")
    inner = timeline(service, "inner")
    items = service.get("/api/workflows/executions?limit=1000")["items"]
    assert [i["trace_id"] for i in items].count(shown["trace_id"]) == 2
    report = service.get(f"/api/workflows/executions/{shown['execution_id']}/reconcile")
    assert report["differences"] == []

    # Without anything else, the spans are the record.
    alone = {k: v for k, v in exported.items() if k != "TACHOGRAPH_URL"}
    code, _, err = run("exec", "--name", "spans alone", "--", *command, env=alone)
    assert (code, err) == (3, b"")
    assembled = timeline(service, "spans alone")
    expected = {step["step_name"] for step in shown["step_timeline"]} - {"exported", "inner"} | {"spans alone"}
    assert expected <= {step["step_name"] for step in assembled["step_timeline"]}
    assert (assembled["status"], inner["trace_id"]) == ("failed", shown["trace_id"])

    # A collector that hangs costs two seconds at most, and nothing of the record.
    with socket.create_server(("127.0.0.1", 0)) as hole:
        hangs = variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{hole.getsockname()[1]}"}
        code, out, err = run("exec", "--name", "hung collector", "--", "echo", "fine", env=hangs)
    assert (code, out) == (0, b"fine\n")
    assert err.startswith(b"tachograph: spans are not exported: ")
    assert timeline(service, "hung collector")["status"] == "completed"
