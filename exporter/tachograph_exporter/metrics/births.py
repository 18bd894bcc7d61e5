"""Who has seen which new series as zero.

``increase()`` and ``rate()`` ignore the first sample of a series, because they cannot know what it was before. So every
series is shown as zero first: at least once, and to every Prometheus that scrapes regularly.
"""

from __future__ import annotations

import time
from typing import Final, Generic, TypeVar

MAX_SCRAPERS: Final = 100
ACTIVE_SECONDS: Final = 300.0
"""A Prometheus that has not scraped for so long (or for three of its intervals) is not waited for."""

T = TypeVar("T")


class _Scraper:
    __slots__ = ("interval", "last", "seen")

    def __init__(self, now: float) -> None:
        self.last = now
        self.interval = 0.0
        self.seen = 0


class Births(Generic[T]):
    """Series that are shown as zero, in generations: those that are new in a scrape belong to one."""

    def __init__(self) -> None:
        self.generation = 1
        """Of the series that are added now."""
        self._waiting: dict[T, int] = {}
        self._scrapers: dict[str, _Scraper] = {}
        self._seen = 0
        # When the first of the scrapers came.
        self._began = 0.0

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
        now = time.monotonic()
        known = self._scrapers.get(scraper)
        if known is None:
            if len(self._scrapers) >= MAX_SCRAPERS:
                self._scrapers = {name: s for name, s in self._scrapers.items() if _is_active(s, now)}
                if len(self._scrapers) >= MAX_SCRAPERS:
                    return
            if not self._scrapers:
                self._began = now
            known = self._scrapers[scraper] = _Scraper(now)
        else:
            known.interval, known.last = now - known.last, now
        known.seen = max(known.seen, generation)

    def born(self) -> list[T]:
        """The series that everybody has seen as zero. They stay until `forget`."""
        if not self._waiting:
            return []
        now = time.monotonic()
        if self._scrapers:
            # After a start, the others have not come yet: those with such an interval have, one and a half later.
            intervals = [s.interval for s in self._scrapers.values() if s.interval]
            if not intervals or now - self._began < 1.5 * min(intervals):
                return []
        seen = min([self._seen, *[s.seen for s in self._scrapers.values() if _is_active(s, now)]])
        return [series for series, generation in self._waiting.items() if generation <= seen]


def _is_active(scraper: _Scraper, now: float) -> bool:
    return now - scraper.last < max(ACTIVE_SECONDS, 3 * scraper.interval)
