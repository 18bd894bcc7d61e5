"""Every error that Tachograph raises to its users, in one tree.

TachographError
├── WorkflowError
│   ├── InvalidWorkflow      a definition has faults; lists all of them, each with a code and a place
│   ├── InvalidInputs        the inputs do not match the definition's variables
│   ├── ConditionError       a condition could not be evaluated
│   ├── StepFailed           raised by a handler: its step failed
│   │   └── DoNotRetry       raised by a handler: its step failed, and another attempt would fail too
│   └── ExecutorClosed       the executor is shutting down
├── ClientError              (`tachograph.client`) a service does not answer, or refuses; see its own errors
├── SetupError               the recorder cannot be set up as configured
├── StoreUnavailable         a listener's destination is unavailable; its events are kept and retried
└── StoreError               (the service) the database cannot be used
    ├── BadDatabaseURL       not the URL of a supported database
    ├── CannotOpen           the database cannot be opened (no such directory, no permission, not a database)
    │   └── DatabaseUnavailable  not now: it is locked, or the server cannot be reached; also a StoreUnavailable
    ├── QueryTimeout         reading took longer than it may, and was stopped
    ├── NewerSchema          the database was made by a newer Tachograph
    ├── ExecutionNotFound    the workspace has no execution with this id
    └── ArchiveError         an archived execution cannot be read, or pyarrow is not installed
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class TachographError(Exception):
    """Base of all errors of Tachograph. The message names the thing, the place and the way out."""


class Fault(msgspec.Struct, frozen=True):
    """A fault of a document: a stable ``code``, the place (``steps[3].name``), and a message with the way out."""

    code: str
    at: str
    message: str

    def __str__(self) -> str:
        return f"{self.message} at {self.at or 'the top'} [{self.code}]"


class WorkflowError(TachographError):
    """Base of the errors of defining and running workflows."""


class _HasFaults(WorkflowError):
    _what = "document"

    def __init__(self, faults: Sequence[Fault], *, name: str = "") -> None:
        self.faults = tuple(faults)
        self.name = name
        count = len(self.faults)
        title = f'{self._what} "{name}"' if name else self._what
        super().__init__(
            f"{title} has {count} fault{'s' if count != 1 else ''}: " + "; ".join(str(fault) for fault in self.faults)
        )


class InvalidWorkflow(_HasFaults):
    """A definition has faults; ``faults`` holds all of them."""

    _what = "workflow"


class InvalidInputs(_HasFaults):
    """The inputs do not match the definition's variables; ``faults`` holds all mismatches."""

    _what = "inputs of workflow"


class ConditionError(WorkflowError):
    """A condition could not be evaluated."""


class StepFailed(WorkflowError):
    """Raised by a handler to fail its step."""


class DoNotRetry(StepFailed):
    """Raised by a handler to fail its step at once: another attempt would fail too."""


class ExecutorClosed(WorkflowError):
    """The executor is shutting down and accepts no more work."""


class SetupError(TachographError):
    """The recorder cannot be set up as configured; the message says what is missing and how to get it."""


class StoreUnavailable(TachographError):
    """Raised by a listener whose destination is unavailable; it receives the same events again later."""


class StoreError(TachographError):
    """Base of the store's errors."""


class BadDatabaseURL(StoreError):
    """Not the URL of a supported database."""


class CannotOpen(StoreError):
    """The database cannot be opened."""


class DatabaseUnavailable(CannotOpen, StoreUnavailable):
    """The database cannot be opened or used now, but perhaps later: it is locked, or its server cannot be reached."""


class QueryTimeout(StoreError):
    """Reading took longer than ``seconds``, and was stopped."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"reading took longer than {seconds:g} s")
        self.seconds = seconds


class NewerSchema(StoreError):
    """A newer Tachograph has migrated the database."""


class ExecutionNotFound(StoreError):
    """The workspace has no execution with this id, neither in the tables nor in the archive."""

    def __init__(self, execution_id: str) -> None:
        super().__init__(f'there is no execution "{execution_id}" in this workspace')
        self.execution_id = execution_id


class ArchiveError(StoreError):
    """An archived execution cannot be read, or the archive's library is not installed."""
