"""The handlers ``noop``, ``sleep`` and ``fail``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec

from tachograph.errors import StepFailed
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import registry


@registry.register("noop")
async def noop(_context: StepContext) -> None:
    """Do nothing."""


class SleepConfig(msgspec.Struct):
    """Config of ``sleep``."""

    seconds: Annotated[float, msgspec.Meta(ge=0, description="How long to sleep.")]


@registry.register("sleep", config=SleepConfig)
async def sleep(context: StepContext) -> None:
    """Sleep for ``config.seconds``."""
    await asyncio.sleep(context.parse_config(SleepConfig).seconds)


class FailConfig(msgspec.Struct):
    """Config of ``fail``."""

    message: Annotated[str, msgspec.Meta(description="The error's message.")] = "this step fails on purpose"
    times: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        msgspec.Meta(description="How many attempts fail before one succeeds; `null`: all."),
    ] = None


@registry.register("fail", config=FailConfig)
async def fail(context: StepContext) -> dict[str, int]:
    """Fail with ``config.message``: always, or in the first ``config.times`` attempts."""
    config = context.parse_config(FailConfig)
    if config.times is None or context.attempt <= config.times:
        raise StepFailed(config.message)
    return {"failed_attempts": config.times}
