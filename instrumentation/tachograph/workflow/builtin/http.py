"""The handler ``http``: sends one HTTP request."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tachograph.errors import DoNotRetry, StepFailed
from tachograph.workflow.builtin.basic import Seconds
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import registry

_BODY_LIMIT: Final = 1_000_000


class HttpConfig(msgspec.Struct):
    """``json`` is sent as the body if set; ``timeout_seconds`` limits each network operation."""

    url: str
    method: str = "GET"
    headers: dict[str, str] = {}
    json: Any = None
    timeout_seconds: Seconds = 30.0


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            _check_scheme(newurl)
        except DoNotRetry:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise DoNotRetry(f"the http handler supports http and https only, not {urlsplit(url).scheme or 'nothing'!r}")


@registry.register("http", config=HttpConfig)
def http(context: StepContext) -> dict[str, Any]:
    """Request ``config.url``; the output is ``{"status", "body"}``, with a JSON body decoded.

    The request carries the step's trace context (``traceparent``). A response status of 400 to 499 fails without a
    retry, except 408, 425 and 429; other errors may be retried.
    """
    config = context.parse_config(HttpConfig)
    _check_scheme(config.url)
    headers = {**config.headers, **context.propagation()}
    data = None
    if config.json is not None:
        data = msgspec.json.encode(config.json)
        headers.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(config.url, data=data, headers=headers, method=config.method.upper())  # noqa: S310
    opener = urllib.request.build_opener(_HttpRedirects)
    try:
        with opener.open(request, timeout=config.timeout_seconds) as response:
            body = response.read(_BODY_LIMIT + 1)
            status, content_type = response.status, response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        error.close()
        kind = DoNotRetry if 400 <= error.code < 500 and error.code not in (408, 425, 429) else StepFailed
        raise kind(f"{config.method.upper()} {config.url} answered {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise StepFailed(f"{config.method.upper()} {config.url} failed: {reason}") from None
    if len(body) > _BODY_LIMIT:
        raise DoNotRetry(f"{config.url} answered more than {_BODY_LIMIT} bytes")
    return {"status": status, "body": _decode(body, content_type)}


def _decode(body: bytes, content_type: str) -> Any:
    if content_type.endswith("json"):
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(body)
    return body.decode("utf-8", "replace")
