"""Temporal workflows as users write them, traced only by the SDK's own interceptor.

python temporal_orders.py ADDRESS   worker and client: an order whose second activity needs three attempts, and an
                                    order that fails
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from datetime import timedelta

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.contrib.opentelemetry import TracingInterceptor
from temporalio.worker import Worker

LIMIT = timedelta(seconds=20)


@activity.defn
async def reserve(order: str) -> str:
    await asyncio.sleep(0.1)
    return order


@activity.defn
async def charge(order: str) -> str:
    await asyncio.sleep(0.05)
    if activity.info().attempt < 3:
        raise RuntimeError("card declined")
    return order


@activity.defn
async def ship(order: str) -> str:
    await asyncio.sleep(0.3)
    return order


@activity.defn
async def notify(order: str) -> str:
    await asyncio.sleep(0.1)
    return order


@workflow.defn
class Order:
    @workflow.run
    async def run(self, order: str) -> None:
        await workflow.execute_activity(reserve, order, start_to_close_timeout=LIMIT)
        retries = RetryPolicy(initial_interval=timedelta(milliseconds=100), maximum_attempts=5)
        await workflow.execute_activity(charge, order, start_to_close_timeout=LIMIT, retry_policy=retries)
        shipping = workflow.start_activity(ship, order, start_to_close_timeout=LIMIT)
        await workflow.execute_activity(notify, order, start_to_close_timeout=LIMIT)
        await shipping


@workflow.defn
class Declined:
    @workflow.run
    async def run(self, order: str) -> None:
        no_retries = RetryPolicy(maximum_attempts=1)
        await workflow.execute_activity(charge, order, start_to_close_timeout=LIMIT, retry_policy=no_retries)


async def main(address: str) -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    client = await Client.connect(address, interceptors=[TracingInterceptor()])
    activities = [reserve, charge, ship, notify]
    async with Worker(client, task_queue="orders", workflows=[Order, Declined], activities=activities):
        await client.execute_workflow(Order.run, "o-1", id="o-1", task_queue="orders")
        with contextlib.suppress(WorkflowFailureError):
            await client.execute_workflow(Declined.run, "o-2", id="o-2", task_queue="orders")
    provider.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
