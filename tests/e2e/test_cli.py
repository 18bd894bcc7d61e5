"""The ``tachograph`` command, run as a user would."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests import programs
from tests.command import tachograph
from tests.conftest import ROOT
from tests.e2e.conftest import TACHOGRAPH, environment, eventually

from tachograph_exporter import bundled_workflows

FLOWS = bundled_workflows.workflow_directory()


def in_a_process(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return programs.run(
        [*TACHOGRAPH, *words], capture_output=True, text=True, cwd=directory, env=environment(), timeout=60, check=False
    )


def test_run_draws_the_timeline_and_exits_with_the_outcome(tmp_path: Path) -> None:
    good = in_a_process(tmp_path, "run", str(FLOWS / "with_retries.json"))
    assert good.returncode == 0, good.stderr
    assert "✔ with_retries completed" in good.stdout
    assert "█" in good.stdout
    assert "↻" in good.stdout
    assert "◆ critical path" in good.stdout
    bad = in_a_process(tmp_path, "run", str(FLOWS / "data_pipeline.json"), "-i", "minimum_rows=1000000")
    assert bad.returncode == 1
    assert "upstream failed" in bad.stdout
    assert "fewer than minimum_rows" in bad.stdout
    # Both are recorded in the working directory's database.
    last = in_a_process(tmp_path, "timeline", "last")
    assert last.returncode == 0
    assert "data_pipeline failed" in last.stdout
    metrics = in_a_process(tmp_path, "metrics", "data_pipeline")
    assert "1 failed" in metrics.stdout


def test_run_by_name_with_inputs_as_json(tmp_path: Path) -> None:
    assert tachograph(tmp_path, "seed").returncode == 0
    ran = tachograph(tmp_path, "run", "conditional_workflow", "--input", "mode=thorough", "--json")
    assert ran.returncode == 0, ran.stderr
    timeline = json.loads(ran.stdout)
    statuses = {step["step_name"]: step["status"] for step in timeline["step_timeline"]}
    assert statuses == {"evaluate": "completed", "fast": "skipped", "standard": "skipped", "thorough": "completed",
                        "aggregate": "completed"}  # fmt: skip
    shown = tachograph(tmp_path, "timeline", timeline["execution_id"], "--json")
    assert json.loads(shown.stdout)["step_timeline"] == timeline["step_timeline"]
    metrics = json.loads(tachograph(tmp_path, "metrics", "conditional_workflow", "--json").stdout)
    assert (metrics["total_executions"], metrics["success_rate"]) == (1, 100.0)


def test_seed_registers_once_and_reports_outcomes(tmp_path: Path) -> None:
    first = tachograph(tmp_path, "seed", "--workspace-id", "default", "--project-id", "default")
    assert first.stdout.count("created") == 6
    assert tachograph(tmp_path, "seed").stdout.count("unchanged") == 6
    assert tachograph(tmp_path, "seed", "--skip-existing").stdout.count("skipped, already registered") == 6
    changed = json.loads((FLOWS / "basic_sequence.json").read_text())
    changed["version"] = "2.0"
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "a.json").write_text(json.dumps(changed))
    (tmp_path / "flows" / "broken.json").write_text('{"name": "x"}')
    mixed = tachograph(tmp_path, "seed", "flows")
    assert mixed.returncode == 1
    assert "a.json: basic_sequence, 3 steps, changed" in mixed.stdout
    assert "no_steps" in mixed.stderr
    for option, value in (("--workspace-id", "nope"), ("--project-id", "nope")):
        refused = tachograph(tmp_path, "seed", option, value)
        assert refused.returncode == 2
        assert '"nope"' in refused.stderr


def test_validate_names_every_fault(tmp_path: Path) -> None:
    assert tachograph(tmp_path, "validate", str(FLOWS / "data_pipeline.json")).returncode == 0
    (tmp_path / "bad.json").write_text(json.dumps({"name": "w", "steps": [
        {"name": "a", "depends_on_steps": ["c"]}, {"name": "b", "depends_on_steps": ["a"]},
        {"name": "c", "depends_on_steps": ["b"], "config": {"handler": "slep"}}]}))  # fmt: skip
    bad = tachograph(tmp_path, "validate", "bad.json")
    assert bad.returncode == 1
    assert "a → c → b → a" in bad.stderr
    assert 'did you mean "sleep"' in bad.stderr
    report = json.loads(tachograph(tmp_path, "validate", "bad.json", "--json").stdout)
    assert {fault["code"] for fault in report["errors"]} == {"cycle", "unknown_handler"}


WRONG_USAGE: list[tuple[list[str], str]] = [
    (["run", "nope.json"], "cannot read nope.json"),
    (["run", "nope"], 'no workflow "nope" is registered'),
    (["run", str(FLOWS / "basic_sequence.json"), "-i", "x"], "not KEY=VALUE"),
    (["run", str(FLOWS / "basic_sequence.json"), "-i", "x=1"], "is not a variable of this workflow"),
    (["run", str(FLOWS / "data_pipeline.json"), "-i", "minimum_rows=many"], "expected int"),
    (["run", str(FLOWS / "basic_sequence.json"), "--database", "mysql://x"], "no support"),
    (["run", str(FLOWS / "basic_sequence.json"), "--handlers", "no_such_module"], "cannot load handlers"),
    (["replay", str(FLOWS / "basic_sequence.json")], "WfFormat"),
    (["replay", "x.json", "--speed", "0"], "more than 0"),
    (["timeline", "last"], "no database"),
    (["serve", "--listen", "here"], "not a valid address to listen on"),
]


@pytest.mark.parametrize(("words", "message"), WRONG_USAGE, ids=[" ".join(w)[-40:] for w, _ in WRONG_USAGE])
def test_wrong_usage_is_reported_in_one_line_without_a_traceback(
    tmp_path: Path, words: list[str], message: str
) -> None:
    result = tachograph(tmp_path, *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_replay_runs_a_recorded_workflow_again(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "name": "small", "schemaVersion": "1.5",
        "workflow": {"specification": {"tasks": [{"name": t, "id": t, "parents": p} for t, p in
                                                 (("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"]))]},
                     "execution": {"tasks": [{"id": t, "runtimeInSeconds": 20} for t in "abcd"]}},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(document))
    ran = tachograph(tmp_path, "replay", "run.json", "--speed", "100", "--json")
    assert ran.returncode == 0, ran.stderr
    timeline = json.loads(ran.stdout)
    # Three tasks of 0.2 s in sequence; a busy machine may take longer, so there is no upper limit.
    assert [step["step_name"] for step in timeline["critical_path"]][::2] == ["a", "d"]
    assert timeline["critical_path_seconds"] > 0.59
    assert timeline["work_seconds"] > timeline["critical_path_seconds"] * 1.1


def test_a_run_interrupted_at_the_terminal_is_recorded_as_cancelled(tmp_path: Path) -> None:
    long = {"name": "a", "config": {"handler": "sleep", "seconds": 60}}
    after = {"name": "b", "depends_on_steps": ["a"]}
    (tmp_path / "slow.json").write_text(json.dumps({"name": "slow", "steps": [long, after]}))
    process = programs.Popen([*TACHOGRAPH, "run", "slow.json"], cwd=tmp_path, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    eventually(lambda: '"running"' in tachograph(tmp_path, "timeline", "last", "--json").stdout)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "slow cancelled" in out


def test_run_shows_live_progress_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"name": "slow", "steps": [
        {"name": "waiting", "config": {"handler": "sleep", "seconds": 1}}]}))  # fmt: skip
    parent, child = pty.openpty()
    process = subprocess.Popen([*TACHOGRAPH, "run", "s.json"], cwd=tmp_path, stdout=child, stderr=child,
                               env=environment(TERM="xterm"))  # fmt: skip
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(parent, 65_536)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    os.close(parent)
    assert process.wait(60) == 0
    text = output.decode("utf-8", "replace")
    assert "0/1 steps" in text
    assert "waiting" in text
    assert "slow" in text.rpartition("completed")[0]


def test_version_and_help(tmp_path: Path) -> None:
    assert tachograph(tmp_path, "--version").stdout.startswith("tachograph 0.")
    help_text = tachograph(tmp_path, "--help").stdout
    for command in ("serve", "run", "validate", "seed", "demo", "replay", "timeline", "metrics"):
        assert command in help_text


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_program_runs(program: Path, tmp_path: Path) -> None:
    import sys

    if program.name in ("handlers.py", "my_handlers.py"):
        return
    ran = programs.run([sys.executable, "-W", "error", str(program)], cwd=tmp_path, capture_output=True, text=True,
                         env=environment(), timeout=60, check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
