"""Report runs that somebody else executes: an engine of your own, or one whose hooks say what happens.

>>> import tachograph
>>> with tachograph.report.run("nightly", run_id="2026-11-25T03:00") as run:
...     load = run.step("load", depends_on=["extract"]).started()
...     load = load.finished(output={"rows": 12})

Any process may report any part of a run, in any order and more than once: the run is known by its workflow and its
``run_id``, a step by its key. What is reported goes the way of everything that is recorded: to the database or service
that `tachograph.configure` names, to spans and to metrics. Nothing here raises into the caller.

A run whose process dies is ``lost`` after its lease, 30 s: processes that have it open send heartbeats.
"""

from __future__ import annotations

from tachograph.report.expecting import expect, expect_no_more
from tachograph.report.runs import Run, run
from tachograph.report.steps import Step

__all__ = ["Run", "Step", "expect", "expect_no_more", "run"]
