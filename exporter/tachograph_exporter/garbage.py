"""When garbage is collected in the process of a service.

CPython looks for unreachable cycles when enough objects have come to be. Looking through the oldest of them stops every
thread for as long as it takes: while a trace of 50,000 spans is assembled, hundreds of thousands of objects are in use,
and they were gone through once a second, for 100 to 200 ms each, with next to nothing to collect
(https://docs.python.org/3/library/gc.html#gc.set_threshold). Here the oldest objects are looked through once a minute,
and more rarely the longer that takes; and when the process has little to do, for then there are fewest of them. Young
garbage is collected as ever; what is in no cycle needs no collection.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from typing import Final

EVERY_SECONDS: Final = 60.0
"""How often the oldest objects are looked through."""
MAX_SHARE: Final = 0.0005
"""The part of the time that this may take; if it takes longer, it is done more rarely."""
MAX_WAIT_SECONDS: Final = 600.0
"""How long that waits for a moment in which the process has little to do."""
_QUIET_SHARE: Final = 0.3
"""The part of a processor below which the process has little to do."""
_YOUNG: Final = 5_000
"""So many more objects than before make a collection of the youngest."""
_MIDDLE: Final = 5
"""So many of these collections make one of the next generation."""
_NEVER: Final = 1_000_000


@contextlib.contextmanager
def collected_rarely() -> Iterator[None]:
    """Inside, the oldest objects are looked through by a thread of its own, not whenever others have come to be."""
    before = gc.get_threshold()
    # What was imported stays: there is no need to look through it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    end = threading.Event()
    thread = threading.Thread(target=_collect, args=(end,), name="tachograph-garbage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        gc.set_threshold(*before)


def _collect(end: threading.Event) -> None:
    pause = EVERY_SECONDS
    while not end.wait(pause) and _quiet(end):
        began = time.thread_time()
        gc.collect()
        pause = max(EVERY_SECONDS, (time.thread_time() - began) / MAX_SHARE)


def _quiet(end: threading.Event) -> bool:
    """Wait until the process has had little to do for a moment, or for long enough; false at the end."""
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    moment = min(1.0, MAX_WAIT_SECONDS)
    while time.monotonic() < deadline:
        used = time.process_time()
        if end.wait(moment):
            return False
        if time.process_time() - used < _QUIET_SHARE * moment:
            break
    return not end.is_set()
