"""Snakemake 9: ``snakemake --logger tachograph``, with a service named in ``TACHOGRAPH_URL``.

What Snakemake executes is a run, a job is a step called like its rule; jobs of a rule with wildcards are instances of
it. Snakemake hands what it logs to its logger plugins: the package ``snakemake_logger_plugin_tachograph`` passes the
records on to `Records`, in a thread that Snakemake has for that.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any, Final, NamedTuple

from tachograph.identity import new_id
from tachograph.quiet_log import QuietLog
from tachograph.report import Run, Step, run

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Snakemake")

MAX_FILES: Final = 200_000
"""Output files of which the job that makes them is remembered."""
RESTART_SECONDS: Final = 10.0
"""A job that failed and is not restarted by then has failed for good."""
_STOPPING_SECONDS: Final = 1.0
"""Jobs that somebody's Ctrl-C ended may fail before Snakemake says that it was asked to stop."""
_TOLD_FILES: Final = 20
_DEFAULT_NAMES: Final = frozenset({"snakefile", "main"})
_DEFAULT_DIRECTORIES: Final = frozenset({"workflow", ""})
_ANNOTATION: Final = re.compile(
    r" \((?:(?:pipe|service|nodelocal|update|before update|cached|access: \w+)(?:, )?)?"
    r"(?:retrieve from storage|only provide storage uri|send to storage|in storage)?\)$"
)
"""What Snakemake writes behind a file's name."""
_ERROR: Final = re.compile(r"(?:RuleException:\n)?(\w+)(?: in [^\n]*)?:\n(.*)", re.DOTALL)
"""``CalledProcessError in file "Snakefile", line 5:`` and what it is about."""
_MISSING_OUTPUT: Final = re.compile(r"\bJob (\d+)\s+completed successfully, but")
"""A job whose outputs are missing fails in the scheduler, which tells of it by this alone."""
_RESTARTS: Final = re.compile(r"Trying to restart job (\d+)")
_STOPS: Final = ("Terminating processes on user request", "Will exit after finishing currently running jobs")
_NOTHING: Final = "Nothing to be done"


class _Failed(NamedTuple):
    """How the last attempt of a job ended, while it is not known whether Snakemake restarts it."""

    error: str
    at: float


class Records:
    """Turns the records of an invocation of Snakemake into what it executes. Never raises."""

    def __init__(self, workflow: str | None = None, *, is_dry_run: bool = False) -> None:
        self._workflow = workflow
        self._is_dry_run = is_dry_run
        self._execution: _Execution | None = None

    @_harmless
    def handle(self, record: logging.LogRecord) -> None:
        """Take a record that Snakemake logs."""
        if self._is_dry_run:
            return
        event = getattr(record, "event", None)
        if event == "workflow_started":
            self.close()
            self._execution = _Execution(self._workflow or _name_of(record), record)
        elif self._execution is not None:
            self._execution.settle(record.created)
            if event is None:
                self._execution.said(record)
            elif (act := _HEARD.get(str(event))) is not None:
                act(self._execution, record)

    @_harmless
    def close(self) -> None:
        """Snakemake ends."""
        execution, self._execution = self._execution, None
        if execution is not None:
            execution.end()


class _Execution:
    """What Snakemake executes."""

    def __init__(self, workflow: str, record: logging.LogRecord) -> None:
        self.run: Run = run(workflow, run_id=str(getattr(record, "workflow_id", "") or new_id()), engine="snakemake")
        self._began = record.created
        self._counts: dict[str, int] = {}
        self._above: dict[str, set[str]] = {}
        self._jobs: dict[int, Step] = {}
        self._open: dict[int, Step] = {}
        self._rules: set[str] = set()
        self._attempts: Counter[int] = Counter()
        self._makers: dict[str, Step] = {}
        self._failed: dict[int, _Failed] = {}
        self._errors: dict[int | None, str] = {}
        self._first_error: str | None = None
        self._stopped: float | None = None
        self._is_complete = False
        told = {"command": getattr(record, "cmd", None), "directory": getattr(record, "rundir", None)}
        self.run.begin(inputs={name: value for name, value in told.items() if value}, at=record.created)

    # What Snakemake says.

    def said(self, record: logging.LogRecord) -> None:
        """A line for people. Restarts and the wish to stop are told in no other way."""
        text = record.getMessage()
        if (restarts := _RESTARTS.match(text)) is not None:
            self._restart(int(restarts[1]), record)
        elif text.startswith(_STOPS):
            self._stopped = self._stopped or record.created
        elif text.startswith(_NOTHING):
            self._is_complete = True

    def plan(self, record: Any) -> None:
        """How many jobs each rule has."""
        self._counts = {rule: count for rule, count in record.stats.items() if rule != "total" and count}

    def connect(self, record: Any) -> None:
        """Which rule waits for which."""
        for link in record.rulegraph["links"]:
            self._above.setdefault(link["targetrule"], set()).add(link["sourcerule"])

    def start(self, record: Any) -> None:
        """A job is given to those who do it."""
        index = _instance(record.wildcards)
        inputs, outputs = _files(record.input), _files(record.output)
        above = {step.id: step for file in inputs if (step := self._makers.get(file)) is not None}
        step = self.run.step(record.rule_name, index=index, depends_on=above.values())
        self._jobs[record.jobid] = self._open[record.jobid] = step
        self._rules.add(record.rule_name)
        for file in outputs:
            if len(self._makers) < MAX_FILES:
                self._makers[file] = step
        self._failed.pop(record.jobid, None)
        self._attempts[record.jobid] += 1
        is_first = self._attempts[record.jobid] == 1
        told = {
            "wildcards": dict(record.wildcards or {}), "reason": record.reason, "threads": record.threads,
            "shell": getattr(record, "shellcmd", None),
        }  # fmt: skip
        step.started(
            attempt=self._attempts[record.jobid],
            inputs={name: value for name, value in told.items() if value},
            at=record.created,
            queued_at=self._began if is_first else None,
        )

    def finish(self, record: Any) -> None:
        """A job ended well, and its outputs are there."""
        if (step := self._open.pop(record.job_id, None)) is not None:
            step.finished(at=record.created)

    def err(self, record: logging.LogRecord) -> None:
        """An exception. If it is that of a job, the same thread tells of the job next."""
        error = _error(record.getMessage())
        if (missing := _MISSING_OUTPUT.search(error)) is not None and int(missing[1]) in self._open:
            self._retry(int(missing[1]), error, record.created)
        else:
            self._errors[record.thread] = error

    def fail(self, record: Any) -> None:
        """An attempt of a job failed."""
        self._retry(record.jobid, self._errors.pop(record.thread, "") or _reason(record), record.created)

    def progress(self, record: Any) -> None:
        """So many jobs of all have ended."""
        self._is_complete = record.done >= record.total

    # What follows from it.

    def settle(self, now: float) -> None:
        """Jobs that failed a while ago have failed for good."""
        for job_id, failed in list(self._failed.items()):
            if now - failed.at > RESTART_SECONDS:
                self._fail(job_id, failed)

    def _retry(self, job_id: int, error: str, at: float) -> None:
        """An attempt failed. Whether it was the last one shows in a moment."""
        if (step := self._open.pop(job_id, None)) is not None:
            step.retrying(error, at=at)
            self._failed[job_id] = _Failed(error, at)

    def _restart(self, job_id: int, record: logging.LogRecord) -> None:
        """A job that failed will run again; of a few it was not told that they failed."""
        self._retry(job_id, self._errors.pop(record.thread, "") or "JobFailed: it is restarted", record.created)
        self._failed.pop(job_id, None)

    def _fail(self, job_id: int, failed: _Failed) -> None:
        self._failed.pop(job_id, None)
        if self._stopped is not None and failed.at >= self._stopped - _STOPPING_SECONDS:
            self._jobs[job_id].cancelled(failed.error, attempt=self._attempts[job_id], at=failed.at)
        else:
            self._first_error = self._first_error or failed.error
            self._jobs[job_id].failed(failed.error, attempt=self._attempts[job_id], at=failed.at)

    def end(self) -> None:
        """Snakemake ends: what did not run by now never will."""
        now = time.time()
        for job_id, failed in list(self._failed.items()):
            self._fail(job_id, failed)
        is_stopped = self._stopped is not None and self._first_error is None
        for step in self._open.values():
            if self._stopped is not None:
                step.cancelled("Stopped: Snakemake was asked to stop", at=now)
        if self._first_error is None and self._is_complete and not self._errors:
            self.run.finished(at=now)
            return
        for rule in self._counts.keys() - self._rules:
            above = sorted(self._above.get(rule, set()) & self._counts.keys() - {rule})
            step = self.run.step(rule, depends_on=above)
            step.skipped("execution_cancelled" if self._stopped is not None else "upstream_failed", at=now)
        if is_stopped:
            self.run.cancelled("Stopped: Snakemake was asked to stop", at=now)
        else:
            others = next(iter(self._errors.values()), None)
            self.run.failed(self._first_error or others or "it ended before all its jobs were done", at=now)


_HEARD: Final[Mapping[str, Callable[[_Execution, Any], None]]] = {
    "run_info": _Execution.plan,
    "rulegraph": _Execution.connect,
    "job_info": _Execution.start,
    "job_finished": _Execution.finish,
    "error": _Execution.err,
    "job_error": _Execution.fail,
    "progress": _Execution.progress,
}


def _name_of(record: logging.LogRecord) -> str:
    """A Snakefile's name, if it has one of its own, or that of its project's directory."""
    snakefile = getattr(record, "snakefile_main", None) or getattr(record, "snakefile", None) or ""
    path = PurePath(str(snakefile))
    if path.stem.lower() not in _DEFAULT_NAMES:
        return path.stem or "snakemake"
    directories = (path.parent.name, path.parent.parent.name, PurePath(str(getattr(record, "rundir", ""))).name)
    return next((name for name in directories if name not in _DEFAULT_DIRECTORIES), "snakemake")


def _instance(wildcards: Mapping[str, Any] | None) -> str | None:
    """Which instance of its rule a job is, by its wildcards."""
    return ",".join(f"{name}={value}" for name, value in (wildcards or {}).items()) or None


def _files(files: Iterable[Any] | None) -> list[str]:
    return [_ANNOTATION.sub("", str(file)) for file in files or ()]


def _error(text: str) -> str:
    """``CalledProcessError: Command …`` of what Snakemake writes over several lines."""
    match = _ERROR.fullmatch(text)
    return f"{match[1]}: {match[2].strip()}" if match is not None else text


def _reason(record: Any) -> str:
    """Why a job failed whose exception only its own process saw."""
    if record.rule_msg:
        return f"JobFailed: {record.rule_msg}"
    logs = ", ".join(_files(record.log)[:_TOLD_FILES])
    return f"JobFailed: rule {record.rule_name} failed" + (f", see {logs}" if logs else "")
