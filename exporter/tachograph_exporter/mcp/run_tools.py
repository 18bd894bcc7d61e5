"""Tools about one run: ``why``, ``compare`` and ``critical_path``."""

from __future__ import annotations

from typing import Final

from tachograph_exporter.mcp.answers import (
    ClaimLine,
    CompareAnswer,
    ComparedLine,
    CriticalPathAnswer,
    PathLine,
    WhyToolAnswer,
)
from tachograph_exporter.mcp.arguments import CompareArguments, CriticalPathArguments, WhyArguments
from tachograph_exporter.mcp.budget import Answer, fitted
from tachograph_exporter.mcp.context import RESOURCE, Context, ToolError, duration_ns
from tachograph_exporter.mcp.list_tools import lasting
from tachograph_exporter.mcp.wording import NAME, NOTICE, SENTENCE, marked, plain, plain_or_none
from tachograph_exporter.views.schemas.timeline import CriticalStep, WorkflowExecutionTimeline
from tachograph_exporter.views.schemas.why import Claim

_MAX_CLAIMS: Final = 12
_MAX_STEPS: Final = 25


def why(context: Context, asked: WhyArguments) -> Answer:
    """Say why a run was slow or failed."""
    view = context.reader.why(context.run_id(asked.run), duration_ns(asked.baseline))

    def build(rows: int) -> Answer:
        claims, causes = view.claims[:rows], view.causes[:rows]
        differences = view.differences[:rows]
        text = [
            NOTICE,
            f"run {view.execution_id} of {marked(view.workflow_name, NAME)}: {view.verdict} (status {view.status})",
            *(_claim_text(claim) for claim in claims),
        ]
        if causes:
            text += ["why, the likeliest first:", *(_claim_text(cause) for cause in causes)]
        if differences:
            text.append("what differs from the usual runs:")
            text += [f"- {marked(difference.text, SENTENCE)}" for difference in differences]
        sample = view.sample
        text.append(f"{sample.run_count} runs compared, {sample.usual_count} of them usual")
        if (page := context.page(view.execution_id)) is not None:
            text.append(f"page: {page}")
        structure = WhyToolAnswer(
            run_id=view.execution_id, workflow=plain(view.workflow_name, NAME), status=view.status,
            verdict=view.verdict,
            claims=[_claim_line(context, claim) for claim in claims],
            causes=[_claim_line(context, cause) for cause in causes],
            differences=[plain(difference.text, SENTENCE) for difference in differences],
            compared_runs=sample.run_count, usual_runs=sample.usual_count,
            left_out=len(view.claims) + len(view.causes) + len(view.differences)
            - len(claims) - len(causes) - len(differences),
            page=page, resource=RESOURCE + view.execution_id,
        )  # fmt: skip
        return Answer("\n".join(text), structure)

    return fitted(build, _MAX_CLAIMS)


def _claim_text(claim: Claim) -> str:
    return f"- {claim.certainty}: {marked(claim.text, SENTENCE)}"


def _claim_line(context: Context, claim: Claim) -> ClaimLine:
    return ClaimLine(
        text=plain(claim.text, SENTENCE),
        certainty=claim.certainty,
        kind=claim.kind,
        subject=plain_or_none(claim.subject, NAME),
        evidence=context.evidence(plain(claim.evidence.url, SENTENCE)),
    )


def compare(context: Context, asked: CompareArguments) -> Answer:
    """Compare a run with another one, or with the usual."""
    run_id = context.run_id(asked.run)
    other = context.run_id(asked.other) if asked.other is not None else None
    view = context.reader.compare(run_id, other, duration_ns(asked.baseline))

    def build(rows: int) -> Answer:
        steps = view.steps[:rows]
        reference = view.reference
        baseline = view.baseline
        beside = baseline.p50 if baseline is not None else reference.duration_seconds if reference is not None else None
        text = [NOTICE, f"run {view.execution.execution_id}: {marked(view.sentence, SENTENCE)}"]
        if baseline is not None:
            text.append(f"beside the median of {baseline.execution_count} completed runs since {baseline.start}")
        elif reference is not None:
            text.append(f"beside run {reference.execution_id}")
        text.append(f"{len(steps)} of {len(view.steps)} steps (here, there, blame):")
        for step in steps:
            blame = f", to blame for {step.blame:.0%}" if step.blame else ""
            critical = ", on the critical path" if step.on_critical_path else ""
            new = ", not on the other side" if step.not_in_reference else ""
            text.append(
                f"- {marked(step.step_name, NAME)} {step.status or 'not here'}: {lasting(step.seconds)}, "
                f"{lasting(step.reference_seconds)}{blame}{critical}{new}"
            )
        structure = CompareAnswer(
            run_id=view.execution.execution_id,
            other_run_id=reference.execution_id if reference is not None else None,
            baseline_runs=baseline.execution_count if baseline is not None else None,
            duration_seconds=view.execution.duration_seconds, reference_seconds=beside,
            difference_seconds=view.difference_seconds, ratio=view.ratio,
            culprit=plain_or_none(view.culprit, NAME), sentence=plain(view.sentence, SENTENCE),
            steps=[
                ComparedLine(
                    step=plain(step.step_name, NAME), seconds=step.seconds, reference_seconds=step.reference_seconds,
                    difference_seconds=step.difference_seconds, blame=step.blame,
                    on_critical_path=step.on_critical_path, not_in_reference=step.not_in_reference,
                    status=step.status,
                )
                for step in steps
            ],
            left_out=len(view.steps) - len(steps), page=context.page(view.execution.execution_id),
        )  # fmt: skip
        return Answer("\n".join(text), structure)

    return fitted(build, _MAX_STEPS)


def timeline_of(context: Context, text: str) -> WorkflowExecutionTimeline:
    """The timeline of the run that a text means. Raises `ToolError` if there is none."""
    run_id = context.run_id(text)
    timeline = context.reader.timeline(run_id)
    if timeline is None:
        raise ToolError(f"there is no run {marked(run_id, NAME)}; `runs` lists them")
    return timeline


def critical_path(context: Context, asked: CriticalPathArguments) -> Answer:
    """Show the steps whose delay delayed the run."""
    return path_of(context, timeline_of(context, asked.run))


def path_of(context: Context, timeline: WorkflowExecutionTimeline) -> Answer:
    """The critical path of a timeline, without its shortest steps if it is long."""
    path = timeline.critical_path
    total = timeline.total_duration_seconds or timeline.elapsed_seconds
    by_length = sorted(range(len(path)), key=lambda index: -_length(path[index]))

    def build(rows: int) -> Answer:
        kept = [path[index] for index in sorted(by_length[:rows])]
        left = len(path) - len(kept)
        left_seconds = max(0.0, sum(map(_length, path)) - sum(map(_length, kept))) if left else 0.0
        text = [
            NOTICE,
            f"run {timeline.execution_id} of {marked(timeline.workflow_name, NAME)} {timeline.status}: "
            f"{lasting(total)} in all, {lasting(timeline.critical_path_seconds)} on the critical path, "
            f"{lasting(timeline.unaccounted_seconds)} with none of its steps running; {timeline.step_count} steps",
            "the critical path in order:",
        ]
        for step in kept:
            share = f", {step.duration_seconds / total:.0%} of the run" if total else ""
            waited = f", after {lasting(step.scheduled_seconds)} until its time" if step.scheduled_seconds else ""
            text.append(f"- {marked(step.step_name, NAME)} {lasting(step.duration_seconds)}{share}{waited}")
        if left:
            text.append(f"{left} shorter steps are left out; together they took {lasting(left_seconds)}")
        structure = CriticalPathAnswer(
            run_id=timeline.execution_id, workflow=plain(timeline.workflow_name, NAME), status=timeline.status,
            total_seconds=total, critical_path_seconds=timeline.critical_path_seconds,
            unaccounted_seconds=timeline.unaccounted_seconds, step_count=timeline.step_count,
            steps=[
                PathLine(
                    step=plain(step.step_name, NAME), step_id=step.step_id, duration_seconds=step.duration_seconds,
                    share=round(step.duration_seconds / total, 3) if total else None,
                    scheduled_seconds=step.scheduled_seconds,
                )
                for step in kept
            ],
            left_out=left, left_out_seconds=left_seconds, page=context.page(timeline.execution_id),
        )  # fmt: skip
        return Answer("\n".join(text), structure)

    return fitted(build, max(1, min(_MAX_STEPS, len(path))))


def _length(step: CriticalStep) -> float:
    return step.duration_seconds + step.scheduled_seconds
