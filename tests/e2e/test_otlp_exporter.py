"""The real OTLP exporter sends spans from another process to the service, and viewers read them back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import programs
from tests.e2e.conftest import Server, environment, eventually

PROGRAM = """
import time
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=50))
tracer = provider.get_tracer("test")
with tracer.start_as_current_span("import orders"):
    with tracer.start_as_current_span("fetch"):
        time.sleep(0.1)
    time.sleep(0.2)
    try:
        with tracer.start_as_current_span("store"):
            raise ValueError("no space left")
    except ValueError:
        pass
provider.shutdown()
"""

DECORATED = """
from tachograph import step, workflow

@step
def fetch():
    return 3

@workflow
def nightly():
    return fetch()

nightly()
"""


def run_script(source: str, service: Server, **variables: str) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": service.address, "OTEL_SERVICE_NAME": "orders"}
    command = [sys.executable, "-W", "error", "-c", source]
    programs.run(command, env=environment(**endpoint, **variables), check=True, timeout=60)


def ended_execution(service: Server) -> Any:
    """The only execution, if it has ended."""
    page = service.get("/api/workflows/executions")
    return page["items"][0] if page["total"] == 1 and page["items"][0]["completed_at"] else None


def test_any_programs_spans_become_a_timeline(server: Callable[..., Server]) -> None:
    service = server()
    run_script(PROGRAM, service, OTEL_EXPORTER_OTLP_COMPRESSION="gzip")
    execution = eventually(lambda: ended_execution(service))
    timeline = service.get(f"/api/workflows/executions/{execution['execution_id']}/timeline")
    steps = {step["step_name"]: step for step in timeline["step_timeline"]}
    assert (timeline["workflow_name"], timeline["status"]) == ("import orders", "completed")
    assert {name: step["status"] for name, step in steps.items()} == {"fetch": "completed", "store": "failed"}
    assert steps["store"]["error_message"] == "no space left"
    assert "test_otlp" not in steps["store"]["error_stack"]
    assert steps["store"]["depends_on"] == [steps["fetch"]["step_id"]]
    trace = service.get(f"/jaeger/api/traces/{execution['trace_id']}")["data"][0]
    assert {span["operationName"] for span in trace["spans"]} == {"import orders", "fetch", "store"}
    assert service.get("/tempo/api/search?tags=service.name%3Dorders")["traces"][0]["rootTraceName"] == "import orders"
    # A killed service keeps what it acknowledged.
    service.process.kill()  # type: ignore[union-attr]
    service.process.wait()  # type: ignore[union-attr]
    again = server()
    assert again.get(f"/api/workflows/executions/{execution['execution_id']}/timeline") == timeline


def test_opentelemetry_instrument_needs_no_change_to_the_script(server: Callable[..., Server], tmp_path: Path) -> None:
    service = server()
    (tmp_path / "script.py").write_text(DECORATED)
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, "script.py"]
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": service.address,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "nightly-job",
    }
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(**variables), capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    execution = eventually(lambda: ended_execution(service))
    timeline = service.get(f"/api/workflows/executions/{execution['execution_id']}/timeline")
    assert (timeline["workflow_name"], timeline["completed_step_count"]) == ("nightly", 1)
    trace = service.get(f"/jaeger/api/traces/{execution['trace_id']}")["data"][0]
    assert trace["processes"]["p1"]["serviceName"] == "nightly-job"


def test_decorated_scripts_need_no_database_of_their_own(server: Callable[..., Server], tmp_path: Path) -> None:
    service = server()
    run_script(DECORATED, service)
    execution = eventually(lambda: ended_execution(service))
    timeline = service.get(f"/api/workflows/executions/{execution['execution_id']}/timeline")
    assert (timeline["workflow_name"], [step["step_name"] for step in timeline["step_timeline"]]) == (
        "nightly",
        ["fetch"],
    )
    assert list(tmp_path.glob("*.db")) == [tmp_path / "serve.db"]
