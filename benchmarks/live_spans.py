"""A span with and without the processor that shows spans while they run.

Sides:
- bare span: an OpenTelemetry SDK span with six attributes, a batch processor, an exporter that discards.
- with live spans: the same with a `LiveSpanProcessor` beside it; the spans end before they are sent open.
- with 1,000 open spans: the same while a thousand other spans are open and sent as a heartbeat.

The receiver is a process of its own. CPU time of the program's own thread and wall time of the whole, both per span.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import set_span_in_context
from rich.console import Console
from rich.table import Table

from tachograph.spans import LiveSpanProcessor

SPANS: Final = 5_000
ROUNDS: Final = 9
OPEN: Final = 1_000
_RECEIVER: Final = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Tachograph-Lease-Seconds", "3")
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


class Discard(SpanExporter):
    """Discards spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def measured(url: str | None, open_spans: int = 0) -> tuple[float, float]:
    """Microseconds per span: CPU time of the program's thread, and wall time."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Discard(), max_queue_size=2 * SPANS))
    if url is not None:
        provider.add_span_processor(live := LiveSpanProcessor(url))
    tracer = provider.get_tracer("bench")
    root = set_span_in_context(tracer.start_span("root"))
    others = [tracer.start_span("other", root) for _ in range(open_spans)]
    if url is not None:
        live.force_flush()
    began, cpu = time.perf_counter(), time.thread_time()
    for i in range(SPANS):
        span = tracer.start_span("step", root)
        for name in ("name", "id", "type", "status", "attempt"):
            span.set_attribute(f"workflow.step.{name}", name)
        span.set_attribute("workflow.step.order", i)
        span.end()
    took, cpu = time.perf_counter() - began, time.thread_time() - cpu
    for span in others:
        span.end()
    provider.shutdown()
    return cpu / SPANS * 1e6, took / SPANS * 1e6


def main(console: Console) -> None:
    """Print the table."""
    with subprocess.Popen([sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        url = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
        sides: dict[str, tuple[str | None, int]] = {
            "bare span": (None, 0),
            "with live spans": (url, 0),
            f"with {OPEN:,} open spans": (url, OPEN),
        }
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number in range(ROUNDS + 1):
            for name, (address, count) in sides.items():
                gc.collect()
                figure = measured(address, count)
                if number:  # The first round warms up.
                    figures[name].append(figure)
        receiver.terminate()
    table = Table("a span", "µs CPU of its thread, median", "more than bare", "µs until the last one ended, median")
    base = [cpu for cpu, _ in figures["bare span"]]
    for name, values in figures.items():
        cpus, walls = [cpu for cpu, _ in values], [wall for _, wall in values]
        more = statistics.median(cpu - bare for cpu, bare in zip(cpus, base, strict=True))
        table.add_row(name, f"{statistics.median(cpus):.1f}", f"{more:+.1f}", f"{statistics.median(walls):.1f}")
    console.print(table)
