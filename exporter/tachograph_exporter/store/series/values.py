"""One series: its value as it is shown, and what it should be.

Prometheus takes a value that falls for a restart of the process, and adds the whole new value to the increase. So what
has been shown is never taken back: where a correction makes a count smaller (an execution given up as lost that ended
after all), the shown value stays until the true one has caught up with it.

A series is *born* once it has been shown as zero. Until then nobody has seen it, and its value may become anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec

from tachograph.clock import NS
from tachograph.distribution import Distribution, DistributionRow, stored_integer
from tachograph.events import UNSUCCESSFUL
from tachograph.metrics.specs import (
    CRITICAL_PATH,
    EXECUTION_DURATION,
    EXECUTIONS_STARTED,
    FAILURE_GROUP_FAILURES,
    LAST_FAILURE,
    LAST_SUCCESS,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_CPU,
    STEP_DURATION,
    STEP_MEASURE,
    STEP_MEMORY,
    STEP_RETRIES,
    STEP_TOKENS,
    STEP_WAIT,
    STEPS_SKIPPED,
    MetricSpec,
)

SEPARATOR: Final = "\x1f"
"""Between the name of a metric and label values in a `Code`."""

Code: TypeAlias = str
"""A metric's short name and the values of its labels after workspace, workflow and step."""

_REPLACEMENT: Final = "\ufffd"

EXECUTION: Final = "execution"
STARTED: Final = "started"
SUCCESS: Final = "success"
FAILURE: Final = "failure"
ENDED_AS: Final[Mapping[str, frozenset[str]]] = {SUCCESS: frozenset({"completed"}), FAILURE: UNSUCCESSFUL}
LATEST: Final = frozenset(ENDED_AS)
"""Times of the latest execution that ended with one of these statuses: they do not add up."""
DURATION: Final = "duration"
WAIT: Final = "wait"
ATTEMPTS: Final = "attempts"
RETRIES: Final = "retries"
SKIPPED: Final = "skipped"
CRITICAL: Final = "critical"
COST: Final = "cost"
TOKENS: Final = "tokens"
MEASURE: Final = "measure"
CPU: Final = "cpu"
MEMORY: Final = "memory"
FAILURES: Final = "failures"


def code_of(metric: str, *labels: str) -> Code:
    """The code of a metric's series with these labels, which may be any text: a separator in them is replaced."""
    return SEPARATOR.join((metric, *[label.replace(SEPARATOR, _REPLACEMENT) for label in labels]))


class Kind(NamedTuple):
    """What a `Code` stands for. ``scale``: how many of its integer are one of the metric's own unit."""

    spec: MetricSpec
    scale: int = 1
    of_step: bool = True


KINDS: Final[Mapping[str, Kind]] = {
    EXECUTION: Kind(EXECUTION_DURATION, of_step=False),
    STARTED: Kind(EXECUTIONS_STARTED, of_step=False),
    SUCCESS: Kind(LAST_SUCCESS, NS, of_step=False),
    FAILURE: Kind(LAST_FAILURE, NS, of_step=False),
    DURATION: Kind(STEP_DURATION),
    WAIT: Kind(STEP_WAIT),
    ATTEMPTS: Kind(STEP_ATTEMPTS),
    RETRIES: Kind(STEP_RETRIES),
    SKIPPED: Kind(STEPS_SKIPPED),
    CRITICAL: Kind(CRITICAL_PATH, NS),
    COST: Kind(STEP_COST, NS),
    TOKENS: Kind(STEP_TOKENS),
    MEASURE: Kind(STEP_MEASURE),
    CPU: Kind(STEP_CPU),
    MEMORY: Kind(STEP_MEMORY),
    FAILURES: Kind(FAILURE_GROUP_FAILURES, of_step=False),
}
"""Every stored metric, by its short name."""

_OF_EXECUTIONS: Final = (f"{EXECUTION}{SEPARATOR}completed", f"{EXECUTION}{SEPARATOR}failed", STARTED)
_OF_STEPS: Final = (
    f"{DURATION}{SEPARATOR}completed",
    f"{DURATION}{SEPARATOR}failed",
    f"{WAIT}{SEPARATOR}dependency",
    f"{WAIT}{SEPARATOR}queue",
    f"{ATTEMPTS}{SEPARATOR}completed",
    f"{ATTEMPTS}{SEPARATOR}failed",
    RETRIES,
    CRITICAL,
)

Value: TypeAlias = int | Distribution
Exemplar: TypeAlias = tuple[int, str, str, int]
"""(value in nanoseconds, trace id, span id, unix ns)."""


class SeriesRow(msgspec.Struct, array_like=True, gc=False):
    """A series as it is stored. ``true``: what it should be, where that is not what is shown."""

    born: bool
    created: float
    value: int | str | DistributionRow
    true: int | str | DistributionRow | None = None
    exemplars: dict[int, Exemplar] = {}


class Observed(msgspec.Struct, array_like=True, gc=False):
    """What a delta adds to a histogram, with the newest exemplar of each classic bucket."""

    values: DistributionRow
    exemplars: dict[int, Exemplar] = {}


def empty(code: Code) -> Value:
    """The value of a series that nothing has been added to."""
    name = code.partition(SEPARATOR)[0]
    if name in (MEASURE, MEMORY):
        return Distribution.of_measures()
    return Distribution() if name in (EXECUTION, DURATION, WAIT, CPU) else 0


class Series:
    """A series.

    Attributes:
        born: it has been shown as zero.
        created: since when it counts, unix seconds.
        value: what is shown of it once it is born.
        true: what it should be; None: the same.
        exemplars: by classic bucket.
    """

    __slots__ = ("born", "created", "exemplars", "true", "value")

    def __init__(self, code: Code, created: float) -> None:
        self.born = False
        self.created = created
        self.value = empty(code)
        self.true: Value | None = None
        self.exemplars: dict[int, Exemplar] = {}

    def add(self, amount: Value) -> None:
        """Add to it; a negative amount of what has been shown only counts against later ones."""
        value = self.value
        if isinstance(amount, int):
            assert isinstance(value, int)  # noqa: S101
            true = (value if self.true is None else self.true) + amount  # type: ignore[operator]
            self.value = max(value, true) if self.born else true
            self.true = true if self.value != true else None
            return
        assert isinstance(value, Distribution)  # noqa: S101
        if self.true is None and (not self.born or amount.only_adds()):
            value.add(amount)
            return
        if self.true is None:
            self.true = value.copy()
        true_values = self.true
        assert isinstance(true_values, Distribution)  # noqa: S101
        true_values.add(amount)
        if value.advance(true_values):
            self.true = None

    def to_row(self) -> SeriesRow:
        """The stored form."""
        return SeriesRow(
            self.born,
            self.created,
            _stored(self.value),
            _stored(self.true) if self.true is not None else None,
            self.exemplars,
        )

    @classmethod
    def from_row(cls, row: SeriesRow) -> Series:
        """The series that `to_row` gave."""
        series = cls.__new__(cls)
        series.born, series.created, series.exemplars = row.born, row.created, row.exemplars
        series.value = _value(row.value)
        series.true = _value(row.true) if row.true is not None else None
        return series


def _stored(value: Value) -> int | str | DistributionRow:
    return stored_integer(value) if isinstance(value, int) else value.to_row()


def _value(stored: int | str | DistributionRow) -> Value:
    return Distribution.from_row(stored) if isinstance(stored, DistributionRow) else int(stored)


class StepSeries:
    """The series of one step of a workflow (or, under the name "", of its executions), by code."""

    __slots__ = ("by_code",)

    def __init__(self, by_code: dict[Code, Series] | None = None) -> None:
        self.by_code = by_code if by_code is not None else {}

    def add(self, amounts: Mapping[Code, Amount], created: float) -> Iterator[Code]:
        """Add the amounts of a delta. Yields the codes that changed; new series come with their foreseen siblings."""
        by_code = self.by_code
        for code, amount in amounts.items():
            series = by_code.get(code)
            if series is None:
                series = by_code[code] = Series(code, created)
            if code in LATEST:
                assert isinstance(amount, int)  # noqa: S101
                series.value = ~amount if amount < 0 else max(series.value, amount)  # type: ignore[type-var]
            elif isinstance(amount, Observed):
                series.add(Distribution.from_row(amount.values))
                if amount.exemplars:
                    series.exemplars.update(amount.exemplars)
            elif amount is not None:
                series.add(int(amount))
            yield code
        yield from self.complete(amounts, created)

    def complete(self, codes: Iterable[Code], created: float) -> Iterator[Code]:
        """Let the foreseen siblings of these series exist. Yields those that are new."""
        for code in _siblings(codes):
            if code not in self.by_code:
                self.by_code[code] = Series(code, created)
                yield code

    def encode(self) -> bytes:
        """As stored; equal series are equal bytes."""
        return _encode({code: series.to_row() for code, series in sorted(self.by_code.items())})

    @classmethod
    def decode(cls, encoded: bytes) -> StepSeries:
        """The series that `encode` gave."""
        return cls({code: Series.from_row(row) for code, row in _decode_rows(encoded).items()})


Amount: TypeAlias = int | str | Observed | None
"""What a delta adds to one series; None: nothing, the series only begins to exist.

Of those in `LATEST` it is a time, which counts if it is later; ``~time`` replaces what is there (a correction)."""
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_rows: Final = msgspec.msgpack.Decoder(dict[str, SeriesRow]).decode


def _siblings(codes: Iterable[Code]) -> Iterator[Code]:
    kinds = {KINDS[code.partition(SEPARATOR)[0]].of_step for code in codes}
    if False in kinds:
        yield from _OF_EXECUTIONS
    if True in kinds:
        yield from _OF_STEPS


class Delta(msgspec.Struct, array_like=True, gc=False):
    """What a commit adds to the series of one workflow, by step and code. ``created``: unix seconds of the commit."""

    created: float
    steps: dict[str, dict[Code, Amount]]


encode_amounts: Final = msgspec.msgpack.Encoder().encode
decode_amounts: Final = msgspec.msgpack.Decoder(dict[str, Amount]).decode
encode_delta: Final = msgspec.msgpack.Encoder().encode
decode_delta: Final = msgspec.msgpack.Decoder(Delta).decode


def foreseen(steps: Mapping[str, object] | frozenset[str]) -> dict[str, dict[Code, Amount]]:
    """The amounts of a delta that only lets the series of a workflow with these steps begin to exist."""
    amounts: dict[str, dict[Code, Amount]] = {step: dict.fromkeys(_OF_STEPS) for step in steps}
    amounts[""] = {**amounts.get("", {}), **dict.fromkeys(_OF_EXECUTIONS)}
    return amounts
