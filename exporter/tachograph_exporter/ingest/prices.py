"""What models cost: the TOML file of ``tachograph serve --prices``, for spans that say tokens and no cost.

Prices are US dollars per million tokens. ``cached`` is for input tokens read from a prompt cache and ``cache_write``
for those written to it; without them such tokens cost what other input does. A name that ends with ``*`` stands for
all models that begin like it; the longest name that fits counts::

    [models."gpt-4o"]
    input = 2.5
    output = 10.0
    cached = 1.25

    [models."claude-sonnet-*"]
    input = 3.0
    output = 15.0
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tachograph_exporter.config import ConfigError
from tachograph_exporter.ingest.usage import Usage

MILLION: Final = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars per million tokens of one model."""

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None

    def of(self, usage: Usage) -> float:
        """US dollars for this usage."""
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.cache_write is None else self.cache_write
        plain = usage.tokens_in - usage.cached - usage.cache_written
        total = plain * self.input + usage.cached * cached + usage.cache_written * written
        return (total + usage.tokens_out * self.output) / MILLION


class _File(msgspec.Struct, forbid_unknown_fields=True):
    models: dict[str, Price]


class Prices:
    """Prices by model. A model that has none costs None."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._exact = {name: price for name, price in prices.items() if not name.endswith("*")}
        patterns = [(name[:-1], price) for name, price in prices.items() if name.endswith("*")]
        self._prefixes = sorted(patterns, key=lambda pattern: len(pattern[0]), reverse=True)

    def of(self, usage: Usage) -> float | None:
        """What a usage cost: what its span says, else by the price of the model that answered or was asked for.

        A whole name comes before one that ends with ``*``.
        """
        if usage.usd is not None:
            return usage.usd
        names = [name for name in (usage.model, usage.requested) if name]
        for name in names:
            if name in self._exact:
                return self._exact[name].of(usage)
        fitting = (price for prefix, price in self._prefixes if any(name.startswith(prefix) for name in names))
        price = next(fitting, None)
        return price.of(usage) if price is not None else None


NO_PRICES: Final = Prices({})


def read_prices(path: Path) -> Prices:
    """The prices of a file. Raises `ConfigError` with what is wrong with it, and where."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the prices in {path} cannot be read: {error}") from None
    try:
        prices = msgspec.convert(document, _File).models
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    for name, price in prices.items():
        for field in price.__struct_fields__:
            value = getattr(price, field)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f'{path}: the price "{field}" of model "{name}" is not zero or more: {value}')
    return Prices(prices)
