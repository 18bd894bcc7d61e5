"""Kedro: install Tachograph beside it, and name a service in ``TACHOGRAPH_URL``; Kedro finds the hooks by entry point.

What a session runs is a run, a node is a step, with the edges of the pipeline. The hooks
(`tachograph.integrations.kedro_hooks`) call the functions here. Nodes of a `ParallelRunner` tell of themselves, each in
its own process.
"""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from tachograph.integrations.places import Memory
from tachograph.integrations.running import RunningStep
from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder
from tachograph.report import Run, Step, run
from tachograph.variables import DATABASE_VARIABLE, URL_VARIABLE

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Kedro")

MAX_NODES: Final = 20_000
_RUN_VARIABLE: Final = "TACHOGRAPH_KEDRO_RUN"
"""Tells processes that a runner spawns how the run is called."""
_FLUSH_SECONDS: Final = 2.0
_ASKED_FOR: Final = (
    "env", "tags", "from_nodes", "to_nodes", "node_names", "from_inputs", "to_outputs", "namespaces", "load_versions",
    "runtime_params", "extra_params",
)  # fmt: skip
_SIMPLE: Final = (str, int, float, bool, type(None))
_workflows: Final = Memory()
"""How the runs of this process are called, by their ids."""
_running: Final = Memory()
_open: Final[dict[str, int]] = {}
"""Runs that have not ended, and the process that began them."""


def is_configured() -> bool:
    """Whether the environment says where to record."""
    return bool(os.environ.get(URL_VARIABLE, "").strip() or os.environ.get(DATABASE_VARIABLE, "").strip())


@_harmless
def pipeline_starts(run_params: Mapping[str, Any], pipeline: Any) -> None:
    """A session is about to run a pipeline: the nodes that were asked for, with what each waits for."""
    run_id, workflow = _run_id_of(run_params), _workflow_of(run_params)
    _workflows.put(run_id, workflow)
    os.environ[_RUN_VARIABLE] = json.dumps([run_id, workflow])
    reported = _run(run_id)
    reported.begin(inputs={key: value for key in _ASKED_FOR if (value := run_params.get(key))})
    _open[run_id] = os.getpid()
    # After the recorder, whose own handler comes last then.
    atexit.unregister(_interrupted)
    atexit.register(_interrupted)
    dependencies = pipeline.node_dependencies
    for node in pipeline.nodes[:MAX_NODES]:
        names = sorted(other.name for other in dependencies.get(node, ()))
        reported.step(node.name, depends_on=names).planned()


@_harmless
def pipeline_ended(run_params: Mapping[str, Any]) -> None:
    """All its nodes have run."""
    _end(run_params).finished()


@_harmless
def pipeline_failed(run_params: Mapping[str, Any], error: BaseException) -> None:
    """A node failed, or what it reads or writes could not be read or written."""
    _end(run_params).failed(error)


@_harmless
def node_starts(node: Any, run_id: str | None) -> None:
    """A node has its inputs and begins."""
    step = _step_of(node, run_id)
    if step is not None:
        step.started()
        _running.put((run_id, node.name), RunningStep(step))


@_harmless
def node_ended(node: Any, outputs: Mapping[str, Any], run_id: str | None) -> None:
    """A node ended well; its outputs are written next."""
    step = _step_of(node, run_id)
    if step is not None:
        told = {name: value if isinstance(value, _SIMPLE) else type(value).__name__ for name, value in outputs.items()}
        step.finished(told, resources=_leave(node, run_id))
        _flush_child()


@_harmless
def node_failed(node: Any, error: BaseException, run_id: str | None) -> None:
    """A node raised an exception."""
    step = _step_of(node, run_id)
    if step is not None:
        step.failed(error, resources=_leave(node, run_id))
        _flush_child()


@_harmless
def _interrupted() -> None:
    """The process ends in the middle of runs: Kedro's hooks hear of errors, and not of Ctrl-C."""
    for run_id in [run_id for run_id, pid in _open.items() if pid == os.getpid()]:
        del _open[run_id]
        reported, why = _run(run_id), "Interrupted: its process ended before it did"
        for step in reported.open_steps:
            step.cancelled(why)
        reported.cancelled(why)


def _leave(node: Any, run_id: str | None) -> Any:
    work: RunningStep | None = _running.take((run_id, node.name))
    if work is None:
        return None
    return work.leave()


def _flush_child() -> None:
    """Processes of a pool end without exit handlers."""
    if multiprocessing.parent_process() is not None:
        get_recorder().hand_over(_FLUSH_SECONDS)


def _step_of(node: Any, run_id: str | None) -> Step | None:
    """The step of a node; None if a runner runs it outside of any session."""
    if run_id is None:
        return None
    if _workflows.get(run_id) is None:
        try:
            known_id, workflow = json.loads(os.environ.get(_RUN_VARIABLE, ""))
        except ValueError:
            return None
        if known_id != run_id:
            return None
        _workflows.put(run_id, workflow)
    return _run(run_id).step(node.name)


def _run(run_id: str) -> Run:
    return run(_workflows.get(run_id), run_id=run_id, engine="kedro")


def _end(run_params: Mapping[str, Any]) -> Run:
    run_id = _run_id_of(run_params)
    ended = _run(run_id)
    _open.pop(run_id, None)
    if not _open:
        atexit.unregister(_interrupted)
    _workflows.take(run_id)
    os.environ.pop(_RUN_VARIABLE, None)
    return ended


def _run_id_of(run_params: Mapping[str, Any]) -> str:
    return str(run_params.get("run_id") or run_params["session_id"])  # Before Kedro 1.0 it was the session's.


def _workflow_of(run_params: Mapping[str, Any]) -> str:
    """The project's name, and those of the pipelines if they were named."""
    names = run_params.get("pipeline_names") or [run_params.get("pipeline_name")]
    named = [str(name) for name in names if name and name != "__default__"]
    project = PurePath(str(run_params.get("project_path") or "kedro")).name or "kedro"
    return " ".join([project, *named])
