"""The events of a recorded command, in their wire form (see docs/events.md): plain dictionaries.

They are what `tachograph.events` decodes; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from tachograph import names, process, redaction
from tachograph.recorded_command import BegunStep, first_waits
from tachograph_exporter.command.child import Ended, Line

Event = dict[str, Any]

_NAMESPACE = bytes.fromhex("6f1d4f0e2c595c0e9f0a7a63686f6772")
"""The namespace of ids that are derived from names, as in `tachograph.identity`."""
_SUMMARY_CHARACTERS = 4096
STEP_TYPE = "command"
OUTPUT_WRITER = "output"
"""As in `tachograph.events`, which takes long to load."""
_INFO, _WARN = 9, 13


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, section 5.7)."""
    value = (time.time_ns() // 1_000_000 & 0xFFFFFFFFFFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) & ~(0b11 << 62) | 0x7 << 76 | 0b10 << 62
    return _uuid(value.to_bytes(16, "big"))


def derived_id(namespace: str | None, text: str) -> str:
    """A UUID of version 5 (RFC 9562, section 5.5) in the namespace of another id, or in that of this project."""
    base = _NAMESPACE if namespace is None else bytes.fromhex(namespace.replace("-", ""))
    digest = bytearray(hashlib.sha1(base + text.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return _uuid(bytes(digest))


def _uuid(data: bytes) -> str:
    digits = data.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_execution(workspace: str, name: str, parent: tuple[str, str] | None) -> Event:
    """The reference to a new execution, which continues the trace of ``parent``, a (trace id, span id)."""
    return {
        "workspace": workspace,
        "workflow": name,
        "workflow_id": derived_id(None, f"{workspace}/{name}"),
        "execution_id": new_id(),
        "trace_id": parent[0] if parent else os.urandom(16).hex(),
        "span_id": os.urandom(8).hex(),
        **({"parent_span_id": parent[1]} if parent else {}),
    }


def process_identity() -> str:
    """This process, as `tachograph.process` names one."""
    return process.identity()


def clean(name: str) -> str:
    """The name under which something is recorded."""
    return names.clean_name(name)


def masked_command(command: Sequence[str]) -> str:
    """What the step is given: the command with secrets masked, its directory and its host, as JSON."""
    shown: list[str] = []
    is_secret = False
    for raw in command:
        word = redaction.encodable(raw, 1000)
        if is_secret and not word.startswith("-"):
            shown.append(redaction.MASK)
            is_secret = False
            continue
        shown.append(redaction.mask_text(word))
        # The value of an option such as --password is a word of its own.
        is_secret = word.startswith("-") and "=" not in word and redaction.is_secret_key(word.lstrip("-"))
    line = redaction.mask_text(" ".join(shown), _SUMMARY_CHARACTERS)
    if redaction.MASK in line and line != " ".join(shown):
        shown = [line]
    while len(json.dumps(shown)) > _SUMMARY_CHARACTERS and len(shown) > 1:
        shown = [*shown[: len(shown) // 2], "…"]
    return json.dumps({"command": shown, "directory": _directory(), "host": socket.gethostname()})


def _directory() -> str:
    try:
        return os.fsencode(os.getcwd()).decode("utf-8", "replace")
    except OSError:
        return ""


def started(step: BegunStep, time_ns: int, attempt: int, inputs: str, backoff_ns: int) -> Event:
    """The start of an attempt."""
    event: Event = {"event": "step_started", "step": step.ref, "time_ns": time_ns, "attempt": attempt, "inputs": inputs}
    if attempt == 1:
        event |= first_waits(step.origin_ns, step.ready_ns, time_ns)
    else:
        event["backoff_ns"] = backoff_ns
    return event


_SAID_CHARACTERS = 500


def masked(lines: Sequence[Line]) -> dict[int, str]:
    """What lines of output say, by their numbers, without secrets, also such as go over several lines of a stream."""
    texts: dict[int, str] = {}
    for is_error in (False, True):
        of_stream = [line for line in lines if line.is_error is is_error]
        said = redaction.mask_lines([line.text.decode("utf-8", "replace") for line in of_stream])
        texts.update(zip([line.number for line in of_stream], said, strict=True))
    return texts


def logged(step: BegunStep, lines: Sequence[Line], attempt: int, before: Sequence[Line] = ()) -> list[Event]:
    """The event of lines of an attempt's output, secrets masked; none without lines. ``before``: lines before them."""
    if not lines:
        return []
    texts = masked([*before, *lines])
    return [
        {
            "event": "step_lines",
            "step": step.ref,
            "time_ns": lines[-1].time_ns,
            "attempt": attempt,
            "writer": OUTPUT_WRITER,
            "lines": [
                {
                    "number": line.number,
                    "time_ns": line.time_ns,
                    "severity": _WARN if line.is_error else _INFO,
                    "message": texts[line.number],
                }
                for line in lines
            ],
        }
    ]


def status_of(ended: Ended, stopped_by: int) -> str:
    """The status of an attempt that ended like this. ``stopped_by``: the signal that asked to stop, or 0."""
    if ended.timed_out:
        return "timeout"
    if ended.code == 0:
        return "completed"
    return "cancelled" if stopped_by else "failed"


def failure_of(ended: Ended, lines: Sequence[Line], timeout: float | None) -> Event | None:
    """Why an attempt failed; None if it did not."""
    if ended.problem:
        return {"type": "CannotStart", "message": redaction.mask_text(ended.problem, 500)}
    if ended.timed_out:
        return {"type": "Timeout", "message": f"it took longer than {timeout:g} s"}
    if ended.code == 0:
        return None
    why = f"exit code {ended.code}" if not ended.signal else f"killed by signal {ended.signal}"
    last = next((line for line in reversed(lines) if line.is_error and line.text.strip()), None)
    if last is not None:
        text = masked(lines)[last.number]
        why += f": {text if len(text) <= _SAID_CHARACTERS else text[: _SAID_CHARACTERS - 1] + '…'}"
    return {"type": "Signal" if ended.signal else "ExitCode", "message": why}


def output_of(ended: Ended) -> str:
    """What the step returned, as JSON: the exit code, and the signal that killed the command."""
    return json.dumps({"exit_code": ended.code, **({"signal": ended.signal} if ended.signal else {})})
