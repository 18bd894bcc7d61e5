"""Nodes of Hamilton as users write them."""

import time

from hamilton.htypes import Collect, Parallelizable


def extract(count: int) -> int:
    time.sleep(0.05)
    return count


def item(extract: int) -> Parallelizable[int]:
    yield from range(extract)


def work(item: int) -> int:
    time.sleep(0.05)
    return 2 * item


def merged(work: Collect[int]) -> int:
    return sum(work)


def broken(merged: int) -> int:
    raise RuntimeError("no item 1")


def never(broken: int, count: int) -> int:
    return broken


def stuck(count: int) -> int:
    open("stuck", "w").close()
    time.sleep(600)
    return count
