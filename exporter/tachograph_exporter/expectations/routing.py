"""Who is told of what, and when: receivers, their quiet hours, and how their addresses are shown."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec

from tachograph.clock import NS
from tachograph.errors import Fault
from tachograph.expectation import SEVERITIES, severity_fault, timezone_fault
from tachograph_exporter.expectations.findings import KINDS
from tachograph_exporter.name_patterns import fits

NOTIFY_VARIABLE: Final = "TACHOGRAPH_NOTIFY"
"""URLs for ``serve --notify``, separated by spaces."""
SECRET_VARIABLE: Final = "TACHOGRAPH_NOTIFY_SECRET"  # noqa: S105 - the name of the variable
"""Signs the webhooks of ``serve --notify``."""
_QUIET: Final = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)\s*-\s*([01]?\d|2[0-4]):([0-5]\d)")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*://.", re.IGNORECASE)
MAX_NAME: Final = 100
_MINUTE_NS: Final = 60 * NS
_DAY_NS: Final = 86_400 * NS


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver of notices.

    ``url`` is an ``http(s)`` address for a webhook, signed with ``secret``, or any other URL that apprise knows.
    ``workspaces`` and ``workflows`` are patterns (empty: all), ``kinds`` names of `findings.KINDS`, ``severity`` the
    least one. In ``quiet`` hours (from and to, minutes after midnight in ``timezone``) only what is critical is told.
    ``recoveries``: it is told of recoveries, too.
    """

    name: str
    url: str
    secret: str = ""
    workspaces: tuple[str, ...] = ()
    workflows: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    severity: str = SEVERITIES[0]
    quiet: tuple[int, int] | None = None
    timezone: str = "UTC"
    recoveries: bool = True

    def __repr__(self) -> str:
        return f"Target({self.name!r}, {self.shown!r})"

    @property
    def is_webhook(self) -> bool:
        """Whether it gets signed JSON; apprise sends to the others."""
        return self.url.lower().startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The address without anything that may be a secret."""
        return masked(self.url)

    def takes(self, workspace: str, workflow: str, kind: str, severity: str) -> bool:
        """Whether it is told of such a notice."""
        return (
            _fits(self.workspaces, workspace)
            and _fits(self.workflows, workflow)
            and (not self.kinds or kind in self.kinds)
            and SEVERITIES.index(severity) >= SEVERITIES.index(self.severity)
        )

    def not_before(self, severity: str, now_ns: int) -> int:
        """When it may be told: now, or at the first minute after its quiet hours (of a whole day: a day later)."""
        if severity == SEVERITIES[-1] or not self._is_quiet(now_ns):
            return now_ns
        # Minute by minute, as people read the clock: its hands may be put forward or back meanwhile.
        next_ns = now_ns - now_ns % _MINUTE_NS + _MINUTE_NS
        minutes = range(next_ns, next_ns + _DAY_NS, _MINUTE_NS)
        return next((minute for minute in minutes if not self._is_quiet(minute)), minutes[-1])

    def _is_quiet(self, time_ns: int) -> bool:
        if self.quiet is None:
            return False
        local = datetime.fromtimestamp(time_ns // NS, UTC if self.timezone == "UTC" else ZoneInfo(self.timezone))
        begin, end = self.quiet
        minute = local.hour * 60 + local.minute
        return begin <= minute < end if begin <= end else minute >= begin or minute < end


def _fits(patterns: Sequence[str], name: str) -> bool:
    return not patterns or any(fits(pattern, name) for pattern in patterns)


def masked(url: str) -> str:
    """A URL without anything that may be a secret: the scheme, and for http(s) the host."""
    scheme = url.partition("://")[0].lower()[:20]
    if scheme not in ("http", "https"):
        return f"{scheme}://…"
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return f"{scheme}://…"
    return f"{scheme}://{parts.hostname or ''}{port}/…"


def target_of_url(url: str, environment: Mapping[str, str] = os.environ) -> Target:
    """The receiver of ``serve --notify URL``; it is told of everything. Raises ValueError."""
    if fault := url_fault(url):
        raise ValueError(fault)
    digest = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = f"{'webhook' if url.lower().startswith('http') else url.partition('://')[0].lower()[:20]}-{digest}"
    return Target(name=name, url=url, secret=environment.get(SECRET_VARIABLE, ""))


def url_fault(url: str) -> str:
    """What is wrong with a URL; "" if nothing is. Never shows it."""
    if not _SCHEME.match(url) or not url.isprintable() or len(url) > 2000:
        return "not a URL to notify: expected https://… (a webhook) or a URL of apprise such as mailto://… or ntfy://…"
    if url.lower().startswith(("http://", "https://")):
        try:
            host = urlsplit(url).hostname
            _ = urlsplit(url).port
        except ValueError:
            host = None
        if not host:
            return f"{masked(url)} is not the URL of a webhook"
    return ""


class _Written(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A receiver as a file has it."""

    name: str
    url: str = ""
    url_env: str = ""
    secret: str = ""
    secret_env: str = ""
    workspaces: list[str] = []
    workflows: list[str] = []
    kinds: list[str] = []
    severity: str = SEVERITIES[0]
    quiet: str = ""
    timezone: str = "UTC"
    recoveries: bool = True


def read_target(value: object, at: str, environment: Mapping[str, str]) -> tuple[Target | None, list[Fault]]:
    """A receiver in a file, and every fault of it."""
    try:
        written = msgspec.convert(value, _Written)
    except msgspec.ValidationError as error:
        return None, [Fault("bad_receiver", at, str(error))]
    faults: list[Fault] = []

    def fault(place: str, message: str) -> None:
        if message:
            faults.append(Fault("bad_value", f"{at}.{place}", message))

    def of_environment(name: str, plain: str, place: str) -> str:
        if name and plain:
            fault(place, f"say {place} or {place}_env, not both")
        if name and name not in environment:
            fault(f"{place}_env", f"the environment variable {name} is not set")
        return environment.get(name, "") if name else plain

    url = of_environment(written.url_env, written.url, "url")
    secret = of_environment(written.secret_env, written.secret, "secret")
    fault("url", url_fault(url))
    fault("severity", severity_fault(written.severity))
    fault("timezone", timezone_fault(written.timezone))
    if not 0 < len(written.name) <= MAX_NAME or not written.name.isprintable():
        fault("name", f"expected 1 to {MAX_NAME} printable characters")
    for kind in written.kinds:
        fault("kinds", "" if kind in KINDS else f'"{kind}" is not a kind of notice; expected {", ".join(KINDS)}')
    quiet = _QUIET.fullmatch(written.quiet.strip()) if written.quiet else None
    if written.quiet and quiet is None:
        fault("quiet", f'"{written.quiet}": expected from and to, such as 22:00-07:00')
    if faults:
        return None, faults
    hours = None
    if quiet is not None:
        begin, end = (int(quiet[i]) * 60 + int(quiet[i + 1]) for i in (1, 3))
        hours = (begin % 1440, end)
    return (
        Target(
            name=written.name, url=url, secret=secret, workspaces=tuple(written.workspaces),
            workflows=tuple(written.workflows), kinds=tuple(written.kinds), severity=written.severity, quiet=hours,
            timezone=written.timezone, recoveries=written.recoveries,
        ),
        [],
    )  # fmt: skip
