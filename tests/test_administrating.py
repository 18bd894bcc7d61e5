"""The commands that administrate say and do the same of a database and of the service that has it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from click.testing import CliRunner

from tachograph.clock import NS
from tachograph.workflow import registry
from tachograph_exporter.cli import load
from tachograph_exporter.store import notices
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.notices import Message, NewNotice
from tachograph_exporter.store.workspaces import find_workspace
from tests.test_finding_runs import serving

COMMAND: Any = typer.main.get_command(load())
DATABASE_ALONE = {
    # Another machine's program has no business with these.
    "archive", "refused delete", "refused list", "refused retry", "refused show", "rollups rebuild",
    # They run here, and record there.
    "demo", "replay", "run", "seed", "serve",
}  # fmt: skip
SERVICE_ALONE = {"cancel", "watch", "dashboards push", "notices test"}


def commands() -> Iterator[tuple[str, click.Command]]:
    def below(path: str, command: Any) -> Iterator[tuple[str, click.Command]]:
        if not hasattr(command, "commands"):
            yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(f"{path} {name}".strip(), inner)

    yield from below("", COMMAND)


def test_what_reads_a_database_reads_a_service_too() -> None:
    options = {
        path: {option for parameter in command.params for option in parameter.opts} & {"--database", "--url"}
        for path, command in commands()
    }
    assert "notices list" in options
    assert {path for path, given in options.items() if given == {"--database"}} == DATABASE_ALONE
    assert {path for path, given in options.items() if given == {"--url"}} == SERVICE_ALONE
    failures = COMMAND.commands["failures"]
    assert {"--database", "--url"} <= {option for parameter in failures.params for option in parameter.opts}


@pytest.fixture
def tells(tmp_path: Path) -> None:
    """A database with two workspaces and a notice in each."""
    database = Database(f"sqlite:///{tmp_path}/tachograph.db")
    runner, now = CliRunner(), time.time_ns()
    for slug in ("default", "shipping"):
        where = ["--database", f"sqlite:///{tmp_path}/tachograph.db"]
        assert runner.invoke(COMMAND, ["workspaces", "create", slug, *where]).exit_code == 0
        row = database.look(lambda c, slug=slug: find_workspace(c, slug))  # type: ignore[misc]
        assert row is not None
        new = NewNotice(
            row.id, f"etl of {slug}", "late", "key", "warning", now - NS, now, "It was due.", "", None, None
        )
        database.run(lambda c, new=new: notices.tell(c, new, now, [Message("hook", notices.SENT, now)], ()))  # type: ignore[misc]
    database.close()


@pytest.mark.usefixtures("tells")
def test_a_service_is_administrated_like_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tmp_path / "tachograph.db", copy / "tachograph.db")
    runner = CliRunner()
    own = ["--database", f"sqlite:///{copy}/tachograph.db"]
    with serving(tmp_path, registry, token="tgr_administrator") as address:
        monkeypatch.setenv("TACHOGRAPH_TOKEN", "tgr_administrator")

        def both(*words: str, code: int = 0) -> list[Any]:
            """What the command says of the database, and of the service."""
            answers = []
            for where in (own, ["--url", address]):
                ran = runner.invoke(COMMAND, [*words, *where])
                assert ran.exit_code == code, (words, where, ran.output)
                assert "Traceback" not in ran.output
                is_json = "--json" in words and code == 0
                answers.append(json.loads(ran.stdout) if is_json else ran.stdout)
            return answers

        def same(*words: str) -> Any:
            first, second = both(*words, "--json")
            assert first == second, words
            return first

        assert len(same("workspaces", "list")) == 2
        assert {n["workspace"] for n in same("notices", "list")} == {"default", "shipping"}
        assert len(same("notices", "list", "--limit", "1")) == 1
        assert [n["workflow"] for n in same("notices", "list", "--workspace", "shipping")] == ["etl of shipping"]
        both("notices", "list", "--workspace", "nowhere", code=2)
        both("projects", "create", "nightly", "--workspace", "shipping", "--name", "Nightly")
        both("projects", "create", "nightly", "--workspace", "shipping", code=2)
        for items in both("projects", "list", "--workspace", "shipping", "--json"):
            assert {item["slug"] for item in items} == {"default", "nightly"}
        both("workspaces", "create", "sales")
        both("workspaces", "create", "sales", code=2)

        both("notices", "silence", "etl*", "--kind", "late", "--for", "90m", "--reason", "upgrade", "--by", "ann")
        both("notices", "silence", "--workspace", "shipping", "--until", "2027-06-30T00:00:00Z")
        both("notices", "silence", "--kind", "nonsense", code=2)
        silences = both("notices", "silences", "--json")
        for items in silences:
            assert [(s["workspace"], s["workflow"], s["kind"], s["reason"]) for s in items] == [
                (None, "etl*", "late", "upgrade"), ("shipping", None, None, ""),
            ]  # fmt: skip
        for where, items in zip((own, ["--url", address]), silences, strict=True):
            for item in items:
                assert runner.invoke(COMMAND, ["notices", "unsilence", item["id"], *where]).exit_code == 0
            assert runner.invoke(COMMAND, ["notices", "unsilence", items[0]["id"], *where]).exit_code == 2
        for items in both("notices", "silences", "--ended", "--json"):
            assert [item["is_over"] for item in items] == [True, True]

        created = both("tokens", "create", "ci", "--scope", "read", "--workspace", "shipping", "--expires", "90d")
        assert all(token.startswith("tgr_") for token in created)
        for where, items in zip((own, ["--url", address]), both("tokens", "list", "--json"), strict=True):
            (info,) = [item for item in items if item["name"] == "ci"]
            assert (info["scopes"], info["workspace"], info["state"]) == (["read"], "shipping", "active")
            assert runner.invoke(COMMAND, ["tokens", "revoke", info["id"], *where]).exit_code == 0
            assert runner.invoke(COMMAND, ["tokens", "revoke", "nothing", *where]).exit_code == 2
        both("failures")
        # Without a token that may do so, it says which variable is missing.
        monkeypatch.delenv("TACHOGRAPH_TOKEN")
        refused = runner.invoke(COMMAND, ["tokens", "list", "--url", address])
        assert (refused.exit_code, "TACHOGRAPH_TOKEN" in refused.output) == (2, True)
        # A variable is enough.
        monkeypatch.setenv("TACHOGRAPH_TOKEN", "tgr_administrator")
        monkeypatch.setenv("TACHOGRAPH_URL", address)
        monkeypatch.delenv("TACHOGRAPH_DATABASE_URL", raising=False)
        assert len(json.loads(runner.invoke(COMMAND, ["notices", "list", "--json"]).stdout)) == 2
