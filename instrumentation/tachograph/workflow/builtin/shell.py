"""The handler ``shell``: runs one command. Disabled unless allowed when the process starts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from tachograph.errors import DoNotRetry, StepFailed
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import registry

_OUTPUT_LIMIT: Final = 64_000
_KEPT_BACK: Final = re.compile(
    r"TACHOGRAPH_.*|DATABASE_URL|PGPASS(WORD|FILE)|OTEL_EXPORTER_OTLP_.*(HEADERS|CLIENT_KEY|CLIENT_CERTIFICATE)",
    re.IGNORECASE,
)
"""Variables of the service that a command does not inherit: tokens, database URLs and credentials of exporters."""


class ShellConfig(msgspec.Struct):
    """``command``: a command line for ``/bin/sh``, or a list of arguments that is run without a shell."""

    command: str | list[str]
    env: dict[str, str] = {}
    cwd: str | None = None


@registry.register("shell", config=ShellConfig, dangerous=True)
async def shell(context: StepContext) -> dict[str, Any]:
    """Run ``config.command``; the output is ``{"exit_code", "stdout", "stderr"}``. Of long texts the end is kept.

    The command gets the step's trace context as ``TRACEPARENT``. It inherits the environment, but not the service's own
    settings, database URL and exporter credentials; ``env`` gives it more. A non-zero exit code fails the step. When
    the step is cancelled or times out, the command and all processes it started are killed.
    """
    config = context.parse_config(ShellConfig)
    if not config.command:
        raise DoNotRetry("shell needs a command")
    inherited = {name: value for name, value in os.environ.items() if not _KEPT_BACK.fullmatch(name)}
    environment = {**inherited, **_environment(context.propagation()), **config.env}
    argv = ["/bin/sh", "-c", config.command] if isinstance(config.command, str) else config.command
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=environment,
        cwd=config.cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, stderr = await asyncio.gather(_tail(process.stdout), _tail(process.stderr))
        code = await process.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    if code != 0:
        last = (stderr.strip() or stdout.strip()).splitlines()[-1:] or ["no output"]
        raise StepFailed(f"command ended with exit code {code}: {last[0]}")
    return {"exit_code": code, "stdout": stdout, "stderr": stderr}


def _environment(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.upper().replace("-", "_"): value for name, value in headers.items()}


async def _tail(stream: asyncio.StreamReader | None) -> str:
    kept = b""
    while stream is not None and (chunk := await stream.read(65_536)):
        kept = (kept + chunk)[-_OUTPUT_LIMIT:]
    return kept.decode("utf-8", "replace")
