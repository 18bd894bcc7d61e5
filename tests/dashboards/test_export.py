"""`tachograph dashboards export` writes what has changed, and keeps what was edited."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from tests.command import tachograph
from tests.conftest import ROOT

from tachograph_exporter import dashboard_files
from tachograph_exporter.dashboard_files import RECORD, State

MANAGER = "provisioning/alertmanager/alertmanager.yml"
ALERTS = "prometheus/alerts.rules.yml"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped files, which a later version may change."""
    copy = tmp_path / "shipped"
    shutil.copytree(dashboard_files.directory(), copy)
    monkeypatch.setattr(dashboard_files, "directory", lambda: copy)
    return copy


def export(target: Path, *options: str) -> tuple[int, dict[str, str], str]:
    """The exit code, what was done with each file, and the error."""
    # A terminal, however narrow, folds no path.
    result = tachograph(ROOT, "dashboards", "export", str(target), *options, COLUMNS="60")
    words = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    done = {Path(path).relative_to(target).as_posix(): word for word, path in words}
    return result.returncode, done, result.stderr


def test_a_second_export_keeps_what_was_edited_and_says_so(shipped: Path, tmp_path: Path) -> None:
    target = tmp_path / "monitoring"
    code, done, _ = export(target)
    assert (code, set(done.values())) == (0, {"written"})
    assert {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} == {*done, RECORD}
    assert set(export(target)[1].values()) == {"unchanged"}
    # Receivers are there to be edited: nothing has changed upstream, so nothing is wrong.
    edited = target / MANAGER
    edited.write_text("mine\n")
    code, done, _ = export(target)
    assert (code, done.pop(MANAGER), set(done.values())) == (0, "kept", {"unchanged"})
    # A later version changes this file and another one.
    for name in (MANAGER, ALERTS):
        (shipped / name).write_text((shipped / name).read_text() + "# newer\n")
    code, done, _ = export(target, "--dry-run")
    assert (code, done[MANAGER], done[ALERTS]) == (2, "kept", "written")
    assert "# newer" not in (target / ALERTS).read_text()
    code, done, error = export(target)
    assert (code, done[MANAGER], done[ALERTS]) == (2, "kept", "written")
    assert "1 file was edited" in error
    assert "--yes" in error
    assert edited.read_text() == "mine\n"
    assert (target / ALERTS).read_text().endswith("# newer\n")
    code, done, error = export(target, "--yes")
    assert (code, done[MANAGER], error) == (0, "written", "")
    assert edited.read_text().endswith("# newer\n")
    assert set(export(target)[1].values()) == {"unchanged"}


def test_without_a_record_nothing_says_that_a_file_was_not_edited(shipped: Path, tmp_path: Path) -> None:
    export(tmp_path / "m")
    (shipped / ALERTS).write_text("groups: []\n")
    for record in ("[]", "no JSON", None):
        if record is None:
            (tmp_path / "m" / RECORD).unlink()
        else:
            (tmp_path / "m" / RECORD).write_text(record)
        states = {file.path.name: file.state for file in dashboard_files.plan(tmp_path / "m")}
        assert states.pop("alerts.rules.yml") is State.CONFLICT
        assert set(states.values()) == {State.UNCHANGED}


def test_thresholds_and_runbooks_of_a_user_are_in_the_rules(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nlast_failed_seconds = 120\n[workflow.report]\nstale_seconds = 90_000\n")
    target = tmp_path / "m"
    options = ("--thresholds", str(limits), "--runbooks", "https://wiki.example/r/")
    assert export(target, *options)[0] == 0
    rules = [rule for group in yaml.safe_load((target / ALERTS).read_text())["groups"] for rule in group["rules"]]
    last_failed = [rule for rule in rules if rule["alert"] == "WorkflowLastRunFailed"]
    assert [rule["for"] for rule in last_failed] == ["120s", "120s"]
    assert last_failed[0]["annotations"]["runbook_url"] == "https://wiki.example/r/WorkflowLastRunFailed.md"
    (of_report,) = [rule for rule in rules if rule["expr"].endswith("> 90000")]
    assert 'workflow="report"' in of_report["expr"]
    # The rules change with the limits, and nothing was edited.
    limits.write_text("[default]\nlast_failed_seconds = 60\n")
    code, done, _ = export(target, *options)
    assert (code, done[ALERTS], done[MANAGER]) == (0, "written", "unchanged")


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nlast_failed_secs = 120\n")
    code, done, error = export(tmp_path / "m", "--thresholds", str(limits))
    assert (code, done) == (2, {})
    assert "last_failed_secs" in error
    assert not (tmp_path / "m").exists()
    assert "No such file" in export(tmp_path / "m", "--thresholds", str(tmp_path / "none.toml"))[2]
    (tmp_path / "file").write_text("")
    code, _, error = export(tmp_path / "file")
    assert (code, error.count("\n")) == (2, 1)
