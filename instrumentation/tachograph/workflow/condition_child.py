"""A process that evaluates one condition within limits, and dies in place of the one that asked.

Started by file, so that it imports nothing but CEL. It reads a pickled (sys.path, text, scope, seconds, bytes) and
writes ``("result", value)`` or ``("error", message)``, pickled.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from typing import Any


def main() -> None:
    """Read, evaluate, answer."""
    # Written by the process that started this one.
    path, text, scope, seconds, size = pickle.load(sys.stdin.buffer)  # noqa: S301
    with contextlib.suppress(AttributeError, OSError):
        os.nice(10)  # The processor is for the others first.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    sys.path[:] = path
    answer: tuple[str, Any]
    try:
        import cel

        result = cel.compile(text).execute(scope)
        # Only truth values are results; of anything else, what it is suffices.
        answer = ("result", result) if isinstance(result, bool) else ("other", type(result).__name__)
    except Exception as error:
        answer = ("error", str(error)[:1000])
    pickle.dump(answer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
