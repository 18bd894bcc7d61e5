"""Handlers of the workflows that the services run."""

from __future__ import annotations

import asyncio
from typing import Any

from tachograph.workflow import StepContext, handler


@handler("fortnight.pack")
async def pack(context: StepContext) -> dict[str, Any]:
    """Fails at the first attempt if the input `flaky` says so."""
    if context.inputs["flaky"] and context.attempt == 1:
        raise RuntimeError("torn")
    return {}


@handler("fortnight.send")
async def send(context: StepContext) -> dict[str, Any]:
    """Fails if the input `fail` says so, and takes as long as the input `seconds` says."""
    await asyncio.sleep(context.inputs.get("seconds", 0))
    if context.inputs.get("fail"):
        raise RuntimeError("refused")
    return {}
