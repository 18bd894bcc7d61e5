"""A night of many workflows, as events of the past: what the page's test, its benchmark and its picture show."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepStarted,
)
from tachograph.expectation import Expectation
from tachograph.identity import (
    ExecutionRef,
    StepRef,
    new_execution_ref,
    new_span_id,
    step_id,
    workflow_id,
    workspace_id,
)
from tachograph_exporter.store import expectations
from tachograph_exporter.store.writer import StoreWriter

MINUTE, HOUR = 60 * NS, 3600 * NS
WORKFLOWS: Final = (
    "billing_export", "backup_postgres", "orders_load", "stock_load", "dwh_build", "ml_training", "nightly_sales",
    "currency_rates", "search_index", "gdpr_erasure", "log_rotation", "invoice_run", "payments", "fraud_scores",
    "price_update", "partner_sync", "sitemap", "thumbnails", "cache_warmup", "metrics_rollup", "cert_check",
    "dns_audit", "uptime_probe", "mail_digest", "ml_features", "backup_files", "addresses", "returns", "vouchers",
    "a_name_that_a_program_has_made_of_everything_it_knows_about_the_workflow",
)  # fmt: skip
BUSY: Final = WORKFLOWS[7:25]


class NightOfRuns(NamedTuple):
    """What was written: ids of the run that waits for another one, of that one, and of the one that failed."""

    waits: str
    inner: str
    failed: str


def write_night(writer: StoreWriter, now_ns: int, runs: int) -> NightOfRuns:
    """Write a night of thirty workflows and about so many runs, that ends now.

    `billing_export` and `backup_postgres` did not start, `stock_load` was late and failed, `dwh_build` runs and waits
    for `ml_training`, which runs inside it.
    """
    rng = random.Random(3)  # noqa: S311
    low = now_ns - 12 * HOUR
    events: list[Event] = []
    for day in range(1, 12):
        for name in ("dwh_build", "ml_training"):
            events += _run(_execution(name), now_ns - day * 24 * HOUR, (100 + day) * MINUTE)
    each = max(1, (runs - 10) // len(BUSY))
    for name in BUSY:
        for number in range(each):
            gap = 12 * HOUR // each
            status = rng.choices(
                [ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.TIMEOUT, ExecutionStatus.LOST,
                 ExecutionStatus.CANCELLED], [1000, 6, 2, 2, 3],
            )[0]  # fmt: skip
            start = low + number * gap + round(rng.random() * gap / 4)
            events += _run(_execution(name), start, round(gap * (0.1 + 0.5 * rng.random())), status)
    stock = _execution("stock_load")
    events += _run(stock, low + 4 * HOUR + 25 * MINUTE, 40 * MINUTE, ExecutionStatus.FAILED)
    events += _run(_execution("orders_load"), low + 4 * HOUR, 35 * MINUTE)
    events += _run(_execution("nightly_sales"), low + 5 * HOUR + 10 * MINUTE, 80 * MINUTE)
    events += _run(_execution("backup_files"), low + 2 * HOUR, 70 * MINUTE, ExecutionStatus.LOST)
    for name in WORKFLOWS[26:]:
        events += _run(_execution(name), low + rng.randint(1, 10) * HOUR, 30 * MINUTE)
    outer, start = _execution("dwh_build"), now_ns - 80 * MINUTE
    step = StepRef(execution=outer, step_id=step_id(outer.workflow_id, "train"), name="train",
                   span_id=new_span_id(), parent_span_id=outer.span_id)  # fmt: skip
    inner = msgspec.structs.replace(
        _execution("ml_training"), trace_id=outer.trace_id, parent_span_id=step.span_id,
        parent_execution_id=outer.execution_id, parent_step_id=step.step_id,
    )  # fmt: skip
    events += [*_run(outer, start, None), StepStarted(step=step, time_ns=start + MINUTE)]
    events += _run(inner, start + 2 * MINUTE, None)
    writer.apply(events)
    for name, due_ns in {"billing_export": low + 6 * HOUR, "backup_postgres": low + 9 * HOUR,
                         "stock_load": low + 4 * HOUR, "dwh_build": start}.items():  # fmt: skip
        _expect(writer, name, due_ns)
    return NightOfRuns(outer.execution_id, inner.execution_id, stock.execution_id)


def _execution(name: str) -> ExecutionRef:
    return new_execution_ref(workspace="default", workflow=name, workflow_id=workflow_id("default", name))


def _run(
    execution: ExecutionRef, start_ns: int, took_ns: int | None, status: ExecutionStatus = ExecutionStatus.COMPLETED
) -> list[Event]:
    events: list[Event] = [ExecutionStarted(execution=execution, time_ns=start_ns)]
    if took_ns is not None:
        end_ns = start_ns + took_ns
        events.append(
            ExecutionFinished(execution=execution, time_ns=end_ns, status=status, started_ns=start_ns, step_count=0)
        )
    return events


def _expect(writer: StoreWriter, workflow: str, due_ns: int) -> None:
    """Expect a workflow at this time of the day, and have done so for a day."""
    due = datetime.fromtimestamp(due_ns // NS, UTC)
    said = Expectation(schedule=f"{due.minute} {due.hour} * * *", timezone="UTC")
    place = workspace_id("default")
    writer.database.run(lambda c: expectations.say(c, place, workflow, expectations.API, said, due_ns - 20 * HOUR))
