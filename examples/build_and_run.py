"""Build a workflow in Python, register its handlers, run it with the executor, and listen to its events."""

import asyncio
import zlib
from typing import Any

import tachograph
from tachograph.events import Event, StepFinished
from tachograph.workflow import Executor, StepContext, WorkflowBuilder, handler


@handler("text.generate")
async def generate(context: StepContext) -> dict[str, Any]:
    """Generate some text."""
    return {"text": " ".join(str(n) for n in range(context.inputs["numbers"]))}


@handler("text.compress")
def compress(context: StepContext) -> dict[str, Any]:
    """Compress the text. A plain function runs in a thread."""
    text = context.outputs["generate"]["text"].encode()
    packed = zlib.compress(text, int(context.config["level"]))
    context.measure("ratio", len(packed) / len(text), "1")
    return {"bytes": len(packed)}


flow = (
    WorkflowBuilder("compression", version="1")
    .variable("numbers", "int", default_value=100_000)
    .step("generate", handler="text.generate")
    .step("quick", after="generate", handler="text.compress", config={"level": 1})
    .step("thorough", after="generate", handler="text.compress", config={"level": 9}, timeout_seconds=30)
    .step("worth_it", after=["quick", "thorough"], when="steps.thorough.output.bytes < steps.quick.output.bytes")
    .build()
)


def print_step(event: Event) -> None:
    """A listener is any callable that takes an event."""
    if isinstance(event, StepFinished):
        print(f"{event.step.name:10} {event.status:10} {event.duration_ns / 1e6:8.2f} ms")


if __name__ == "__main__":
    recorder = tachograph.Recorder()
    recorder.add("printer", print_step)
    result = asyncio.run(Executor(recorder).run(flow, {"numbers": 50_000}))
    recorder.close()
    print(result.status)
