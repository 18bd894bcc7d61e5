"""The file of what is expected: one for the service and for the rules of Prometheus; every fault is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachograph.expectation import Expectation, StepExpectation
from tachograph.identity import workspace_id
from tachograph_exporter.alerting.thresholds import InvalidThresholds, read_thresholds
from tachograph_exporter.config import ConfigError
from tachograph_exporter.expectations.file import all_targets, read_file
from tachograph_exporter.expectations.limits import BUILT_IN, limits_of
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.expectations import ANY, replace_file, said

FILE = """
link = "https://tachograph.example.com/"

[default]
timezone = "Europe/Berlin"
stuck_factor = 4

[workflow.nightly]
schedule = "0 3 * * *"
grace = "10m"
deadline = "1h 30m"
success_target = 0.999

[workflow.nightly.steps.load]
deadline = 600

[workspace.team-a.workflow.weekly]
schedule = "learned"

[[notify]]
name = "on call"
url_env = "ON_CALL_URL"
quiet = "22:00-07:00"
"""


def test_one_file_says_what_the_service_and_the_rules_need(tmp_path: Path) -> None:
    path = tmp_path / "expectations.toml"
    path.write_text(FILE)
    file = read_file(path, {"ON_CALL_URL": "ntfy://topic"})
    assert file.default == Expectation(timezone="Europe/Berlin", stuck_factor=4.0)
    assert file.workflows == {
        (ANY, "nightly"): Expectation(schedule="0 3 * * *", grace_seconds=600.0, deadline_seconds=5400.0,
                                      success_target=0.999, steps={"load": StepExpectation(deadline_seconds=600.0)}),
        (workspace_id("team-a"), "weekly"): Expectation(schedule="learned"),
    }  # fmt: skip
    assert (file.link, file.targets[0].url, file.targets[0].quiet) == (
        "https://tachograph.example.com", "ntfy://topic", (1320, 420),
    )  # fmt: skip
    thresholds = read_thresholds(path)
    assert thresholds.default.stuck_factor == 4
    assert {name: limits.success_target for name, limits in thresholds.workflows.items()} == {"nightly": 0.999}
    path.write_text("[default]\nschedule = 3\nstuck_facto = 4")
    with pytest.raises(InvalidThresholds, match="stuck_facto"):
        read_thresholds(path)


def test_the_defaults_are_those_of_the_rules() -> None:
    shipped = read_thresholds().default
    limits = limits_of(Expectation())
    for name in shipped.__struct_fields__:
        assert getattr(BUILT_IN, name) == getattr(shipped, name)
        assert getattr(limits, name, getattr(shipped, name)) == getattr(shipped, name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[workflow.a]\nschedule = "0 25 * * *"', 'Bad hour at workflow.a.schedule'),
        ('[workflow.a]\nshedule = "@daily"', 'unknown key "shedule" (did you mean "schedule"?) at workflow.a.shedule'),
        ('[workflow.a]\ndeadline = "soon"', 'such as 90s, 10m or 1h 30m, of at most 366 days at workflow.a.deadline'),
        ('[workflow.a.steps.load]\ndeadline = -1', 'at workflow.a.steps.load.deadline'),
        ('[workflow]\na = 3', 'expected an object, not a number at workflow.a'),
        ('[workspace.x]\nschedule = 3', 'expected the table "workflow" at workspace.x.schedule'),
        ('[default]\ntimezone = "Mars/Olympus"', 'no such time zone'),
        ('[defaults]\n', 'unknown key "defaults" (did you mean "default"?)'),
        ('link = "tachograph"', 'expected the address under which people see this service'),
        ('[[notify]]\nname = "a"\nurl_env = "MISSING"', 'the environment variable MISSING is not set'),
        ('[[notify]]\nname = "a"\nurl = "S3CRET"', 'not a URL to notify'),
        ('[[notify]]\nname = "a"\nurl = "https:///S3CRET"', 'is not the URL of a webhook'),
        ('[[notify]]\nname = "a"\nurl = "https://x/"\nkinds = ["lat"]', '"lat" is not a kind of notice'),
        ('[[notify]]\nname = "a"\nurl = "https://x/"\nquiet = "night"', 'such as 22:00-07:00 at notify[0].quiet'),
        ('[[notify]]\nname = "a"\nurl = "https://x/"\n[[notify]]\nname = "a"\nurl = "https://y/"', 'another receiver'),
        ('[[notify]]\nurl = "https://S3CRET/"', 'missing required field `name`'),
        ('[[notify]]\nname = "a"\nurl = "https://x/"\nseverity = "bad"', 'expected one of info, warning, critical'),
        ('notify = 3', 'at notify[0]'),
        ('= 3', 'cannot be read'),
    ],
)  # fmt: skip
def test_every_fault_is_named_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "expectations.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_file(path, {})
    assert says in str(error.value)
    assert "S3CRET" not in str(error.value)


def test_a_receiver_of_the_command_line_is_checked_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="--notify: not a URL to notify") as error:
        all_targets(read_file(Path("/dev/null")), ["S3CRET"])
    assert "S3CRET" not in str(error.value)
    (target,) = all_targets(read_file(Path("/dev/null")), ["https://x/S3CRET", "https://x/S3CRET"])
    assert target.name.startswith("webhook-")


def test_what_a_file_no_longer_says_is_gone_and_an_unchanged_schedule_stays_expected(any_database_url: str) -> None:
    database = Database(any_database_url)
    try:
        nightly, weekly = Expectation(schedule="@daily"), Expectation(schedule="@weekly")
        database.run(lambda c: replace_file(c, Expectation(), {(ANY, "a"): nightly, (ANY, "b"): weekly}, 10))
        changed = Expectation(schedule="@daily", deadline_seconds=5.0)
        database.run(lambda c: replace_file(c, Expectation(), {(ANY, "a"): changed}, 20))
        rows = {entry.workflow: entry for entry in database.look(said)}
        assert set(rows) == {ANY, "a"}
        assert (rows["a"].since_ns, rows["a"].expectation) == (10, changed)
        database.run(lambda c: replace_file(c, Expectation(), {(ANY, "a"): weekly}, 30))
        assert {entry.workflow: entry.since_ns for entry in database.look(said)} == {ANY: 10, "a": 30}
    finally:
        database.close()
