"""What a route is: where, who may, what it takes and answers. The service serves this table, and documents it.

`Query` reads only parameters that the route declares, and `tachograph_exporter.api.openapi` describes the same ones, so
neither can say what the other does not.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tachograph_exporter.api.problems import CODES, Handler
from tachograph_exporter.store.tokens import READ


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A query parameter. ``kind``: time, duration, integer, number, boolean, text, or texts (may be repeated)."""

    name: str
    about: str
    kind: str = "text"
    choices: tuple[str, ...] = ()
    default: Any = None
    example: Any = None
    low: int | None = None
    high: int | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One route.

    ``scope`` None: open to everybody. ``in_workspace``: about one workspace, named as every route's is.
    ``answer`` is the type of a successful answer, ``codes`` the problems (see `errors.CODES`) beyond those that any
    route of its shape can answer. ``media``: other media types of the answer; ``other_answers``: other types
    of it, in JSON.
    """

    method: str
    path: str
    handler: Handler
    scope: str | None = READ
    in_workspace: bool = True
    query: tuple[Parameter, ...] = ()
    body: Any = None
    body_is_optional: bool = False
    body_example: Any = None
    answer: Any = None
    status: int = 200
    also: tuple[int, ...] = ()
    codes: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    other_answers: tuple[Any, ...] = ()
    tag: str = ""

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring, without the method and path."""
        line = (self.handler.__doc__ or "").strip().partition("\n")[0]
        return line.partition(": ")[2] or line

    @property
    def description(self) -> str:
        """The rest of the docstring."""
        rest = (self.handler.__doc__ or "").strip().partition("\n")[2]
        return "\n".join(part.strip() for part in rest.strip().splitlines()).replace("``", "`")

    @property
    def all_codes(self) -> tuple[str, ...]:
        """Every problem the route can answer."""
        codes = [*self.codes, "internal_error", "wrong_host", "shutting_down"]
        if self.scope is not None:
            codes += ["unauthorized", "forbidden"]
        if self.in_workspace:
            codes += ["workspace_not_found", "invalid_parameters", "store_unavailable"]
        elif self.query:
            codes.append("invalid_parameters")
        if "{workflow_id}" in self.path:
            codes.append("workflow_not_found")
        if "{execution_id}" in self.path:
            codes.append("execution_not_found")
        if self.body is not None:
            codes += ["invalid_json", "invalid_body", "unsupported_media_type", "body_too_large", "bad_request"]
        unknown = set(codes) - CODES.keys()
        if unknown:
            raise ValueError(f"{self.method} {self.path}: no such problem: {', '.join(sorted(unknown))}")
        return tuple(sorted(set(codes)))


FROM: Final = Parameter(name="from", kind="time", about="Only what ended at or after this time.", example="7d")
TO: Final = Parameter(name="to", kind="time", about="Only what ended before this time.", example="2026-11-24T00:00:00Z")
SKIP: Final = Parameter(name="skip", kind="integer", about="How many to leave out.", default=0, low=0, high=10**12)
LIMIT: Final = Parameter(
    name="limit", kind="integer", about="How many to answer at most.", default=50, low=1, high=1000
)
PAGE: Final = (SKIP, LIMIT)
