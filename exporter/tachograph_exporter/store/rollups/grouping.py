"""Grouping the rows of plain steps by name and status, so that many are counted by column (see `PlainSteps`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import compress
from operator import itemgetter, sub
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from tachograph.distribution import Distribution
from tachograph.resources import decoded
from tachograph_exporter.store.plain_steps import PlainSteps
from tachograph_exporter.store.totals import critical_ns_of

MIN_GROUPED: Final = 4
"""Of fewer steps, columns are not worth making."""
_T = TypeVar("_T", bound=Hashable)
Row: TypeAlias = tuple[Any, ...]
_COLUMNS: Final = (
    "execution_id", "step_id", "span_id", "started_ns", "finished_ns", "dependency_ns", "queue_ns", "backoff_ns",
    "run_ns", "scheduled_ns", "unaccounted_ns", "resources",
)  # fmt: skip


class StepLayout(NamedTuple):
    """Where rows of steps, which begin with their execution's id, have what is counted; ``columns`` gets most of it."""

    name: int
    status: int
    attempt: int
    started: int
    skip_reason: int
    folded: int
    columns: Callable[[Row], Row]

    @classmethod
    def of(cls, columns: Sequence[str]) -> StepLayout:
        """The layout of rows with these columns."""
        at = columns.index
        return cls(
            at("name"), at("status"), at("attempt"), at("started_ns"), at("skip_reason"), at("folded"),
            columns=itemgetter(*map(at, _COLUMNS)),
        )  # fmt: skip


def grouped(
    rows: Iterable[Row], layout: StepLayout, is_plain: Callable[[Row], bool] = lambda row: True
) -> tuple[list[list[Row]], list[Row]]:
    """Rows of plain steps, in groups of one name and status, and the rest.

    ``is_plain`` says of a row that looks so whether it is one: whether nothing else is stored of its step.
    """
    name, status, attempt, started, skip_reason, folded, _ = layout
    by_kind: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    rest: list[Row] = []
    for row in rows:
        if (
            row[attempt] == 1
            and row[started] is not None
            and row[skip_reason] is None
            and row[folded] is None
            and is_plain(row)
        ):
            by_kind[row[name], row[status]].append(row)
        else:
            rest.append(row)
    groups = [group for group in by_kind.values() if len(group) >= MIN_GROUPED]
    rest += [row for group in by_kind.values() if len(group) < MIN_GROUPED for row in group]
    return groups, rest


def plain_steps(
    groups: Iterable[Sequence[Row]],
    layout: StepLayout,
    places: Mapping[str, _T],
    critical_paths: Mapping[str, AbstractSet[str]],
    resources_since_ns: int = 0,
) -> Iterator[tuple[_T, PlainSteps]]:
    """Groups of plain steps, divided by the places of their executions.

    ``critical_paths`` are step ids. What steps used is counted of those that ended since ``resources_since_ns``.
    """
    is_divided = len(set(places.values())) > 1
    for rows in groups:
        if not is_divided:
            yield places[rows[0][0]], _columns(rows, layout, critical_paths, resources_since_ns)
            continue
        by_place: defaultdict[_T, list[Row]] = defaultdict(list)
        for row in rows:
            by_place[places[row[0]]].append(row)
        for place, part in by_place.items():
            yield place, _columns(part, layout, critical_paths, resources_since_ns)


def _columns(
    rows: Sequence[Row], layout: StepLayout, critical_paths: Mapping[str, AbstractSet[str]], resources_since_ns: int
) -> PlainSteps:
    (
        ids, step_ids, span_ids, started, finished, dependency, queue, backoff, run, scheduled, unaccounted, resources
    ) = zip(*map(layout.columns, rows), strict=True)  # fmt: skip
    durations_ns = list(map(sub, finished, started))
    if min(durations_ns) < 0:
        # A clock was set back.
        durations_ns = [max(0, duration) for duration in durations_ns]
    durations = Distribution()
    on_path = [step_id in critical_paths[key] for key, step_id in zip(ids, step_ids, strict=True)]
    parts = [compress(times, on_path) for times in (started, finished, queue, backoff, run)]
    critical_ns = sum(map(critical_ns_of, *parts))
    uses = []
    if any(resources):
        uses = [
            (use, ran or 0)
            for stored, end, ran in zip(resources, finished, run, strict=True)
            if stored is not None and end >= resources_since_ns and (use := decoded(stored)) is not None
        ]
    return PlainSteps(
        rows[0][layout.name], rows[0][layout.status], ids, span_ids, finished, durations_ns,
        _times(dependency), _times(queue), _times(scheduled), _times(unaccounted),
        durations, durations.observe_all_ns(durations_ns), sum(_times(backoff)), sum(_times(run)), critical_ns, uses,
    )  # fmt: skip


def _times(column: Sequence[int | None]) -> Sequence[int]:
    """A column of times; those that are not known count as none."""
    return [wait or 0 for wait in column] if None in column else column  # type: ignore[return-value]
