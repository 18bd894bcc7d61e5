"""Evaluates a condition in a process of its own, where it can neither hold up nor kill the workflow's."""

from __future__ import annotations

import datetime
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tachograph.errors import ConditionError

CPU_SECONDS: Final = 2
"""Processor time that a condition may take."""
WALL_SECONDS: Final = 20.0
"""Time that a condition may take on a busy machine, without the time it waits for its turn."""
MAX_BYTES: Final = 512 << 20
"""Memory that a condition may take."""
MAX_PROCESSES: Final = 2
_CHILD: Final = Path(__file__).with_name("condition_child.py")
_INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "HOME", "TMPDIR")
_turn = threading.BoundedSemaphore(MAX_PROCESSES)


def evaluate(text: str, scope: Mapping[str, Any]) -> Any:
    """The result of a condition's text in ``scope``; blocks the calling thread.

    A result that is not a truth value is described as text. Raises `ConditionError` beyond the limits, and if the
    evaluation fails.
    """
    request = pickle.dumps((sys.path, text, _plain(scope), CPU_SECONDS, MAX_BYTES))
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    with _turn:
        try:
            child = subprocess.run(  # noqa: S603 - our own interpreter and file
                [sys.executable, "-I", str(_CHILD)],
                input=request, capture_output=True, env=environment, timeout=WALL_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ConditionError(_limit()) from None
        except OSError as error:
            raise ConditionError(f"it is too large for this process, and no other can be started: {error}") from None
    try:
        # Written by the process that was just started.
        kind, value = pickle.loads(child.stdout)  # noqa: S301
    except Exception:
        raise ConditionError(_limit()) from None
    if kind == "error":
        raise ConditionError(value)
    return value


def _limit() -> str:
    return f"it needs more than {CPU_SECONDS} s or {MAX_BYTES >> 20} MB; ask less of fewer values"


def _plain(value: Any) -> Any:
    """The value in types that CEL knows and any process can read. `condition_cost` has bounded its size and depth."""
    if value is None or isinstance(value, bool | int | float | datetime.datetime | datetime.timedelta):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    raise ConditionError(f"it reads a value of the type {type(value).__name__}")
