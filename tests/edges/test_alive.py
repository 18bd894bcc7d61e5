"""Who is alive: a process is only called dead where its pid means something."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tachograph import process

PRINT = "import sys; from tachograph.process import identity; print(identity(), flush=True); sys.stdin.read()"


@contextmanager
def another_process(*prefix: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running process, and its identity as it tells it."""
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", PRINT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        owner = child.stdout.readline().strip()
        try:
            yield child, owner
        finally:
            child.kill()


def needs_namespaces() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    tried = subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("may not make PID namespaces")


@pytest.mark.parametrize("options", [[], ["--mount-proc"]])
def test_a_process_in_another_pid_namespace_is_neither_dead_nor_alive(options: list[str]) -> None:
    needs_namespaces()
    with another_process("unshare", "--pid", "--fork", "--kill-child", *options) as (_, owner):
        host, place, pid, _ = owner.rsplit("/", 3)
        assert (host, pid) == (socket.gethostname(), "1")
        assert place.partition(".")[0] == process.identity().split("/")[-3].partition(".")[0]
        assert process.is_alive(owner) is None


@pytest.mark.parametrize("options", [[], ["--mount-proc"]])
def test_inside_a_pid_namespace_its_own_processes_are_judged(options: list[str]) -> None:
    needs_namespaces()
    code = """
import os, subprocess, sys
from tachograph import process
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=-1, stdout=-1, text=True)
owner = child.stdout.readline().strip()
print(process.is_alive(owner), process.is_alive(process.identity()), process.is_alive(sys.argv[2]))
child.kill(); child.wait()
print(process.is_alive(owner))
"""
    ran = subprocess.run(
        ["unshare", "--pid", "--fork", *options, sys.executable, "-c", code, PRINT, process.identity()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Without a /proc of its own, only the death of a process is sure.
    assert ran.stdout.split() == ["True" if options else "None", "True", "None", "False"]


def test_a_living_process_is_alive_until_it_is_gone() -> None:
    with another_process() as (child, owner):
        assert process.is_alive(owner) is True
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.is_alive(owner) is False  # a zombie, that nobody has waited for
    assert process.is_alive(owner) is False


def test_a_process_whose_first_thread_ended_is_alive() -> None:
    code = """
import ctypes, sys, threading
from tachograph.process import identity
threading.Thread(target=sys.stdin.read).start()
print(identity(), flush=True)
ctypes.CDLL(None).syscall(60 if __import__("platform").machine() == "x86_64" else 93, 0)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout is not None
        owner = child.stdout.readline().strip()
        for _ in range(1000):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z":
                break
            select.select([], [], [], 0.01)
        assert fields[0] == "Z"
        assert process.is_alive(owner) is True
        child.kill()


def test_a_reused_pid_is_another_process() -> None:
    with another_process() as (_, owner):
        place, _, start = owner.rpartition("/")
        assert process.is_alive(f"{place}/{int(start) - 1}") is False
        assert process.is_alive(f"{place}/-") is None


def test_a_thread_is_no_process() -> None:
    release = threading.Event()
    ids: list[int] = []

    def run() -> None:
        ids.append(threading.get_native_id())
        release.wait(60)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not ids:
            pass
        host, place, _, start = process.identity().rsplit("/", 3)
        assert process.is_alive(f"{host}/{place}/{ids[0]}/{start}") is False
    finally:
        release.set()
        thread.join()


def test_what_proc_hides_is_left_to_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid=2 another user's /proc/PID does not exist, but its pid does."""
    with another_process() as (child, owner):
        hidden = proc_without(tmp_path)
        monkeypatch.setattr(process, "PROC", hidden)
        process._boot.cache_clear()
        assert process.is_alive(owner) is None
        child.kill()
        child.wait()
        assert process.is_alive(owner) is False
    process._boot.cache_clear()


def proc_without(tmp_path: Path) -> Path:
    """A /proc that shows this process only."""
    root = tmp_path / "proc"
    (root / "sys/kernel/random").mkdir(parents=True)
    (root / "sys/kernel/random/boot_id").write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
    own = root / str(os.getpid())
    (own / "ns").mkdir(parents=True)
    (own / "ns/pid").symlink_to(os.readlink("/proc/self/ns/pid"))
    (own / "stat").write_text(Path("/proc/self/stat").read_text())
    (root / "self").symlink_to(str(os.getpid()))
    return root


def test_a_process_of_another_user_is_alive() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to change the user")
    with another_process() as (_, owner):
        pid = os.fork()
        if pid == 0:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(7 if process.is_alive(owner) is True else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_identities_of_earlier_versions_are_never_called_dead() -> None:
    host, place, pid, start = process.identity().rsplit("/", 3)
    boot = place.partition(".")[0]
    assert process.is_alive(f"{host}/{boot}/{pid}/{start}") is True
    with another_process() as (child, owner):
        _, _, other, begun = owner.rsplit("/", 3)
        assert process.is_alive(f"{host}/{boot}/{other}/{begun}") is True
        child.kill()
        child.wait()
        assert process.is_alive(f"{host}/{boot}/{other}/{begun}") is None
    assert process.is_alive(f"{host}/{boot}/{pid}/1") is None


@pytest.mark.parametrize("namespace", ["", "-"])
def test_without_a_readable_namespace_nothing_is_judged(namespace: str) -> None:
    host, place, _, _ = process.identity().rsplit("/", 3)
    boot = place.partition(".")[0]
    assert process.is_alive(f"{host}/{boot}.{namespace}/{2**22 - 1}/1") is None


@pytest.mark.parametrize("pid", ["0", "-1", "-5", str(2**31), str(2**80), "1e3", ""])
def test_what_is_no_pid_is_not_judged(pid: str) -> None:
    host, place, _, start = process.identity().rsplit("/", 3)
    assert process.is_alive(f"{host}/{place}/{pid}/{start}") is None


def test_a_child_has_an_identity_of_its_own_though_its_pid_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = process.identity()
    pid = os.fork()
    if pid == 0:
        # As in a new PID namespace, where a child may have its parent's pid.
        monkeypatch.setattr(os, "getpid", lambda: int(mine.split("/")[-2]))
        monkeypatch.setattr(process, "_namespace", lambda: "another")
        os._exit(7 if ".another/" in process.identity() else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
