"""A forked program is to its test what a new interpreter is."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import programs
from tests.stand_ins import stand_ins

SAYS = """
import atexit, os, sys, warnings
print(__name__, globals().get("__file__"), __spec__, sys.argv, sys.path[:2], sys.warnoptions, sys.flags)
print(os.getcwd(), sorted(os.environ.items()), sys.stdin.read(), [f[:3] for f in warnings.filters if f[0] == "error"])
print(sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors, sys.stdout.line_buffering)
print("to stderr", file=sys.stderr)
atexit.register(print, "at exit")
"""
# As in the foreground, wherever pytest runs.
INTERRUPTED = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
os.kill(os.getpid(), signal.SIGINT)
"""
COMMANDS = {
    "source": ["-c", SAYS, "a", "b"],
    "filters": ["-W", "error", "-W", "ignore::ResourceWarning", "-c", SAYS],
    "module": ["-m", "json.tool", "--no-such-option"],
    "error": ["-c", "def f(): raise ValueError(1)\nf()"],
    "status": ["-c", "import sys; sys.exit(3)"],
    "message": ["-c", "import sys; sys.exit('no')"],
    "killed": ["-c", "import os; os.kill(os.getpid(), 9)"],
    "interrupted": ["-c", INTERRUPTED],
    "warning": ["-c", "import warnings; warnings.warn('old', DeprecationWarning)"],
    "warning is an error": ["-W", "error", "-c", "import warnings; warnings.warn('old')"],
    "left open": ["-W", "error", "-c", "import socket; kept = socket.socket()"],
    "syntax": ["-c", "1 +"],
}


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with process:
        output, errors = process.communicate("input", timeout=60)
        return process.returncode, output, errors


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_it_does_what_a_new_interpreter_does(command: list[str], tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path,
        "env": {**os.environ, "ONLY": "here"},
    }  # fmt: skip
    expected = ended(subprocess.Popen([sys.executable, *command], **options))
    process = programs.Popen([sys.executable, *command], **options)
    assert process.is_forked
    code, output, errors = ended(process)
    if "KeyboardInterrupt" in errors:  # It also says where this came from.
        errors = errors.replace(re.findall(r'(?s)(  File "<string>".*programs.py.*?)  File "<string>"', errors)[0], "")
    assert (code, output, errors) == expected


def test_a_file_is_a_program(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("value = 7")
    file = tmp_path / "program.py"
    file.write_text(SAYS + "import beside; print(beside.value)")
    command = [sys.executable, "-W", "error", str(file), "x"]
    outputs = [
        run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True, env=dict(os.environ)).stdout
        for run in (subprocess.run, programs.run)
    ]
    assert outputs[0] == outputs[1]


def test_what_is_read_while_starting_makes_a_new_interpreter(tmp_path: Path) -> None:
    for name in ("PYTHONHASHSEED", "LD_PRELOAD", "TZ", "PROMETHEUS_MULTIPROC_DIR", "LC_ALL"):
        with programs.Popen([sys.executable, "-c", ""], env={**os.environ, name: ""}) as process:
            assert not process.is_forked, name
    for command in (["true"], [sys.executable, "-S", "-c", ""], [sys.executable, "-V"]):
        with programs.Popen(command, stdout=subprocess.DEVNULL) as process:
            assert not process.is_forked, command


def test_who_is_told_of_opentelemetry_imports_it_itself() -> None:
    source = "import sys; print([name in sys.modules for name in ('opentelemetry', 'tachograph', 'sqlalchemy')])"
    for variables, imported in (({}, [True, True, True]), ({"OTEL_PROPAGATORS": "none"}, [False, False, True])):
        ran = programs.run(
            [sys.executable, "-c", source], capture_output=True, text=True, env={**os.environ, **variables}
        )
        assert ran.stdout == f"{imported}\n"


def test_many_may_wait_for_it() -> None:
    with programs.Popen([sys.executable, "-c", "import time; time.sleep(0.2); exit(4)"]) as process:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _: process.wait(60), range(4))) == [4] * 4
        assert (process.poll(), process.returncode) == (4, 4)
        process.kill()  # Nothing: it has ended.


def test_a_time_limit_ends_it() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        programs.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.1)


def test_its_stand_in_does_what_it_does(tmp_path: Path) -> None:
    with stand_ins(tmp_path / "commands") as directory:
        variables = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "ONLY": "here"}

        def run(command: str) -> tuple[int, str, str]:
            ran = subprocess.run(
                ["bash", "-c", command], env=variables, cwd=tmp_path, input="input", capture_output=True, text=True,
                check=False, timeout=60,
            )  # fmt: skip
            return ran.returncode, ran.stdout, ran.stderr

        says = "import os, sys; print(sys.argv, os.getcwd(), os.environ['ONLY'], sys.stdin.read()); sys.exit(3)"
        assert run(f'python -c "{says}" a "b c"') == (3, f"['-c', 'a', 'b c'] {tmp_path} here input\n", "")
        assert run("exec python -c 'import os; os.kill(os.getpid(), 9)'")[0] == -signal.SIGKILL
        assert "Usage" in run("tachograph --help")[1]
        sleeps = "import time; print('began', flush=True); time.sleep(200)"
        for number, status in ((signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)):
            with subprocess.Popen(["python", "-c", sleeps], env=variables, stdout=-1, stderr=-1, text=True) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "began\n"
                process.send_signal(number)
                process.communicate(timeout=60)
                assert process.returncode == status
        # When it is killed, so is what it stands for.
        prints = f"import os; print(os.getpid(), flush=True); {sleeps}"
        with subprocess.Popen(["python", "-c", prints], env=variables, stdout=-1, text=True) as process:
            assert process.stdout is not None
            descriptor = os.pidfd_open(int(process.stdout.readline()))
            process.kill()
            assert select.select([descriptor], [], [], 60)[0]
            os.close(descriptor)
