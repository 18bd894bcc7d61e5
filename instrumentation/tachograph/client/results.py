"""What a client returns beside plain answers: lists that become frames, a run, and a report of it."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar, overload

from tachograph.client import frames
from tachograph.client.answers import (
    FailureGroupSummary,
    WorkflowExecutionResponse,
    WorkflowExecutionTimeline,
    WorkflowStepTimelineEntry,
)
from tachograph.client.errors import ClientError

if TYPE_CHECKING:
    import pandas
    import polars

T = TypeVar("T")

_FRAME_HEIGHT: Final = 640
"""Pixels of a report in a notebook."""


class _Items(Sequence[T], Generic[T]):
    """Items of a list, and how many the whole list has."""

    def __init__(self, items: Sequence[T], total: int) -> None:
        self._items = items
        self.total = total

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)


class Runs(_Items[WorkflowExecutionResponse]):
    """Runs, the newest first unless asked for otherwise. ``total`` is how many there are; fewer may have been read."""

    def to_pandas(self) -> pandas.DataFrame:
        """A frame with a row for each run, see `frames.RUNS`. Raises `ImportError` without pandas."""
        return frames.to_pandas(self, frames.RUNS)

    def to_polars(self) -> polars.DataFrame:
        """A frame with a row for each run, see `frames.RUNS`. Raises `ImportError` without polars."""
        return frames.to_polars(self, frames.RUNS)

    def __repr__(self) -> str:
        names = sorted({run.workflow_name for run in self})
        of = f" of {', '.join(map(repr, names[:3]))}{', …' if len(names) > 3 else ''}" if names else ""
        return f"<{len(self)} of {self.total} runs{of}>"


class Failures(_Items[FailureGroupSummary]):
    """Failures by cause. ``total`` is how many causes there are; fewer may have been read."""

    def __repr__(self) -> str:
        return f"<{len(self)} of {self.total} causes of failures>"


class Report:
    """A run as one HTML file that opens without a service; shown in notebooks."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def save(self, path: str | Path) -> None:
        """Write it to a file, which is replaced if it exists. Raises `OSError`."""
        Path(path).write_bytes(self.content)

    def _repr_html_(self) -> str:
        # Without the rights of the notebook: it runs its own script, and can save files.
        document = html.escape(self.content.decode())
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" width="100%" height="{_FRAME_HEIGHT}" '
            f'frameborder="0" srcdoc="{document}"></iframe>'
        )

    def __repr__(self) -> str:
        return f"<report, {len(self.content) / 1e6:.1f} MB>"


class Run:
    """A run with its steps. Notebooks show its report."""

    def __init__(self, timeline: WorkflowExecutionTimeline, report: Callable[[], Report]) -> None:
        self.timeline = timeline
        self._report = report

    @property
    def execution_id(self) -> str:
        """Its id."""
        return self.timeline.execution_id

    @property
    def workflow_name(self) -> str:
        """The name of its workflow."""
        return self.timeline.workflow_name

    @property
    def status(self) -> str:
        """Its status when it was read."""
        return self.timeline.status

    @property
    def steps(self) -> Sequence[WorkflowStepTimelineEntry]:
        """Its steps, in the order of the timeline."""
        return self.timeline.step_timeline

    def to_pandas(self) -> pandas.DataFrame:
        """A frame with a row for each step, see `frames.STEPS`. Raises `ImportError` without pandas."""
        return frames.to_pandas(self.steps, frames.STEPS)

    def to_polars(self) -> polars.DataFrame:
        """A frame with a row for each step, see `frames.STEPS`. Raises `ImportError` without polars."""
        return frames.to_polars(self.steps, frames.STEPS)

    def _repr_html_(self) -> str:
        try:
            return self._report()._repr_html_()
        except ClientError as error:
            # A notebook would show a traceback instead of the run.
            return f"<p>{html.escape(repr(self))}: {html.escape(str(error))}</p>"

    def __repr__(self) -> str:
        seconds = self.timeline.total_duration_seconds
        took = f" in {seconds:.3g} s" if seconds is not None else ""
        return f"<run {self.execution_id} of {self.workflow_name!r}: {self.status}{took}, {len(self.steps)} steps>"
