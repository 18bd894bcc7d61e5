"""Record ordinary functions: two decorators give every run a timeline.

See the last run afterwards:  tachograph timeline last --database sqlite:///plain_python.db
"""

import asyncio
from importlib import metadata

import tachograph
from tachograph.workflow import Backoff

tachograph.configure(database="sqlite:///plain_python.db")


@tachograph.step
def extract() -> list[str]:
    """Names of the installed distributions."""
    names = sorted({d.metadata["Name"] for d in metadata.distributions()})
    tachograph.measure("rows", len(names), "row")
    return names


@tachograph.step(max_retries=2, backoff=Backoff(initial_seconds=0.01))
def count(names: list[str]) -> dict[str, int]:
    """How many names begin with each letter."""
    letters: dict[str, int] = {}
    for name in names:
        letters[name[0].lower()] = letters.get(name[0].lower(), 0) + 1
    return letters


@tachograph.step
async def look_up(name: str) -> int:
    """How many files a distribution has."""
    return len(await asyncio.to_thread(lambda: metadata.files(name) or []))


@tachograph.workflow(name="census")
async def census() -> int:
    """Extract, count, and look up some of the names concurrently."""
    names = extract()
    letters = count(names)
    with tachograph.step("choose") as choose:
        chosen = [name for name in names if name[0].lower() == max(letters, key=lambda c: letters[c])]
        choose.log(f"chose {len(chosen)}")
    return sum(await asyncio.gather(*(look_up(name) for name in chosen[:5])))


if __name__ == "__main__":
    print(f"{asyncio.run(census())} files")
    tachograph.get_recorder().flush()
