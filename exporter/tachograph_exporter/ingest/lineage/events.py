"""OpenLineage events as they arrive, and the part of them that executions are assembled from.

Wire format: https://openlineage.io/spec/2-0-2/OpenLineage.json (RunEvent, JobEvent, DatasetEvent) and the facets of
https://openlineage.io/spec/facets/. A facet that is not what its schema says is left out; it does not cost its event.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tachograph.clock import NS
from tachograph_exporter.ingest.lineage.airflow import AirflowFacts, airflow_facts
from tachograph_exporter.ingest.spans import AHEAD_SECONDS, EARLIEST_NS, clean

MAX_EVENTS: Final = 10_000
"""Events that one batch may carry."""
MAX_EVENT_BYTES: Final = 4 << 20
"""Bytes that one event may have."""
MAX_DATASETS: Final = 2_000
"""Inputs, and outputs, that are read of one event."""
MAX_NAME: Final = 500
"""Characters that are read of the names of jobs, namespaces and datasets."""
KINDS: Final = frozenset({"START", "RUNNING", "COMPLETE", "FAIL", "ABORT", "OTHER"})
ENDS: Final = frozenset({"COMPLETE", "FAIL", "ABORT"})
_MAX_MESSAGE: Final = 4_000
_MAX_STACK: Final = 20_000
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:[.,]([0-9]{1,9})[0-9]*)?"
                          r"([Zz]|[+-][0-9]{2}:?[0-9]{2})?(?:\[[^\]]*\])?")  # fmt: skip
_ERROR: Final = re.compile(r"(?:^|\n)([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning|Timeout|Failure))\b")


class JobRun(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run and its job, as another run's parent facet names them."""

    run_id: str
    namespace: str
    name: str


class LineageError(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The facet ``errorMessage``."""

    type: str
    message: str
    stack: str = ""


class LineageEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is read of a run event.

    Attributes:
        kind: one of `KINDS`.
        job_type, integration: of the job facet ``jobType`` (``TASK`` of ``AIRFLOW``, for instance).
        parent, root: of the run facet ``parent``.
        nominal: when it was scheduled to start, of the run facet ``nominalTime``.
        node: dbt's unique id of the node that ran, of the job facet ``dbt_node``.
        inputs, outputs: datasets, with their namespaces.
    """

    event_id: str
    time_ns: int
    kind: str
    run_id: str
    namespace: str
    job: str
    job_type: str = ""
    integration: str = ""
    engine: str = ""
    parent: JobRun | None = None
    root: JobRun | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    error: LineageError | None = None
    node: str = ""
    nominal: str = ""
    airflow: AirflowFacts | None = None

    @property
    def mentioned(self) -> tuple[str, ...]:
        """The ids of the runs that it says belong together."""
        return tuple(dict.fromkeys([self.run_id, *[other.run_id for other in (self.parent, self.root) if other]]))


class BadEvent(ValueError):
    """An event is not what the specification says; the message names the place in it. ``is_json``: it is JSON."""

    def __init__(self, at: str, why: str, *, is_json: bool = True) -> None:
        super().__init__(f"{at} {why}" if at else why)
        self.is_json = is_json


def read_event(body: bytes, now_ns: int | None = None) -> LineageEvent | None:
    """A run event; None for a job or dataset event, which tells of no run. Raises `BadEvent`.

    ``now_ns``: the time that events may not be far ahead of (default: now).
    """
    if len(body) > MAX_EVENT_BYTES:
        raise BadEvent("", f"the event is larger than {MAX_EVENT_BYTES} bytes")
    try:
        event = msgspec.json.decode(body)
    except RecursionError:
        raise BadEvent("", "the event is nested too deeply", is_json=False) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEvent("", f"the event is not JSON: {str(error)[:200]}", is_json=False) from None
    if not isinstance(event, dict):
        raise BadEvent("", "an event is an object")
    time_ns = _time(event.get("eventTime"), time.time_ns() if now_ns is None else now_ns)
    if event.get("run") is None:
        if event.get("job") is None and event.get("dataset") is None:
            raise BadEvent("run", "is missing; an event tells of a run, a job or a dataset")
        what = "job" if event.get("job") is not None else "dataset"
        _text(event, what, "namespace")
        _text(event, what, "name")
        return None
    return _run_event(event, time_ns, hashlib.blake2b(body, digest_size=16).hexdigest())


def _run_event(event: Mapping[str, Any], time_ns: int, event_id: str) -> LineageEvent:
    kind = event.get("eventType")
    kind = "OTHER" if kind is None else str(kind).upper()
    if kind not in KINDS:
        raise BadEvent("eventType", f"is {str(event['eventType'])[:40]!r}, not one of {', '.join(sorted(KINDS))}")
    run_id = _text(event, "run", "runId").lower()
    if not _UUID.fullmatch(run_id):
        raise BadEvent("run.runId", f"is {run_id[:60]!r}, not a UUID")
    job_facets, run_facets = (
        facet(event["job"] if _is_map(event.get("job")) else {}, "facets"),
        facet(event["run"], "facets"),
    )
    job_type, node = facet(job_facets, "jobType"), facet(job_facets, "dbt_node")
    parent, root = _parents(facet(run_facets, "parent") or facet(run_facets, "parentRun"), run_id)
    return LineageEvent(
        event_id=event_id,
        time_ns=time_ns,
        kind=kind,
        run_id=run_id,
        namespace=_text(event, "job", "namespace")[:MAX_NAME],
        job=_text(event, "job", "name")[:MAX_NAME],
        job_type=_word(job_type.get("jobType")).upper(),
        integration=_word(job_type.get("integration")).upper(),
        engine=_word(facet(run_facets, "processing_engine").get("name")),
        parent=parent,
        root=root,
        inputs=_datasets(event, "inputs"),
        outputs=_datasets(event, "outputs"),
        error=_error(facet(run_facets, "errorMessage")),
        node=_word(node.get("unique_id"), MAX_NAME),
        nominal=_word(facet(run_facets, "nominalTime").get("nominalStartTime")),
        airflow=airflow_facts(run_facets, job_facets),
    )


def facet(facets: Any, name: str) -> Mapping[str, Any]:
    """A facet, or another object in an event; an empty one if it is not there."""
    value = facets.get(name) if isinstance(facets, dict) else None
    return value if isinstance(value, dict) else {}


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _word(value: Any, limit: int = 100) -> str:
    return clean(value)[:limit] if isinstance(value, str) else ""


def _text(event: Mapping[str, Any], outer: str, name: str) -> str:
    """A text that an event must have. Raises `BadEvent`."""
    part = event.get(outer)
    if not isinstance(part, dict):
        raise BadEvent(outer, "is missing" if part is None else "is not an object")
    value = part.get(name)
    if not isinstance(value, str) or not value:
        raise BadEvent(f"{outer}.{name}", "is missing" if value is None else "is not a text, or is empty")
    return clean(value)


def _time(value: Any, now_ns: int) -> int:
    if not isinstance(value, str):
        raise BadEvent("eventTime", "is missing" if value is None else "is not a text")
    match = _TIME.fullmatch(value.strip())
    moment = _moment(match[1], match[3] or "Z") if match is not None else None
    if match is None or moment is None:
        raise BadEvent("eventTime", f"is {value[:60]!r}, not a time as in RFC 3339")
    time_ns = int(moment.astimezone(UTC).timestamp()) * NS + int((match[2] or "").ljust(9, "0"))
    if time_ns < EARLIEST_NS:
        raise BadEvent("eventTime", "is before the year 2000: check the clock of its host")
    if time_ns > now_ns + round(AHEAD_SECONDS * NS):
        raise BadEvent("eventTime", "is more than a day from now: check the clock of its host")
    return time_ns


def _moment(text: str, zone: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.upper() + ("+00:00" if zone in "Zz" else zone))
    except ValueError:
        return None


def _parents(parent: Mapping[str, Any], run_id: str) -> tuple[JobRun | None, JobRun | None]:
    """The run above a run, and the topmost one. A run that names itself has none above it."""
    above, top = _job_run(parent), _job_run(facet(parent, "root"))
    if above is not None and above.run_id == run_id:
        above = None
    if top is not None and (top.run_id == run_id or (above is not None and top.run_id == above.run_id)):
        top = None
    return above, top


def _job_run(value: Mapping[str, Any]) -> JobRun | None:
    run, job = facet(value, "run"), facet(value, "job")
    run_id = _word(run.get("runId")).lower()
    if not _UUID.fullmatch(run_id):
        return None
    return JobRun(run_id, _word(job.get("namespace"), MAX_NAME), _word(job.get("name"), MAX_NAME))


def _datasets(event: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = event.get(name)
    if not isinstance(values, list):
        return ()
    names = [
        f"{_word(value.get('namespace'), MAX_NAME)}/{_word(value['name'], MAX_NAME)}"
        for value in values[:MAX_DATASETS]
        if isinstance(value, dict) and isinstance(value.get("name"), str)
    ]
    return tuple(dict.fromkeys(names))


def _error(value: Mapping[str, Any]) -> LineageError | None:
    message, stack = value.get("message"), value.get("stackTrace")
    if not isinstance(message, str):
        return None
    stack = stack if isinstance(stack, str) else ""
    # A line of the stack has the exception's type before its message; otherwise something that looks like a type.
    line = message.strip().partition("\n")[0][:200]
    names = re.findall(rf"^([A-Za-z_$][\w.$]*): {re.escape(line)}", stack, re.MULTILINE) if line else []
    names = names or _ERROR.findall(stack) or _ERROR.findall(message)
    kind = names[-1][:300] if names else "Error"
    return LineageError(kind, clean(message)[:_MAX_MESSAGE], clean(stack)[-_MAX_STACK:])
