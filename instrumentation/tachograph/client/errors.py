"""What goes wrong between a client and a service.

ClientError                a TachographError
├── ServiceUnreachable     nobody answers, or not in time
├── UnexpectedAnswer       somebody answers who is no Tachograph, or a Tachograph of another version
└── ServiceProblem         the service says what is wrong: `problem` is what it sent
    └── NotFound           there is no such run, workflow or workspace, for this token
"""

from __future__ import annotations

from tachograph.client.answers import ProblemDetails
from tachograph.errors import TachographError


class ClientError(TachographError):
    """Base of the errors of a client."""


class ServiceUnreachable(ClientError):
    """The service does not answer, or not in time."""


class UnexpectedAnswer(ClientError):
    """What answers is not a Tachograph service, or one of a version that this client does not read."""


class ServiceProblem(ClientError):
    """The service refuses a request.

    ``problem`` is its problem document (RFC 9457): a stable ``code``, a ``detail`` for people, and each fault with its
    place. ``retry_after_seconds`` is when to ask again, if the service says so.
    """

    def __init__(self, message: str, problem: ProblemDetails, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds

    @property
    def status(self) -> int:
        """The status of the response."""
        return self.problem.status

    @property
    def code(self) -> str:
        """What is wrong, in a word that does not change."""
        return self.problem.code


class NotFound(ServiceProblem):
    """There is no such run, workflow or workspace, or this token does not see it."""
