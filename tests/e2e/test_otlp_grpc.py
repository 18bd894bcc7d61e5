"""kill -9 while spans and logs arrive by gRPC: what was acknowledged is there when the service is back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tests.api.test_otlp import export, span
from tests.api.test_otlp_logs import line, request_of
from tests.e2e.conftest import Server, eventually, get
from tools.local_service import free_port

from tachograph_exporter.ingest.signals import LOGS, TRACES, Signal


def caller(port: int, signal_: Signal) -> Any:
    # What a service that was killed and started again answers must not wait for the backoff of a lost connection.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
    return channel.unary_unary(f"/{signal_.service}/Export")


@pytest.mark.e2e
def test_after_a_kill_every_acknowledged_span_and_line_is_stored(server: Callable[..., Server]) -> None:
    port = free_port()
    service = server("--otlp-grpc", f"127.0.0.1:{port}")
    acknowledged: list[int] = []
    has_enough = threading.Event()

    def send() -> None:
        traces, logs = caller(port, TRACES), caller(port, LOGS)
        for number in range(1, 100_000):
            try:
                traces(export([span(f"run {number}", 1, 0, trace=number)]).SerializeToString(), timeout=60)
                logs(request_of(line("done", 1, 1, trace=number)).SerializeToString(), timeout=60)
            except grpc.RpcError:
                return
            acknowledged.append(number)
            if len(acknowledged) >= 20:
                has_enough.set()

    sender = threading.Thread(target=send)
    sender.start()
    assert has_enough.wait(60)
    service.stop(signal.SIGKILL)
    sender.join(90)
    assert not sender.is_alive()
    service.start()
    for number in (acknowledged[0], acknowledged[-1]):
        (run,) = service.get(f"/api/workflows/run {number}/executions".replace(" ", "%20"))["items"]
        (item,) = service.get(f"/api/workflows/executions/{run['execution_id']}/logs")["items"]
        assert item["message"] == "done"
    status, stats = get(f"{service.address}/api/workflows/executions/stats")
    assert status == 200
    assert stats["total_executions"] >= len(acknowledged)
    # The door is open again, and takes the same request once more without effect.
    again = export([span(f"run {acknowledged[0]}", 1, 0, trace=acknowledged[0])]).SerializeToString()
    eventually(lambda: caller(port, TRACES)(again, timeout=60, wait_for_ready=True) is not None)
    (run,) = service.get(f"/api/workflows/run%20{acknowledged[0]}/executions")["items"]
    assert run["status"] == "completed"
