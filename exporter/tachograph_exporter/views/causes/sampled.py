"""Where steps that were sampled spent their time: the innermost function that was seen most often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.folded_stacks import SEPARATOR, StacksKind
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.stacks import StoredStacks, stacks_of
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.views.causes.claims import CERTAIN, claim, length
from tachograph_exporter.views.schemas.why import Claim
from tachograph_exporter.views.stacks import function_of, top_functions

MIN_SAMPLES: Final = 10
"""Fewer samples say nothing."""
MIN_SHARE: Final = 0.3
"""A function that was seen less often is not named."""
MAX_STEPS: Final = 5
_NATIVE: Final = " (native)"


def sampled(connection: Connection, run: StoredRun, steps: Sequence[StoredStep]) -> Iterator[Claim]:
    """What was seen of the last attempts of these steps."""
    chosen = {step.step_id: step for step in steps[:MAX_STEPS]}
    if not chosen:
        return
    execution_id = str(run.execution.execution_id)
    for stored in stacks_of(connection, execution_id, chosen):
        step = chosen[stored.step_id]
        if stored.kind != StacksKind.PROFILE or stored.attempt != step.attempt or stored.samples < MIN_SAMPLES:
            continue
        top = top_functions(stored)[0]
        if top.share < MIN_SHARE:
            continue
        seconds = sum(folded.count for folded in stored.stacks) * stored.interval_ns / NS
        text = f"Step “{step.name}” was in `{top.function}`{_caller(stored, top.function)}"
        yield claim(
            "stack",
            top.function,
            f"{text} for {100 * top.share:.0f} % of the {length(seconds)} in which it was sampled.",
            CERTAIN,
            f"/api/workflows/executions/{execution_id}/stacks?step={step.step_id}&now=false",
            step=step.name,
            function=top.function,
            share=top.share,
            samples=stored.samples,
            seconds=seconds,
        )


def _caller(stored: StoredStacks, function: str) -> str:
    """Who called a function of C most often, in words."""
    if not function.endswith(_NATIVE):
        return ""
    for folded in stored.stacks:
        frames = folded.stack.split(SEPARATOR)
        if frames[-1] == function and len(frames) > 1:
            return f", called by `{function_of(frames[-2])}`,"
    return ""
