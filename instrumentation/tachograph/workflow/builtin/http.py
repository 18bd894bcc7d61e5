"""The handler ``http``: sends one HTTP request."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from tachograph.errors import DoNotRetry, StepFailed
from tachograph.workflow.builtin.addresses import AddressPolicy, Connection, RefusedAddress, own_policy
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import HandlerRegistry, registry

_BODY_LIMIT: Final = 1_000_000
_MAX_REDIRECTS: Final = 10
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_GOES_ANYWHERE: Final = frozenset({"accept", "accept-language", "traceparent", "tracestate", "user-agent"})
"""Headers that follow a redirect to another origin; any other may be a credential."""
_METHOD: Final = re.compile(r"[A-Z]+")
_PORTS: Final = {"http": 80, "https": 443}


class HttpConfig(msgspec.Struct):
    """Config of ``http``."""

    url: Annotated[str, msgspec.Meta(description="Where to.")]
    method: Annotated[str, msgspec.Meta(description="HTTP method.")] = "GET"
    headers: Annotated[dict[str, str], msgspec.Meta(description="Headers of the request.")] = {}
    json: Annotated[Any, msgspec.Meta(description="Sent as the body, unless it is `null`.")] = None
    timeout_seconds: Annotated[float, msgspec.Meta(ge=0, description="Limits the whole call, redirects included.")] = (
        30.0
    )


class _Response(NamedTuple):
    status: int
    reason: str
    content_type: str
    location: str | None
    body: bytes


@registry.register("http", config=HttpConfig)
def http(context: StepContext) -> dict[str, Any]:
    """Request ``config.url``; the output is ``{"status", "body"}``, with a JSON body decoded.

    The request carries the step's trace context (``traceparent``). A response status of 400 to 499 fails without a
    retry, except 408, 425 and 429; other errors may be retried. Redirects are followed; to another origin only a few
    harmless headers go along. Link-local and metadata addresses are refused unless ``TACHOGRAPH_HTTP_ALLOW`` names
    them; a service refuses all addresses that are not public, unless it was started with ``--http-allow``. Proxies are
    not used.
    """
    try:
        policy = own_policy()
    except ValueError as error:
        raise DoNotRetry(f"TACHOGRAPH_HTTP_ALLOW: {error}") from None
    return _call(context, policy)


def restricted(handlers: HandlerRegistry, policy: AddressPolicy) -> HandlerRegistry:
    """A copy of a registry whose built-in ``http`` reaches what ``policy`` allows. A handler of one's own stays."""
    copy = handlers.copy()
    handler = copy.find("http")
    if handler is not None and handler.function is http:
        copy.register("http", config=HttpConfig)(_with_policy(policy))
    return copy


def _with_policy(policy: AddressPolicy) -> Callable[[StepContext], dict[str, Any]]:
    def http(context: StepContext) -> dict[str, Any]:
        return _call(context, policy)

    http.__doc__ = globals()["http"].__doc__
    return http


def _call(context: StepContext, policy: AddressPolicy) -> dict[str, Any]:
    config = context.parse_config(HttpConfig)
    deadline = time.monotonic() + config.timeout_seconds
    method, url = config.method.upper(), _checked(config.url)
    if not _METHOD.fullmatch(method):
        raise DoNotRetry(f"{config.method[:40]!r} is not an HTTP method")
    headers = {**config.headers, **context.propagation()}
    body = None
    if config.json is not None:
        body = msgspec.json.encode(config.json)
        headers.setdefault("Content-Type", "application/json")
    what = f"{method} {url.geturl()}"
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            response = _request(policy, method, url, headers, body, deadline)
            is_safe = method in ("GET", "HEAD")
            if response.location is None or not (is_safe or response.status in (301, 302, 303)):
                break
            target = _checked(urljoin(url.geturl(), response.location))
            if not is_safe:
                method, body = "GET", None
                headers = {name: value for name, value in headers.items() if not name.lower().startswith("content-")}
            if _origin(target) != _origin(url):
                headers = {name: value for name, value in headers.items() if name.lower() in _GOES_ANYWHERE}
            url = target
        else:
            raise DoNotRetry(f"{what} failed: more than {_MAX_REDIRECTS} redirects")
    except RefusedAddress as error:
        raise DoNotRetry(f"{what} failed: {error}") from None
    except TimeoutError:
        raise StepFailed(f"{what} failed: no complete response within {config.timeout_seconds:g} s") from None
    except (UnicodeError, ValueError) as error:
        raise DoNotRetry(f"{what} failed: {error}") from None
    except (OSError, HTTPException) as error:
        raise StepFailed(f"{what} failed: {str(error) or type(error).__name__}") from None
    if response.status >= 300 and (response.location is not None or response.status >= 400):
        kind = DoNotRetry if response.status < 500 and response.status not in (408, 425, 429) else StepFailed
        raise kind(f"{what} answered {response.status} {response.reason}")
    if len(response.body) > _BODY_LIMIT:
        raise DoNotRetry(f"{url.geturl()} answered more than {_BODY_LIMIT} bytes")
    return {"status": response.status, "body": _decode(response.body, response.content_type)}


def _checked(url: str) -> SplitResult:
    """A URL in its parts. Raises `DoNotRetry` if no request can be sent to it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise DoNotRetry(f"{url[:200]!r} is not a URL: {error}") from None
    if parts.scheme not in _PORTS:
        raise DoNotRetry(f"the http handler supports http and https only, not {parts.scheme or 'nothing'!r}")
    if parts.username is not None or parts.password is not None:
        raise DoNotRetry("a URL with a user name and password is not supported; send the header Authorization")
    if not parts.hostname or port == 0 or re.search(r"[\x00-\x20\x7f]", url):
        raise DoNotRetry(f"{url[:200]!r} is not a URL that names a host")
    return parts


def _origin(url: SplitResult) -> tuple[str, str | None, int]:
    return url.scheme, url.hostname, url.port or _PORTS[url.scheme]


def _request(
    policy: AddressPolicy,
    method: str,
    url: SplitResult,
    headers: Mapping[str, str],
    body: bytes | None,
    deadline: float,
) -> _Response:
    scheme, host, port = _origin(url)
    connection = Connection(policy, host or "", port, deadline, is_secure=scheme == "https")
    try:
        client = HTTPConnection(host or "", port)
        client.default_port = _PORTS[scheme]
        client.sock = connection
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        client.request(method, target, body=body, headers=dict(headers))
        response = client.getresponse()
        location = response.headers.get("Location") if response.status in _REDIRECTS else None
        content = b"" if location is not None else response.read(_BODY_LIMIT + 1)
        return _Response(response.status, response.reason, response.headers.get_content_type(), location, content)
    finally:
        connection.end()


def _decode(body: bytes, content_type: str) -> Any:
    if content_type.endswith("json"):
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(body)
    return body.decode("utf-8", "replace")
