"""Where the series of ``/metrics`` are not what the executions of a workflow add up to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tachograph.clock import NS
from tachograph.distribution import Distribution, quotient
from tachograph.metrics.specs import EXECUTIONS_RUNNING, OLDEST_RUNNING, STEPS_RUNNING, HistogramSpec
from tachograph.metrics.text import escape
from tachograph_exporter.metrics.shown_series import ShownMetrics, ShownValue
from tachograph_exporter.store.series.checking import CheckedSeries, WrongSeries
from tachograph_exporter.store.series.values import KINDS, LATEST, SEPARATOR, STARTED, Code, Value
from tachograph_exporter.views.schemas.reconciliation import Difference


class SeriesEvidence(NamedTuple):
    """The stored series, checked, and what is shown of them; a text says why that is not known."""

    checked: CheckedSeries
    shown: ShownMetrics | str


def series_differences(evidence: SeriesEvidence, ids: Mapping[str, Sequence[str]]) -> Iterator[Difference]:
    """The differences. ``ids``: of the execution's steps, by name."""
    for wrong in evidence.checked.wrong:
        yield from _wrong(wrong, ids)
    if isinstance(evidence.shown, ShownMetrics):
        yield from shown_differences(evidence.checked, evidence.shown, ids)


def shown_differences(
    checked: CheckedSeries, shown: ShownMetrics, ids: Mapping[str, Sequence[str]] = {}
) -> Iterator[Difference]:
    """Where ``/metrics`` does not show what is stored and what runs."""
    for (step, code), value in shown.series.items():
        step_series = checked.current.get(step)
        series = step_series.by_code.get(code) if step_series is not None else None
        if series is None:
            due = ShownValue(None if value.values is None else 0, 0.0)
        else:
            due = _shown(series.value if series.born or code in LATEST else None, code)
            if code == STARTED and series.born:
                due = due._replace(total=due.total + checked.running.executions + checked.running.unsettled)
        if value.values is not None and value.values != due.values:
            yield _difference(step, code, "_count", {"metrics": value.values, "database": due.values}, ids)
        elif not _is_close(value.total, due.total):
            part = "_sum" if value.values is not None else ""
            yield _difference(step, code, part, {"metrics": value.total, "database": due.total}, ids)
    running = checked.running
    due_gauges: dict[str, float | None] = {
        EXECUTIONS_RUNNING.name: running.executions,
        STEPS_RUNNING.name: running.steps,
        OLDEST_RUNNING.name: running.oldest_ns / NS if running.executions else None,
    }
    for name, gauge in shown.gauges.items():
        if gauge != due_gauges[name]:
            values = {"metrics": gauge, "running": due_gauges[name]}
            yield Difference("", name, values, message="the gauge is not what runs")


def _shown(value: Value | None, code: Code) -> ShownValue:
    kind = KINDS[code.partition(SEPARATOR)[0]]
    if isinstance(value, Distribution):
        return ShownValue(value.count, value.sum)
    if value is None:
        return ShownValue(0 if isinstance(kind.spec, HistogramSpec) else None, 0.0)
    return ShownValue(None, quotient(value, kind.scale))


def _wrong(wrong: WrongSeries, ids: Mapping[str, Sequence[str]]) -> Iterator[Difference]:
    stored, due = _shown(wrong.stored, wrong.code), _shown(wrong.due, wrong.code)
    source = wrong.source
    if stored.values is None:
        yield _difference(wrong.step, wrong.code, "", {"metrics": stored.total, source: due.total}, ids)
        return
    is_same = True
    if stored.values != due.values:
        is_same = False
        yield _difference(wrong.step, wrong.code, "_count", {"metrics": stored.values, source: due.values}, ids)
    if stored.total != due.total:
        is_same = False
        yield _difference(wrong.step, wrong.code, "_sum", {"metrics": stored.total, source: due.total}, ids)
    if is_same and isinstance(wrong.stored, Distribution) and isinstance(wrong.due, Distribution):
        values = {"metrics": wrong.stored.classic, source: wrong.due.classic}
        yield _difference(wrong.step, wrong.code, "_bucket", values, ids)


def _difference(
    step: str, code: Code, part: str, values: dict[str, Any], ids: Mapping[str, Sequence[str]]
) -> Difference:
    short, *rest = code.split(SEPARATOR)
    kind = KINDS[short]
    labels = dict(zip(kind.spec.labels[2 + kind.of_step :], rest, strict=True))
    texts = {"step": step, **labels} if kind.of_step else labels
    inside = ",".join(f'{name}="{escape(value)}"' for name, value in texts.items())
    of_step = ids.get(step, ()) if kind.of_step else ()
    return Difference(
        of_step[0] if len(of_step) == 1 else "",
        f"{kind.spec.name}{part}{{{inside}}}" if inside else f"{kind.spec.name}{part}",
        values,
        step,
    )


def _is_close(a: float, b: float) -> bool:
    """Whether two sums are equal but for rounding."""
    return a == b or abs(a - b) <= max(2e-10, 1e-11 * max(abs(a), abs(b)))
