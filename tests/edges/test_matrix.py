"""{kinds of callables} × {ways to end} × {places to run}: every view equals what plain Python says happened."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import programs
from tests.e2e.conftest import environment
from tests.edges.matrix_program import PLACES, kinds_in

PROGRAM = Path(__file__).with_name("matrix_program.py")
# What plain Python saw, the step's status, its attempts, and how each attempt ended.
ORACLE = {
    "returns": ("returned", "completed", 1, {"completed": 1}),
    "raises": ("raised", "failed", 1, {"failed": 1}),
    "cancelled": ("cancelled", "cancelled", 1, {"cancelled": 1}),
    "retries": ("returned", "completed", 2, {"completed": 1, "failed": 1}),
}


@pytest.mark.timeout(400)  # 8 new interpreters, one after the other, on a busy machine.
@pytest.mark.parametrize("place", PLACES)
def test_every_view_equals_what_happened(place: str, tmp_path: Path) -> None:
    ran = programs.run(
        [sys.executable, "-W", "error", str(PROGRAM), place, str(tmp_path)],
        capture_output=True, text=True, timeout=390, check=False, env=environment(MATRIX_DIRECTORY=str(tmp_path)),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    said = json.loads(ran.stdout)
    wrong = []
    for outcome, (ended, status, attempts, outcomes) in ORACLE.items():
        for kind in kinds_in(place):
            case = f"{kind} {outcome}"
            problems = []
            if said["ended"][case] != ended:
                problems.append(f"plain Python saw {said['ended'][case]}")
            runs = said["views"].get(case, [])
            if len(runs) != 1:
                problems.append(f"{len(runs)} runs")
            for run in runs:
                problems += differences(run, kind, status, attempts, outcomes)
            wrong += [f"{case}: {problem}" for problem in problems]
        stray = [name for name in said["views"] if name not in said["ended"]]
        wrong += [f"a run that nobody began: {name}" for name in stray]
    assert not wrong, f"{place}:\n" + "\n".join(wrong)


def differences(run: Any, kind: str, status: str, attempts: int, outcomes: dict[str, int]) -> list[str]:
    problems = []
    expected = ["completed", 1, int(status == "completed"), int(status == "failed")]
    if run["list"] != expected:
        problems.append(f"the list says {run['list']}, not {expected}")
    if run["timeline"] != [[kind, status, attempts, True]]:
        problems.append(f"the timeline says {run['timeline']}")
    if not run["steps_within"] or not run["work"]:
        problems.append("times do not add up")
    metrics = run["metrics"]
    counted = {
        key.partition("outcome=")[2].partition(" ")[0]: value
        for key, value in metrics.items()
        if key.startswith("workflow_step_attempts_total") and value
    }
    if counted != outcomes:
        problems.append(f"metrics count the attempts {counted}")
    if metrics.get(f"workflow_step_duration_seconds_count status={status} step={kind}") != 1:
        problems.append("metrics lack the step")
    if metrics.get("workflow_steps_running") != 0 or metrics.get("workflow_executions_running") != 0:
        problems.append("something is still running")
    spans = run["spans"]
    names = sorted(name for name, *_ in spans)
    if sum(name == kind for name, *_ in spans) != 1 or len(names) != 2 + (attempts if attempts > 1 else 0):
        problems.append(f"spans are {names}")
    if not all(same_trace for *_, same_trace in spans):
        problems.append("spans of another trace")
    step_span = next((span for name, _, span, _ in spans if name == kind), None)
    if not all(parent in (None, run["root"], step_span) for _, parent, _, _ in spans):
        problems.append("spans under a foreign parent")
    return problems
