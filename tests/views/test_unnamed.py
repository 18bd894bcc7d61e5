"""Causes that nothing in the answer to *why* was made for are named first, too, and never a wrong one as certain."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.table import Table
from tests.views.test_why import ask, database  # noqa: F401
from tests.views.unnamed import UNNAMED, play_unnamed

from tachograph_exporter.store.database import Database

CONTROLS = {name for name in UNNAMED if name.endswith("(the control)")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_causes_in_another_world_are_named_first(database: Database, seed: int) -> None:  # noqa: F811
    table = Table("planted", "named first", "certainty", "", title=f"Another world, 200 runs each, seed {seed}")
    missed, wrong = [], []
    for scenario, (_, step) in UNNAMED.items():
        workspace, execution_id, (accepted, facts) = play_unnamed(database, scenario, seed)
        why = ask(database, workspace, execution_id)
        named = [(cause.kind, cause.subject) for cause in why.causes]
        if (named[0] not in accepted) if accepted and named else bool(accepted or named):
            missed.append(scenario)
        certain = [(cause.kind, cause.subject) for cause in why.causes if cause.certainty == "certain"]
        wrong += [(scenario, cause) for cause in certain if cause not in accepted | facts]
        if step and step not in {claim.subject for claim in why.claims if claim.kind in ("step", "outcome")}:
            wrong.append((scenario, ("the step is not", step)))
        first = why.causes[0] if why.causes else None
        said = f"{first.kind} {first.subject}" if first else f"none ({why.verdict})"
        table.add_row(scenario, said, first.certainty if first else "", "✘" if scenario in missed else "✔")
        if scenario in CONTROLS:
            assert (why.verdict, why.differences) == ("usual", [])
    Console(width=120).print(table)
    assert len(missed) <= 2, missed
    assert not wrong
