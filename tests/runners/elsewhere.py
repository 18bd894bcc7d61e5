"""Handlers that a worker loads by file, as a user's are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import tachograph
from tachograph.spans.propagation import propagation
from tachograph.workflow import DoNotRetry, StepContext, handler


@handler("add")
def add(context: StepContext) -> dict[str, Any]:
    before = [name for name in context.config.get("reads", ()) if name in context.outputs]
    total = sum(context.outputs[name]["total"] for name in before) + context.config.get("value", 1)
    return {"total": total, "before": before, "attempt": context.attempt}


@handler("slow_add")
def slow_add(context: StepContext) -> dict[str, int]:
    time.sleep(context.config["seconds"])
    before = [name for name in context.config.get("reads", ()) if name in context.outputs]
    return {"total": sum(context.outputs[name]["total"] for name in before) + 1}


@handler("flaky")
def flaky(context: StepContext) -> dict[str, int]:
    if context.attempt <= context.config["times"]:
        raise ConnectionError(f"attempt {context.attempt} of {context.step.name}")
    return {"total": context.attempt}


@handler("wrong")
def wrong(context: StepContext) -> None:
    raise ValueError(f"no such table: {context.inputs.get('table', 'orders')}")


@handler("hopeless")
def hopeless(_context: StepContext) -> None:
    raise DoNotRetry("the file will not come")


@handler("leave")
def leave(_context: StepContext) -> None:
    sys.exit(0)


@handler("leave_badly")
def leave_badly(_context: StepContext) -> None:
    sys.exit(3)


@handler("later")
async def later(context: StepContext) -> dict[str, int]:
    await asyncio.sleep(0.01)
    return {"total": len(context.inputs)}


@handler("passes_on")
def passes_on(context: StepContext) -> Any:
    return later(context)


@handler("long")
def long(context: StepContext) -> str:
    deadline = time.monotonic() + context.config["seconds"]
    while time.monotonic() < deadline and not context.is_stopping:
        time.sleep(0.02)
    return "through"


@tachograph.step
def part(number: int) -> int:
    if number < 0:
        raise ValueError("a negative part")
    return number * 2


@handler("parts")
def parts(context: StepContext) -> dict[str, Any]:
    context.measure("rows", 12, "row")
    context.cost(0.25, tokens_in=10, tokens_out=5, model="m")
    context.log("three parts, password=hunter22", "warning")
    doubled = [part(number) for number in range(3)]
    with contextlib.suppress(ValueError):
        part(-1)
    return {"total": sum(doubled)}


@handler("dies")
def dies(context: StepContext) -> int:
    if context.attempt <= context.config.get("times", 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return context.attempt


@handler("waits_once")
def waits_once(context: StepContext) -> int:
    file = Path(context.config["file"])
    if not file.exists():
        file.touch()
        time.sleep(context.config["seconds"])
    return context.attempt


@handler("burns")
def burns(_context: StepContext) -> None:
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass


@handler("headers")
def headers(_context: StepContext) -> dict[str, Any]:
    return {**propagation(), "pid": os.getpid()}


@handler("not_json")
def not_json(_context: StepContext) -> Any:
    return {"total": object()}


@handler("large")
def large(_context: StepContext) -> str:
    return "x" * (9 << 20)
