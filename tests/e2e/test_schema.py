"""The OpenAPI document is complete, and no request leads to a server error or to an undocumented response.

Random requests are left to `test_fuzz`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.e2e.conftest import Server, environment, eventually

from tachograph_exporter.api.all_routes import ROUTES

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def operations_tested(service: Server, directory: Path, phases: str, mode: str, operations: Sequence[str] = ()) -> int:
    """How many operations schemathesis tested, all of them or these, and found no fault."""
    chosen = [f"--include-operation-id={operation}" for operation in operations]
    result = subprocess.run(
        [str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.address}/api/openapi.json",
         "--exclude-path", "/api/stream", *chosen,
         "--checks", CHECKS, "--phases", phases, "--mode", mode, "--no-color"],
        cwd=directory, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    count = re.search(r"Tested: (\d+)", result.stdout)
    assert count is not None
    return int(count[1])


# Every operation is asked its examples. Values at every bound of every parameter take a minute: each day has those of
# other operations, and `make slow` of all, with requests that break the document. What these are answered with is also
# in tests/edges/test_hostile_requests.py and tests/e2e/test_fuzz.py.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mode", "days"),
    [("positive", 4), *(pytest.param(mode, 1, marks=pytest.mark.slow) for mode in ("positive", "all"))],
)
def test_schemathesis_finds_no_faults(server: Callable[..., Server], tmp_path: Path, mode: str, days: int) -> None:
    service = server()
    for document in service.get("/api/workflows/templates"):
        service.post("/api/workflows", document)
    for name in ("basic_sequence", "with_retries", "data_pipeline"):
        execution = service.post(f"/api/workflows/{name}/execute")["execution_id"]
        eventually(lambda e=execution: service.get(f"/api/workflows/executions/{e}/status")["completed_at"])  # type: ignore[misc]
    # The others take nothing of which there could be an example.
    assert operations_tested(service, tmp_path, "examples", mode) > len(ROUTES) // 2
    document = service.get("/api/openapi.json")
    operations = [
        operation["operationId"]
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if path != "/api/stream"  # It never ends, and has its own tests.
    ]
    chosen = operations[datetime.now(UTC).toordinal() % days :: days]
    assert operations_tested(service, tmp_path, "coverage", mode, chosen) >= len(chosen) - 1
    # The service is still up.
    assert service.get("/-/ready")["status"] == "ready"


def test_the_document_is_complete(server: Callable[..., Server]) -> None:
    document = server().get("/api/openapi.json")
    assert document["openapi"] == "3.1.0"
    operations = [
        (path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    assert len(operations) == len(ROUTES)
    assert len({operation["operationId"] for _, _, operation in operations}) == len(ROUTES)
    for path, method, operation in operations:
        assert operation["summary"], path
        success = operation["responses"][min(operation["responses"])]
        # Every response has an example from a real run, and so has every request body.
        if (
            method == "get"
            and path not in ("/metrics", "/api/openapi.json", "/tempo/api/echo", "/api/stream")
            and not path.endswith("/report")
            and "200" in operation["responses"]
        ):
            assert success["content"]["application/json"].get("example") is not None, path
        if "requestBody" in operation:
            for content in operation["requestBody"]["content"].values():
                assert content["example"], path


def test_the_docs_page_loads_files_of_the_package_only(server: Callable[..., Server]) -> None:
    import urllib.request

    service = server()
    for path, kind in (("/docs", "text/html"), ("/web/docs.js", "text/javascript"), ("/web/docs.css", "text/css")):
        with urllib.request.urlopen(service.address + path) as response:
            assert response.headers.get_content_type() == kind
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert "http" not in response.read().decode().replace("http-equiv", "")
