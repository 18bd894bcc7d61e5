"""``tachograph report`` and the route: from a database and a service, to files of all kinds."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from pathlib import Path
from unittest import mock

from tests.api.test_api import RETRY, register
from tests.command import tachograph
from tests.conftest import Api
from tests.report_file.runs import hostile_run, long_run, record
from tests.report_file.test_document import Outline

from tachograph_exporter.store.workspaces import create_workspace

BEGINNING = b"<!doctype html>"


def test_a_run_is_written_by_any_of_its_names(database_url: str, tmp_path: Path) -> None:
    run, events = long_run(3)
    record(database_url, events)
    for name in ("last", "long", run.execution_id, run.execution_id[-8:]):
        target = tmp_path / "run.html"
        ran = tachograph(tmp_path, "report", name, "-o", "run.html", "--database", database_url)
        assert (ran.returncode, ran.stderr) == (0, f"run.html: {target.stat().st_size / 1e6:.1f} MB\n")
        assert Outline(target.read_bytes()).contents()["timeline"]["execution_id"] == run.execution_id
        target.unlink()
    ran = tachograph(tmp_path, "report", "lang", "-o", "run.html", "--database", database_url)
    assert ran.returncode == 2
    assert 'did you mean "long"?' in ran.stderr
    elsewhere = ("--database", database_url, "--workspace", "no")
    other = tachograph(tmp_path, "report", run.execution_id, "-o", "x.html", *elsewhere)
    assert other.returncode == 2
    assert run.execution_id in other.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".html") == []


def test_a_file_is_whole_or_the_one_before(database_url: str, tmp_path: Path) -> None:
    _, events = hostile_run()
    record(database_url, events)
    options = ("report", "last", "--database", database_url, "-o")
    target = tmp_path / "run.html"
    target.write_text("before")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch.object(Path, "write_bytes", side_effect=full):
        ran = tachograph(tmp_path, *options, "run.html")
    assert ran.returncode == 2
    assert "cannot write to run.html: No space left on device" in ran.stderr
    assert target.read_text() == "before"
    for wrong in ("missing/run.html", "."):
        ran = tachograph(tmp_path, *options, wrong)
        assert ran.returncode == 2
        assert f"cannot write to {wrong}: " in ran.stderr
    link = tmp_path / "link.html"
    link.symlink_to(target)
    assert tachograph(tmp_path, *options, "link.html").returncode == 0
    assert link.is_symlink()
    assert target.read_bytes().startswith(BEGINNING)
    if Path("/dev/full").exists():
        assert "No space left" in tachograph(tmp_path, *options, "/dev/full").stderr
    assert not list(tmp_path.glob(".*.part"))
    ran = tachograph(tmp_path, *options, "-")
    assert ran.stdout.startswith(BEGINNING.decode())
    assert ran.stdout.rstrip().endswith("</html>")
    assert ran.stderr == ""


async def test_a_service_makes_the_same_file_for_those_who_may_read_the_run(api: Api) -> None:
    await register(api, RETRY)
    execution = await api.run("retry")
    path = f"/api/workflows/executions/{execution}/report"
    async with api.session.get(api.address + path) as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        disposition = response.headers["Content-Disposition"]
        assert re.fullmatch(r'attachment; filename="retry-[0-9a-f]{6}\.html"', disposition)
        # Opened in place it must not have the rights of the service's own pages.
        assert response.headers["Content-Security-Policy"].startswith("sandbox allow-scripts")
        known = Outline(await response.read()).contents()
    assert known["timeline"]["execution_id"] == execution
    assert known["address"] == api.address
    assert known["why"]["execution_id"] == execution
    async with api.session.get(api.address + path, headers={"X-Forwarded-For": "192.0.2.1"}) as response:
        assert Outline(await response.read()).contents()["address"] is None
    api.service.database.run(lambda connection: create_workspace(connection, "other", 1))
    assert (await api.call("GET", f"{path}?workspace_slug=other"))[0] == 404
    assert (await api.call("GET", path.replace(execution, "nothing")))[0] == 404
    assert (await api.call("GET", f"{path}?format=pdf"))[0] == 422


async def test_a_command_asks_a_service(api: Api, tmp_path: Path) -> None:
    await register(api, RETRY)
    execution = await api.run("retry")
    ran = await asyncio.to_thread(tachograph, tmp_path, "report", "retry", "-o", "run.html", "--url", api.address)
    assert ran.returncode == 0, ran.stderr
    assert execution.encode() in (tmp_path / "run.html").read_bytes()


def test_without_a_database_there_is_an_error_in_words(tmp_path: Path) -> None:
    ran = tachograph(tmp_path, "report", "last", "-o", "run.html", "--database", f"sqlite:///{tmp_path}/none.db")
    assert ran.returncode == 2
    assert "no database at" in ran.stderr
    assert not (tmp_path / "none.db").exists()
