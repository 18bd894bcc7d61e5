"""Build a workflow in Python, register its handlers, run it with the executor, listen to what happens."""

import asyncio
import zlib
from typing import Any

from tachograph import Recorder
from tachograph.events import Event, StepFinished
from tachograph.workflow import Executor, StepContext, WorkflowBuilder, handler


@handler("text.make")
async def make(context: StepContext) -> dict[str, Any]:
    """Some text."""
    return {"text": " ".join(str(n) for n in range(context.inputs["numbers"]))}


@handler("text.squeeze")
def squeeze(context: StepContext) -> dict[str, Any]:
    """Compress it (in a thread: this is a plain function)."""
    text = context.outputs["make"]["text"].encode()
    packed = zlib.compress(text, int(context.config["level"]))
    context.measure("ratio", len(packed) / len(text), "1")
    return {"bytes": len(packed)}


flow = (
    WorkflowBuilder("squeeze", version="1")
    .variable("numbers", "int", default_value=100_000)
    .step("make", handler="text.make")
    .step("quick", after="make", handler="text.squeeze", config={"level": 1})
    .step("thorough", after="make", handler="text.squeeze", config={"level": 9}, timeout_seconds=30)
    .step("worth_it", after=["quick", "thorough"], when="steps.thorough.output.bytes < steps.quick.output.bytes")
    .build()
)


def told(event: Event) -> None:
    """A listener is anything that takes an event."""
    if isinstance(event, StepFinished):
        print(f"{event.step.name:10} {event.status:10} {event.duration_ns / 1e6:8.2f} ms")


if __name__ == "__main__":
    recorder = Recorder()
    recorder.add("printer", told)
    result = asyncio.run(Executor(recorder).run(flow, {"numbers": 50_000}))
    recorder.close()
    print(result.status)
