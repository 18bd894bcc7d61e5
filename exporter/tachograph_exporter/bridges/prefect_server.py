"""A Prefect server: its HTTP API, and its events, live and as they are stored."""

from __future__ import annotations

import base64
import contextlib
import urllib.parse
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp

from tachograph.integrations.prefect_events import PREFIXES
from tachograph_exporter.bridges.errors import BridgeError

KEY_VARIABLE: Final = "PREFECT_API_KEY"
AUTH_VARIABLE: Final = "PREFECT_API_AUTH_STRING"
REQUEST_SECONDS: Final = 30.0
SILENT_SECONDS: Final = 30.0
"""A connection that answers no ping for so long is closed."""
PAGE: Final = 50
"""Prefect gives no more events at a time."""
MAX_IDS: Final = 200
MAX_MESSAGE_BYTES: Final = 16 << 20


class PrefectError(Exception):
    """The server refused something, and will refuse it again."""


def api_address(url: str) -> str:
    """The address of the API from what users write: ``http://host:4200``, with or without ``/api``."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address or parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise BridgeError(
            f"not the URL of a Prefect server: expected one like http://host:4200/api; a key goes into {KEY_VARIABLE}, "
            f"a user and password into {AUTH_VARIABLE}"
        )
    path = parts.path.rstrip("/")
    if "api" not in path.split("/"):
        path += "/api"
    return f"{parts.scheme}://{parts.netloc}{path}"


class PrefectServer:
    """Asks a Prefect server. Methods raise `aiohttp.ClientError`, `OSError` or `PrefectError`.

    Args:
        session: not closed here.
        address: of the API, as `api_address` returns it.
        key: an API key, of Prefect Cloud.
        password: user and password, as ``user:password``.
    """

    def __init__(self, session: aiohttp.ClientSession, address: str, key: str = "", password: str = "") -> None:
        self._session = session
        self._address = address
        self._token = key or password
        self._headers = {}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        elif password:
            self._headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"

    async def flow_run(self, run_id: str) -> Mapping[str, Any] | None:
        return await self._get(f"/flow_runs/{_quoted(run_id)}")

    async def task_run(self, run_id: str) -> Mapping[str, Any] | None:
        return await self._get(f"/task_runs/{_quoted(run_id)}")

    async def flow(self, flow_id: str) -> Mapping[str, Any] | None:
        return await self._get(f"/flows/{_quoted(flow_id)}")

    async def flow_runs(self, ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """These flow runs, by id; those that the server does not know are left out."""
        runs: dict[str, Mapping[str, Any]] = {}
        pending = list(ids)
        for i in range(0, len(pending), MAX_IDS):
            body = {"flow_runs": {"id": {"any_": pending[i : i + MAX_IDS]}}, "limit": MAX_IDS}
            for value in await self._request("POST", "/flow_runs/filter", body) or ():
                if isinstance(value, Mapping) and isinstance(value.get("id"), str):
                    runs[value["id"]] = value
        return runs

    async def stored_events(self, since: datetime) -> AsyncIterator[Any]:
        """The events of runs since a moment, as they are stored, oldest first."""
        occurred = {"since": since.isoformat(), "until": (datetime.now(UTC) + timedelta(minutes=5)).isoformat()}
        body = {"filter": {"occurred": occurred, "event": {"prefix": list(PREFIXES)}, "order": "ASC"}, "limit": PAGE}
        page = await self._request("POST", "/events/filter", body)
        while isinstance(page, Mapping):
            for event in page.get("events") or ():
                yield event
            # The server may know itself by another name.
            query = urllib.parse.urlsplit(str(page.get("next_page") or "")).query
            token = urllib.parse.parse_qs(query).get("page-token")
            if not token:
                return
            page = await self._request("GET", f"/events/filter/next?{urllib.parse.urlencode({'page-token': token[0]})}")

    @contextlib.asynccontextmanager
    async def live_events(self) -> AsyncIterator[AsyncIterator[Any]]:
        """The events of runs from now on."""
        address = f"{self._address}/events/out"
        async with self._session.ws_connect(
            address, protocols=("prefect",), headers=self._headers, heartbeat=SILENT_SECONDS,
            max_msg_size=MAX_MESSAGE_BYTES,
        ) as socket:  # fmt: skip
            await socket.send_json({"type": "auth", "token": self._token or None})
            reply = await socket.receive(REQUEST_SECONDS)
            if reply.type is not aiohttp.WSMsgType.TEXT or reply.json().get("type") != "auth_success":
                raise PrefectError(
                    f"it does not let this bridge read its events: check {KEY_VARIABLE}, {AUTH_VARIABLE}"
                )
            occurred = {
                "since": (datetime.now(UTC) - timedelta(days=1)).isoformat(),
                # The server takes now for the end, unless it is told another one.
                "until": (datetime.now(UTC) + timedelta(days=3650)).isoformat(),
            }
            told = {"occurred": occurred, "event": {"prefix": list(PREFIXES)}}
            await socket.send_json({"type": "filter", "filter": told, "backfill": False})
            yield _messages(socket)

    async def _get(self, path: str) -> Mapping[str, Any] | None:
        value = await self._request("GET", path)
        return value if isinstance(value, Mapping) else None

    async def _request(self, method: str, path: str, body: Any = None) -> Any:
        """The answer; None if there is no such thing."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with self._session.request(
            method, f"{self._address}{path}", json=body, headers=self._headers, timeout=timeout
        ) as response:
            if response.status in (404, 422) and method == "GET":
                return None
            if response.status in (401, 403):
                raise PrefectError(f"it does not let this bridge in: check {KEY_VARIABLE}, {AUTH_VARIABLE}")
            if response.status == 404:
                raise PrefectError(f"it has no {path}: is it the address of Prefect 3?")
            response.raise_for_status()
            return await response.json()


async def _messages(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Any]:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            told = message.json()
            if isinstance(told, Mapping) and told.get("type") == "event":
                yield told.get("event")


def _quoted(identifier: str) -> str:
    return urllib.parse.quote(identifier, safe="")
