"""Names, errors and sentences from outside: they are shown, and they do nothing to the terminal."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from tachograph.events import Event
from tachograph.workflow import Executor, WorkflowBuilder, registry
from tachograph_exporter.cli.common import json_text
from tachograph_exporter.cli.terminal import PlainConsole, shown
from tests.command import tachograph

HOSTILE = "load[/x] [bold]b[/] [link=http://e]l\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp\r\b:boom: \\[red] \\"
HARMFUL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NAME = "load[/x] [bold]b[/] [link=http://e]l :boom: \\[red] \\"
DOCUMENT = {
    "name": NAME, "description": HOSTILE,
    "steps": [
        {"name": NAME, "config": {"handler": "noop"}},
        {"name": "last " + NAME, "depends_on_steps": [NAME],
         "config": {"handler": "fail", "message": f"broken {HOSTILE}"}},
    ],
}  # fmt: skip


@pytest.mark.e2e
def test_no_command_lets_a_name_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(DOCUMENT))
    bad = {**DOCUMENT, "steps": [{"name": "s", "depends_on_steps": [HOSTILE], "config": {"handler": HOSTILE}}]}
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    (tmp_path / "weird[x] [bold].json").write_text("{}")
    last = ("timeline", "last")
    for words, code in (
        (("run", "good.json"), 1), (("run", "good.json"), 1), (last, 0), ((*last, "--json"), 0), (("seed", "."), 1),
        (("validate", "good.json"), 0), (("validate", "bad.json"), 1), (("validate", "weird[x] [bold].json"), 1),
        (("validate", "nothing[/x].json"), 2), (("compare", "last"), 0), (("metrics", NAME), 0),
        (("trends", NAME), 0), (("trends", NAME, "--json"), 0), (("timeline", "no[/x]\x1b[2J"), 2),
        (("tokens", "create", HOSTILE), 0), (("tokens", "list"), 0), (("run", "good.json", "-i", "x[/y]=1"), 2),
        (("workspaces", "create", "w", "--name", HOSTILE), 0), (("workspaces", "list"), 0),
        (("runs",), 0), (("runs", "--workflow", NAME), 0), (("runs", "--workflow", HOSTILE), 2), (("logs", NAME), 0),
        (("logs", "last", HOSTILE), 2), (("workflows", "list"), 0), (("workflows", "show", NAME), 0),
        (("workflows", "delete", NAME, "--dry-run"), 0), (("open", "--print"), 0), (("runs", "--error", HOSTILE), 0),
        (("tokens", "revoke", "a[/b]\x1b[2J"), 2), (("validate", "good.json", "--handlers", "a[/b]\x1b"), 2),
    ):  # fmt: skip
        ran = tachograph(tmp_path, *words)
        written = ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr, (words, written)
        assert not HARMFUL.findall(written), (words, written)
        assert ran.returncode == code, (words, written)
        if words[0] in ("run", "compare", "metrics") and code < 2:
            assert "load[/x]" in written, (words, written)


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "[/]",
        "[",
        "\\",
        "\\[",
        "a\\[b]",
        "[[x]]",
        "[1]",
        "\\\\[1]",
        "\\\\[/x]",
        "[a [b]",
        "[bold]",
        ":smile:",
        "\x00\x1b",
    ],
)
def test_text_from_outside_is_shown_as_it_is(text: str) -> None:
    console = PlainConsole(file=io.StringIO(), width=500, highlight=False)
    console.print(f"[red]✘[/] {shown(text)} [bold]end[/]", soft_wrap=True)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    controls = {code: chr(0x2400 + code) for code in range(32)}
    expected = "".join(c if c.isprintable() else controls.get(ord(c), "�") for c in text)
    assert written == f"✘ {expected} end\n"


def test_even_what_was_forgotten_moves_no_cursor() -> None:
    console = PlainConsole(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    table = Table("a" + HOSTILE.replace("[/x]", ""))
    table.add_row(Text(HOSTILE))
    console.print(Text(HOSTILE), table, "plain \x1b[2J\x9b")
    console.log("log \x1b]0;x\x07")
    assert not HARMFUL.findall(console.file.getvalue())  # type: ignore[attr-defined]


def test_json_on_the_terminal_is_json_and_harmless() -> None:
    value = {"name": HOSTILE, "emoji": "💥é", "tag": "\U000e0041"}
    text = json_text(value)
    assert json.loads(text) == value
    assert not HARMFUL.findall(text)
    assert "💥é" in text


async def shell(command: str, **config: Any) -> str:
    events: list[Event] = []
    flow = WorkflowBuilder("w").step("a", handler="shell", config={"command": command, **config})
    result = await Executor(events.append, handlers=registry.copy(["shell"])).run(flow.build())
    return str(result.outputs["a"]["stdout"])


SECRET_VARIABLES = (
    "TACHOGRAPH_TOKEN", "TACHOGRAPH_DATABASE_URL", "TACHOGRAPH_HTTP_ALLOW", "DATABASE_URL", "PGPASSWORD", "PGPASSFILE",
    "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "tachograph_token",
)  # fmt: skip


async def test_a_command_does_not_inherit_what_the_service_keeps_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("OWN", "kept")
    output = await shell("env")
    assert "s3cret" not in output
    assert "OWN=kept" in output
    assert "PATH=" in output


async def test_a_command_gets_what_its_document_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "s3cret")
    assert await shell("echo $DATABASE_URL", env={"DATABASE_URL": "own"}) == "own\n"
