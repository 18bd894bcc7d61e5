"""Sums of floats without rounding errors."""

from __future__ import annotations

import math
from typing import NamedTuple


class ExactSum(NamedTuple):
    """``mantissa * 2**exponent`` with an odd mantissa (or 0, 0): a unique form of every sum of floats."""

    mantissa: int
    exponent: int

    @classmethod
    def of(cls, value: float) -> ExactSum:
        """The sum of a single float. Raises `OverflowError` or `ValueError` if it is not finite."""
        numerator, denominator = value.as_integer_ratio()
        return cls(numerator, 1 - denominator.bit_length())._normalized()

    @classmethod
    def parse(cls, text: str) -> ExactSum:
        """The sum that `text` describes."""
        mantissa, _, exponent = text.partition("p")
        return cls(int(mantissa, 16), int(exponent))

    @property
    def text(self) -> str:
        """The sum as text: hexadecimal mantissa, ``p``, decimal exponent."""
        return f"{self.mantissa:x}p{self.exponent}"

    @property
    def value(self) -> float:
        """The nearest float; infinite beyond the largest float."""
        try:
            if self.exponent >= 0:
                return float(self.mantissa << self.exponent)
            # Python rounds a quotient of integers once, correctly.
            return self.mantissa / (1 << -self.exponent)
        except OverflowError:
            return float("inf") if self.mantissa > 0 else float("-inf")

    def __add__(self, other: ExactSum) -> ExactSum:  # type: ignore[override]
        exponent = min(self.exponent, other.exponent)
        mantissa = (self.mantissa << (self.exponent - exponent)) + (other.mantissa << (other.exponent - exponent))
        return ExactSum(mantissa, exponent)._normalized()

    def _normalized(self) -> ExactSum:
        if not self.mantissa:
            return ExactSum(0, 0)
        shift = (self.mantissa & -self.mantissa).bit_length() - 1
        return ExactSum(self.mantissa >> shift, self.exponent + shift)


def billionths(value: float) -> int:
    """A finite number in billionths, rounded, of any size."""
    scaled = value * 1e9
    return round(scaled) if math.isfinite(scaled) else int(value) * 10**9
