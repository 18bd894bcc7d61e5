"""The one table of all benchmarks: each line is a figure beside that of a peer, or of the bare block, in the same run.

A benchmark returns its lines. They are kept with the day and the machine, so that the table in `docs/performance.md`
can be put together from the newest run of each.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

SCALE: Final = float(os.environ.get("BENCH_SCALE", "1"))
"""How much is measured, in parts of what is usual. Figures of less than 1 show that a benchmark works, and no more."""
BEGIN: Final = "<!-- generated: performance -->"
END: Final = "<!-- end -->"


class Line(msgspec.Struct, frozen=True):
    """A line of the table.

    Args:
        subject: what was measured.
        value: how much it was, in ``unit``.
        beside: what stands beside it.
        other: how much that was, in the same unit.
        ratio: of ``value`` to ``other``; where rounds were paired, the median of theirs.
        goal: what the ratio should be at most, or at least (``is_rate``); None: there is none.
        is_rate: whether more is better.
    """

    subject: str
    value: float
    unit: str
    beside: str
    other: float
    ratio: float
    goal: float | None = None
    is_rate: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the ratio is what it should be."""
        return self.goal is None or (self.ratio >= self.goal if self.is_rate else self.ratio <= self.goal)


class Measured(msgspec.Struct):
    """The lines of a benchmark, when they were measured (UTC) and on what."""

    day: str
    machine: str
    lines: Sequence[Line]


def scaled(count: int, least: int = 1) -> int:
    """So many, or as many as are measured now."""
    return max(least, round(count * SCALE))


def against(
    subject: str, value: float, unit: str, beside: str, other: float, *, ratio: float | None = None,
    goal: float | None = None, is_rate: bool = False,
) -> Line:  # fmt: skip
    """A line whose ratio is that of its two figures, unless it is given."""
    return Line(subject, value, unit, beside, other, value / other if ratio is None else ratio, goal, is_rate)


def measured(lines: Sequence[Line]) -> Measured:
    """Lines that were measured here and now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    machine = (
        f"{os.cpu_count()} processors, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}"
    )
    return Measured(f"{datetime.now(UTC):%Y-%m-%d %H:%M}", machine, lines)


def save(directory: Path, name: str, result: Measured) -> None:
    """Keep what a benchmark measured."""
    (directory / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def saved(directory: Path, names: Iterable[str]) -> dict[str, Measured]:
    """What was measured last, by benchmark, in the order of ``names``."""
    paths = {name: directory / f"{name}.json" for name in names}
    return {
        name: msgspec.json.decode(path.read_bytes(), type=Measured) for name, path in paths.items() if path.exists()
    }


def figure(value: float) -> str:
    """A number with three digits that say something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def as_markdown(results: Mapping[str, Measured]) -> str:
    """The table."""
    rows = ["| measured | | beside | | ratio | goal | run |", "|---|---|---|---|---|---|---|"]
    runs = list(dict.fromkeys((result.day[:10], result.machine) for result in results.values() if result.lines))
    for result in results.values():
        for line in result.lines:
            goal = "" if line.goal is None else f"{'≥' if line.is_rate else '≤'} {figure(line.goal)}"
            ratio = figure(line.ratio) if line.is_met else f"**{figure(line.ratio)}**"
            number = runs.index((result.day[:10], result.machine)) + 1
            rows.append(
                f"| {line.subject} | {figure(line.value)} {line.unit} | {line.beside} | "
                f"{figure(line.other)} {line.unit} | {ratio} | {goal} | {number} |"
            )
    notes = [f"{i}. {day}: {machine}" for i, (day, machine) in enumerate(runs, 1)]
    return "\n".join([*rows, "", "Runs:", "", *notes])


def write(page: Path, results: Mapping[str, Measured]) -> None:
    """Put the table into a page, between its marks. Raises `ValueError` if it has none."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the table: {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{as_markdown(results)}\n{END}{after}")
