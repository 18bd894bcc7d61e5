"""Two causes at once are both among what is named, and a coincidence is none."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.table import Table
from tests.views.test_why import ask, database  # noqa: F401
from tests.views.unheard import UNHEARD, play_unheard

from tachograph_exporter.store.database import Database

CHEAP = ("many rows and a retry storm", "after an incident (healthy)")


def problems_of(database: Database, scenario: str, seed: int) -> tuple[str, bool, list[str]]:  # noqa: F811
    """(what was said first, whether that is what was planted, what is wrong)."""
    workspace, execution_id, (accepted, facts) = play_unheard(database, scenario, seed)
    why = ask(database, workspace, execution_id)
    named = [(cause.kind, cause.subject) for cause in why.causes]
    is_named = named[0] in accepted if accepted and named else not accepted and not named
    wrong = [
        f"{cause.kind} {cause.subject} is certain"
        for cause in why.causes
        if cause.certainty == "certain" and (cause.kind, cause.subject) not in accepted | facts
    ]
    step = UNHEARD[scenario][1]
    if step and step not in {claim.subject for claim in why.claims if claim.kind in ("step", "outcome")}:
        wrong.append(f"the step is not {step}")
    if scenario.endswith("(healthy)") and why.verdict != "usual":
        wrong.append(f"a healthy run is {why.verdict}")
    said = "; ".join(f"{cause.certainty} {cause.kind} {cause.subject}" for cause in why.causes)
    return said or f"none ({why.verdict})", is_named, wrong


@pytest.mark.parametrize("scenario", CHEAP)
def test_two_causes_and_a_coincidence(database: Database, scenario: str) -> None:  # noqa: F811
    said, is_named, wrong = problems_of(database, scenario, 5)
    assert is_named, said
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 10))
def test_causes_nobody_named(database: Database, seed: int) -> None:  # noqa: F811
    table = Table("planted", "named", "", title=f"200 runs each, seed {seed}")
    missed, wrong = [], []
    for scenario in UNHEARD:
        said, is_named, problems = problems_of(database, scenario, seed)
        table.add_row(scenario, said, "✔" if is_named and not problems else "✘")
        if not is_named:
            missed.append((scenario, said))
        wrong += [(scenario, problem) for problem in problems]
    Console(width=160).print(table)
    assert not wrong
    assert len(missed) <= 1, missed
