"""A Celery application as users write it, instrumented only with opentelemetry-instrumentation-celery.

celery -A celery_shop worker        the worker
python celery_shop.py               the client: a chain whose second task is retried, a chord, a task that fails
"""

import os
import time

from celery import Celery, chain, chord
from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

app = Celery("celery_shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])


@worker_process_init.connect(weak=False)
def instrument(**_: object) -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()


@app.task
def fetch(number):
    time.sleep(0.1)
    return number


@app.task(bind=True, max_retries=2)
def price(self, number):
    time.sleep(0.05)
    if self.request.retries < 1:
        raise self.retry(exc=ValueError("no price yet"), countdown=0.2)
    return number * 2


@app.task
def store(number):
    time.sleep(0.05)
    return number


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def broken(number):
    raise RuntimeError(f"no item {number}")


if __name__ == "__main__":
    instrument()
    chain(fetch.s(1), price.s(), store.s()).apply_async().get(timeout=30)
    with trace.get_tracer("shop").start_as_current_span("report"):
        result = chord([fetch.s(i) for i in range(3)], total.s()).apply_async()
    assert result.get(timeout=30) == 3
    broken.delay(7).get(timeout=30, propagate=False)
    trace.get_tracer_provider().shutdown()
