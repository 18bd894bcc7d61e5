"""dbt: ``dbtRunner(callbacks=[tachograph.integrations.dbt.callback()])``, or ``tachograph import dbt target/``.

An invocation of dbt is a run, a node (a model, a test, a seed, a snapshot) is a step. What waits for what is in dbt's
``manifest.json``. The callback tells it live; afterwards ``run_results.json`` says the same, also of an invocation that
nobody watched. Both tell of the same run: they may be combined, and repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from tachograph.errors import TachographError
from tachograph.names import clean_name
from tachograph.quiet_log import QuietLog
from tachograph.report import Run, Step, run
from tachograph.report.safely import caller_traceparent

quiet = QuietLog(logging.getLogger(__name__))

MAX_FILE_BYTES: Final = 1 << 30
MAX_NODES: Final = 20_000
_EPHEMERAL: Final = "ephemeral"
_GOOD: Final = frozenset({"success", "pass", "warn"})
_BAD: Final = frozenset({"error", "fail", "runtime error", "partial success"})


class DbtError(TachographError):
    """A directory is not one of dbt's results; the message says why."""


class _DependsOn(msgspec.Struct):
    nodes: list[str] = []


class _Config(msgspec.Struct):
    materialized: str | None = None


class _Node(msgspec.Struct):
    name: str = ""
    resource_type: str = ""
    depends_on: _DependsOn = msgspec.field(default_factory=_DependsOn)
    config: _Config = msgspec.field(default_factory=_Config)


class _ManifestMetadata(msgspec.Struct):
    project_name: str | None = None


class _Manifest(msgspec.Struct):
    nodes: dict[str, _Node]
    metadata: _ManifestMetadata = msgspec.field(default_factory=_ManifestMetadata)


class _Timing(msgspec.Struct):
    name: str = ""
    started_at: datetime | None = None
    completed_at: datetime | None = None


class _Result(msgspec.Struct):
    unique_id: str
    status: str
    timing: list[_Timing] = []
    execution_time: float = 0.0
    message: str | None = None
    adapter_response: dict[str, Any] = {}


class _Metadata(msgspec.Struct):
    invocation_id: str
    generated_at: datetime
    invocation_started_at: datetime | None = None


class _RunResults(msgspec.Struct):
    metadata: _Metadata
    results: list[_Result]
    elapsed_time: float = 0.0
    args: dict[str, Any] = {}


def import_target(directory: Path) -> Run:
    """Report the invocation whose ``run_results.json`` and ``manifest.json`` are in a directory; again without effect.

    Raises `DbtError` if they are not there, or are not what dbt writes.
    """
    results = _read(directory / "run_results.json", _RunResults)
    manifest = _read(directory / "manifest.json", _Manifest)
    metadata = results.metadata
    ended = metadata.generated_at
    began = metadata.invocation_started_at or ended - timedelta(seconds=max(0.0, results.elapsed_time))
    starts = [timing.started_at for result in results.results for timing in result.timing if timing.started_at]
    began = min([began, *starts])
    invocation = _Invocation(metadata.invocation_id, str(results.args.get("which") or "run"), manifest)
    invocation.run.begin(at=began, heartbeats=False)
    invocation.choose(result.unique_id for result in results.results)
    invocation.queue(began)
    for result in results.results:
        invocation.end(result, at=ended)
    invocation.finish(at=ended)
    return invocation.run


def callback() -> Any:
    """A callback for ``dbtRunner(callbacks=[…])``, for one invocation after another. It never raises into dbt."""
    return _Callback()


class _Invocation:
    """An invocation of dbt as a run."""

    def __init__(
        self, invocation_id: str, command: str, manifest: _Manifest, *, traceparent: str | None = None
    ) -> None:
        project = manifest.metadata.project_name or "dbt"
        self.run: Run = run(f"{project} {command}", run_id=invocation_id, engine="dbt", traceparent=traceparent)
        self._nodes = manifest.nodes
        self._chosen: frozenset[str] = frozenset()
        self._failures: list[str] = []
        self._skipped: set[str] = set()

    def choose(self, ids: Iterable[str]) -> None:
        """These nodes run."""
        self._chosen = frozenset(ids)

    def queue(self, at: datetime) -> None:
        """All of them were asked for at a moment, and wait for each other and for a thread."""
        for unique_id in self._chosen:
            self.step(unique_id).queued(at=at)

    def step(self, unique_id: str, name: str = "", kind: str = "") -> Step:
        node = self._nodes.get(unique_id)
        if node is not None:
            name, kind = node.name or name, node.resource_type or kind
        step = self.run.step(name or unique_id, key=unique_id, step_type=kind or "task")
        step.depend_on(*self._above(unique_id))
        return step

    def _above(self, unique_id: str) -> list[str]:
        """The nodes that run and that a node waits for; in place of one that does not run, those above it."""
        above: dict[str, None] = {}
        pending, seen = [unique_id], {unique_id}
        while pending and len(seen) < MAX_NODES:
            node = self._nodes.get(pending.pop())
            for other in node.depends_on.nodes if node is not None else ():
                if other in seen:
                    continue
                seen.add(other)
                if other in self._chosen:
                    above[other] = None
                elif other in self._nodes:
                    pending.append(other)
        return list(above)

    def will_skip(self, unique_id: str) -> bool:
        """Whether dbt will skip a node, because of what it depends on."""
        return any(other in self._skipped or other in self._failures for other in self._above(unique_id))

    def end(self, result: _Result, at: datetime | None = None) -> None:
        """A node ended, ``at`` a moment if its result does not say when."""
        step, status = self.step(result.unique_id), result.status.lower()
        starts = [timing.started_at for timing in result.timing if timing.started_at is not None]
        ends = [timing.completed_at for timing in result.timing if timing.completed_at is not None]
        began = min(starts, default=at)
        ended = max(ends, default=at)
        message = result.message or ""
        if status in _GOOD:
            step.started(at=began)
            if status == "warn":
                step.log(message, "warning")
            rows = result.adapter_response.get("rows_affected")
            if isinstance(rows, int | float) and rows >= 0:
                step.measure("rows_affected", float(rows), "rows")
            step.finished(message or None, at=ended)
        elif status in _BAD:
            self._failures.append(result.unique_id)
            kind = "TestFailure" if status == "fail" else "DbtError"
            step.started(at=began).failed(f"{kind}: {message.strip() or status}", at=ended)
        elif status == "skipped":
            self._skipped.add(result.unique_id)
            step.skipped("upstream_failed", at=ended)
        else:
            step.skipped("itself", at=ended)

    def finish(self, at: datetime | None = None) -> None:
        """The invocation ended."""
        if self._failures:
            names = ", ".join(self.step(unique_id).ref.name for unique_id in self._failures[:3])
            more = f" and {len(self._failures) - 3} more" if len(self._failures) > 3 else ""
            self.run.failed(f"DbtError: {names}{more} failed", at=at)
        else:
            self.run.finished(at=at)


class _Callback:
    """Hears of dbt's events, of which those of nodes are reported."""

    def __init__(self) -> None:
        self._invocation: _Invocation | None = None
        self._manifest: Path | None = None
        self._command = "run"

    def __call__(self, event: Any) -> None:
        name = ""
        try:
            name = event.info.name
            hear = _HEARD.get(name)
            if hear is not None:
                hear(self, event)
        except Exception:
            quiet.exception(name, "not reported: %s of dbt", name)

    def _args(self, event: Any) -> None:
        self._invocation = self._manifest = None
        from dbt.flags import get_flags

        self._command = str(getattr(get_flags(), "WHICH", None) or "run")

    def _artifact(self, event: Any) -> None:
        path = Path(str(event.data.artifact_path))
        if path.name == "manifest.json":
            self._manifest = path

    def _of(self, event: Any) -> _Invocation:
        if self._invocation is None:
            manifest = _Manifest(nodes={})
            if self._manifest is not None:
                try:
                    manifest = _read(self._manifest, _Manifest)
                except DbtError as error:
                    quiet.warning("manifest", "%s", error)
            # dbt's own spans of the invocation are in this trace.
            self._invocation = _Invocation(
                str(event.info.invocation_id), self._command, manifest, traceparent=caller_traceparent()
            )
            # Which of them run is not said beforehand.
            self._invocation.choose(
                unique_id for unique_id, node in manifest.nodes.items() if node.config.materialized != _EPHEMERAL
            )
            self._invocation.run.begin()
        return self._invocation

    def _started(self, event: Any) -> None:
        info = event.data.node_info
        invocation = self._of(event)
        # dbt starts what it will skip, too; and ephemeral models, which are parts of others.
        if info.materialized != _EPHEMERAL and not invocation.will_skip(info.unique_id):
            invocation.step(info.unique_id, info.node_name, info.resource_type).started()

    def _finished(self, event: Any) -> None:
        info, told = event.data.node_info, event.data.run_result
        result = _Result(
            info.unique_id, str(told.status or info.node_status), message=told.message,
            adapter_response=_plain(told.adapter_response),
        )  # fmt: skip
        if info.materialized != _EPHEMERAL:
            self._of(event).end(result)

    def _completed(self, event: Any) -> None:
        invocation, self._invocation = self._invocation, None
        if invocation is not None:
            invocation.finish()


_HEARD: Final = {
    "MainReportArgs": _Callback._args,
    "ArtifactWritten": _Callback._artifact,
    "NodeStart": _Callback._started,
    "NodeFinished": _Callback._finished,
    "CommandCompleted": _Callback._completed,
}


def _plain(values: Any) -> dict[str, Any]:
    return dict(values.items()) if isinstance(values, Mapping) or hasattr(values, "items") else {}


def _read(path: Path, kind: Any) -> Any:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DbtError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise DbtError(f"cannot read {clean_name(str(path))}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DbtError(f"{clean_name(str(path))} is not what dbt writes: {error}") from None
