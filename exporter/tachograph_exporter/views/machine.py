"""What steps used of the machine, as users read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row

from tachograph.clock import NS
from tachograph.resources import Resources, UseTotals, decoded, total_of
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.views.schemas.common import AverageUse
from tachograph_exporter.views.schemas.timeline import ResourceUse, RunUse


def resources_of(use: Resources | None, run_seconds: float | None) -> ResourceUse | None:
    """What an attempt or a step used in its running time."""
    if use is None:
        return None
    busy = None
    if use.cpu_seconds is not None and run_seconds is not None:
        busy = min(use.cpu_seconds, run_seconds)
    return ResourceUse(
        cpu_seconds=use.cpu_seconds,
        peak_memory_bytes=use.peak_memory_bytes,
        read_bytes=use.read_bytes,
        written_bytes=use.written_bytes,
        thread_cpu_seconds=use.thread_cpu_seconds,
        busy_seconds=busy,
        waiting_seconds=run_seconds - busy if busy is not None and run_seconds is not None else None,
        memory_growth_bytes=use.memory_growth_bytes,
        gc_seconds=use.gc_seconds,
        gc_full_seconds=use.gc_full_seconds,
        gc_count=use.gc_count,
        voluntary_switches=use.voluntary_switches,
        involuntary_switches=use.involuntary_switches,
        is_shared=use.is_shared,
    )


def resources_text(attempt: Row[Any]) -> str | None:
    """What is stored of an attempt."""
    resources: str | None = getattr(attempt, "resources", None)  # Older archives have none.
    return resources


def use_of_step(step: StoredStep, attempts: Sequence[Row[Any]]) -> Resources | None:
    """What all attempts of a step used, from its row and theirs."""
    if not attempts:
        return decoded(step.resources)
    last = [] if any(a.attempt == step.attempt for a in attempts) else [step.resources]
    texts = [*map(resources_text, attempts), *last]
    return total_of([use for text in texts if (use := decoded(text)) is not None])


def run_use(uses: Iterable[tuple[Resources | UseTotals, bool]]) -> RunUse | None:
    """What a run used: of its steps (and whether each is an outermost one), or of what repetitions add up to.

    A step contains what the steps inside it used, so only the outermost ones are added up.
    """
    total, is_partial, has_any = UseTotals(), False, False
    for use, is_outermost in uses:
        has_any = True
        if isinstance(use, UseTotals):
            if is_outermost:
                total.add(use)
            else:
                total.memory_max = max(total.memory_max, use.memory_max)
            continue
        is_partial |= use.is_shared
        if is_outermost:
            total.observe(use, 0)
        elif use.peak_memory_bytes is not None:
            total.memory_max = max(total.memory_max, use.peak_memory_bytes)
        if use.is_shared and use.peak_memory_bytes is not None:
            # The process was as large, whoever needed it.
            total.memory_max = max(total.memory_max, use.peak_memory_bytes)
    if not has_any:
        return None
    return RunUse(
        cpu_seconds=total.cpu_ns / NS if total.cpu_count else None,
        peak_memory_bytes=total.memory_max or None,
        read_bytes=total.read_bytes,
        written_bytes=total.written_bytes,
        is_partial=is_partial,
    )


def average_use(totals: UseTotals) -> AverageUse | None:
    """What a run of a step used on average; None: nothing measured it."""
    if not totals.cpu_count and not totals.memory_count:
        return None
    count = totals.cpu_count or totals.memory_count
    return AverageUse(
        count=count,
        cpu_seconds=totals.cpu_ns / NS / totals.cpu_count if totals.cpu_count else None,
        max_cpu_seconds=totals.cpu_max_ns / NS if totals.cpu_count else None,
        busy_share=min(1.0, totals.cpu_ns / totals.run_ns) if totals.cpu_count and totals.run_ns else None,
        peak_memory_bytes=round(totals.memory_sum / totals.memory_count) if totals.memory_count else None,
        max_peak_memory_bytes=totals.memory_max if totals.memory_count else None,
        read_bytes=round(totals.read_bytes / count),
        written_bytes=round(totals.written_bytes / count),
        gc_seconds=totals.gc_ns / NS / count,
    )


def combined_use(parts: Iterable[UseTotals]) -> UseTotals:
    """The sum of what runs used."""
    total = UseTotals()
    for part in parts:
        total.add(part)
    return total
