"""The command line of ``tachograph exec`` and ``tachograph step``, read without a library."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple, NoReturn

USAGE = {
    "exec": """usage: tachograph exec [--name NAME] [--timeout 1h] [--retries N] [--retry-delay 1s]
                       -- COMMAND [ARGUMENT…]

Run a command and record it: exit code, output, CPU, memory, I/O. Inside another recorded command it
is a step of that. It runs all the same if it cannot be recorded. Exit code: the command's; 128 + n
after signal n; 124 after a timeout.

  --name NAME         name of the workflow (default: that of the command)
  --timeout TIME      stop an attempt that takes longer, for instance 90s, 5m, 1h
  --retries N         further attempts after a failure (default 0)
  --retry-delay TIME  how long to wait before the first retry; doubles with each (default 1s)

TACHOGRAPH_URL and TACHOGRAPH_TOKEN, or TACHOGRAPH_DATABASE_URL, say where it is recorded;
TACHOGRAPH_WORKSPACE in which workspace.""",
    "step": """usage: tachograph step [--timeout 1h] [--retries N] [--retry-delay 1s] NAME
                       -- COMMAND [ARGUMENT…]

Run a command as a step of the recorded command around it (see `tachograph exec`). Without one, it is
a run of its own.""",
}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_USAGE_CODE = 2


class Options(NamedTuple):
    """What to run, under which name, and when to give up. Times are seconds."""

    command: list[str]
    name: str
    timeout: float | None
    retries: int
    retry_delay: float


def parse(verb: str, arguments: list[str]) -> Options:
    """The options of ``exec`` or ``step``. Exits with 0 after help and with 2 if they are wrong."""
    values: dict[str, str] = {}
    allowed = ["--timeout", "--retries", "--retry-delay", *(["--name"] if verb == "exec" else [])]
    rest = list(arguments)
    name = ""
    while rest and rest[0] != "--":
        word = rest.pop(0)
        if word in ("-h", "--help"):
            print(USAGE[verb])
            sys.exit(0)
        option, equals, value = word.partition("=")
        if option in allowed:
            if not equals:
                if not rest:
                    fail(verb, f"{option} needs a value")
                value = rest.pop(0)
            values[option] = value
        elif word.startswith("-"):
            fail(verb, f"there is no option {word}")
        elif verb == "step" and not name:
            name = word
        else:
            rest.insert(0, word)
            break
    command = rest[1:] if rest[:1] == ["--"] else rest
    if verb == "step" and not name:
        fail(verb, "the step needs a name")
    if not command:
        fail(verb, "there is no command to run")
    return Options(
        command,
        values.get("--name") or name or os.path.basename(command[0]) or command[0],
        _seconds(verb, "--timeout", values["--timeout"]) if "--timeout" in values else None,
        _count(verb, values.get("--retries", "0")),
        _seconds(verb, "--retry-delay", values.get("--retry-delay", "1s")),
    )


def fail(verb: str, why: str) -> NoReturn:
    """Say what is wrong with the command line, and exit."""
    print(f"tachograph {verb}: {why}; see `tachograph {verb} --help`", file=sys.stderr)
    sys.exit(_USAGE_CODE)


def _seconds(verb: str, option: str, text: str) -> float:
    number = text.strip().rstrip("smhd")
    unit = text.strip()[len(number) :] or "s"
    try:
        seconds = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < 1e9 or (seconds == 0 and option == "--timeout"):
        fail(verb, f"{option} {text!r} is not a time like 90s, 5m or 1h")
    return seconds


def _count(verb: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) <= 1000):
        fail(verb, f"--retries {text!r} is not a number from 0 to 1000")
    return int(text)
