"""Running one attempt of a command: its output passed on, signals forwarded, and what it used of the machine."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping

MAX_LINES = 200
"""Lines of output that are kept, the last ones."""
LINE_BYTES = 2_000
"""Bytes of a line that are kept."""
LIVE_SECONDS, MAX_LIVE_SECONDS = 1.0, 30.0
"""How long a line waits at least and at most until it is told of while the command runs."""
KILL_SECONDS = 10.0
"""How long a command has to end after SIGTERM before it is killed."""
TIMEOUT_CODE = 124
"""The exit code after a timeout, as of timeout(1)."""
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""The exit codes of a shell for a command that does not exist, or cannot be run."""
_BLOCK = 512
"""Bytes of a block in ``ru_inblock`` and ``ru_oublock``, see getrusage(2)."""
_PIPE_BYTES = 1 << 16
_DRAIN_SECONDS = 0.05
_FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGWINCH")
_OF_TERMINAL = ("SIGINT", "SIGQUIT", "SIGWINCH", "SIGCONT")
"""What a terminal sends to all its processes by itself."""


class Line:
    """A line of output. ``number`` counts them from 1. ``is_error``: it was written to standard error."""

    __slots__ = ("is_error", "number", "text", "time_ns")

    def __init__(self, number: int, time_ns: int, text: bytes, is_error: bool) -> None:
        self.number, self.time_ns, self.text, self.is_error = number, time_ns, text, is_error


class Output:
    """The last lines of an attempt's output, and how many there were."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.lines: deque[Line] = deque(maxlen=MAX_LINES)
        self.count = 0
        self._clock = clock

    def add(self, text: bytes, is_error: bool) -> None:
        self.count += 1
        self.lines.append(Line(self.count, self._clock(), text, is_error))

    def skip(self, count: int) -> None:
        """So many lines were not kept."""
        self.count += count


class Live:
    """When lines are told of while their command runs: often at first, and more and more rarely.

    Args:
        tell: receives the last lines so far. Those told before are among them.
    """

    def __init__(self, tell: Callable[[list[Line]], None]) -> None:
        self._tell = tell
        self._began = self._told_at = time.monotonic()
        self._told = 0

    def wait_seconds(self, output: Output) -> float | None:
        """How long until it is time; None: there is nothing to tell."""
        if output.count == self._told:
            return None
        now = time.monotonic()
        interval = min(max((now - self._began) / 100, LIVE_SECONDS), MAX_LIVE_SECONDS)
        return max(0.0, self._told_at + interval - now)

    def tell_if_due(self, output: Output) -> None:
        """Tell of the lines, if there are new ones and it is time."""
        if self.wait_seconds(output) == 0.0:
            self._told, self._told_at = output.count, time.monotonic()
            self._tell(list(output.lines))


class Ended:
    """How an attempt ended. ``code`` is what to exit with; ``signal`` what killed it, or 0."""

    def __init__(self, code: int, signal_number: int, usage: object, *, timed_out: bool, problem: str = "") -> None:
        self.code = code
        self.signal = signal_number
        self.timed_out = timed_out
        self.problem = problem
        """Why it could not be started."""
        self.resources = _resources(usage) if usage is not None else None


def _resources(usage: object) -> dict[str, float | int]:
    """What `getrusage` says of the command and of all the processes that it waited for, as `events.Resources`."""
    cpu = getattr(usage, "ru_utime", 0.0) + getattr(usage, "ru_stime", 0.0)
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return {
        "cpu_seconds": round(cpu, 6),
        "peak_memory_bytes": getattr(usage, "ru_maxrss", 0) * unit,
        "read_bytes": getattr(usage, "ru_inblock", 0) * _BLOCK,
        "written_bytes": getattr(usage, "ru_oublock", 0) * _BLOCK,
        "voluntary_switches": getattr(usage, "ru_nvcsw", 0),
        "involuntary_switches": getattr(usage, "ru_nivcsw", 0),
    }


class _Stream:
    """One of the command's outputs, on its way to ours; the last lines are kept."""

    def __init__(self, source: int, target: int, output: Output, is_error: bool) -> None:
        self.source, self._target = source, target
        self._output, self._is_error = output, is_error
        self._begun = b""
        self._is_skipping = False

    def pump(self) -> bool:
        """Pass on what is there; False when there will be no more."""
        try:
            data = os.read(self.source, _PIPE_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            return False
        self._keep(data)
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except OSError:
            # Nobody reads ours any more: the command learns that as it would without us.
            return False
        return True

    def _keep(self, data: bytes) -> None:
        # Only the last lines are looked at: a command may write a million a second.
        *whole, rest = data.rsplit(b"\n", MAX_LINES + 1)
        if len(whole) > MAX_LINES:
            self._output.skip(whole.pop(0).count(b"\n") + 1)
            self._begun, self._is_skipping = b"", False
        for line in whole:
            if not self._is_skipping:
                self._add(self._begun + line)
            self._begun, self._is_skipping = b"", False
        if not self._is_skipping:
            self._begun += rest
            if len(self._begun) > LINE_BYTES:
                self._add(self._begun)
                self._begun, self._is_skipping = b"", True

    def _add(self, text: bytes) -> None:
        self._output.add(text[: LINE_BYTES + 1].rstrip(b"\r"), self._is_error)

    def close(self) -> None:
        if self._begun:
            self._add(self._begun)
            self._begun = b""
        os.close(self.source)


def hold_closed() -> frozenset[int]:
    """The standard descriptors that are closed: none of our files gets such a number. The command has them closed, too.

    Whatever would be opened as number 1 else, what the command writes would go there.
    """
    closed = set[int]()
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            closed.add(descriptor)
        os.close(descriptor)
    return frozenset(closed)


class Runner:
    """Runs attempts of a command, one after the other. Signals that arrive are forwarded, and end the retries.

    Args:
        command: what to run.
        clock: unix nanoseconds.
        closed: the standard descriptors that the command is to have closed, see `hold_closed`.
    """

    def __init__(self, command: list[str], clock: Callable[[], int], closed: frozenset[int] = frozenset()) -> None:
        self._command, self._clock, self._closed = command, clock, closed
        self._early: list[int] = []
        self._stopped_by = 0
        self._pid = 0
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for name in _FORWARDED:
            number = getattr(signal, name, None)
            # What is ignored (as by nohup) stays ignored, for the command too.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._forward)

    def _forward(self, number: int, _frame: object) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            self._stopped_by = number
            if not self._pid:
                self._early.append(number)
        if self._pid and not (signal.Signals(number).name in _OF_TERMINAL and _is_in_foreground()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, number)

    def stop_signal(self) -> int:
        """The signal that asked us to stop so far, or 0."""
        return self._stopped_by

    def run(
        self, environment: Mapping[str, str], timeout: float | None, tell: Callable[[list[Line]], None]
    ) -> tuple[Ended, list[Line]]:
        """Run an attempt until it ends, or for ``timeout`` seconds: (how it ended, its last lines of output).

        ``tell`` receives the last lines now and then while it runs.
        """
        output = Output(self._clock)
        streams: list[_Stream] = []
        actions, close = self._plumbing(streams, output)
        caught = [getattr(signal, name, None) for name in (*_FORWARDED, "SIGCHLD")]
        # Python ignores SIGPIPE, which a command inherits if nobody takes it back.
        defaults = [signal.SIGPIPE, *[n for n in caught if n is not None and signal.getsignal(n) is not signal.SIG_IGN]]
        try:
            self._pid = os.posix_spawnp(
                self._command[0], self._command, environment, file_actions=actions, setsigdef=defaults
            )
        except OSError as error:
            for stream in streams:
                stream.close()
            code = NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
            why = f"{self._command[0]}: {os.strerror(error.errno or 0)}"
            os.write(2, f"tachograph: {why}\n".encode(errors="surrogateescape"))
            return Ended(code, 0, None, timed_out=False, problem=why), []
        finally:
            for descriptor in close:
                os.close(descriptor)
        # What asked us to stop while it was started did not reach it.
        while self._early:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, self._early.pop(0))
        try:
            ended = self._wait(streams, timeout, output, Live(tell))
        finally:
            self._pid = 0
        self._leave(streams)
        return ended, list(output.lines)

    def _plumbing(self, streams: list[_Stream], output: Output) -> tuple[list[tuple[int, int, int]], list[int]]:
        """(what to do with descriptors in the child, the ends to close here). An output to a terminal is left alone."""
        actions: list[tuple[int, int, int]] = []
        close: list[int] = []
        known: dict[tuple[int, int], int] = {}
        for target in (1, 2):
            if target in self._closed:
                continue
            try:
                status = os.fstat(target)
            except OSError:
                continue
            if os.isatty(target):
                continue
            # Both into one pipe if they go to one place, so that their order stays.
            place = (status.st_dev, status.st_ino)
            if place not in known:
                reader, writer = os.pipe()
                os.set_blocking(reader, False)
                known[place] = writer
                close.append(writer)
                streams.append(_Stream(reader, target, output, target == 2))
            actions.append((os.POSIX_SPAWN_DUP2, known[place], target))
        return actions, close

    def _wait(self, streams: list[_Stream], timeout: float | None, output: Output, live: Live) -> Ended:
        deadline = time.monotonic() + timeout if timeout is not None else None
        timed_out, kill_at = False, None
        while True:
            now = time.monotonic()
            if deadline is not None and not timed_out and now >= deadline:
                timed_out, kill_at = True, now + KILL_SECONDS
                self._signal_all(signal.SIGTERM)
            if kill_at is not None and now >= kill_at:
                kill_at = now + KILL_SECONDS
                self._signal_all(signal.SIGKILL)
            pid, status, usage = os.wait4(self._pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                number = -code if code < 0 else 0
                if timed_out:
                    return Ended(TIMEOUT_CODE, number, usage, timed_out=True)
                return Ended(128 + number if number else code, number, usage, timed_out=False)
            until = kill_at if timed_out else deadline
            waits = [live.wait_seconds(output), None if until is None else max(0.0, until - now)]
            self._pump(streams, min((wait for wait in waits if wait is not None), default=None))
            live.tell_if_due(output)

    def _pump(self, streams: list[_Stream], seconds: float | None) -> bool:
        """Wait until something happens, and pass output on; whether there was any."""
        sources = [stream.source for stream in streams]
        readable, _, _ = select.select([*sources, self._wake_reader], [], [], seconds)
        if self._wake_reader in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_reader, 4096)
        for stream in list(streams):
            if stream.source in readable and not stream.pump():
                streams.remove(stream)
                stream.close()
        return any(source in readable for source in sources)

    def _signal_all(self, number: int) -> None:
        """Send a signal to the command and to all processes below it."""
        for pid in [*_descendants(self._pid), self._pid]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _leave(self, streams: list[_Stream]) -> None:
        """The command has ended: pass on what is left. What it left behind keeps its output: another process of ours
        passes that on."""
        while streams and self._pump(streams, _DRAIN_SECONDS):
            pass
        if not streams:
            return
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                with contextlib.suppress(BaseException):
                    signal.set_wakeup_fd(-1)
                    _close_all_but({0, 1, 2, self._wake_reader, *[stream.source for stream in streams]})
                    while streams:
                        self._pump(streams, None)
                os._exit(0)
        for stream in streams:
            stream.close()

    def pause(self, seconds: float) -> None:
        """Wait before the next attempt, unless a signal asks us to stop."""
        end = time.monotonic() + seconds
        while not self._stopped_by and (left := end - time.monotonic()) > 0:
            self._pump([], left)


def _is_in_foreground() -> bool:
    """Whether a terminal sends its signals to our process group, so to the command too."""
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            if os.tcgetpgrp(descriptor) == os.getpgrp():
                return True
    return False


def _close_all_but(kept: set[int]) -> None:
    """Close descriptors: a lock on a file of ours lasts until all of its descriptors are closed."""
    for descriptor in range(3, 1024):
        if descriptor not in kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _descendants(pid: int) -> list[int]:
    """The processes below one, the outer ones first. Where /proc does not say, none."""
    below: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children") as file:
                children = [int(child) for child in file.read().split()]
                below += children
                waiting += children
    return below
