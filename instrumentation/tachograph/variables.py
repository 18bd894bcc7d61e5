"""The environment variables that the library and the service's commands both read."""

from __future__ import annotations

from typing import Final

DATABASE_VARIABLE: Final = "TACHOGRAPH_DATABASE_URL"
WORKSPACE_VARIABLE: Final = "TACHOGRAPH_WORKSPACE"
URL_VARIABLE: Final = "TACHOGRAPH_URL"
TOKEN_VARIABLE: Final = "TACHOGRAPH_TOKEN"  # noqa: S105 - the name of the variable
