"""What could not be set up: said once, and kept where it can be seen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """A part of the recording that does not work as configured, and why.

    ``part`` is ``spans``, ``metrics``, ``store`` or ``steps``.
    """

    part: str
    message: str


Report: TypeAlias = Callable[[str, str], None]
"""Called with a part and a message."""


def warn(part: str, message: str) -> None:
    """Log a problem."""
    log.warning("%s: %s", part, message)


class Problems(list[Problem]):
    """A list of problems. Calling it with a part and a message adds a problem and logs it."""

    def __call__(self, part: str, message: str) -> None:
        warn(part, message)
        self.append(Problem(part, message))
