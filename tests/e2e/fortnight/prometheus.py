"""What a Prometheus has seen: increases from raw samples, without the estimates of `increase()`."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self
from urllib.parse import urlencode

from tests.e2e.conftest import get

RANGE = "30m"


def samples(address: str, series: str) -> list[tuple[dict[str, str], list[float]]]:
    """The labels and raw values (of a native histogram, its counts) of every series that matches."""
    status, body = get(f"{address}/api/v1/query?{urlencode({'query': f'{series}[{RANGE}]'})}")
    assert status == 200, body
    matching = []
    for item in body["data"]["result"]:
        values = [float(value) for _, value in item.get("values", [])]
        values += [float(histogram["count"]) for _, histogram in item.get("histograms", [])]
        matching.append((item["metric"], values))
    return matching


def increase(values: Sequence[float]) -> float:
    """What Prometheus counts: the first sample says nothing, and a smaller value is a reset."""
    return sum(after - before if after >= before else after for before, after in itertools.pairwise(values))


def increases(address: str, series: str, labels: Iterable[str]) -> Counter[tuple[str, ...]]:
    """The sum of the increases of all series, by these labels; without those that are 0."""
    counts: Counter[tuple[str, ...]] = Counter()
    for metric, values in samples(address, series):
        counts[tuple(metric[label] for label in labels)] += round(increase(values), 6)  # type: ignore[assignment]
    return Counter({key: value for key, value in counts.items() if value})


class TextProxy:
    """Asks a service for plain text, whatever Prometheus asks it for. Scrape ``/{port}/metrics`` of it."""

    def __init__(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                port = self.path.split("/")[1]
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                headers["Accept"] = "text/plain;version=0.0.4"
                headers.pop("Accept-Encoding", None)
                request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
                try:
                    with urllib.request.urlopen(request, timeout=5) as response:
                        status, kind, body = response.status, response.headers["Content-Type"], response.read()
                except (urllib.error.URLError, OSError):
                    status, kind, body = 502, "text/plain", b""
                # Prometheus may have given up.
                with contextlib.suppress(ConnectionError):
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
