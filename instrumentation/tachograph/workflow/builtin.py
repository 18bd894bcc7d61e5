"""The built-in step handlers: noop, sleep, fail, http, and shell (off unless allowed when the process starts)."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec

from tachograph.workflow.context import StepContext
from tachograph.workflow.errors import DoNotRetry, StepFailed
from tachograph.workflow.handlers import registry

Seconds = Annotated[float, msgspec.Meta(ge=0)]

_BODY_LIMIT: Final = 1_000_000
_OUTPUT_LIMIT: Final = 64_000


@registry.register("noop")
async def noop(_context: StepContext) -> None:
    """Do nothing, at once."""


class SleepConfig(msgspec.Struct):
    """``seconds``: how long."""

    seconds: Seconds


@registry.register("sleep", config=SleepConfig)
async def sleep(context: StepContext) -> None:
    """Wait ``config.seconds``."""
    await asyncio.sleep(context.parse_config(SleepConfig).seconds)


class FailConfig(msgspec.Struct):
    """``times``: fail that many first attempts, then succeed; without it every attempt fails."""

    message: str = "this step fails on purpose"
    times: Annotated[int, msgspec.Meta(ge=0)] | None = None


@registry.register("fail", config=FailConfig)
async def fail(context: StepContext) -> dict[str, int]:
    """Fail with ``config.message``, always or the first ``config.times`` attempts."""
    config = context.parse_config(FailConfig)
    if config.times is None or context.attempt <= config.times:
        raise StepFailed(config.message)
    return {"failed_attempts": config.times}


class HttpConfig(msgspec.Struct):
    """``json`` is sent as the body when given; ``timeout_seconds`` bounds the whole call."""

    url: str
    method: str = "GET"
    headers: dict[str, str] = {}
    json: Any = None
    timeout_seconds: Seconds = 30.0


class _NoOtherSchemes(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            _check_scheme(newurl)
        except DoNotRetry:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise DoNotRetry(f"the http handler speaks http and https only, not {urlsplit(url).scheme or 'nothing'!r}")


@registry.register("http", config=HttpConfig)
def http(context: StepContext) -> dict[str, Any]:
    """Call ``config.url``; the output is ``{"status", "body"}``, JSON decoded.

    The step's trace context goes along (``traceparent``). An answer of 400 to 499 fails at once (no retry) except
    408, 425 and 429; other errors may be retried.
    """
    config = context.parse_config(HttpConfig)
    _check_scheme(config.url)
    headers = {**config.headers, **context.propagation()}
    data = None
    if config.json is not None:
        data = msgspec.json.encode(config.json)
        headers.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(config.url, data=data, headers=headers, method=config.method.upper())  # noqa: S310
    opener = urllib.request.build_opener(_NoOtherSchemes)
    try:
        with opener.open(request, timeout=config.timeout_seconds) as response:
            body = response.read(_BODY_LIMIT + 1)
            status, content_type = response.status, response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        error.close()
        kind = DoNotRetry if 400 <= error.code < 500 and error.code not in (408, 425, 429) else StepFailed
        raise kind(f"{config.method.upper()} {config.url} answered {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise StepFailed(f"{config.method.upper()} {config.url} failed: {reason}") from None
    if len(body) > _BODY_LIMIT:
        raise DoNotRetry(f"{config.url} answered more than {_BODY_LIMIT} bytes")
    return {"status": status, "body": _decode(body, content_type)}


def _decode(body: bytes, content_type: str) -> Any:
    if content_type.endswith("json"):
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(body)
    return body.decode("utf-8", "replace")


class ShellConfig(msgspec.Struct):
    """``command``: a line for ``/bin/sh``, or a list that is run as it is."""

    command: str | list[str]
    env: dict[str, str] = {}
    cwd: str | None = None


@registry.register("shell", config=ShellConfig, dangerous=True)
async def shell(context: StepContext) -> dict[str, Any]:
    """Run ``config.command``; the output is ``{"exit_code", "stdout", "stderr"}``, the texts cut to their end.

    The step's trace context goes along as ``TRACEPARENT``. A non-zero exit code fails the step. When the step is
    cancelled or times out, the command and all it started are killed.
    """
    config = context.parse_config(ShellConfig)
    if not config.command:
        raise DoNotRetry("shell needs a command")
    environment = {**os.environ, **_environment(context.propagation()), **config.env}
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
