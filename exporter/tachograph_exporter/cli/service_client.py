"""A service's HTTP API, asked over the standard library, which is loaded fastest."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from tachograph_exporter.cli.common import fail
from tachograph_exporter.defaults import TOKEN_VARIABLE

T = TypeVar("T")

_MAX_BYTES: Final = 256 << 20
_TIMEOUT_SECONDS: Final = 60.0
_ANY_JSON: Final = ("input_variables", "input_summary", "output_summary", "results")
"""Fields that hold any JSON; the schemas keep them encoded."""


class NotFound(Exception):
    """The service has no such thing."""


class ServiceClient:
    """Asks a service, with the token of the environment. Errors end the command.

    Args:
        url: its address.
        workspace: the workspace of all requests; None: the service's choice.
    """

    def __init__(self, url: str, workspace: str | None) -> None:
        self._base = url.rstrip("/")
        if not _is_address(self._base):
            fail(f"{url!r} is not a valid URL; expected http://HOST:PORT")
        self._parameters = {"workspace_slug": workspace} if workspace is not None else {}
        token = os.environ.get(TOKEN_VARIABLE)
        self._headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

    def _optional(self, path: str, parameters: Mapping[str, str], kind: type[T]) -> T | None:
        try:
            return self._read(self._get(path, parameters), kind)
        except NotFound:
            return None

    def _found(
        self,
        path: str,
        parameters: Mapping[str, str] = {},
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            return self._get(path, parameters, method, body)
        except NotFound as error:
            fail(f"{self._base}: {error}")

    def _read(self, document: Any, kind: type[T]) -> T:
        values = taken(document)
        try:
            view = msgspec.convert(document, kind)
        except msgspec.ValidationError as error:
            fail(f"{self._base} answers in a form that this version does not read ({error}); is it another version?")
        put_back(view, values)
        return view

    def _get(
        self, path: str, parameters: Mapping[str, str] = {}, method: str = "GET", body: Mapping[str, Any] | None = None
    ) -> Any:
        received = self._receive(path, parameters, method, body)
        if not received:
            return {}
        document = _json(received)
        if not isinstance(document, dict):
            fail(f"{self._base} does not answer as Tachograph does; is it another program, or a proxy's login page?")
        return document

    def _receive(
        self, path: str, parameters: Mapping[str, str] = {}, method: str = "GET", body: Mapping[str, Any] | None = None
    ) -> bytes:
        query = urllib.parse.urlencode({**self._parameters, **parameters})
        address = f"{self._base}{path}{'?' if query else ''}{query}"
        sent = msgspec.json.encode(body) if body is not None else None
        headers = {**self._headers, **({"Content-Type": "application/json"} if sent is not None else {})}
        request = urllib.request.Request(address, sent, headers, method=method)  # noqa: S310 - http(s) only
        try:
            with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as response:
                received = response.read(_MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error.code, error.read(65_536))
        except (urllib.error.URLError, OSError, http.client.HTTPException, ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", error)
            fail(f"{self._base} does not answer ({reason or type(error).__name__}); is `tachograph serve` running?")
        if len(received) > _MAX_BYTES:
            fail(f"{self._base} answered with more than {_MAX_BYTES >> 20} MiB")
        return bytes(received)

    def _refused(self, status: int, body: bytes) -> None:
        problem = _json(body)
        code = problem.get("code") if isinstance(problem, dict) else None
        detail = str(problem.get("detail") or "") if isinstance(problem, dict) else ""
        if status == 404 and code is not None:
            raise NotFound(detail)
        reasons = {
            401: f"a valid token is required: set {TOKEN_VARIABLE}",
            403: "the token does not allow this",
            404: "no Tachograph service at this address",
            429: "too many requests; try again later",
            503: "not available now; try again later",
        }
        reason = reasons.get(status, "")
        said = f": {detail}" if detail and status != 401 else ""
        fail(f"{self._base} answered {status}{f', {reason}' if reason else ''}{said}")


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is reported and not followed: it would carry the token elsewhere."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_NoRedirect)


def quoted(name: str) -> str:
    """A name as a part of a path."""
    return urllib.parse.quote(name, safe="")


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def taken(document: Any) -> dict[str, msgspec.Raw]:
    """Take the fields that hold any JSON out of a document, encoded."""
    values = {}
    if isinstance(document, dict):
        for name in _ANY_JSON:
            if document.get(name) is not None:
                values[name] = msgspec.Raw(msgspec.json.encode(document[name]))
                document[name] = None
    return values


def put_back(view: Any, values: Mapping[str, msgspec.Raw]) -> None:
    """Put fields that were `taken` into what was read of the document."""
    for name, value in values.items():
        setattr(view, name, value)
