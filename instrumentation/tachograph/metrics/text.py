"""Numbers, label values and exemplars in the Prometheus text formats."""

from __future__ import annotations

from typing import Final

from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

_SMALL: Final = tuple(f"{n}.0" for n in range(4096))


def number(value: float) -> str:
    """A sample value."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def count_text(value: int) -> str:
    """A count (zero or more): written as a float, with an exponent from a million on."""
    if value < 4096:
        return _SMALL[value]
    return f"{value}.0" if value < 1_000_000 else number(value)


def escape(value: str) -> str:
    """A label value, escaped but without quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def exemplar_text(exemplar: Exemplar) -> str:
    """An exemplar, as OpenMetrics appends it to a sample."""
    inside = ",".join([f'{name}="{escape(value)}"' for name, value in sorted(exemplar.labels.items())])
    timestamp = f" {exemplar.timestamp}" if exemplar.timestamp is not None else ""
    return f" # {{{inside}}} {number(exemplar.value)}{timestamp}"
