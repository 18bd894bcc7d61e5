"""Tables and timelines on a narrow terminal: columns go, names stay; in a pipe everything is there."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.cells import cell_len

from tachograph_exporter.cli.columns import Column, show_table
from tachograph_exporter.cli.labels import fitted
from tachograph_exporter.cli.moments import column, moment
from tachograph_exporter.cli.terminal import PlainConsole

COLUMNS = (Column("run", 3), Column("name"), Column("took", 1, is_number=True), Column("error", 4, is_prose=True))
NAMES = [
    "nightly",
    "import_of_all_regions_in_the_order_of_their_keys",
    "数据" * 20,
    "a\tb\x1b[2J\u202egnp",
    "x" * 10_000,
]


def table(width: int | None, names: list[str]) -> str:
    console = PlainConsole(file=io.StringIO(), width=width, force_terminal=width is not None, color_system=None)
    rows = [[f"…{number:06}", name, "1.25 s", "an error told at some length"] for number, name in enumerate(names)]
    show_table(COLUMNS, rows, console=console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_terminal_shows_whole_names(width: int) -> None:
    text = table(width, NAMES)
    assert max(map(cell_len, text.splitlines())) <= width
    assert len(re.findall("x", text)) == 10_000
    assert text.count("数") == 20
    # A folded name is whole when its lines are put together again.
    together = re.sub(r"\s+", "", table(width, NAMES[1:2]).replace("took", ""))
    assert NAMES[1] in together.replace("1.25s", "")
    assert "a␉b␛[2J�gnp" in re.sub(r"\s+", "", table(width, NAMES[3:4]))


def test_columns_go_in_their_order() -> None:
    shown = [table(width, ["a" * 20]).splitlines()[0].split() for width in (20, 32, 40, 60)]
    assert shown == [["name"], ["name", "took"], ["run", "name", "took"], ["run", "name", "took", "error"]]


def test_a_pipe_gets_a_line_for_each_row() -> None:
    lines = table(None, NAMES).splitlines()
    assert len(lines) == 1 + len(NAMES)
    assert all(line.endswith("told at some length") for line in lines[1:])
    assert NAMES[4] in lines[5]


@pytest.mark.parametrize("width", [8, 12, 30])
def test_different_names_stay_different(width: int) -> None:
    names = [f"partition_warehouse_{number:03}" for number in range(100)]
    names += [f"{number:03}_partition_warehouse" for number in range(100)]
    names += [f"load_{number:03}_of_the_partitions_of_the_warehouse" for number in range(100)]
    names += ["数据" * 20 + end for end in ("一", "二")] + ["x" * 5_000, "x" * 5_001, "short", ""]
    shown = fitted(names, width)
    assert len(set(shown)) == len(set(names))
    assert max(map(cell_len, shown)) <= width
    assert fitted(["same", "same"], width) == ["same", "same"]


def test_times_say_their_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        assert moment("2026-01-31T23:30:00.000000Z") == "2026-02-01 00:30:00 +01:00"
        assert column("started", ["2026-01-31T12:00:00Z", None]) == ("started (+01:00)", ["2026-01-31 13:00:00", "–"])
        # Summer and winter time in one list.
        title, cells = column("started", ["2026-01-31T12:00:00Z", "2026-07-31T12:00:00Z"])
        assert (title, cells) == ("started", ["2026-01-31 13:00:00 +01:00", "2026-07-31 14:00:00 +02:00"])
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        assert moment("2026-01-31T23:30:00.000000Z") == "2026-01-31 23:30:00 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()
