"""``python`` and ``tachograph`` for shells: they have their work done by `programs`, with everything imported already.

A shell finds them first on its path. Each is an interpreter that imports next to nothing, hands its arguments,
environment, directory and standard files to the tests, passes signals on, and exits as the program exits.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests import programs

_COMMANDS: Final = {"python": (), "tachograph": ("-m", "tachograph_exporter")}
_SCRIPT: Final = """#!{interpreter} -IS
import json, os, signal, _socket, array, sys
tests = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
tests.connect({address!r})
body = json.dumps([{command!r}, sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
tests.sendmsg([len(body).to_bytes(4, "big")], [rights])
tests.sendall(body)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _frame: tests.sendall(bytes([number])))
status = int(tests.recv(20))
if status < 0:
    if -status not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@contextlib.contextmanager
def stand_ins(directory: Path) -> Iterator[Path]:
    """A directory with the two commands, which work until the end of the block."""
    directory.mkdir()
    address = str(directory / "socket")
    for command in _COMMANDS:
        script = directory / command
        script.write_text(_SCRIPT.format(interpreter=sys.executable, address=address, command=command))
        script.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(100)
        threading.Thread(target=_accept, args=(listening,), daemon=True).start()
        yield directory
        listening.shutdown(socket.SHUT_RDWR)


def _accept(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection:
        length, files, _, _ = socket.recv_fds(connection, 4, 3)
        with connection.makefile("rb", buffering=0) as reading:
            body = b""
            while len(body) < int.from_bytes(length, "big"):
                body += reading.read(int.from_bytes(length, "big") - len(body))
        command, arguments, variables, cwd = json.loads(body)
        process: programs.Popen = programs.Popen(
            [sys.executable, *_COMMANDS[command], *arguments],
            stdin=files[0], stdout=files[1], stderr=files[2], env=variables, cwd=cwd,
        )  # fmt: skip
        for file in files:
            os.close(file)
        threading.Thread(target=_pass_on, args=(connection, process), daemon=True).start()
        status = process.wait()
        with contextlib.suppress(OSError):
            connection.sendall(b"%d" % status)
            connection.shutdown(socket.SHUT_RDWR)


def _pass_on(connection: socket.socket, process: Any) -> None:
    """Send the process what its stand-in is sent; when that is killed, the process is, too."""
    with contextlib.suppress(OSError):
        while number := connection.recv(1):
            process.send_signal(number[0])
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
