"""Every error a user of the library can meet, in one tree.

TachographError
├── WorkflowError
│   ├── InvalidWorkflow      a definition with faults: all of them, each with a code and a place
│   ├── InvalidInputs        the variables given at the start do not fit the definition
│   ├── ConditionError       a condition could not be evaluated
│   ├── StepFailed           the built-in ``fail`` handler, or a handler that reports its own failure
│   │   └── DoNotRetry       ... and another attempt cannot help
│   └── ExecutorClosed       the executor takes no more work
├── SetupError               the recorder cannot be set up as asked
├── StoreUnavailable         a listener's destination is unavailable for now; its events are kept and offered again
└── StoreError               (the service) the database cannot be used
    ├── BadDatabaseURL       the URL names no database Tachograph can use
    ├── CannotOpen           the database cannot be opened (no such directory, no permission, not a database)
    ├── NewerSchema          the database was made by a newer Tachograph
    ├── ExecutionNotFound    the workspace has no execution with this id
    └── ArchiveError         an archived execution cannot be read, or pyarrow is not installed
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class TachographError(Exception):
    """Base of all errors of Tachograph; the message names the thing, the place and the way out."""


class Fault(msgspec.Struct, frozen=True):
    """One thing wrong with a document: a stable ``code``, the place (``steps[3].name``) and the way out."""

    code: str
    at: str
    message: str

    def __str__(self) -> str:
        return f"{self.message} at {self.at or 'the top'} [{self.code}]"


class WorkflowError(TachographError):
    """Base of the errors of defining and running workflows."""


class _Faulty(WorkflowError):
    _what = "document"

    def __init__(self, faults: Sequence[Fault], *, name: str = "") -> None:
        self.faults = tuple(faults)
        self.name = name
        count = len(self.faults)
        title = f'{self._what} "{name}"' if name else self._what
        super().__init__(
            f"{title} has {count} fault{'s' if count != 1 else ''}: " + "; ".join(str(fault) for fault in self.faults)
        )


class InvalidWorkflow(_Faulty):
    """A definition with faults; ``faults`` holds every one of them."""

    _what = "workflow"


class InvalidInputs(_Faulty):
    """The variables given at the start do not fit the definition; ``faults`` holds every misfit."""

    _what = "inputs of workflow"


class ConditionError(WorkflowError):
    """A condition could not be evaluated."""


class StepFailed(WorkflowError):
    """Raised by a handler to report that its step failed."""


class DoNotRetry(StepFailed):
    """Raised by a handler when another attempt cannot help: the step fails at once."""


class ExecutorClosed(WorkflowError):
    """The executor is shutting down and takes no more work."""


class SetupError(TachographError):
    """The recorder cannot be set up as asked; the message says what is missing and how to get it."""


class StoreUnavailable(TachographError):
    """Raised by a listener whose destination is unavailable for now: the same events are offered again later."""


class StoreError(TachographError):
    """Base of the store's errors; the message says what to do."""


class BadDatabaseURL(StoreError):
    """The URL names no database Tachograph can use."""


class CannotOpen(StoreError):
    """The database cannot be opened."""


class NewerSchema(StoreError):
    """The database was made by a newer Tachograph."""


class ExecutionNotFound(StoreError):
    """The workspace has no execution with this id, neither in the tables nor in the archive."""

    def __init__(self, execution_id: str) -> None:
        super().__init__(f'there is no execution "{execution_id}" in this workspace')
        self.execution_id = execution_id


class ArchiveError(StoreError):
    """An archived execution cannot be read, or the archive's library is not installed."""
