"""A cron job: one run of the workflow named by the first argument, recorded straight into the database.

The database is that of `TACHOGRAPH_DATABASE_URL`. With `--fail` the second step fails, and so does the script.
"""

from __future__ import annotations

import sys
import time

import tachograph

NAME = sys.argv[1]


@tachograph.step
def extract() -> int:
    time.sleep(0.02)
    return 3


@tachograph.step
def load(rows: int) -> None:
    if "--fail" in sys.argv:
        raise RuntimeError(f"no room for {rows} rows")


@tachograph.workflow(name=NAME)
def run() -> None:
    load(extract())


run()
