"""Run faults for a while, print the table, and fail if anything was lost, doubled or stuck."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos import faults
from tests.chaos.world import World


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--ahead", default="0,0", help="seconds that the clock of each service is ahead: 0,3600,-3600")
    parser.add_argument("--first", default="", help="faults that happen in any case, by name")
    options = parser.parse_args()
    first = [getattr(faults, name) for name in options.first.split(",") if name]
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 30)
    kinds = ["sqlite", "postgresql"] if options.database == "both" else [options.database]
    has_failed = False
    for kind in kinds:
        random.seed(seed)
        directory = Path(tempfile.mkdtemp(prefix="tachograph-chaos-"))
        world = World(directory, kind, [float(seconds) for seconds in options.ahead.split(",")])
        verdict = asyncio.run(world.run(options.seconds, first))
        print(f"\n{kind}, seed {seed}, log in {directory}\n\n{verdict.table()}\n\n{verdict.counts}")
        for wrong in verdict.wrongs[:50]:
            print("WRONG:", wrong.kind, wrong.text)
        has_failed |= bool(verdict.wrongs)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
