"""``tachograph exec`` and ``tachograph step``."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence

from tachograph_exporter.command.child import Ended, Line, Runner, hold_closed
from tachograph_exporter.command.options import Options, parse
from tachograph_exporter.command.recording import Recording, anchored_clock, recording

DEBUG_VARIABLE = "TACHOGRAPH_DEBUG"
_MAX_DELAY_SECONDS = 300.0
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
"""What Python sets ``LC_CTYPE`` to."""


def main(verb: str, arguments: list[str]) -> int:
    """Run and record a command; returns what to exit with."""
    options = parse(verb, arguments)
    gc.disable()  # There is next to nothing to collect.
    closed = hold_closed()
    clock = anchored_clock()
    attempts = _Attempts(options)
    try:
        attempts.recording = recording(options.command, options.name, os.environ, clock, _say)
    except Exception as error:
        _not_recorded(error)
    code = attempts.run(Runner(options.command, clock, closed))
    attempts.close()
    return code


class _Attempts:
    """The attempts of a command, recorded as far as that is possible."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.recording: Recording | None = None

    def environment(self) -> dict[str, str]:
        """The environment of the command."""
        added = self._recorded("environment") if self.recording is not None else None
        return {**_given_environment(), **(added if isinstance(added, dict) else {})}

    def run(self, runner: Runner) -> int:
        """Run attempts until one succeeds, or there are no more."""
        options, delay = self._options, self._options.retry_delay
        for left in range(options.retries, -1, -1):
            self._recorded("began")
            ended, lines = runner.run(self.environment(), options.timeout, self._tell)
            if ended.code == 0 or not left or runner.stop_signal() or ended.problem:
                return self._finish(ended, lines, runner.stop_signal())
            pause = delay * (0.5 + os.urandom(1)[0] / 512)
            self._recorded("retrying", ended, lines, pause, options.timeout)
            runner.pause(pause)
            if runner.stop_signal():
                stopped = Ended(128 + runner.stop_signal(), runner.stop_signal(), None, timed_out=False)
                return self._finish(stopped, [], runner.stop_signal())
            delay = min(delay * 2, _MAX_DELAY_SECONDS)
        raise AssertionError("the last attempt returns")

    def _tell(self, lines: Sequence[Line]) -> None:
        self._recorded("tell", lines)

    def _finish(self, ended: Ended, lines: Sequence[Line], stopped_by: int) -> int:
        self._recorded("finished", ended, lines, self._options.timeout, stopped_by)
        return ended.code

    def close(self) -> None:
        """Deliver what is left, for a moment."""
        self._recorded("close")

    def _recorded(self, what: str, *arguments: object) -> object:
        """Call a method of the recording. If it fails, the command runs on without being recorded."""
        try:
            return getattr(self.recording, what)(*arguments) if self.recording is not None else None
        except Exception as error:
            self.recording = None
            _not_recorded(error)
            return None


def _given_environment() -> dict[str, str]:
    """The environment as it was given to this process.

    Where there is no locale, as under cron, Python sets ``LC_CTYPE`` (PEP 538): the command would see another locale.
    """
    environment = dict(os.environ)
    if environment.get("LC_CTYPE") in _COERCED:
        with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:
            if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
                del environment["LC_CTYPE"]
    return environment


def _not_recorded(error: Exception) -> None:
    _say(f"not recorded: {str(error) or type(error).__name__}")
    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        if sys.stderr is None:
            return
        traceback.print_exc()


def _say(text: str) -> None:
    # It is None where the descriptor was closed.
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"tachograph: {text}\n")
            sys.stderr.flush()
