"""A list of a document's faults that does not grow for ever: a megabyte of JSON can have a hundred thousand."""

from __future__ import annotations

from typing import Final

from tachograph.errors import Fault

MAX_FAULTS: Final = 10_000
"""Faults of one kind (errors or warnings) that are named; the list ends with a note that there are more."""


class Faults(list[Fault]):
    """Faults, at most `MAX_FAULTS` and the note."""

    def append(self, fault: Fault) -> None:
        """Add a fault, or at the end the note."""
        if len(self) < MAX_FAULTS:
            super().append(fault)
        elif len(self) == MAX_FAULTS:
            super().append(Fault("too_many_faults", "", f"there are more than {MAX_FAULTS:,} faults; mend these first"))
