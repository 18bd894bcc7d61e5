"""Sums of floats without rounding."""

from __future__ import annotations

from typing import NamedTuple


class ExactSum(NamedTuple):
    """``mantissa * 2**exponent`` with an odd mantissa; every float and every sum of floats is exactly one of these."""

    mantissa: int
    exponent: int

    @classmethod
    def of(cls, value: float) -> ExactSum:
        """A float. Raises `OverflowError` or `ValueError` for one that is not finite."""
        above, below = value.as_integer_ratio()
        return cls(above, 1 - below.bit_length())._normal()

    @classmethod
    def parse(cls, text: str) -> ExactSum:
        """What `text` made."""
        mantissa, _, exponent = text.partition("p")
        return cls(int(mantissa, 16), int(exponent))

    @property
    def text(self) -> str:
        """A short, unique form."""
        return f"{self.mantissa:x}p{self.exponent}"

    @property
    def value(self) -> float:
        """The nearest float; infinite beyond the largest."""
        try:
            if self.exponent >= 0:
                return float(self.mantissa << self.exponent)
            # A quotient of integers is rounded once, correctly.
            return self.mantissa / (1 << -self.exponent)
        except OverflowError:
            return float("inf") if self.mantissa > 0 else float("-inf")

    def __add__(self, other: ExactSum) -> ExactSum:  # type: ignore[override]
        exponent = min(self.exponent, other.exponent)
        mantissa = (self.mantissa << (self.exponent - exponent)) + (other.mantissa << (other.exponent - exponent))
        return ExactSum(mantissa, exponent)._normal()

    def _normal(self) -> ExactSum:
        if not self.mantissa:
            return ExactSum(0, 0)
        shift = (self.mantissa & -self.mantissa).bit_length() - 1
        return ExactSum(self.mantissa >> shift, self.exponent + shift)
