"""Who has seen which new series as zero.

``increase()`` and ``rate()`` ignore the first sample of a series, because they cannot know what it was before. So every
series is shown as zero first: at least once, and to every Prometheus that scrapes regularly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, Generic, TypeVar

MAX_SCRAPERS: Final = 100
UNKNOWN_SECONDS: Final = 300.0
"""How long a Prometheus is waited for while its interval is not known; longer pauses are no intervals."""
MISSED: Final = 3
"""A Prometheus that has missed so many scrapes is not waited for."""

T = TypeVar("T")


class _Scraper:
    """``interval``: seconds between its scrapes, 0 while unknown. ``last``: when it last scraped, or was heard of."""

    __slots__ = ("interval", "last", "pause", "seen")

    def __init__(self, now: float, interval: float = 0.0) -> None:
        self.last = now
        self.interval = self.pause = interval
        self.seen = 0


class Births(Generic[T]):
    """Series that are shown as zero, in generations: those that are new in a scrape belong to one."""

    def __init__(self) -> None:
        self.generation = 1
        """Of the series that are added now."""
        self.clock = time.monotonic
        self._waiting: dict[T, int] = {}
        self._scrapers: dict[str, _Scraper] = {}
        self._seen = 0
        # When the first of the scrapers came; None: they are known from before.
        self._began: float | None = None

    def __contains__(self, series: T) -> bool:
        return series in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, series: T) -> None:
        """A series is shown as zero from now on."""
        self._waiting.setdefault(series, self.generation)

    def forget(self, series: T) -> None:
        """A series is gone."""
        self._waiting.pop(series, None)

    def clear(self) -> None:
        """All series are gone."""
        self._waiting.clear()

    def scraping(self) -> int:
        """A scrape is being rendered. Returns the generation of the newest series in it."""
        self.generation += 1
        return self.generation - 1

    def scraped(self, generation: int, scraper: str | None) -> None:
        """What was rendered has been sent. ``scraper``: who scrapes regularly; None: somebody who looked."""
        self._seen = max(self._seen, generation)
        if scraper is None:
            return
        now = self.clock()
        known = self._scrapers.get(scraper)
        if known is None:
            if not self._has_room(now):
                return
            if not self._scrapers:
                self._began = now
            known = self._scrapers[scraper] = _Scraper(now)
        else:
            pause, known.last = now - known.last, now
            if pause < UNKNOWN_SECONDS:
                # Equal jobs look like one whose pauses are short and long in turn.
                known.interval, known.pause = max(pause, known.pause), pause
        known.seen = max(known.seen, generation)

    def _has_room(self, now: float) -> bool:
        if len(self._scrapers) >= MAX_SCRAPERS:
            self._scrapers = {name: s for name, s in self._scrapers.items() if _is_active(s, now)}
        return len(self._scrapers) < MAX_SCRAPERS

    def scrapers(self) -> dict[str, float]:
        """Who is waited for, with the seconds between its scrapes (0: not known)."""
        now = self.clock()
        return {name: s.interval for name, s in self._scrapers.items() if _is_active(s, now)}

    def expect(self, scrapers: Mapping[str, float]) -> None:
        """Wait for these, too: they scraped whoever showed the series before, with these seconds between scrapes."""
        now = self.clock()
        if scrapers:
            self._began = None
        for name, interval in scrapers.items():
            if name not in self._scrapers and self._has_room(now):
                self._scrapers[name] = _Scraper(now, interval)

    def born(self) -> list[T]:
        """The series that everybody has seen as zero. They stay until `forget`."""
        if not self._waiting:
            return []
        now = self.clock()
        active = [scraper for scraper in self._scrapers.values() if _is_active(scraper, now)]
        if active and self._began is not None:
            # After a start that no other came before, some have not come yet: those with such an interval have, one
            # and a half later.
            intervals = [scraper.interval for scraper in active if scraper.interval]
            if not intervals or now - self._began < 1.5 * min(intervals):
                return []
            self._began = None
        seen = min([self._seen, *[scraper.seen for scraper in active]])
        return [series for series, generation in self._waiting.items() if generation <= seen]


def _is_active(scraper: _Scraper, now: float) -> bool:
    patience = MISSED * scraper.interval + 1 if scraper.interval else UNKNOWN_SECONDS
    return now - scraper.last < patience
