"""``tachograph rollups`` and ``archive``: keep a database correct and small."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    DryRunOption,
    YesOption,
    app,
    confirm,
    duration_ns,
    err,
    fail,
    open_database,
    out,
    report_errors,
)
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.store import archiving
from tachograph_exporter.store.rollups import rebuild as rollup_rebuild
from tachograph_exporter.store.series.recount import recount_one

rollups_app = typer.Typer(no_args_is_help=True, help="Check or rebuild the rollups and the series of metrics.")
app.add_typer(rollups_app, name="rollups")


@rollups_app.command("rebuild")
def rebuild(
    database: DatabaseOption = DATABASE,
    check: Annotated[bool, typer.Option(help="Only report differences; exit code 1 if there are any.")] = False,
) -> None:
    """Rebuild rollups and series of metrics from the runs and report how many differed. There should be none."""
    with report_errors(), open_database(database, must_exist=True) as store:
        differing = 0
        keys = store.look(rollup_rebuild.workflows_with_executions)
        faults = 0
        for key in keys:
            try:
                # One transaction per workflow, so that other writers are not blocked for long.
                differing += store.run(
                    lambda c, key=key: rollup_rebuild.rebuild_one(c, key, write=not check),  # type: ignore[misc]
                    is_long=True,
                )
                differing += store.run(
                    lambda c, key=key: recount_one(c, key, write=not check),  # type: ignore[misc]
                    is_long=True,
                )
            except (KeyError, TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
                # A row that nothing here writes; the other workflows are counted all the same.
                faults += 1
                err.print(f"workflow {key[1]} cannot be counted: {shown(repr(error))}", soft_wrap=True)
    verb = "differ" if check else "differed and were corrected"
    wrong = f"{differing} row(s) or series {verb}"
    out.print(f"{len(keys)} workflow(s): {wrong if differing else 'all rows and series are correct'}")
    raise typer.Exit(1 if faults or (check and differing) else 0)


@app.command()
def archive(
    older_than: Annotated[str, typer.Option(help="Only runs that ended at least this long ago, such as 90d.")],
    to: Annotated[Path | None, typer.Option(help="Directory for the Parquet files.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the runs instead of archiving them.")] = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    database: DatabaseOption = DATABASE,
) -> None:
    """Move old runs to Parquet files. They stay listed and readable, and rollups keep counting them."""
    if (to is None) == (not delete):
        fail("give either --to DIR to archive runs, or --delete to delete them")
    before_ns = time.time_ns() - duration_ns(older_than)
    with report_errors(), open_database(database, must_exist=True) as store:
        if dry_run or delete:
            count = store.look(lambda c: archiving.count_before(c, before_ns))
            if dry_run:
                out.print(f"would {'delete' if delete else 'archive'} {count:,} run(s)")
                return
            if count:
                confirm(f"Delete {count:,} run(s) in {store.name}?", yes=yes)
        moved = archiving.archive(store, before_ns, to, on_day=lambda day, count: out.print(f"  {day}  {count} run(s)"))
    where = f" to {to}: {len(moved.files)} file(s), {moved.bytes:,} bytes" if to is not None else ""
    out.print(f"[green]✔[/] {'archived' if to else 'deleted'} {moved.executions} run(s){where}", soft_wrap=True)
    if moved.left:
        out.print(f"[yellow]{moved.left} changed in the meantime and are left for the next run[/]")
