"""Record ordinary functions: two decorators, and every run has a timeline.

Look at the last run afterwards:  tachograph timeline last --database sqlite:///plain_python.db
"""

import asyncio
from importlib import metadata

from tachograph import configure, get_recorder, measure, step, workflow
from tachograph.workflow import Backoff

configure(database="sqlite:///plain_python.db")


@step
def extract() -> list[str]:
    """Names of the installed distributions."""
    names = sorted({d.metadata["Name"] for d in metadata.distributions()})
    measure("rows", len(names), "row")
    return names


@step(max_retries=2, backoff=Backoff(initial_seconds=0.01))
def count(names: list[str]) -> dict[str, int]:
    """How many begin with each letter."""
    letters: dict[str, int] = {}
    for name in names:
        letters[name[0].lower()] = letters.get(name[0].lower(), 0) + 1
    return letters


@step
async def look_up(name: str) -> int:
    """How many files a distribution has."""
    return len(await asyncio.to_thread(lambda: metadata.files(name) or []))


@workflow(name="census")
async def census() -> int:
    """Extract, count, and look some of them up side by side."""
    names = extract()
    letters = count(names)
    with step("choose") as choose:
        chosen = [name for name in names if name[0].lower() == max(letters, key=lambda c: letters[c])]
        choose.log(f"chose {len(chosen)}")
    return sum(await asyncio.gather(*(look_up(name) for name in chosen[:5])))


if __name__ == "__main__":
    print(f"{asyncio.run(census())} files")
    get_recorder().flush()
