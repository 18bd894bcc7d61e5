"""Real engines, instrumented only with their public OpenTelemetry packages, become executions with timelines.

Each program plays scenes and tells what its engine says happened; the service must show the same.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from tests.e2e.conftest import Server, eventually, get
from tests.engines import processes
from tests.engines.play import Program, Scene, Viewer
from tests.engines.run import installed

# What happened is compared, not how fast: this machine may be busy.
TOLERANCE_SECONDS: Final = 30.0
CELERY: Final = (
    "chain_with_retry", "group_in_span", "chord_in_span", "countdown", "hard_time_limit", "revoked", "process_killed",
    "worker_killed",
)  # fmt: skip
TEMPORAL: Final = ("nightly", "cancelled", "terminated", "continued", "worker_killed")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a real Redis."""
    if not processes.has_redis():
        pytest.skip("needs redis-server (apt-get install redis-server)")
    with processes.redis(tmp_path) as address:
        yield address


@pytest.fixture
def temporal(tmp_path: Path) -> Iterator[str]:
    """The address of a real Temporal server."""
    with processes.temporal(tmp_path, sys.executable) as address:
        yield address


def ended(service: Server, count: int) -> dict[str, Any]:
    """Wait until this many executions have ended; their timelines by workflow."""

    def read() -> dict[str, Any] | None:
        page = service.get("/api/workflows/executions")
        if page["total"] != count or any(execution["status"] in ("running", "pending") for execution in page["items"]):
            return None
        ids = [execution["execution_id"] for execution in page["items"]]
        by_id = [service.get(f"/api/workflows/executions/{execution_id}/timeline") for execution_id in ids]
        return {timeline["workflow_name"]: timeline for timeline in by_id}

    result: dict[str, Any] = eventually(read)
    return result


def steps_of(timeline: Any) -> list[tuple[str, str, int]]:
    return [(s["step_name"], s["status"], len(s["attempts"])) for s in timeline["step_timeline"]]


def critical_path_of(timeline: Any) -> list[str]:
    return [part["step_name"] for part in timeline["critical_path"]]


def played(
    service: Server, script: str, address: str, names: tuple[str, ...], directory: Path, *,
    python: str = sys.executable, variables: Mapping[str, str] = {},
) -> Iterator[Scene]:  # fmt: skip
    """Play scenes one after the other; each must be shown as its engine tells it."""
    variables = {"OTEL_SERVICE_NAME": "shop", "OTEL_EXPORTER_OTLP_ENDPOINT": service.address, **variables}
    viewer = Viewer(service.get)
    for scene in Program(python, script, address, *names, directory=directory, variables=variables):
        assert viewer.problems(scene, tolerance_seconds=TOLERANCE_SECONDS) == []
        yield scene


def shows(service: Server, *samples: str) -> None:
    """Wait for samples in the metrics. An engine's steps are counted once no more spans of them can come."""
    missing = list(samples)

    def are_shown() -> bool:
        metrics = service.get("/metrics")
        missing[:] = [sample for sample in samples if f"{sample}.0\n" not in metrics and f"{sample}\n" not in metrics]
        return not missing

    with contextlib.suppress(AssertionError):
        eventually(are_shown)
    assert missing == []


@pytest.mark.timeout(300)
def test_celery_with_real_workers(server: Callable[..., Server], redis: str, tmp_path: Path) -> None:
    service = server()
    scenes = [scene.name for scene in played(service, "celery_kinds.py", redis, CELERY, tmp_path)]
    assert scenes == [f"celery_{name}" for name in (*CELERY[:-1], "worker_at_work", CELERY[-1])]
    page = service.get("/api/workflows/executions?limit=100")["items"]
    chains = [item["execution_id"] for item in page if item["workflow_name"] == "celery_kinds.fetch"]
    timelines = [service.get(f"/api/workflows/executions/{execution_id}/timeline") for execution_id in chains]
    chain = next(timeline for timeline in timelines if timeline["status"] == "completed")
    assert critical_path_of(chain) == ["celery_kinds.fetch", "celery_kinds.price", "celery_kinds.store"]
    assert chain["step_timeline"][1]["wait"]["backoff"] > 0
    assert "no price yet" in chain["step_timeline"][1]["attempts"][0]["error_message"]
    shows(
        service,
        'workflow_step_retries_total{step="celery_kinds.price",workflow="celery_kinds.fetch",workspace="default"} 1',
    )


@pytest.mark.timeout(300)
def test_temporal_with_a_real_server(server: Callable[..., Server], temporal: str, tmp_path: Path) -> None:
    service = server()
    scenes = [scene.name for scene in played(service, "temporal_kinds.py", temporal, TEMPORAL, tmp_path)]
    assert scenes == [f"temporal_{name}" for name in (*TEMPORAL[:-1], "worker_at_work", TEMPORAL[-1])]
    shows(
        service,
        'workflow_step_attempts_total{outcome="failed",step="charge",workflow="Nightly",workspace="default"} 1',
        'workflow_executions_running{workflow="Nightly",workspace="default"} 0',
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("engine", "scene", "variables"),
    [("dagster", "dagster113_varied", {"ONE_PROCESS": "1"}), ("prefect", "prefect39_nightly", {})],
    ids=["dagster", "prefect"],
)
def test_an_engine_in_an_environment_of_its_own(
    server: Callable[..., Server], tmp_path: Path, engine: str, scene: str, variables: dict[str, str]
) -> None:
    python = installed(engine)
    if python is None:
        pytest.skip(f"needs an environment of its own (python -m tests.engines.run --install {engine})")
    names = scene.partition("_")[2]
    scenes = played(server(), f"{engine}_kinds.py", names, (), tmp_path, python=python, variables=variables)
    assert [each.name for each in scenes] == [scene]


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("rq_kinds.py", ("pipeline", "later", "failed", "killed")),
        ("dramatiq_kinds.py", ("pipeline", "group", "failed")),
    ],
    ids=["rq", "dramatiq"],
)
def test_a_queue_with_a_real_worker(
    server: Callable[..., Server], redis: str, tmp_path: Path, script: str, names: tuple[str, ...]
) -> None:
    scenes = list(played(server(), script, redis, names, tmp_path))
    assert len(scenes) == len(names)


HOOKED: Final = ("chain_with_retry", "chain_failed", "chord_bare", "hard_time_limit", "revoked", "process_killed")
HOOKED_TOO: Final = (
    "retries_exhausted", "group_bare", "countdown", "later_in_block", "nested", "terminated", "redelivered",
    "worker_killed",
)  # fmt: skip


RQ: Final = ("pipeline", "group", "killed")
RQ_TOO: Final = (
    "retry_later", "later", "later_in_block", "failed", "timed_out", "nested", "stopped", "requeued", "worker_killed",
)  # fmt: skip
DRAMATIQ: Final = ("pipeline", "callback", "pipeline_failed")
DRAMATIQ_TOO: Final = ("group", "delayed", "later_in_block", "failed", "nested", "timed_out", "worker_killed")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("celery", HOOKED),
        ("rq", RQ),
        ("dramatiq", DRAMATIQ),
        pytest.param("celery", HOOKED_TOO, marks=pytest.mark.slow),
        pytest.param("rq", RQ_TOO, marks=pytest.mark.slow),
        pytest.param("dramatiq", DRAMATIQ_TOO, marks=pytest.mark.slow),
    ],
    ids=["celery", "rq", "dramatiq", "celery-others", "rq-others", "dramatiq-others"],
)
def test_a_queue_by_its_own_hooks(
    server: Callable[..., Server], redis: str, tmp_path: Path, engine: str, names: tuple[str, ...]
) -> None:
    """Nothing is unknown: steps, statuses, attempts and edges are what the engine's own records say."""
    service = server()
    variables = {"TACHOGRAPH_URL": service.address, "HOOKS": "1"}
    if engine == "celery":
        # Its spans are there, too: they make no run of their own.
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = service.address

    def read(path: str) -> Any:
        status, body = get(service.address + path)
        if status == 404:
            raise LookupError(path)
        assert status == 200, body
        return body

    viewer = Viewer(read)
    scenes = []
    problems = []
    for scene in Program(sys.executable, f"{engine}_kinds.py", redis, *names, directory=tmp_path, variables=variables):
        # A worker that was killed is missed once its lease has passed.
        problems += viewer.problems(scene, tolerance_seconds=TOLERANCE_SECONDS, seconds=150)
        scenes.append(scene.name)
    assert problems == []
    assert set(scenes) >= {f"{engine}_hooks_{name}" for name in names}
