"""What steps and executions spent: dollars and tokens, as they reported them or as their spans say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row

from tachograph.events import Folded
from tachograph.exact_sum import billionths
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.totals import NANO
from tachograph_exporter.views.schemas.timeline import Cost


class Spending(NamedTuple):
    """US dollars (None: no step said any) and tokens."""

    usd: float | None
    tokens_in: int
    tokens_out: int


def dollars(nano_usd: int) -> float | None:
    """Billionths of a dollar as dollars; None for nothing, because then nobody said what it cost."""
    return nano_usd / NANO if nano_usd else None


def spending_of(run: StoredRun) -> Spending:
    """What all steps of an execution spent."""
    costs = [row for row in run.reports if row.kind == "cost"]
    runs = [runs for step in run.steps if step.folded is not None for runs in step.folded.by_status.values()]
    return Spending(
        dollars(sum(billionths(row.value) for row in costs) + sum(r.cost_nano_usd for r in runs)),
        sum(row.tokens_in for row in costs) + sum(r.tokens_in for r in runs),
        sum(row.tokens_out for row in costs) + sum(r.tokens_out for r in runs),
    )


def cost_of(reports: Sequence[Row[Any]]) -> Cost | None:
    """What a step's reports add up to; None if it reported no cost."""
    costs = [row for row in reports if row.kind == "cost"]
    if not costs:
        return None
    return Cost(
        usd=dollars(sum(billionths(row.value) for row in costs)),
        tokens_in=sum(row.tokens_in for row in costs),
        tokens_out=sum(row.tokens_out for row in costs),
        models=_models(row.name for row in costs),
    )


def folded_cost(folded: Folded) -> Cost | None:
    """What repetitions of a step add up to; None if none reported a cost."""
    runs = folded.by_status.values()
    cost = Cost(
        usd=dollars(sum(r.cost_nano_usd for r in runs)),
        tokens_in=sum(r.tokens_in for r in runs),
        tokens_out=sum(r.tokens_out for r in runs),
        models=_models(m.model for m in folded.models),
    )
    return cost if cost.usd or cost.tokens_in or cost.tokens_out else None


def _models(names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name})
