"""What the service and its commands agree on without being told. Light: commands import it before anything else."""

from __future__ import annotations

from typing import Final

DEFAULT_LISTEN: Final = "127.0.0.1:9923"
DEFAULT_DATABASE: Final = "sqlite:///tachograph.db"
TOKEN_VARIABLE: Final = "TACHOGRAPH_TOKEN"  # noqa: S105 - the name of a variable
LISTEN_VARIABLE: Final = "TACHOGRAPH_LISTEN"
URL_VARIABLE: Final = "TACHOGRAPH_URL"
