"""A new series is shown as zero until everybody who scrapes regularly has seen it."""

from __future__ import annotations

from tachograph_exporter.metrics.births import UNKNOWN_SECONDS, Births


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def births(clock: Clock) -> Births[str]:
    births: Births[str] = Births()
    births.clock = clock
    return births


def scrape(births: Births[str], who: str | None) -> list[str]:
    """Somebody scrapes. Returns what everybody has seen by then."""
    births.scraped(births.scraping(), who)
    return births.born()


def test_one_that_is_gone_is_waited_for_three_of_its_intervals() -> None:
    clock = Clock()
    scraped = births(clock)
    for _ in range(3):
        for who in ("here", "gone"):
            scrape(scraped, who)
        clock.now += 15
    scraped.add("series")
    assert scrape(scraped, "here") == []
    clock.now += 45
    assert scrape(scraped, "here") == ["series"]
    assert scraped.scrapers().keys() == {"here"}


def test_one_that_scraped_once_is_waited_for_longer() -> None:
    clock = Clock()
    scraped = births(clock)
    scrape(scraped, "once")
    scraped.add("series")
    clock.now += UNKNOWN_SECONDS - 1
    assert scrape(scraped, "here") == []
    clock.now += 1
    assert scrape(scraped, "here") == ["series"]


def test_a_pause_is_no_interval() -> None:
    clock = Clock()
    scraped = births(clock)
    for pause in (15, 15, 3600, 15):
        scrape(scraped, "back")
        clock.now += pause
    assert scraped.scrapers() == {"back": 15}


def test_those_of_the_service_before_are_expected() -> None:
    clock = Clock()
    scraped = births(clock)
    scraped.expect({"a": 15, "b": 15})
    scraped.add("series")
    assert scrape(scraped, "a") == []
    assert scrape(scraped, None) == []
    assert scrape(scraped, "b") == ["series"]
    # One that never comes back is waited for as long as any other.
    scraped.forget("series")
    scraped.expect({"c": 15})
    scraped.add("another")
    assert [scrape(scraped, who) for who in ("a", "b")] == [[], []]
    clock.now += 45
    scrape(scraped, "a")
    clock.now += 1
    assert scrape(scraped, "a") == ["another"]
