"""The OpenAPI document holds: whatever is asked, no error nobody foresaw, and no answer it does not describe."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import Server, environment, eventually

from tachograph_exporter.service import ROUTES

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_schemathesis_finds_nothing(server: Callable[..., Server], tmp_path: Path) -> None:
    service = server()
    for document in service.get("/api/workflows/templates")["items"]:
        service.post("/api/workflows", document)
    for name in ("basic_sequence", "with_retries", "data_pipeline"):
        execution = service.post(f"/api/workflows/{name}/execute")["execution_id"]
        eventually(lambda e=execution: service.get(f"/api/workflows/executions/{e}/status")["completed_at"])  # type: ignore[misc]
    told = subprocess.run(
        [str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.address}/api/openapi.json",
         "--exclude-path", "/api/stream",
         "--checks", CHECKS, "--max-examples", "15", "--phases", "examples,coverage,fuzzing", "--no-color"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout[-4000:]
    tested = re.search(r"Tested: (\d+)", told.stdout)
    assert tested is not None
    # Live events never end; they have tests of their own.
    assert int(tested[1]) >= len(ROUTES) - 2, told.stdout[-4000:]
    # And it is still there.
    assert service.get("/-/ready")["status"] == "ready"


def test_the_document_is_whole(server: Callable[..., Server]) -> None:
    document = server().get("/api/openapi.json")
    assert document["openapi"] == "3.1.0"
    operations = [(path, method, about) for path, item in document["paths"].items() for method, about in item.items()]
    assert len(operations) == len(ROUTES)
    assert len({about["operationId"] for _, _, about in operations}) == len(ROUTES)
    for path, method, about in operations:
        assert about["summary"], path
        good = about["responses"][min(about["responses"])]
        # Every answer has an example from a real run, and every body one to send.
        if (
            method == "get"
            and path not in ("/metrics", "/api/openapi.json", "/tempo/api/echo", "/api/stream")
            and "200" in about["responses"]
        ):
            assert good["content"]["application/json"].get("example") is not None, path
        if "requestBody" in about:
            assert about["requestBody"]["content"]["application/json"]["example"], path


def test_the_page_needs_nothing_but_the_package(server: Callable[..., Server]) -> None:
    import urllib.request

    service = server()
    for path, kind in (("/docs", "text/html"), ("/web/docs.js", "text/javascript"), ("/web/docs.css", "text/css")):
        with urllib.request.urlopen(service.address + path) as response:
            assert response.headers.get_content_type() == kind
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert "http" not in response.read().decode().replace("http-equiv", "")
