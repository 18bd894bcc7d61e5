"""What a report leaves out: what the page does not show, and of a run that is too long for a file, first what is known
of ordinary steps, then steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.report_file.contents import Contents
from tachograph_exporter.views.schemas.logs import LogEntry
from tachograph_exporter.views.schemas.timeline import WorkflowStepTimelineEntry as Entry

LINE_LIMIT: Final = 2_000
"""Characters of a log line."""
STACK_LIMIT: Final = 4_000
_FEW_LINES: Final = 500
_SPARE: Final = 0.9
"""Steps that remain are the longest and the failed ones, about which there is more to say."""


def whole(contents: Contents) -> Contents:
    """All that the page shows of the contents."""
    comparison = contents.comparison
    if comparison is not None:
        # Of the others, it says nothing that the timeline does not.
        steps = [step for step in comparison.steps if step.step_id is not None and step.reference_seconds is not None]
        comparison = msgspec.structs.replace(comparison, steps=steps)
    return msgspec.structs.replace(contents, comparison=comparison, lines=[_line(line) for line in contents.lines])


def brief(contents: Contents) -> Contents:
    """The contents with all steps, but without inputs, outputs and lines of those that ended well."""
    lines = contents.lines[-_FEW_LINES:]
    timeline = contents.timeline
    entries = [_brief(entry) for entry in timeline.step_timeline]
    omitted = "Inputs, outputs and lines of ordinary steps are not in the report: the run is too long."
    return msgspec.structs.replace(
        contents, timeline=msgspec.structs.replace(timeline, step_timeline=entries), lines=lines,
        are_older_lines=contents.are_older_lines or len(lines) < len(contents.lines),
        omitted=[*contents.omitted, omitted],
    )  # fmt: skip


def fewer(contents: Contents, share: float) -> Iterator[Contents]:
    """The contents with about this share of the steps, then ever fewer; at last with none, and without lines."""
    entries = contents.timeline.step_timeline
    count = len(entries)
    while count:
        count = int(count * share * _SPARE)
        share = 0.7
        yield _with_steps(contents, _most_telling(entries, count), len(entries))


def _with_steps(contents: Contents, kept: Sequence[Entry], count: int) -> Contents:
    ids = {entry.step_id for entry in kept}
    timeline = msgspec.structs.replace(
        contents.timeline, step_timeline=list(kept), input_summary=contents.timeline.input_summary if kept else None,
        critical_path=[step for step in contents.timeline.critical_path if step.step_id in ids],
    )  # fmt: skip
    comparison = contents.comparison
    if comparison is not None:
        steps = [step for step in comparison.steps if step.step_id in ids]
        comparison = msgspec.structs.replace(comparison, steps=steps)
    text = f"{len(kept):,} of {count:,} steps are in the report: those that failed, the critical path, the longest."
    return msgspec.structs.replace(
        contents, timeline=timeline, comparison=comparison, definition=None if not kept else contents.definition,
        lines=contents.lines if kept else [], omitted=[*contents.omitted, text],
    )  # fmt: skip


def _most_telling(entries: Sequence[Entry], count: int) -> list[Entry]:
    """Those that matter most, in their order: failed ones, the critical path, then the longest."""
    ranked = sorted(
        range(len(entries)),
        key=lambda i: (not _is_telling(entries[i]), -(entries[i].duration_seconds or 0.0), i),
    )
    return [entries[i] for i in sorted(ranked[:count])]


def _is_telling(entry: Entry) -> bool:
    return entry.status in UNSUCCESSFUL or entry.on_critical_path


def _brief(entry: Entry) -> Entry:
    if _is_telling(entry):
        return entry
    return msgspec.structs.replace(entry, input_summary=None, output_summary=None, measures=(), logs=())


def _line(line: LogEntry) -> LogEntry:
    """A line as the report shows it."""
    return msgspec.structs.replace(
        line, message=_cut(line.message, LINE_LIMIT), attributes=None,
        error_message=_cut(line.error_message, LINE_LIMIT) if line.error_message is not None else None,
        error_stack=_cut(line.error_stack, STACK_LIMIT) if line.error_stack is not None else None,
    )  # fmt: skip


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
