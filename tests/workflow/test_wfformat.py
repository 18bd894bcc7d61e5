"""Recorded runs become definitions with the same graph; running them keeps order and duration."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, StepFinished
from tachograph.workflow import Executor, InvalidWorkflow, validate
from tachograph.workflow.wfformat import from_wfformat

REAL = Path(__file__).resolve().parents[3] / "shared" / "wfinstances"


def document(tasks: dict[str, tuple[float, list[str]]], **fields: Any) -> bytes:
    return json.dumps(
        {
            "name": "small",
            "schemaVersion": "1.5",
            "workflow": {
                "specification": {"tasks": [{"name": t, "id": t, "parents": p} for t, (_, p) in tasks.items()]},
                "execution": {"tasks": [{"id": t, "runtimeInSeconds": r} for t, (r, _) in tasks.items()]},
            },
            **fields,
        }
    ).encode()


SMALL = document({"a": (2, []), "b": (9, ["a"]), "c": (5, ["a"]), "d": (3, ["b", "c"])})
FILES = [
    pytest.param(SMALL, id="small"),
    *(pytest.param(p.read_bytes(), id=p.stem, marks=pytest.mark.e2e) for p in sorted(REAL.glob("*.json"))),
]


def longest_path(source: bytes) -> float:
    body = json.loads(source)["workflow"]
    parents = {task["id"]: task["parents"] for task in body["specification"]["tasks"]}
    runtimes_seconds = runtimes(source)
    lengths: dict[str, float] = {}

    def length(task: str) -> float:
        if task not in lengths:
            lengths[task] = runtimes_seconds.get(task, 0) + max((length(parent) for parent in parents[task]), default=0)
        return lengths[task]

    return max(length(task) for task in parents)


def runtimes(source: bytes) -> dict[str, float]:
    tasks = json.loads(source)["workflow"]["execution"]["tasks"]
    return {task["id"]: task.get("runtimeInSeconds", 0) for task in tasks}


@pytest.mark.parametrize("source", FILES)
async def test_a_replayed_run_keeps_tasks_dependencies_and_order(source: bytes) -> None:
    speed = longest_path(source) / 0.5
    definition = from_wfformat(source, speed=speed)
    assert validate(definition).is_valid
    body = json.loads(source)["workflow"]["specification"]["tasks"]
    assert {s.name: set(s.depends_on_steps) for s in definition.steps} == {t["id"]: set(t["parents"]) for t in body}
    events: list[Event] = []
    result = await Executor(events.append, max_concurrency=None).run(definition)
    assert result.status == "completed"
    ends = {e.step.step_id: e for e in events if isinstance(e, StepFinished)}
    assert len(ends) == len(body)
    for end in ends.values():
        assert all(ends[before].time_ns <= end.started_ns for before in end.step.depends_on)
    (finished,) = [e for e in events if isinstance(e, ExecutionFinished)]
    path = [part.step for part in finished.critical_path]
    needs = {task["id"]: set(task["parents"]) for task in body}
    assert not needs[path[0]]
    assert all(before in needs[after] for before, after in itertools.pairwise(path))
    # Starting a thousand tasks takes as long as the machine needs, but no task may end early.
    runtimes_seconds = runtimes(source)
    assert all(part.duration_ns / NS >= runtimes_seconds[part.step] / speed * 0.99 for part in finished.critical_path)
    assert finished.duration_ns / NS >= 0.5 * 0.99
    if source is SMALL:
        assert path == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (b"{", "not_wfformat"),
        (b"{}", "not_wfformat"),
        (document({}, schemaVersion="1.7"), "wrong_version"),
        # The version is named first, whatever else is in it.
        (b'{"schemaVersion": "2.0", "workflow": 5, "name": []}', "wrong_version"),
        (b'{"schemaVersion": "1.2", "workflow": {"jobs": []}}', "wrong_version"),
        (document({"a": (1, ["b"])}), "unknown_dependency"),
        (b'{"schemaVersion": "1.5", "workflow": {"specification": {"tasks": [{"id": 5}]}}}', "not_wfformat"),
    ],
)
def test_what_is_no_such_file_is_named(source: bytes, code: str) -> None:
    with pytest.raises(InvalidWorkflow) as refused:
        from_wfformat(source)
    assert refused.value.faults[0].code == code


def test_a_dependency_told_by_one_end_is_kept() -> None:
    tasks: list[dict[str, Any]] = [
        {"id": "a", "name": "x", "children": ["b", "c"]},
        {"id": "b", "name": "x", "parents": None},
        {"id": "c", "name": "x", "parents": ["b"], "children": []},
    ]
    source = {"schemaVersion": "1.6", "workflow": {"specification": {"tasks": tasks}}}
    flow = from_wfformat(json.dumps(source).encode())
    assert {step.name: step.depends_on_steps for step in flow.steps} == {"a": (), "b": ("a",), "c": ("b", "a")}
    tasks[1]["children"] = ["d"]
    with pytest.raises(InvalidWorkflow) as refused:
        from_wfformat(json.dumps(source).encode())
    assert refused.value.faults[0].at == "workflow.specification.tasks[1].children[0]"


@pytest.mark.parametrize(("version", "runtime"), [("1.3", "runtime"), ("1.4", "runtimeInSeconds")])
def test_versions_with_one_list_of_tasks_are_read(version: str, runtime: str) -> None:
    """Tasks as wfcommons wrote them then: ids are numbers, parents and children are names."""

    def task(name: str, number: str, seconds: float | None, parents: list[str], children: list[str]) -> Any:
        return {"name": name, "type": "compute", "id": number, runtime: seconds, "cores": 1.0, "files": [],
                "parents": parents, "children": children}  # fmt: skip

    source = {
        "name": "blast-chameleon-small-001",
        "description": "Instance generated with WfCommons - https://wfcommons.org",
        "schemaVersion": version,
        "workflow": {
            "executedAt": "2020-10-06T22:38:36+00:00",
            "tasks": [
                task("split_fasta_00000001", "00000001", 0.5, [], ["blastall_00000002"]),
                task("blastall_00000002", "00000002", 8.0, ["split_fasta_00000001"], ["cat_00000003"]),
                task("cat_00000003", "00000003", None, [], []),
            ],
        },
    }
    flow = from_wfformat(json.dumps(source).encode(), speed=2)
    assert validate(flow).is_valid
    assert {step.name: (step.depends_on_steps, step.config["seconds"]) for step in flow.steps} == {
        "split_fasta_00000001": ((), 0.25),
        "blastall_00000002": (("split_fasta_00000001",), 4.0),
        "cat_00000003": (("blastall_00000002",), 0.0),
    }
    assert flow.metadata["source"] == f"WfFormat {version}"


def test_tasks_that_share_a_name_are_told_apart_by_their_ids() -> None:
    tasks = [{"name": "individuals", "id": "ID01", "runtime": 1, "parents": []},
             {"name": "individuals", "id": "ID02", "runtime": 2, "parents": ["ID01"]},
             {"name": "sifting", "id": "ID03", "runtime": 3, "parents": ["ID02", "ID01"]}]  # fmt: skip
    flow = from_wfformat(json.dumps({"schemaVersion": "1.3", "workflow": {"tasks": tasks}}).encode())
    assert {step.name: step.depends_on_steps for step in flow.steps} == {
        "individuals_ID01": (), "individuals_ID02": ("individuals_ID01",),
        "sifting": ("individuals_ID02", "individuals_ID01"),
    }  # fmt: skip
