"""Real engines, instrumented only with their public OpenTelemetry packages, become executions with timelines."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Server, environment, eventually, free_port

ENGINES = Path(__file__).parent / "engines"


@contextlib.contextmanager
def running(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment(**variables), cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_listening(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a real Redis."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server (apt-get install redis-server)")
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with running(command, tmp_path / "redis.log"):
        eventually(lambda: is_listening(port))
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def temporal(tmp_path: Path) -> Iterator[str]:
    """The address of a real Temporal server."""
    program = Path(sys.executable).with_name("temporal")
    port = free_port()
    command = [str(program), "server", "start-dev", "--ip", "127.0.0.1", "--port", str(port), "--http-port",
               str(free_port()), "--headless", "--log-level", "error"]  # fmt: skip
    with running(command, tmp_path / "temporal.log"):
        eventually(lambda: is_listening(port))
        yield f"127.0.0.1:{port}"


def ended(service: Server, count: int) -> dict[str, Any]:
    """Wait until this many executions have ended; their timelines by workflow."""

    def read() -> dict[str, Any] | None:
        page = service.get("/api/workflows/executions")
        if page["total"] != count or any(execution["status"] in ("running", "pending") for execution in page["items"]):
            return None
        ids = [execution["execution_id"] for execution in page["items"]]
        by_id = [service.get(f"/api/workflows/executions/{execution_id}/timeline") for execution_id in ids]
        return {timeline["workflow_name"]: timeline for timeline in by_id}

    result: dict[str, Any] = eventually(read)
    return result


def steps_of(timeline: Any) -> list[tuple[str, str, int]]:
    return [(s["step_name"], s["status"], len(s["attempts"])) for s in timeline["step_timeline"]]


def critical_path_of(timeline: Any) -> list[str]:
    return [part["step_name"] for part in timeline["critical_path"]]


def test_a_celery_chain_and_chord(server: Callable[..., Server], redis: str, tmp_path: Path) -> None:
    service = server()
    variables = {
        "BROKER": redis,
        "PYTHONPATH": str(ENGINES),
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_ENDPOINT": service.address,
    }
    worker = [sys.executable, "-m", "celery", "-A", "celery_shop", "worker", "--concurrency", "2", "--loglevel", "INFO"]
    with running(worker, tmp_path / "worker.log", **variables):
        eventually(lambda: " ready." in (tmp_path / "worker.log").read_text())
        subprocess.run(
            [sys.executable, ENGINES / "celery_shop.py"], env=environment(**variables), check=True, timeout=60
        )
        by_workflow = ended(service, 3)
    chain, chord, broken = by_workflow["celery_shop.fetch"], by_workflow["report"], by_workflow["celery_shop.broken"]
    assert chain["status"] == "completed"
    assert steps_of(chain) == [
        ("celery_shop.fetch", "completed", 1),
        ("celery_shop.price", "completed", 2),
        ("celery_shop.store", "completed", 1),
    ]
    assert critical_path_of(chain) == ["celery_shop.fetch", "celery_shop.price", "celery_shop.store"]
    fetch, price, store = chain["step_timeline"]
    assert (price["depends_on"], store["depends_on"]) == ([fetch["step_id"]], [price["step_id"]])
    assert "no price yet" in price["attempts"][0]["error_message"]
    # The task asks for a retry 0.2 s after it asks; on a busy machine it ends only then.
    first, second = (datetime.fromisoformat(attempt["started_at"]) for attempt in price["attempts"])
    assert (second - first).total_seconds() >= 0.19
    assert 0 < price["wait"]["backoff"] < 5
    assert [attempt["status"] for attempt in price["attempts"]] == ["failed", "completed"]
    assert chord["status"] == "completed"
    assert sorted(steps_of(chord)) == [("celery_shop.fetch", "completed", 1)] * 3 + [
        ("celery_shop.total", "completed", 1)
    ]
    # The execution ends with its last task and not with the client's span. That is the body, unless the worker of the
    # header task that asked for it was slower to end its span than another worker was to run the body.
    last = max(chord["step_timeline"], key=lambda step: step["completed_at"])
    assert chord["completed_at"] == last["completed_at"]
    assert critical_path_of(chord)[-1] == last["step_name"]
    total = next(step for step in chord["step_timeline"] if step["step_name"] == "celery_shop.total")
    header = {step["step_id"] for step in chord["step_timeline"] if step["step_name"] == "celery_shop.fetch"}
    assert total["depends_on"]
    assert header.issuperset(total["depends_on"])
    assert (broken["status"], steps_of(broken)) == ("failed", [("celery_shop.broken", "failed", 1)])
    assert (broken["step_timeline"][0]["error_type"], broken["error_message"]) == ("RuntimeError", "no item 7")
    shows(
        service,
        'workflow_step_retries_total{step="celery_shop.price",workflow="celery_shop.fetch",workspace="default"} 1',
    )


def shows(service: Server, *samples: str) -> None:
    """Wait for samples in the metrics. An engine's steps are counted once no more spans of them can come."""
    missing = list(samples)

    def are_shown() -> bool:
        metrics = service.get("/metrics")
        missing[:] = [sample for sample in samples if f"{sample}.0\n" not in metrics and f"{sample}\n" not in metrics]
        return not missing

    with contextlib.suppress(AssertionError):
        eventually(are_shown)
    assert missing == []


def test_a_temporal_workflow_with_a_retrying_activity(
    server: Callable[..., Server], temporal: str, tmp_path: Path
) -> None:
    service = server()
    variables = {"OTEL_SERVICE_NAME": "orders", "OTEL_EXPORTER_OTLP_ENDPOINT": service.address}
    with (tmp_path / "orders.log").open("wb") as log:
        command = [sys.executable, str(ENGINES / "temporal_orders.py"), temporal]
        subprocess.run(command, env=environment(**variables), check=True, timeout=60, stdout=log, stderr=log)
    by_workflow = ended(service, 2)
    order, declined = by_workflow["Order"], by_workflow["Declined"]
    assert order["status"] == "completed"
    assert sorted(steps_of(order)) == [
        ("charge", "completed", 3), ("notify", "completed", 1), ("reserve", "completed", 1), ("ship", "completed", 1),
    ]  # fmt: skip
    assert critical_path_of(order) == ["reserve", "charge", "ship"]
    steps = {step["step_name"]: step for step in order["step_timeline"]}
    assert [attempt["error_message"] for attempt in steps["charge"]["attempts"]][:2] == ["card declined"] * 2
    assert steps["charge"]["wait"]["backoff"] > 0.2
    assert steps["notify"]["depends_on"] == steps["ship"]["depends_on"] == [steps["charge"]["step_id"]]
    total = order["total_duration_seconds"]
    assert 0.5 < order["critical_path_seconds"] <= total
    assert (declined["status"], steps_of(declined)) == ("failed", [("charge", "failed", 1)])
    assert declined["step_timeline"][0]["error_message"] == "card declined"
    shows(
        service,
        'workflow_step_attempts_total{outcome="failed",step="charge",workflow="Order",workspace="default"} 2',
        'workflow_executions_running{workflow="Order",workspace="default"} 0',
    )
