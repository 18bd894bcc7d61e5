"""Attempts of tasks as Ray 2.60's state API gives them; `make engines` has Ray itself."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conftest import Api

from tachograph.integrations import ray as integration
from tachograph.report import run

BEGAN = 1_800_000_000_000
DIED = "WORKER_DIED"


def attempt(
    task_id: str, number: int, state: str, created: int, started: int | None = None, ended: int | None = None,
    *, error: str | None = None, message: str = "", parent: str = "f" * 48, function: str = "shop.work",
    kind: str = "NORMAL_TASK",
) -> Any:  # fmt: skip
    return SimpleNamespace(
        task_id=task_id, attempt_number=number, state=state, creation_time_ms=BEGAN + created,
        start_time_ms=started and BEGAN + started, end_time_ms=ended and BEGAN + ended, error_type=error,
        error_message=message, parent_task_id=parent, func_or_class_name=function, name=function, type=kind,
    )  # fmt: skip


FIRST = attempt("a", 0, "FAILED", 100, 200, 300, error=DIED, message="A worker died")
RUNS = attempt("a", 0, "RUNNING", 100, 200)
AGAIN = attempt("a", 1, "FINISHED", 400, 500, 600)
WAITS = attempt("a", 1, "PENDING_ARGS_AVAIL", 400)


@pytest.mark.parametrize(
    "polls",
    [[[RUNS], [FIRST], [FIRST, WAITS], [FIRST, AGAIN]], [[FIRST, AGAIN]], [[AGAIN], [FIRST, AGAIN]], [[AGAIN, FIRST]],
     [[WAITS], [RUNS, WAITS], [FIRST, AGAIN], [FIRST, AGAIN]]],
)  # fmt: skip
async def test_attempts_in_any_order(api: Api, polls: Sequence[Sequence[Any]]) -> None:
    reported = run("nightly", engine="ray").begin(at=BEGAN / 1000, heartbeats=False)
    tasks = integration.Tasks(reported)
    results = [tasks.report(poll) for poll in polls]
    assert results[-1]
    assert not any(results[:-1]) or polls[-2:] == [[FIRST, AGAIN]] * 2
    tasks.end()
    reported.finished(at=BEGAN / 1000 + 1)
    (step,) = await steps(api, reported.execution_id)
    assert (step["step_name"], step["status"]) == ("work", "completed")
    assert [(told["status"], told["duration_seconds"]) for told in step["attempts"]] == [
        ("failed", 0.1), ("completed", 0.1)
    ]  # fmt: skip


async def steps(api: Api, execution_id: str) -> list[Any]:
    await asyncio.to_thread(api.service.recorder.flush, 60)
    timeline = await api.get(f"/api/workflows/executions/{execution_id}/timeline")
    return list(timeline["step_timeline"])


async def test_what_becomes_of_tasks(api: Api) -> None:
    reported = run("nightly", engine="ray").begin(at=BEGAN / 1000, heartbeats=False)
    tasks = integration.Tasks(reported)
    message = '\x1b[36mray::work()\x1b[39m\n  File "shop.py"\nValueError: token=hunter2secret no item 1'
    poll = [
        attempt("a", 0, "FAILED", 1, 10, 20, error="TASK_EXECUTION_EXCEPTION", message=message),
        attempt("b", 0, "FAILED", 2, None, 30, error="TASK_CANCELLED"),
        attempt("c", 0, "FINISHED", 3, 10, 90, function="shop.outer"),
        attempt("d", 0, "FINISHED", 4, 20, 80, function="shop.inner", parent="c"),
        attempt("e", 0, "FINISHED", 5, 20, 80, function="Counter.add", kind="ACTOR_TASK"),
    ]  # fmt: skip
    # It may be tried again, until it has been seen so for a while.
    assert [tasks.report(poll) for _ in range(4)] == [False, False, True, True]
    tasks.end()
    reported.finished(at=BEGAN / 1000 + 1)
    told = await steps(api, reported.execution_id)
    shown = {(step["step_name"], step["step_index"]): step for step in told}
    assert {key: step["status"] for key, step in shown.items()} == {
        ("work", 0): "failed", ("work", 1): "cancelled", ("outer", None): "completed", ("inner", None): "completed",
        ("Counter.add", None): "completed",
    }  # fmt: skip
    assert shown["inner", None]["parent_step_id"] == shown["outer", None]["step_id"]
    failed = shown["work", 0]
    assert failed["error_type"] == "ValueError"
    assert "hunter2secret" not in str(told)


def test_without_ray_the_block_runs(caplog: pytest.LogCaptureFixture) -> None:
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("Ray is installed")
    began = time.monotonic()
    with integration.run("nightly") as reported:
        result = 3
    assert (result, reported.is_ended) == (3, True)
    with pytest.raises(KeyError), integration.run("nightly") as reported:
        raise KeyError("shop")
    assert reported.is_ended
    assert time.monotonic() - began < 60
    assert "not reported: start of Ray" in caplog.text
