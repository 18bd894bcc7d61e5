"""The handler ``shell``: runs one command. Disabled unless allowed when the process starts."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from tachograph.errors import DoNotRetry, StepFailed
from tachograph.resources import Resources
from tachograph.workflow.command_process import CommandProcess
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import registry

_OUTPUT_LIMIT: Final = 64_000
_LINES: Final = 200
"""Lines of each stream that are kept as log lines."""
_LINE_BYTES: Final = 16_384
_KEPT_BACK: Final = re.compile(
    r"TACHOGRAPH_.*|DATABASE_URL|PGPASS(WORD|FILE)|OTEL_EXPORTER_OTLP_.*(HEADERS|CLIENT_KEY|CLIENT_CERTIFICATE)",
    re.IGNORECASE,
)
"""Variables of the service that a command does not inherit: tokens, database URLs and credentials of exporters."""


class ShellConfig(msgspec.Struct):
    """Config of ``shell``."""

    command: Annotated[
        str | list[str],
        msgspec.Meta(description="A command line for `/bin/sh`, or a list of arguments that is run without a shell."),
    ]
    env: Annotated[dict[str, str], msgspec.Meta(description="Variables beside those it inherits.")] = {}
    cwd: Annotated[str | None, msgspec.Meta(description="Directory to run in; `null`: that of the process.")] = None


@registry.register("shell", config=ShellConfig, dangerous=True)
async def shell(context: StepContext) -> dict[str, Any]:
    """Run ``config.command``; the output is ``{"exit_code", "stdout", "stderr"}``. Of long texts the end is kept.

    The last 200 lines of each are log lines of the attempt (info, and warning for ``stderr``), however it ends. The
    command gets the step's trace context as ``TRACEPARENT``. It inherits the environment, but not the service's own
    settings, database URL and exporter credentials; ``env`` gives it more. A non-zero exit code fails the step and is
    its measure ``exit_code`` (128 and the signal's number for a command that a signal ended). When the step is
    cancelled or times out, the command and all processes it started are killed. What the step used of the machine is
    what the command did, with all that it waited for.
    """
    config = context.parse_config(ShellConfig)
    if not config.command:
        raise DoNotRetry("shell needs a command")
    inherited = {name: value for name, value in os.environ.items() if not _KEPT_BACK.fullmatch(name)}
    environment = {**inherited, **_environment(context.propagation()), **config.env}
    argv = ["/bin/sh", "-c", config.command] if isinstance(config.command, str) else config.command
    process = await CommandProcess.start(argv, environment=environment, directory=config.cwd)
    resources: Resources | None = None
    stdout, stderr = _Written(process.stdout, "info"), _Written(process.stderr, "warning")
    try:
        await asyncio.gather(stdout.read(), stderr.read())
        code, resources = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        _, resources = await process.wait()
        raise
    finally:
        process.close()
        if resources is not None:
            context.used(resources)
        for at_ns, level, line in sorted([*stdout.lines(), *stderr.lines()], key=lambda entry: entry[0]):
            context.log(line, level, at_ns=at_ns)
    if code != 0:
        code = code if code > 0 else 128 - code
        context.measure("exit_code", code)
        last = (stderr.text().strip() or stdout.text().strip()).splitlines()[-1:] or ["no output"]
        raise StepFailed(f"command ended with exit code {code}: {last[0]}")
    return {"exit_code": code, "stdout": stdout.text(), "stderr": stderr.text()}


def _environment(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.upper().replace("-", "_"): value for name, value in headers.items()}


class _Written:
    """What a command writes to one stream: the end of the text, and the last lines with the time of each."""

    def __init__(self, stream: asyncio.StreamReader | None, level: str) -> None:
        self._stream = stream
        self._level = level
        self._kept = b""
        self._part = b""
        self._lines: deque[tuple[int, bytes]] = deque(maxlen=_LINES)

    async def read(self) -> None:
        """Read to the end."""
        while self._stream is not None and (chunk := await self._stream.read(65_536)):
            self._kept = (self._kept + chunk)[-_OUTPUT_LIMIT:]
            now = time.time_ns()
            *whole, part = (self._part + chunk).split(b"\n")
            self._lines.extend((now, line[:_LINE_BYTES]) for line in whole)
            # Of a line without an end its beginning is kept.
            self._part = part[:_LINE_BYTES]

    def text(self) -> str:
        """The end of what was written."""
        return self._kept.decode("utf-8", "replace")

    def lines(self) -> list[tuple[int, str, str]]:
        """(unix nanoseconds, level, text) of the last lines that are not blank."""
        rest = [(time.time_ns(), self._part)] if self._part else []
        texts = [(at, line.decode("utf-8", "replace").rstrip()) for at, line in [*self._lines, *rest][-_LINES:]]
        return [(at, self._level, text) for at, text in texts if text]
