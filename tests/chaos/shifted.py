"""A service whose clock is wrong: ``python -m tests.chaos.shifted SECONDS serve …``.

Only what Python asks for the time of day is shifted. libfaketime shifts all of a process, and its ``clock_nanosleep``
fails now and then for threads that sleep until a moment.
"""

from __future__ import annotations

import sys
import time
from typing import Final

_SECONDS: Final = float(sys.argv.pop(1)) if __name__ == "__main__" else 0.0
_time, _time_ns = time.time, time.time_ns


def main() -> None:
    """Shift the clock, and run the command."""
    time.time = lambda: _time() + _SECONDS
    time.time_ns = lambda: _time_ns() + round(_SECONDS * 1e9)
    from tachograph_exporter import main as run

    run()


if __name__ == "__main__":
    main()
