"""Nextflow: ``tachograph import nextflow trace.txt``, the file that ``nextflow run -with-trace`` writes.

A task is a step called like its process; several tasks of one process are instances of it, called like their tag. A
task that Nextflow tries again is another attempt. What waits for what, and what the run itself ended with, the file
does not say.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, tzinfo
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from tachograph.errors import TachographError
from tachograph.names import clean_name
from tachograph.report import Run, run
from tachograph.report.runs import MAX_STEPS
from tachograph.resources import Resources

MAX_FILE_BYTES: Final = 1 << 28
_NOTHING: Final = "-"
_NEEDED: Final = ("name", "status", "submit")
_ENDED: Final = frozenset({"COMPLETED", "FAILED", "ABORTED"})
_OPEN: Final = frozenset({"NEW", "SUBMITTED", "RUNNING"})
_IGNORED: Final = "IGNORE"
_PLUMBING: Final = frozenset({"pipeline_info", "results", "reports", "logs", "trace", ""})
"""Directories of traces that say nothing of the pipeline."""
_NAME: Final = re.compile(r"(?P<process>[^ (]+)(?: \((?P<tag>.*)\))?", re.DOTALL)
_DURATION: Final = re.compile(r"([\d.]+) ?(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZE: Final = re.compile(r"([\d.]+) ?(B|KB|MB|GB|TB|PB)?")
_BYTES: Final = {None: 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40, "PB": 1 << 50}


class NextflowError(TachographError):
    """A file is not a trace of Nextflow; the message says why."""


class _Task(NamedTuple):
    """A row: an attempt of a task. Times are unix seconds."""

    process: str
    tag: str | None
    status: str
    exit_status: str | None
    submitted: float
    started: float | None
    ended: float | None
    attempt: int | None
    is_ignored: bool
    resources: Resources
    digest: str

    def follows(self, other: _Task) -> bool:
        """Whether this may be the next attempt of another row's task."""
        if other.status != "FAILED" or other.is_ignored:
            return False
        return self.attempt is None or other.attempt is None or self.attempt == other.attempt + 1


def import_trace(
    path: Path, *, workflow: str | None = None, run_id: str | None = None, timezone: tzinfo | None = None
) -> Run:
    """Report the run that a trace file tells of; again without effect.

    Args:
        path: the file.
        workflow: what the run is called (default: like the directory of the file).
        run_id: what Nextflow calls the run (default: made of the file's name and first row).
        timezone: of the times in the file (default: that of this machine).

    Raises `NextflowError` if the file is not there, or is not what Nextflow writes.
    """
    rows = list(_tasks(path, timezone))
    if not rows:
        raise NextflowError(f"{clean_name(str(path))} has no tasks")
    name = workflow or next((part for part in reversed(path.resolve().parts[:-1]) if part not in _PLUMBING), "nextflow")
    reported = run(name, run_id=run_id or f"{path.stem} {rows[0].digest}", engine="nextflow")
    tasks = [task for task in rows if task.status != "CACHED"]
    began = min((task.submitted for task in tasks), default=max(task.submitted for task in rows))
    ended = max((task.ended or task.started or task.submitted for task in tasks), default=began)
    reported.begin(at=began, heartbeats=False)
    errors = []
    for key, tag, attempts in _steps(rows):
        errors += _report(reported, key, tag, attempts, began, ended)
    if errors:
        reported.failed(errors[0], at=ended)
    elif any(task.status in _OPEN or task.status == "ABORTED" for task in tasks):
        reported.cancelled("Stopped: tasks had not ended when the trace did", at=ended)
    else:
        reported.finished(at=ended)
    return reported


def _steps(rows: Iterable[_Task]) -> Iterator[tuple[str, str | None, list[_Task]]]:
    """Tasks with their attempts: process, instance, rows in their order."""
    instances: dict[tuple[str, str | None], list[list[_Task]]] = {}
    for row in sorted(rows, key=lambda row: row.submitted):
        known = instances.setdefault((row.process, row.tag), [])
        # One that failed is tried again by a task of the same name, which others may have, too.
        before = next((attempts for attempts in known if row.follows(attempts[-1])), None)
        if before is not None:
            before.append(row)
        else:
            known.append([row])
    counts = Counter(process for process, _ in instances)
    for (process, tag), known in instances.items():
        for number, attempts in enumerate(known, 1):
            is_alone = counts[process] == 1 and len(known) == 1 and (tag is None or tag.isdecimal())
            instance = None if is_alone else (tag or "1") if number == 1 else f"{tag or 1}#{number}"
            yield process, instance, attempts


def _report(
    reported: Run, process: str, instance: str | None, attempts: list[_Task], began: float, ended: float
) -> list[str]:
    """Report a task; returns with what it failed, if that ended the run."""
    step = reported.step(process, index=int(instance) if instance and instance.isdecimal() else instance)
    if attempts[-1].status == "CACHED":
        step.skipped("condition", at=began)
        return []
    step.queued(at=attempts[0].submitted)
    for number, task in enumerate(attempts, 1):
        if task.started is not None:
            step.started(attempt=number, at=task.started, queued_at=task.submitted)
        at = task.ended or task.started or task.submitted
        error = f"ExitStatus: {task.exit_status}" if task.exit_status else "TaskFailed: Nextflow does not say why"
        if task.status == "COMPLETED":
            step.finished(attempt=number, at=at, resources=task.resources)
        elif task.status == "FAILED" and number < len(attempts):
            step.retrying(error, attempt=number, at=at, resources=task.resources)
        elif task.status == "FAILED":
            step.failed(error, attempt=number, at=at, resources=task.resources)
            return [] if task.is_ignored else [error]
        else:
            is_running = task.started is not None
            step.cancelled("Stopped: Nextflow stopped it", attempt=number if is_running else None, at=ended)
    return []


def _tasks(path: Path, timezone: tzinfo | None) -> Iterator[_Task]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise NextflowError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
            if missing:
                raise NextflowError(
                    f"{clean_name(str(path))} is no trace of Nextflow, or one without {', '.join(missing)}"
                )
            for number, row in enumerate(islice(rows, MAX_STEPS), 2):
                yield _task({name: text for name, text in row.items() if text and text != _NOTHING}, number, timezone)
    except OSError as error:
        raise NextflowError(f"cannot read {clean_name(str(path))}: {error.strerror}") from None
    except csv.Error as error:
        raise NextflowError(f"{clean_name(str(path))} is not what Nextflow writes: {error}") from None


def _task(row: Mapping[str, str], number: int, timezone: tzinfo | None) -> _Task:
    try:
        match = _NAME.fullmatch(row["name"])
        process = row.get("process") or (match["process"] if match is not None else row["name"])
        tag = row.get("tag") or (match["tag"] if match is not None else None)
        submitted = _moment(row["submit"], timezone)
        started = _moment(row["start"], timezone) if "start" in row else None
        ended = _moment(row["complete"], timezone) if "complete" in row else None
        status = row["status"]
        if ended is None and status in _ENDED and "duration" in row:
            ended = submitted + _duration(row["duration"])
        if started is None and ended is not None and "realtime" in row:
            started = max(submitted, ended - _duration(row["realtime"]))
        digest = hashlib.blake2b(f"{row.get('hash')} {row['name']} {row['submit']}".encode(), digest_size=8).hexdigest()
        return _Task(
            process, tag, status, row.get("exit"), submitted, started, ended,
            int(row["attempt"]) if "attempt" in row else None,
            row.get("error_action") == _IGNORED, _resources(row), digest,
        )  # fmt: skip
    except (KeyError, ValueError, OverflowError, OSError) as error:
        raise NextflowError(f"line {number} of the trace is not what Nextflow writes: {error}") from None


def _resources(row: Mapping[str, str]) -> Resources:
    """What the task used, as far as Nextflow measured it."""
    cpu = row.get("%cpu", "").removesuffix("%")
    used = float(cpu) / 100 * _duration(row["realtime"]) if cpu and "realtime" in row else None
    sizes = {name: _size(row[name]) for name in ("peak_rss", "read_bytes", "write_bytes") if name in row}
    return Resources(
        cpu_seconds=used,
        peak_memory_bytes=sizes.get("peak_rss"),
        read_bytes=sizes.get("read_bytes"),
        written_bytes=sizes.get("write_bytes"),
    )


def _moment(text: str, timezone: tzinfo | None) -> float:
    """Unix seconds of a local time, or of milliseconds (``trace.raw``)."""
    if text.isdecimal():
        return int(text) / 1000
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone)).timestamp()


def _duration(text: str) -> float:
    """Seconds of ``1m 39s``, or of milliseconds (``trace.raw``)."""
    if text.isdecimal():
        return int(text) / 1000
    parts = _DURATION.findall(text)
    if not parts:
        raise ValueError(f"{text!r} is no duration")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _size(text: str) -> int:
    """Bytes of ``11.2 MB``."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size")
    return int(float(match[1]) * _BYTES[match[2]])
