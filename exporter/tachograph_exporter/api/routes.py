"""Routes as declarations: path, scope, parameters, body, responses and problem codes.

The service registers its handlers from these declarations, `Query` reads only the parameters they name, and
`tachograph_exporter.api.openapi` describes them, so the documentation cannot drift from the code.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from tachograph_exporter.api.problems import CODES, Handler
from tachograph_exporter.store.tokens import READ

SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS", "TRACE")
"""Methods that change nothing (RFC 9110, section 9.2.1)."""


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A query parameter. ``kind``: text, texts (may be repeated), time, duration, integer or boolean."""

    name: str
    description: str
    kind: str = "text"
    choices: tuple[str, ...] = ()
    default: Any = None
    example: Any = None
    low: int | None = None
    high: int | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One route.

    ``scope``: the scope a caller needs; None for a public route. ``in_workspace``: it takes the workspace from the
    request (see `request.workspace_of`). ``needs_token``: the caller needs a token even where none is
    asked for. ``answer``: type of a successful response; ``other_answers``: further types, in JSON; ``media``: further
    media types. ``also``: further statuses with the same body.
    ``creates``: it creates something, and may be sent again with the same ``Idempotency-Key``.
    ``changes``: it changes something although its method is a safe one. ``aliases``: further paths.
    ``takes_text``: its body is text of any type.
    ``codes``: problems (see `problems.CODES`) beyond those that `all_codes` derives from the other fields.
    """

    method: str
    path: str
    handler: Handler
    scope: str | None = READ
    in_workspace: bool = True
    needs_token: bool = False
    creates: bool = False
    changes: bool = False
    takes_text: bool = False
    aliases: tuple[str, ...] = ()
    query: tuple[Parameter, ...] = ()
    body: Any = None
    body_is_optional: bool = False
    body_example: Any = None
    response: Any = None
    status: int = 200
    other_statuses: tuple[int, ...] = ()
    codes: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    other_responses: tuple[Any, ...] = ()

    @property
    def summary(self) -> str:
        """First line of the handler's docstring, without method and path."""
        line = (self.handler.__doc__ or "").strip().partition("\n")[0]
        return line.partition(": ")[2] or line

    @property
    def description(self) -> str:
        """The handler's docstring after its first line."""
        rest = (self.handler.__doc__ or "").strip().partition("\n")[2]
        return "\n".join(part.strip() for part in rest.strip().splitlines()).replace("``", "`")

    @property
    def is_closed_to_foreign_pages(self) -> bool:
        """Whether the route changes something, or streams: pages of other sites may not call it."""
        is_stream = self.status == 101 or "text/event-stream" in self.media
        return self.method not in SAFE_METHODS or self.changes or is_stream

    @property
    def all_codes(self) -> tuple[str, ...]:
        """Every problem code the route can respond with."""
        codes = [*self.codes, "internal_error", "bad_request", "wrong_host", "shutting_down"]
        if self.scope is not None:
            codes += ["unauthorized", "forbidden"]
        if self.is_closed_to_foreign_pages:
            codes.append("foreign_page")
        if self.in_workspace:
            codes += ["workspace_not_found", "invalid_parameters", "store_unavailable", "query_timeout"]
        elif self.query:
            codes.append("invalid_parameters")
        if self.creates:
            codes += ["invalid_parameters", "idempotency_key_reused", "store_unavailable"]
        if "{workflow_id}" in self.path:
            codes.append("workflow_not_found")
        if "{execution_id}" in self.path:
            codes.append("execution_not_found")
        if self.body is not None:
            codes += ["invalid_json", "invalid_body", "unsupported_media_type", "body_too_large", "request_timeout"]
            codes.append("too_many_requests")
        unknown = set(codes) - CODES.keys()
        if unknown:
            raise ValueError(f"{self.method} {self.path}: unknown problem code: {', '.join(sorted(unknown))}")
        return tuple(sorted(set(codes)))


ROUTE_BY_HANDLER: Final = web.AppKey("route_by_handler", dict[Handler, Route])

FROM: Final = Parameter(name="from", kind="time", description="Only what ended at or after this time.", example="7d")
TO: Final = Parameter(
    name="to", kind="time", description="Only what ended before this time.", example="2026-11-24T00:00:00Z"
)
SKIP: Final = Parameter(
    name="skip", kind="integer", description="Number of items to skip.", default=0, low=0, high=10**12
)
LIMIT: Final = Parameter(
    name="limit", kind="integer", description="Maximum number of items to return.", default=50, low=1, high=1000
)
PAGE: Final = (SKIP, LIMIT)
