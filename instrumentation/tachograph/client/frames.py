"""Runs and steps as frames of pandas or polars, with types that can be computed with.

Times are in UTC, to the microsecond. Durations are seconds as floats. Counts can be missing. Names and statuses are
categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tachograph.client.answers import WorkflowExecutionResponse, WorkflowStepTimelineEntry

if TYPE_CHECKING:
    import pandas
    import polars

Kind = Literal["text", "category", "time", "seconds", "count", "flag"]


class Column(NamedTuple):
    """A column: its name, what its values are, and how they are read from a row."""

    name: str
    kind: Kind
    read: Callable[[Any], Any]


def _columns(**kinds: Kind) -> tuple[Column, ...]:
    return tuple(Column(name, kind, attrgetter(name)) for name, kind in kinds.items())


def _of(name: str, field: str) -> Callable[[Any], Any]:
    """Reads a field of a field that may be None."""

    def read(row: Any) -> Any:
        value = getattr(row, name)
        return None if value is None else getattr(value, field)

    return read


_WAITS: Final = ("dependency", "queue", "backoff", "scheduled", "unaccounted")

RUNS: Final = _columns(
    execution_id="text", workflow_name="category", workflow_version="category", status="category", created_at="time",
    started_at="time", completed_at="time", duration_seconds="seconds", critical_path_seconds="seconds",
    work_seconds="seconds", step_count="count", completed_step_count="count", failed_step_count="count",
    skipped_step_count="count", error_type="category", error_message="text", execution_number="count",
    project_id="category", parent_execution_id="text", trace_id="text",
)  # fmt: skip
"""The columns of a frame of runs."""
STEPS: Final = (
    *_columns(
        step_name="category", step_id="text", step_type="category", status="category", started_at="time",
        completed_at="time", duration_seconds="seconds", run_seconds="seconds", wait_seconds="seconds",
    ),
    *(Column(f"wait_{name}_seconds", "seconds", _of("wait", name)) for name in _WAITS),
    *_columns(retry_count="count", on_critical_path="flag", slack_seconds="seconds"),
    Column("cpu_seconds", "seconds", _of("resources", "cpu_seconds")),
    Column("peak_memory_bytes", "count", _of("resources", "peak_memory_bytes")),
    Column("read_bytes", "count", _of("resources", "read_bytes")),
    Column("written_bytes", "count", _of("resources", "written_bytes")),
    Column("cost_usd", "seconds", _of("cost", "usd")),
    Column("tokens_in", "count", _of("cost", "tokens_in")),
    Column("tokens_out", "count", _of("cost", "tokens_out")),
    Column("repetitions", "count", lambda step: 1 if step.folded is None else step.folded.count),
    *_columns(
        error_type="category", error_message="text", skip_reason="category", parent_step_id="text",
        child_execution_id="text", failure_group="text", span_id="text",
    ),
)  # fmt: skip
"""The columns of a frame of steps. ``repetitions`` is how many of a step's repetitions a row stands for."""

Rows = Sequence[WorkflowExecutionResponse] | Sequence[WorkflowStepTimelineEntry]


def to_pandas(rows: Rows, columns: Sequence[Column]) -> pandas.DataFrame:
    """A frame of pandas. Raises `ImportError` without pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install 'tachograph[pandas]'") from error
    types: dict[Kind, Any] = {
        "text": pd.StringDtype(), "category": pd.CategoricalDtype(), "time": pd.DatetimeTZDtype("us", "UTC"),
        "seconds": "float64", "count": pd.Int64Dtype(), "flag": pd.BooleanDtype(),
    }  # fmt: skip
    return pd.DataFrame({
        name: pd.Series(values, dtype=types[kind]) for name, kind, values in _values(rows, columns)
    })  # fmt: skip


def to_polars(rows: Rows, columns: Sequence[Column]) -> polars.DataFrame:
    """A frame of polars. Raises `ImportError` without polars."""
    try:
        import polars as pl
    except ImportError as error:
        raise ImportError("to_polars needs polars: pip install 'tachograph[polars]'") from error
    types: dict[Kind, Any] = {
        "text": pl.String, "category": pl.Categorical, "time": pl.Datetime("us", "UTC"), "seconds": pl.Float64,
        "count": pl.Int64, "flag": pl.Boolean,
    }  # fmt: skip
    return pl.DataFrame([pl.Series(name, values, dtype=types[kind]) for name, kind, values in _values(rows, columns)])


def _values(rows: Rows, columns: Sequence[Column]) -> list[tuple[str, Kind, list[Any]]]:
    filled = []
    for name, kind, read in columns:
        values = [read(row) for row in rows]
        if kind == "time":
            values = [None if value is None else datetime.fromisoformat(value) for value in values]
        elif kind == "seconds":
            values = [None if value is None else float(value) for value in values]
        filled.append((name, kind, values))
    return filled
