"""Administration of a database from the command line, and serving beyond loopback."""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import trustme
from tests import programs
from tests.command import tachograph
from tests.e2e.conftest import TACHOGRAPH, Server, environment, eventually, get
from tools.local_service import free_port


def test_workspaces_projects_and_tokens(tmp_path: Path) -> None:
    assert tachograph(tmp_path, "workspaces", "create", "shipping", "--name", "Shipping").returncode == 0
    again = tachograph(tmp_path, "workspaces", "create", "shipping")
    assert (again.returncode, "already" in again.stderr) == (2, True)
    assert "not a valid slug" in tachograph(tmp_path, "workspaces", "create", "Not A Slug").stderr
    listed = json.loads(tachograph(tmp_path, "workspaces", "list", "--json").stdout)
    assert [(workspace["slug"], workspace["name"]) for workspace in listed] == [("shipping", "Shipping")]
    assert tachograph(tmp_path, "projects", "create", "nightly", "--workspace", "shipping").returncode == 0
    assert "workspaces create nowhere" in tachograph(tmp_path, "projects", "list", "--workspace", "nowhere").stderr
    created = tachograph(tmp_path, "tokens", "create", "ci", "--scope", "read", "--scope", "write",
                      "--workspace", "shipping", "--expires", "90d")  # fmt: skip
    token = created.stdout.strip()
    assert token.startswith("tgr_")
    assert "--scope 'root' is not valid" in tachograph(tmp_path, "tokens", "create", "x", "--scope", "root").stderr
    (info,) = json.loads(tachograph(tmp_path, "tokens", "list", "--json").stdout)
    assert (info["scopes"], info["workspace"], info["state"]) == (["read", "write"], "shipping", "active")
    assert token not in tachograph(tmp_path, "tokens", "list").stdout
    assert tachograph(tmp_path, "tokens", "revoke", info["id"]).returncode == 0
    assert json.loads(tachograph(tmp_path, "tokens", "list", "--json").stdout)[0]["state"] == "revoked"
    assert tachograph(tmp_path, "tokens", "revoke", "nothing").returncode == 2


def test_metrics_trends_comparison_rollups_and_archive(tmp_path: Path) -> None:
    steps = [{"name": "a"}, {"name": "b", "depends_on_steps": ["a"]}]
    (tmp_path / "w.json").write_text(json.dumps({"name": "w", "steps": steps}))
    for _ in range(3):
        assert tachograph(tmp_path, "run", "w.json").returncode == 0
    shown = tachograph(tmp_path, "metrics", "w", "--from", "1h").stdout
    assert "3 (3 completed)" in shown
    assert "p95" in shown
    assert json.loads(tachograph(tmp_path, "metrics", "w", "--json").stdout)["steps"][0]["count"] == 3
    assert "3" in tachograph(tmp_path, "trends", "w").stdout
    assert json.loads(tachograph(tmp_path, "trends", "w", "--bucket", "5m", "--json").stdout)["bucket"] == "5m"
    assert "expected one of" in tachograph(tmp_path, "trends", "w", "--bucket", "2h").stderr
    compared = tachograph(tmp_path, "compare", "last")
    assert (compared.returncode, "took" in compared.stdout) == (0, True)
    for words in (["compare", "nothing"], ["compare", "last", "nothing"], ["timeline", "nothing"]):
        assert 'no run and no workflow is called "nothing"' in tachograph(tmp_path, *words).stderr
    empty = tachograph(tmp_path, "timeline", "last", "--workspace", "empty")
    assert 'no runs yet in workspace "empty"' in empty.stderr
    assert "all rows and series are correct" in tachograph(tmp_path, "rollups", "rebuild", "--check").stdout
    import sqlite3

    with sqlite3.connect(tmp_path / "tachograph.db") as database:
        database.execute("DELETE FROM workflow_rollups")
    database.close()
    assert tachograph(tmp_path, "rollups", "rebuild", "--check").returncode == 1
    assert "differed" in tachograph(tmp_path, "rollups", "rebuild").stdout
    assert tachograph(tmp_path, "rollups", "rebuild", "--check").returncode == 0
    assert "--to DIR" in tachograph(tmp_path, "archive", "--older-than", "1d").stderr
    moved = tachograph(tmp_path, "archive", "--older-than", "0s", "--to", "kept")
    # Only whole days are archived, and today is not over.
    assert "archived 0 run(s)" in moved.stdout


def test_beyond_loopback_with_tls_and_a_token(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "tls.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    port = free_port()
    command = [*TACHOGRAPH, "serve", "--listen", f"0.0.0.0:{port}", "--tls-cert", "tls.pem"]
    refused = programs.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert (refused.returncode, "tokens create" in refused.stderr) == (2, True)
    token = tachograph(tmp_path, "tokens", "create", "me", "--scope", "read").stdout.strip()
    process = programs.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

    def status_of(path: str, bearer: str | None) -> int:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        request = urllib.request.Request(f"https://localhost:{port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, context=context, timeout=60) as response:
                status: int = response.status
                return status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    try:
        eventually(lambda: status_of("/-/ready", None) == 200)
        assert status_of("/api/workflows", None) == 401
        assert status_of("/metrics", None) == 401
        assert status_of("/api/workflows", token) == 200
        assert status_of("/metrics", token) == 200
        # The API's documentation is public.
        assert status_of("/docs", None) == 200
    finally:
        process.terminate()
        process.wait(60)
    wrong = subprocess.run([*command[:-1], "ca.pem"], cwd=tmp_path, env=environment(), capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert (wrong.returncode, "for TLS" in wrong.stderr) == (2, True)


def test_the_service_archives_on_its_own(server: Callable[..., Server], tmp_path: Path) -> None:
    import random
    import time

    from tests.store.test_rollups import a_run

    from tachograph_exporter.store.database import Database
    from tachograph_exporter.store.writer import StoreWriter

    database = Database(f"sqlite:///{tmp_path}/serve.db")
    rng, now = random.Random(1), time.time()
    runs = [a_run(rng, now - days * 86_400) for days in (1, 40, 50)]
    StoreWriter(database).apply([event for run in runs for event in run])
    database.close()
    service = server("--archive-after", "30", "--archive-to", str(tmp_path / "kept"))
    listed = f"{service.address}/api/workflows/executions"

    def archived() -> int:
        return sum(item["is_archived"] for item in get(listed)[1]["items"])

    eventually(lambda: archived() == 2)
    assert len(list((tmp_path / "kept").glob("*.parquet"))) == 2
    old = runs[2][0].execution.execution_id
    assert service.get(f"/api/workflows/executions/{old}/timeline")["step_count"] == 3
    assert service.get("/api/workflows/executions/stats")["total_executions"] == 3
    refused = programs.run([*TACHOGRAPH, "serve", "--archive-after", "3"], cwd=tmp_path, env=environment(),
                             capture_output=True, text=True, check=False)  # fmt: skip
    assert (refused.returncode, "--archive-to" in refused.stderr) == (2, True)
