"""What the recordings prove of each engine, and what they leave open; `tools/docs.py` makes a table of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from tests.ingest.recorded import in_order, recorded_requests, recorded_spans
from tests.ingest.truth import RECORDINGS, Truth, read_truth

from tachograph.clock import NS
from tachograph.events import ExecutionFinished, ExecutionStatus, StepReady, StepStarted
from tachograph_exporter.ingest.assembly.executions import AssembledExecution, assemble
from tachograph_exporter.ingest.built_in_rules import BUILT_IN, RULES
from tachograph_exporter.ingest.rules import Role
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.trace_groups import Together

NAMES: Final = sorted(
    path.name.removesuffix(".truth.json")
    for path in RECORDINGS.glob("*.truth.json")
    if path.with_name(path.name.replace(".truth", "")).exists()
)
RAW: Final = {
    path.name.partition(".jsonl")[0]: path
    for path in sorted(RECORDINGS.glob("*.jsonl*"))
    if read_truth(path.name.partition(".jsonl")[0])["format"] == "otlp-requests"
}
"""Recordings of requests as they arrived, with their files."""
TOLERANCE: Final = 0.35
"""Seconds that times may be apart from the engine's."""
TOLERANCES: Final = {"airflow3_nightly": 0.6, "celery_pipeline": 0.4}
"""Where it is more: a task's process starts before its first span does, and the sender's span before the first task."""
ASIDE: Final[dict[str, list[dict[str, str]]]] = {
    "airflow3_nightly": [
        # Airflow counts 19 s and 24 s, in which the first processes of a scheduler started; no span says so.
        *({"step": step, "field": field} for step in ("extract", "skipper") for field in ("started_at", "queued_at")),
        # They had ended when it was ready, and there are no links: who is to know that it waited for another one only?
        {"edge": "checks.*->choose"},
    ],
    # The flow's span ended with its first attempt; Prefect made none for the second. Calls in a row have no links.
    "prefect39_twice": [
        {"field": "status"}, {"field": "ended_at"}, {"edge": "extract#0->extract#1"},
    ],
    # The flow's own span never came.
    "prefect39_killed": [{"field": "started_at"}],
}  # fmt: skip
"""What need not be right though the truth does not say that it is unknowable."""
NOT_YET: Final = frozenset[str]()
"""Recordings that do not come out right yet."""

COLUMNS: Final = ("timeline", "statuses", "attempts", "edges", "waits", "running seen", "crash seen", "tokens")
EXACT: Final = "exact"
IN_PART: Final = "exact in part"
INFERRED: Final = "inferred"
UNKNOWN: Final = "cannot be known"
NOT_RECORDED: Final = "not recorded"


def engine_table() -> str:
    """A row for each engine and instrumentation of which there are recordings, and what cannot be known of them."""
    names_by_row: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in (*NAMES, *RAW):
        truth = read_truth(name)
        names_by_row[truth["engine"], _instrumentation(truth)].append(name)
    rows = [f"| engine | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    notes: list[str] = []
    for (engine, instrumentation), names in sorted(names_by_row.items()):
        truths = [read_truth(name) for name in names]
        label = f"{_title(engine)} {truths[0]['engine_version'].partition(',')[0].removeprefix('temporalio ')}"
        is_package = instrumentation == "logfire" or instrumentation[:1].isupper() or not instrumentation.isalpha()
        label += f" ({instrumentation})" if is_package else ""
        cells = [
            "not yet" if any(name in NOT_YET for name in names) else EXACT,
            _statuses(truths),
            _attempts(truths),
            _edges(truths, names),
            _waits(truths, engine),
            *_seen(names),
            _tokens(truths, names),
        ]
        rows.append(f"| {label} | {' | '.join(cells)} |")
        unknown = dict.fromkeys(sentence for truth in truths for sentence in truth.get("unknown", ()))
        if unknown:
            notes.append(f"- {label}: {'; '.join(unknown)}.")
    return "\n".join([*rows, "", "What its spans cannot tell:", "", *notes])


def _instrumentation(truth: Truth) -> str:
    """The package that makes the spans: a name without its version and how it was installed."""
    return re.split(r"[,;: ]", truth["instrumentation"])[0].rpartition("contrib.opentelemetry.")[2].partition("(")[0]


def _title(engine: str) -> str:
    own = {"arq": "arq", "dbt": "dbt", "faststream": "FastStream on Kafka",
           "n8n": "n8n", "rq": "RQ", "taskiq": "taskiq", "langchain": "LangChain",
           "langgraph": "LangGraph", "openai-agents": "OpenAI Agents"}  # fmt: skip
    return own.get(engine) or (engine if "-" in engine else engine.title())


def _steps(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    return [step for truth in truths for run in truth["executions"] for step in run.get("steps", ())]


def _unknowable(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    return [entry for truth in truths for entry in truth["unknowable"]]


def _statuses(truths: Sequence[Truth]) -> str:
    is_open = any(e.get("field", "status") == "status" and "edge" not in e for e in _unknowable(truths))
    return IN_PART if is_open else EXACT


def _attempts(truths: Sequence[Truth]) -> str:
    if all(step["attempts"] < 2 for step in _steps(truths)):
        return NOT_RECORDED
    return IN_PART if any(e.get("field") == "attempts" for e in _unknowable(truths)) else EXACT


def _edges(truths: Sequence[Truth], names: Sequence[str]) -> str:
    if any(e.get("edge") == "*" for e in _unknowable(truths)):
        return UNKNOWN
    if any(truth["edges_from"] != "recording" for truth in truths):
        return INFERRED
    entries = [*_unknowable(truths), *(entry for name in names for entry in ASIDE.get(name, ()))]
    return IN_PART if any("edge" in entry for entry in entries) else EXACT


def _waits(truths: Sequence[Truth], engine: str) -> str:
    if any(entry.get("field") == "scheduled_at" for entry in _unknowable(truths)):
        return IN_PART
    has_queue = any(rule.engine == engine and rule.role is Role.QUEUED for rule in RULES)
    return EXACT if has_queue or any("queued_at" in step for step in _steps(truths)) else UNKNOWN


def _tokens(truths: Sequence[Truth], names: Sequence[str]) -> str:
    if not any("tokens_in" in step for step in _steps(truths)):
        return "–"
    return "not yet" if any(name in NOT_YET for name in names) else EXACT


def _seen(names: Sequence[str]) -> tuple[str, str]:
    """Whether an execution is seen while it runs, and when everything dies in the middle, from its spans alone."""
    is_run_seen = are_steps_seen = False
    is_crash_seen = True
    for name in names:
        spans = in_order(_spans(name), "by end")
        for count in sorted({1, len(spans) // 3, len(spans) // 2, len(spans) - 2, len(spans) - 1} - {0, -1}):
            now_ns = max(span.end_ns for span in spans[:count]) + 3_600 * NS
            for run in assemble("default", _together(spans[:count]), now_ns, is_quiet=True):
                is_run_seen |= not run.is_finished
                are_steps_seen |= not run.is_finished and _has_open_step(run)
                end = run.events[-1]
                is_early = isinstance(end, ExecutionFinished) and end.status is ExecutionStatus.COMPLETED
                is_crash_seen &= not (is_early and run.root is None)
    running = "the run and its steps" if are_steps_seen else "the run" if is_run_seen else UNKNOWN
    return running, "lost by lease" if is_crash_seen else UNKNOWN


def _spans(name: str) -> list[SpanRecord]:
    if name not in RAW:
        return recorded_spans(name)
    return [span for request in recorded_requests(name) for span in request]


def _together(spans: Sequence[SpanRecord]) -> Sequence[SpanRecord]:
    by_trace: dict[str, list[SpanRecord]] = defaultdict(list)
    for span in spans:
        by_trace[span.trace_id].append(span)
    return Together(by_trace, BUILT_IN).read(by_trace)


def _has_open_step(run: AssembledExecution) -> bool:
    return any(isinstance(event, StepStarted | StepReady) for event in run.events)


if __name__ == "__main__":
    print(engine_table())
